"""Masks of any kind -> class ids of every pixel, and logits -> maps.

The same bytes mean different things in different sets: 255 is "change" in one and "nothing known" in the next, a
palette index is an id here and a mere colour there. So nothing is guessed from the values; what they mean is a setting.

Shapes: B maps, K classes, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Modes whose only channel holds ids or levels as they are; in P these are the palette's indices.
PLAIN_MODES = ("1", "L", "P", "I", "F")


@dataclass
class MapSettings:
    """What the values of masks mean; building it checks the settings against each other.

    Attributes:
        ignore_index: Id of pixels about which nothing is known.
        do_reduce_labels: 0 becomes `ignore_index` and every other id one less.
        palette: (K, 3) RGB colours of colour-coded masks; the id is the position.
        palette_tolerance: Largest difference a channel for which a colour counts as the nearest of the palette.
        mask_threshold: Value from which a pixel of a two-class mask is 1.
        num_labels: Number of classes; ids beyond are refused.
        nodata: Value of image pixels without data; "nan" for NaN alone.
    """

    ignore_index: int
    do_reduce_labels: bool
    palette: Any
    palette_tolerance: int
    mask_threshold: float | None
    num_labels: int | None
    nodata: Any

    def __post_init__(self) -> None:
        self.palette = _checked_palette(self.palette)
        self.nodata = _checked_nodata(self.nodata)
        if self.palette_tolerance < 0:
            raise ValueError(
                f"palette_tolerance is {self.palette_tolerance} but must be 0 or more; pass for example 16."
            )
        if self.mask_threshold is not None and not (np.isfinite(self.mask_threshold) and self.mask_threshold > 0):
            raise ValueError(
                f"mask_threshold is {self.mask_threshold} but must be above 0; pass 128 for masks of 0/255."
            )
        if self.mask_threshold is not None and self.do_reduce_labels:
            raise ValueError(
                "mask_threshold and do_reduce_labels are both set, which leaves class 0 and ignored pixels; pass one."
            )
        if self.num_labels is not None and not (self.num_labels > 0 and self._outside(self.ignore_index)):
            raise ValueError(
                f"num_labels is {self.num_labels} and ignore_index {self.ignore_index}, but the latter must not be one "
                f"of the classes 0 to {self.num_labels - 1}; pass another ignore_index, such as -100."
            )

    def _outside(self, label: int) -> bool:
        return self.num_labels is None or not 0 <= label < self.num_labels


def _checked_palette(palette: Any) -> tuple[tuple[int, ...], ...] | None:
    """Check a list of RGB colours."""
    if palette is None:
        return None
    colours = np.asarray(palette)
    shaped = colours.ndim == 2 and colours.shape[1] == 3 and colours.dtype.kind in "iu"
    if not shaped or colours.min() < 0 or colours.max() > 255 or len(np.unique(colours, axis=0)) != len(colours):
        raise ValueError(
            f"palette is {palette!r} but must be a list of different RGB colours of 0 to 255, the colour of id 0 "
            f"first; pass for example [[0, 0, 0], [255, 255, 255]]."
        )
    return tuple(tuple(int(level) for level in colour) for colour in colours)


def _checked_nodata(nodata: Any) -> float | int | str | None:
    """Check the nodata value; NaN becomes a word because JSON has no NaN."""
    if nodata is None or nodata == "nan":
        return nodata
    if isinstance(nodata, bool) or not isinstance(nodata, (int, float, np.integer, np.floating)):
        raise ValueError(f'nodata is {nodata!r} but must be a number or "nan"; pass the value that the raster names.')
    if np.isnan(nodata):
        return "nan"
    return int(nodata) if isinstance(nodata, (int, np.integer)) else float(nodata)


# --- masks -> ids ----------------------------------------------------------------------------------------------------


def read_maps(
    segmentation_maps: Any,
    sizes: Sequence[tuple[int, ...]],
    image_names: Sequence[str],
    settings: MapSettings,
    are_ids: bool,
) -> list[np.ndarray]:
    """Turn the masks of a batch into class ids.

    Args:
        segmentation_maps: One mask, a batch array or a list.
        sizes: Height and width of each image, in pixels.
        image_names: What errors call the images.
        settings: What the masks' values mean.
        are_ids: They are ids already, and only checked.

    Returns:
        B arrays (H, W) int64.

    Raises:
        ValueError: There is not one mask per image, or one has another size than its image or is not readable as ids.
    """
    labels = []
    for index, segmentation_map in enumerate(_map_list(segmentation_maps, len(sizes))):
        file = getattr(segmentation_map, "filename", "")
        name = f"label map {index} ({file})" if file else f"label map {index}"
        ids = (final_ids if are_ids else read_ids)(segmentation_map, settings, name)
        if ids.shape != sizes[index]:
            raise ValueError(
                f"{name} has size {ids.shape} but {image_names[index].rstrip(',')} has {sizes[index]} (height, width); "
                f"pass the map of this image at its full size, the processor resizes both."
            )
        labels.append(ids)
    return labels


def _map_list(maps: Any, count: int) -> list[Any]:
    """One map, a batch array or a list -> list of `count` maps."""
    if isinstance(maps, (np.ndarray, torch.Tensor)) and (
        maps.ndim == 4 or (maps.ndim == 3 and len(maps) == count > 1)
    ):
        maps = list(maps)
    elif not isinstance(maps, (list, tuple)):
        maps = [maps]
    if len(maps) != count:
        raise ValueError(
            f"segmentation_maps holds {len(maps)} maps but there are {count} images; pass one map per image, or per pair."
        )
    return list(maps)


def read_ids(segmentation_map: Any, settings: MapSettings, name: str) -> np.ndarray:
    """Turn one mask into class ids.

    Args:
        segmentation_map: PIL image, or array (H, W), (1, H, W), (H, W, 1) or with 3 or 4 colour channels.
        settings: What its values mean.
        name: What an error calls it.

    Returns:
        (H, W) int64; `settings.ignore_index` where nothing is known, which includes transparent and NaN pixels.

    Raises:
        ValueError: The mask has another shape, unknown colours, fractions or ids that no class has.
    """
    values, known = _values(segmentation_map, settings.palette is not None, name)
    if values.ndim == 3:
        ids = _colour_ids(values, known, settings, name)
    elif settings.mask_threshold is not None:
        ids = _two_classes(np.where(known, values, 0), settings, name)
    else:
        ids = _whole_ids(values, known, name)
        _warn_of_ignored_class(ids, settings, name)
    known = known & (ids != settings.ignore_index)
    if settings.do_reduce_labels:
        known, ids = known & (ids != 0), ids - 1
    ids = np.where(known, ids, settings.ignore_index)
    check_ids(ids, settings, name)
    return ids


def check_ids(ids: np.ndarray, settings: MapSettings, name: str) -> None:
    """Refuse ids that no class has.

    Args:
        ids: (H, W) whole numbers.
        settings: Number of classes (else the palette's) and the id to ignore.
        name: What an error calls the map.

    Raises:
        ValueError: An id is negative or too high and not `ignore_index`.
    """
    count = settings.num_labels
    if count is None and settings.palette is not None:
        count = len(settings.palette) - settings.do_reduce_labels
    wrong = ids < 0 if count is None else (ids < 0) | (ids >= count)
    wrong &= ids != settings.ignore_index
    if wrong.any():
        classes = "0 and above" if count is None else f"0 to {count - 1}"
        raise ValueError(
            f"{name} holds the ids {np.unique(ids[wrong])[:8].tolist()} in {_share(wrong)} of its pixels but the classes "
            f"are {classes}, and {settings.ignore_index} to ignore; correct the map or num_labels, or set "
            f"mask_threshold, palette or do_reduce_labels to say what its values mean."
        )


def final_ids(segmentation_map: Any, settings: MapSettings, name: str) -> np.ndarray:
    """Take ids that `read_ids` has returned before, checked but not interpreted again: (H, W) int64."""
    values, known = _values(segmentation_map, False, name)
    if values.ndim == 3:
        raise ValueError(f"{name} holds colours but maps_are_ids=True was passed; leave it out to use the palette.")
    ids = np.where(known, _whole_ids(values, known, name), settings.ignore_index)
    check_ids(ids, settings, name)
    return ids


def fit_ids(
    ids: np.ndarray, holes: Sequence[torch.Tensor | None], ignore_index: int, size: tuple[int, int] | None
) -> np.ndarray:
    """Ignore what lies in holes of the image, or of either date of a pair; then follow the image's resize.

    Args:
        ids: (H, W).
        holes: (H, W) bool, True = no data; None where nothing is missing.
        ignore_index: Label of what is missing.
        size: New height and width in pixels, or None.

    Returns:
        (H, W) at the new size.
    """
    for missing in holes:
        if missing is not None:
            ids = np.where(missing.cpu().numpy(), ignore_index, ids)
    return ids if size is None else resize_nearest(ids, *size)


def resize_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) without mixing values, by pixel centres.

    A resized pixel takes the value below its own centre, as PIL's NEAREST does and as an image's bilinear resize is
    aligned; torch's mode "nearest" takes the one below its corner, half a pixel off.
    """
    # Whole numbers: centres that lie between two values are not left to rounding errors.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(values.shape, (height, width), strict=True)
    )
    return values[rows[:, None], columns]


