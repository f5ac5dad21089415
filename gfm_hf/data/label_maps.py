"""Masks as they lie in files -> label maps; nothing here looks at images."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from gfm_hf.data.decoding import Record, decode, encoded_bytes


IGNORE = 255
# How the values of a mask are meant; "auto" finds out from all masks of a set.
MASK_VALUES = ("auto", "ids", "binary")


def open_mask(record: Record | np.ndarray) -> Image.Image | np.ndarray:
    """Decode a mask and change nothing about its values.

    Args:
        record: The encoded mask, or an array, which is returned as it is.

    Returns:
        Upright PIL image of any mode, or an array (H, W) or (H, W, C) where only rasterio can read the file.

    Raises:
        UnreadableImageError: The file cannot be read.
    """
    if isinstance(record, np.ndarray):
        return record
    data = encoded_bytes(record)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly anything; what follows reads the file, or names the reason
        return np.asarray(decode(record, num_channels=0))


def plain_ids(mask: Image.Image | np.ndarray, name: str) -> np.ndarray:
    """Take the values of a mask as ids, also those of a palette.

    Args:
        mask: What `open_mask` returns.
        name: What an error calls it.

    Returns:
        (H, W) whole numbers.

    Raises:
        ValueError: The mask holds colours, several bands or fractions.
    """
    pixels = np.asarray(mask)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):  # alpha says nothing about a label
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():  # grey, stored as colour
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise ValueError(
            f"mask {name} is in colour or has {pixels.shape[2]} bands but ids are expected; pass a mask_reader, such as "
            "read_label_map of a processor with a palette, or store ids."
        )
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    return _whole_numbers(pixels, name) if pixels.dtype.kind == "f" else pixels


def _whole_numbers(pixels: np.ndarray, name: str) -> np.ndarray:
    """Turn ids stored as floats into int32; NaN becomes the id to ignore."""
    ids = np.where(np.isnan(pixels), IGNORE, pixels)
    if not np.isfinite(ids).all() or (ids != ids.round()).any() or np.abs(ids).max() > 2**30:
        raise ValueError(f"mask {name} holds fractions or infinite values; store whole class ids, such as 0, 1, 2.")
    return ids.astype(np.int32)


def check_ids(label_map: np.ndarray, num_labels: int, name: str) -> None:
    """Refuse ids that no class has.

    Args:
        label_map: (H, W) ids, 255 = ignore.
        num_labels: K.
        name: What an error calls the map.

    Raises:
        ValueError: An id is below 0, or from K on and not 255.
    """
    wrong = label_map[((label_map < 0) | (label_map >= num_labels)) & (label_map != IGNORE)]
    if wrong.size:
        raise ValueError(
            f"mask {name} holds the id {int(wrong[0])} ({wrong.size} px) but there are {num_labels} classes, 0 to "
            f'{num_labels - 1}, and {IGNORE} to ignore; correct the mask, num_labels, or pass mask_values="binary" if '
            "bright means yes."
        )


def survey(maps: Iterable[np.ndarray], mask_values: str = "auto") -> tuple[str, np.ndarray]:
    """Find out how the values of a set's masks are meant; looks at all of them.

    255 alone beside 0 is "yes" (a mask of nothing but background and ignored pixels would teach nothing); beside
    other ids it is "ignore".

    Args:
        maps: (H, W) ids of the whole set.
        mask_values: "ids" where that is known already, and only the ids that occur are asked for.

    Returns:
        "ids" or "binary", and the ids that occur, 255 left out.
    """
    found: set[int] = set()
    for ids in maps:
        found.update(np.unique(ids).tolist())
    if mask_values == "auto" and found == {0, IGNORE}:
        return "binary", np.array([0, 1])
    return "ids", np.array(sorted(found - {IGNORE}), dtype=np.int64)


def two_classes(ids: np.ndarray) -> np.ndarray:
    """Make a bright mask, clean or soft at its edges, one of 0 and 1: 128 and above is 1."""
    return (ids >= 128).astype(np.uint8)
