"""Masks as they lie in files -> label maps; nothing here looks at images."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from gfm_hf.data.decoding import Record, decode, encoded_bytes


IGNORE = 255
# How the values of a mask are meant; "auto" finds out from all masks of a set.
MASK_VALUES = ("auto", "ids", "binary")
# From here on a level of a binary mask is 1.
BRIGHT = 128
# Modes of Pillow that an array keeps with its meaning; of others such as CMYK the last band is no alpha.
_KEPT_MODES = frozenset({"1", "L", "P", "I", "F", "LA", "PA", "RGB", "RGBA"})


@dataclass(frozen=True)
class Mask:
    """The values of one mask, not yet interpreted.

    Attributes:
        name: What an error calls it.
        values: (H, W) whole numbers, arbitrary where nothing is known.
        known: (H, W) bool, False where a pixel says nothing: transparent, or NaN.
        lossy: Stored as JPEG, which changes values.
    """

    name: str
    values: np.ndarray
    known: np.ndarray
    lossy: bool = False

    def label_map(self, mask_values: str) -> np.ndarray:
        """Interpret them: (H, W) ids, 255 = ignore.

        Args:
            mask_values: "ids", or "binary": 128 and above is 1.
        """
        ids = two_classes(self.values) if mask_values == "binary" else self.values
        if self.known.all():
            return ids
        return np.where(self.known, ids.astype(np.promote_types(ids.dtype, np.uint8)), IGNORE)


def open_mask(record: Record | np.ndarray) -> Image.Image | np.ndarray:
    """Decode a mask and change nothing about its values.

    Args:
        record: The encoded mask, or an array, which is returned as it is.

    Returns:
        Upright PIL image of any mode that knows its `format`, or an array (H, W) or (H, W, C) where only rasterio can
        read the file.

    Raises:
        UnreadableImageError: The file cannot be read.
    """
    if isinstance(record, np.ndarray):
        return record
    data = encoded_bytes(record)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format  # a copy forgets it
            return upright
    except Exception:  # Pillow raises nearly anything; what follows reads the file, or names the reason
        return np.asarray(decode(record, num_channels=0))


def plain_mask(mask: Image.Image | np.ndarray, name: str) -> Mask:
    """Take the values of a mask as they are, also those of a palette.

    Args:
        mask: What `open_mask` returns.
        name: What an error calls it.

    Raises:
        ValueError: The mask holds colours, several bands or fractions.
    """
    pixels = _pixels(mask)
    known = np.ones(pixels.shape[:2], dtype=bool)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        known, pixels = pixels[..., -1] != 0, pixels[..., :-1]
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():  # grey, stored as colour
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise ValueError(
            f"mask {name} is in colour or has {pixels.shape[2]} bands but ids are expected; pass --palette with the "
            "colours of the classes in turn, and a --palette_tolerance for JPEG, or store ids in one band."
        )
    if pixels.dtype.kind == "f":
        known = known & ~np.isnan(pixels)
        pixels = _whole_numbers(np.where(known, pixels, 0), name)
    lossy = getattr(mask, "format", None) in ("JPEG", "MPO")
    return Mask(name, pixels.astype(np.uint8) if pixels.dtype == bool else pixels, known, lossy)


def _pixels(mask: Image.Image | np.ndarray) -> np.ndarray:
    """Make an array (H, W) or (H, W, C) whose last of 2 or 4 bands is alpha."""
    if isinstance(mask, Image.Image) and mask.mode not in _KEPT_MODES and not mask.mode.startswith("I;16"):
        mask = mask.convert({"La": "LA", "RGBa": "RGBA"}.get(mask.mode, "RGB"))
    return np.asarray(mask)


def _whole_numbers(pixels: np.ndarray, name: str) -> np.ndarray:
    """Turn ids stored as floats into int32."""
    if not np.isfinite(pixels).all() or (pixels != pixels.round()).any() or np.abs(pixels).max(initial=0) > 2**30:
        raise ValueError(
            f"mask {name} holds fractions or infinite values; store whole class ids, such as 0, 1, 2, or pass "
            "--mask_threshold 0.5 for probabilities of one class."
        )
    return pixels.astype(np.int32)


def check_ids(label_map: np.ndarray, num_labels: int, name: str, fixed: bool = False) -> None:
    """Refuse ids that no class has.

    Args:
        label_map: (H, W) ids, 255 = ignore.
        num_labels: K.
        name: What an error calls the map.
        fixed: The task has K classes, whatever the set.

    Raises:
        ValueError: An id is below 0, or from K on and not 255.
    """
    wrong = label_map[((label_map < 0) | (label_map >= num_labels)) & (label_map != IGNORE)]
    if wrong.size:
        raise ValueError(
            f"mask {name} holds the id {int(wrong[0])} ({wrong.size} px) but there are {num_labels} classes, 0 to "
            f"{num_labels - 1}, and {IGNORE} to ignore; correct the mask{'' if fixed else ' or --num_labels'}, or pass "
            f"--mask_values binary if from {BRIGHT} on is 1, or --mask_threshold V if from V on."
        )


@dataclass(frozen=True)
class Survey:
    """What the masks of a set hold.

    Attributes:
        mask_values: How they are meant: "ids" or "binary".
        files: Id, 255 left out -> first mask with it.
        lossy: First mask that is stored as JPEG, if any.
        gaps: Some pixels are transparent or NaN.
    """

    mask_values: str
    files: dict[int, str]
    lossy: str | None
    gaps: bool

    @property
    def ids(self) -> list[int]:
        """Those that occur, sorted."""
        return sorted(self.files)


def survey(masks: Iterable[Mask], mask_values: str = "auto") -> Survey:
    """Find out how the values of a set's masks are meant; looks at all of them.

    255 alone beside 0 is "yes" (a mask of nothing but background and ignored pixels would teach nothing); beside
    other ids it is "ignore".

    Args:
        masks: Those of the whole set.
        mask_values: "ids" where that is known already, and only the ids that occur are asked for.
    """
    files: dict[int, str] = {}
    lossy, gaps = None, False
    for mask in masks:
        for value in np.unique(mask.values[mask.known]).tolist():
            files.setdefault(value, mask.name)
        lossy = lossy or (mask.name if mask.lossy else None)
        gaps = gaps or not mask.known.all()
    if mask_values == "auto" and files.keys() == {0, IGNORE}:
        return Survey("binary", {0: files[0], 1: files[IGNORE]}, lossy, gaps)
    files.pop(IGNORE, None)
    return Survey("ids", files, lossy, gaps)


def check_number_of_ids(found: Survey) -> None:
    """Refuse masks that teach nothing.

    Raises:
        ValueError: Fewer than two ids occur.
    """
    if len(found.files) < 2:
        told = f"1 class, {found.ids[0]}" if found.files else "no class"
        ignored = f"{IGNORE}, transparent pixels and NaN are" if found.gaps else f"{IGNORE} is"
        raise ValueError(
            f"the masks hold {told} ({ignored} ignored); at least two are needed, so check what they hold."
        )


def check_plausible(found: Survey) -> None:
    """Refuse values that are hardly ids, before each of them becomes a class.

    That is: values in JPEG files unless they are two levels; values below 0; more than 128 of them; and values up to
    more than 20 of which most are missing, such as 0, 100, 200. Above 254 one of the last two is always true.

    Raises:
        ValueError: They are such values; the message names a mask and the ways out.
    """
    largest, count = max(found.ids), len(found.files)
    sparse = largest > 20 and largest + 1 > 2 * count
    if found.ids[0] < 0:
        name, why = found.files[found.ids[0]], f"holds {found.ids[0]}, but ids begin with 0 (and {IGNORE} is ignored)"
    elif found.mask_values == "ids" and found.lossy:
        name, why = found.lossy, f"is a JPEG, which changes values, and all masks hold {count} of them up to {largest}"
    elif count > 128 or sparse:
        name, why = found.files[largest], f"holds {largest}, and all masks {count} different values: hardly class ids"
    else:
        return
    ids = f", or --num_labels {largest + 1} if they are ids" if found.ids[0] >= 0 else ", or correct the ids"
    raise ValueError(
        f"mask {name} {why}; pass --mask_values binary if from {BRIGHT} on is 1, --mask_threshold V if from V on, "
        f"--palette if they are colours{ids}."
    )


def check_bright(masks: Iterable[Mask]) -> None:
    """Refuse masks of which "binary" would make 0 everywhere; looks no further than the first pixel that is 1.

    Raises:
        ValueError: Values above 0 occur, and none from 128 on.
    """
    faint, largest = "", 0
    for mask in masks:
        here = int(mask.values[mask.known].max(initial=0))
        if here >= BRIGHT:
            return
        if here > largest:
            faint, largest = mask.name, here
    if faint:
        raise ValueError(
            f"mask {faint} holds {largest} and no mask anything above, but with --mask_values binary class 1 begins at "
            f"{BRIGHT}; pass --mask_values ids if these are class ids, or --mask_threshold 1 if all above 0 is class 1."
        )


def two_classes(ids: np.ndarray) -> np.ndarray:
    """Make a bright mask, clean or soft at its edges, one of 0 and 1: 128 and above is 1."""
    return (ids >= BRIGHT).astype(np.uint8)