def _values(segmentation_map: Any, by_colour: bool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mask -> (H, W) values or (H, W, 3) colours, and (H, W) bool, False where a pixel says nothing."""
    if isinstance(segmentation_map, Image.Image):
        values = _picture_values(segmentation_map, by_colour)
    else:
        values = _array_values(segmentation_map, name)
    known = np.ones(values.shape[:2], dtype=bool)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        known, values = values[..., -1] != 0, values[..., :-1]
        if not known.all():
            logger.warning_once(f"{name} is transparent in {_share(~known)} of its pixels; their labels are ignored.")
    if values.ndim == 3 and (not by_colour or values.shape[2] == 1):
        values = _one_channel(values, name)
    if values.ndim == 2 and values.dtype.kind == "f":
        known = known & ~np.isnan(values)
    return values, known


def _picture_values(picture: Image.Image, by_colour: bool) -> np.ndarray:
    """PIL image -> (H, W), or (H, W, 2 to 4) with alpha last; indices of a palette stay ids unless colours count."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("P", "PA") and by_colour:
        picture = picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")
    straight = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)  # premultiplied alpha is no colour of any palette
    if straight is not None:
        picture = picture.convert(straight)
    elif not picture.mode.startswith("I;16") and picture.mode not in (*PLAIN_MODES, "LA", "PA", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    values = np.asarray(picture)
    return values.astype(np.uint8) if values.dtype == bool else values


def _array_values(array: Any, name: str) -> np.ndarray:
    """NumPy array or tensor -> (H, W) or (H, W, 3 or 4)."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = f"{type(array).__name__} of {array.dtype}" if hasattr(array, "dtype") else type(array).__name__
        raise ValueError(
            f"{name} is a {kind} but must be a PIL image or a NumPy or torch array of whole numbers; open files with "
            f"PIL.Image.open and turn lists of numbers into np.asarray(...) first."
        )
    values = array.astype(np.uint8) if array.dtype == bool else array
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim == 3 and (values.shape[0] in (3, 4)) != (values.shape[2] in (3, 4)):
        values = values if values.shape[2] in (3, 4) else values.transpose(1, 2, 0)
    elif values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)} but (H, W) ids or (H, W, 3) colours were expected; pass the argmax "
            f"of one-hot maps, and colours with the channels last."
        )
    return values


def _one_channel(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W, C) of equal channels -> (H, W)."""
    if (values == values[..., :1]).all():
        return values[..., 0]
    raise ValueError(
        f"{name} is colour-coded but the processor has no palette; pass palette=[[R, G, B], ...] with the colour of "
        f"id 0 first."
    )


def _whole_ids(values: np.ndarray, known: np.ndarray, name: str) -> np.ndarray:
    """(H, W) of any type -> int64, arbitrary where unknown."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    values = np.where(known, values, 0)
    wrong = ~(np.abs(values) < 2**53) | (values != np.round(values))
    if wrong.any():
        raise ValueError(
            f"{name} holds fractions or infinite values, such as {values[wrong][0]:.4g}, in {_share(wrong)} of its "
            f"pixels; store whole class ids, or pass mask_threshold=0.5 for a two-class mask of probabilities."
        )
    return values.astype(np.int64)


def _two_classes(values: np.ndarray, settings: MapSettings, name: str) -> np.ndarray:
    """(H, W) levels -> 1 from the threshold on, else 0; masks that hold 0 and 1 already stay as they are."""
    threshold = settings.mask_threshold
    assert threshold is not None
    if threshold > 1 and bool(np.isin(values, (0, 1)).all()):
        return values.astype(np.int64)
    if threshold > 1 and values.dtype.kind == "f" and values.max() <= 1:
        raise ValueError(
            f"{name} holds fractions of at most 1, all below mask_threshold={threshold:g}; pass mask_threshold=0.5."
        )
    ids_and_ignored = np.isin(values, (0, 1, settings.ignore_index)).all()
    if threshold > 1 and ids_and_ignored and (values == 1).any() and (values == settings.ignore_index).any():
        raise ValueError(
            f"{name} holds just 0, 1 and {settings.ignore_index}: ids with ignored pixels, or levels? For ids build the "
            f"processor with mask_threshold=None; levels have to be cleaned to 0 and 255 first."
        )
    return (values >= threshold).astype(np.int64)


def _colour_ids(colours: np.ndarray, known: np.ndarray, settings: MapSettings, name: str) -> np.ndarray:
    """(H, W, 3) colours -> (H, W) int64 positions in the palette, arbitrary where unknown."""
    if colours.dtype.kind == "f" or colours.min() < 0 or colours.max() > 255:
        raise ValueError(f"{name} has colours of type {colours.dtype}, but 0 to 255 as whole numbers was expected.")
    palette = np.asarray(settings.palette, dtype=np.int64)
    codes, table = _codes(colours), _codes(palette)
    ids = np.full(codes.shape, -1, dtype=np.int64)
    for label, code in enumerate(table):
        ids[codes == code] = label
    strange = (ids < 0) & known
    if strange.any():
        ids[strange] = _nearest_colours(codes[strange], palette, settings.palette_tolerance, strange.size, name)
    return ids


def _codes(colours: np.ndarray) -> np.ndarray:
    """(..., 3) colours of 0 to 255 -> (...) one number each."""
    channels = colours.astype(np.int32)
    return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


def _nearest_colours(codes: np.ndarray, palette: np.ndarray, tolerance: int, pixels: int, name: str) -> np.ndarray:
    """(M,) codes that are not in the palette -> (M,) positions of the nearest colours within the tolerance."""
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, (found >> 8) & 255, found & 255], axis=1)
    nearest = np.empty(len(found), dtype=np.int64)
    far = np.empty(len(found), dtype=bool)
    for start in range(0, len(found), 4096):  # a mask stored as JPEG has up to as many colours as pixels
        part = slice(start, start + 4096)
        difference = np.abs(colours[part, None] - palette[None])
        nearest[part] = (difference**2).sum(axis=2).argmin(axis=1)
        far[part] = difference[np.arange(len(difference)), nearest[part]].max(axis=1) > tolerance
    if far.any():
        worst = np.where(far, counts, 0).argmax()
        raise ValueError(
            f"{name} holds the colour {tuple(colours[worst].tolist())}, and unknown colours in "
            f"{counts[far].sum() / pixels:.3%} of its pixels; add what is missing to the palette, or pass a "
            f"palette_tolerance above {tolerance} for masks that were stored as JPEG."
        )
    return nearest[inverse.ravel()]


def _warn_of_ignored_class(ids: np.ndarray, settings: MapSettings, name: str) -> None:
    """Say once that a mask of 0 and 255 alone, read as ids, has one class and is ignored elsewhere."""
    ignored = ids == settings.ignore_index
    if settings.ignore_index == 255 and ignored.any() and (ignored | (ids == 0)).all() and not ignored.all():
        logger.warning_once(
            f"{name} holds 0 and 255 alone and is read as class 0 with {_share(ignored)} ignored pixels; pass "
            f"mask_threshold=128 if 255 is class 1."
        )


def _share(chosen: np.ndarray) -> str:
    return f"{chosen.mean():.3%}"


# --- logits -> maps --------------------------------------------------------------------------------------------------


def logits_of(outputs: Any) -> torch.Tensor:
    """(B, K, H, W) float32 logits of a model's output, a dictionary or the tensor itself."""
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
    if logits.ndim != 4:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} but (B, K, H, W) was expected; pass the output of a model that "
            f"labels pixels."
        )
    return logits.detach().float()


def resized_logits(logits: torch.Tensor, target_sizes: Any) -> list[torch.Tensor]:
    """Bring logits to the size of the images they belong to, before any decision: no stairs in the maps.

    Args:
        logits: (B, K, h, w).
        target_sizes: B pairs (height, width), a (B, 2) tensor, or None to leave the sizes.

    Returns:
        B tensors (K, H, W).

    Raises:
        ValueError: There is not one pair per image.
    """
    if target_sizes is None:
        return list(logits)
    sizes = target_sizes.tolist() if isinstance(target_sizes, (torch.Tensor, np.ndarray)) else list(target_sizes)
    if len(sizes) != len(logits) or any(len(tuple(size)) != 2 for size in sizes):
        raise ValueError(
            f"target_sizes is {sizes} but logits holds {len(logits)} images; pass one (height, width) per image."
        )
    return [_resized(image, (int(size[0]), int(size[1]))) for image, size in zip(logits, sizes, strict=True)]


def _resized(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def change_probability(logits: torch.Tensor) -> torch.Tensor:
    """(K, H, W) logits -> (H, W) probability that a pixel is of any class but 0; a single logit is the change's."""
    return logits[0].sigmoid() if len(logits) == 1 else logits.softmax(dim=0)[1:].sum(dim=0)


def checked_threshold(threshold: float) -> float:
    """Refuse probabilities outside 0..1 as threshold."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold} but must be a probability in [0, 1]; pass for example 0.5.")
    return threshold


def raw_values(values: torch.Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    """Values in the unit of the files -> array of a type: integers are rounded and kept inside the type's range.

    Args:
        values: (..., C, H, W) float.
        dtype: Type of the result.

    Returns:
        (..., H, W, C).

    Raises:
        ValueError: Values are not finite and the type has no place for that.
    """
    array = values.detach().cpu().double().movedim(-3, -1).numpy()
    if dtype.kind == "f":
        return array.astype(dtype)
    if not np.isfinite(array).all():
        raise ValueError(
            f"the reconstruction holds NaN or infinite values, which {dtype} cannot; check the model, or pass "
            f'dtype="float32".'
        )
    info = np.iinfo(dtype)
    return np.clip(np.round(array), info.min, info.max).astype(dtype)


def picture_of(array: np.ndarray, order: Sequence[int] | None) -> Image.Image:
    """(H, W, C) uint8 -> PIL image.

    Args:
        array: Levels of 1 or 3 bands.
        order: Which of R, G, B each of three bands is; None for that order.

    Raises:
        ValueError: It is no 8-bit picture.
    """
    if array.dtype != np.uint8 or array.shape[2] not in (1, 3):
        raise ValueError(
            f"a result of {array.shape[2]} bands of {array.dtype} is no 8-bit picture; pass output_type='np' for arrays."
        )
    if array.shape[2] == 1:
        return Image.fromarray(array[..., 0])
    places = range(3) if order is None else [list(order).index(colour) for colour in range(3)]
    return Image.fromarray(np.ascontiguousarray(array[..., list(places)]))
