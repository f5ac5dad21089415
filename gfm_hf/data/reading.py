"""Rows -> decoded samples: image, pair, label map or target, held to each other; every error names its file."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.nn import functional as F

from gfm_hf.data.decoding import Record, UnreadableImageError, decode, with_right_bands
from gfm_hf.data.label_maps import IGNORE, Mask, check_ids, open_mask, plain_mask
from gfm_hf.data.rows import Rows


# A mask and its name -> (H, W) ids, 255 = ignore.
MaskReader = Callable[[Any, str], np.ndarray]
TASKS = ("classification", "segmentation", "change", "super_resolution")


@dataclass(frozen=True)
class TaskSample:
    """One decoded sample.

    Attributes:
        index: Position in its part, from 0.
        name: File below its folder, or row.
        images: One (H, W, C) array; two, before and after, for change detection.
        label: Class id, or (K,) float32 multi-hot; classification only.
        label_map: (H, W) ids with 255 = ignore; segmentation and change detection only.
        target: (scale * H, scale * W, C) array; super-resolution only.
    """

    index: int
    name: str
    images: tuple[np.ndarray, ...]
    label: int | np.ndarray | None = None
    label_map: np.ndarray | None = None
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How the rows of a set become samples; one per set.

    Attributes:
        task: One of `TASKS`.
        image_columns: One column, or before and after.
        mask_column: Column of the masks.
        target_column: Column of the high-resolution images; None: the images themselves, lowered by scale.
        num_channels: Bands C of the model.
        rgb_channels: Places of red, green and blue among three bands, for pictures; None is (0, 1, 2).
        nodata: Value that all bands of a pixel without measurement have; such pixels become NaN, images float32.
        mask_values: "ids", or "binary": from 128 on is 1.
        mask_reader: Makes ids of a mask; see `open_task`.
        num_labels: K classes; 0 for super-resolution.
        scale: Target px per image px, a side; 1 but for super-resolution.
    """

    task: str
    image_columns: tuple[str, ...]
    mask_column: str = "mask"
    target_column: str | None = None
    num_channels: int = 3
    rgb_channels: tuple[int, ...] | None = None
    nodata: float | None = None
    mask_values: str = "ids"
    mask_reader: MaskReader | None = field(default=None, repr=False)
    num_labels: int = 0
    scale: int = 1

    def sample(self, rows: Rows, index: int, label: int | np.ndarray | None) -> TaskSample:
        """Decode one row; see `TaskSplit.__getitem__`."""
        named = [self.image(rows, index, column) for column in self.image_columns]
        name, images = named[0][0], tuple(pixels for _, pixels in named)
        if len(images) == 2 and images[0].shape != images[1].shape:
            raise ValueError(
                f"pair {name} is {_size(images[0])} px before and {_size(images[1])} px after; cut both to one size."
            )
        if self.task == "super_resolution":
            return self._with_target(rows, index, name, images[0])
        label_map = self.label_map(rows, index, images[0]) if self.task != "classification" else None
        return TaskSample(index, name, images, label, label_map)

    def image(self, rows: Rows, index: int, column: str) -> tuple[str, np.ndarray]:
        """Decode one image: its name and (H, W, C) array."""
        value = rows.value(index, column)
        if isinstance(value, np.ndarray):
            name, image = f"row {int(rows.positions[index])}", _bands_last(value, self.num_channels)
        else:
            name, image = value.name, _readable(value, self.num_channels)
        pixels = np.asarray(with_right_bands(image, self.num_channels, self.rgb_channels, name))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.nodata is not None:
            missing = (pixels == self.nodata).all(axis=2, keepdims=True)
            pixels = np.where(missing, np.float32(np.nan), pixels).astype(np.float32)
        return name, pixels

    def check_sizes(self, rows: Rows, index: int) -> None:
        """Refuse a row whose parts have sizes that do not go together, as their headers say; decodes nothing else.

        The reader has the last word on rows that look wrong: it may know better, and its sentence is the one to read.

        Raises:
            ValueError: As `sample`.
        """
        other = self.target_column if self.task == "super_resolution" else self.mask_column
        columns = [*self.image_columns, *([other] if other else [])]
        if rows.store.arrays.keys() & set(columns):  # all rows of such a column have one size: the first batch tells
            return
        records = [value for column in columns if isinstance(value := rows.value(index, column), Record)]
        if any(record.data is None and "://" in (record.path or "") for record in records):  # the header is far away
            return
        sizes = [_header_size(record) for record in records]
        if None in sizes or not self._fit(sizes):
            self.sample(rows, index, None)

    def _fit(self, sizes: list[Any]) -> bool:
        """Tell whether these (height, width) of images and mask or target go together."""
        if self.task != "super_resolution":
            return len(set(sizes)) == 1
        return min(sizes[0]) >= self.scale if self.target_column is None else _covers(sizes[0], sizes[1], self.scale)

    def mask(self, rows: Rows, index: int) -> Mask:
        """Decode one mask, bright masks still bright."""
        value = rows.value(index, self.mask_column)
        name = f"of row {int(rows.positions[index])}" if isinstance(value, np.ndarray) else value.name
        try:
            mask = open_mask(value)
        except UnreadableImageError as error:
            raise ValueError(f"mask {name} cannot be read: {error.reason}; replace it.") from error
        if self.mask_reader is None:
            return plain_mask(mask, name)
        ids = self.mask_reader(mask, f"mask {name}")
        return Mask(name, ids, ids != IGNORE)

    def label_map(self, rows: Rows, index: int, image: np.ndarray) -> np.ndarray:
        """Decode one label map and hold it to its image."""
        mask = self.mask(rows, index)
        label_map = mask.label_map(self.mask_values)
        if label_map.shape != image.shape[:2]:
            raise ValueError(
                f"mask {mask.name} is {_size(label_map)} px but its image {_size(image)} px; they have to cover the "
                "same pixels."
            )
        check_ids(label_map, self.num_labels, mask.name, fixed=self.task == "change")
        return label_map

    def _with_target(self, rows: Rows, index: int, name: str, image: np.ndarray) -> TaskSample:
        """Pair a low-resolution image with its target, or make it from one."""
        if self.target_column is None:
            height, width = (length // self.scale * self.scale for length in image.shape[:2])
            if not min(height, width):
                raise ValueError(f"image {name} is {_size(image)} px, too small to be lowered by {self.scale}.")
            target = image[:height, :width]
            return TaskSample(index, name, (_lowered(target, self.scale),), target=target)
        target_name, target = self.image(rows, index, self.target_column)
        if not _covers(image.shape[:2], target.shape[:2], self.scale):
            raise ValueError(
                f"target {target_name} is {_size(target)} px but {self.scale} times its image is "
                f"{self.scale * image.shape[0]} x {self.scale * image.shape[1]} px; check the pair and scale."
            )
        # Whole pixels of both are kept, from the top left.
        low = [min(length, have // self.scale) for length, have in zip(image.shape[:2], target.shape[:2])]
        target = target[: low[0] * self.scale, : low[1] * self.scale]
        return TaskSample(index, name, (image[: low[0], : low[1]],), target=target)


def _covers(image: tuple[int, ...], target: tuple[int, ...], scale: int) -> bool:
    """Tell whether two (height, width) are a pair; 162 px at 1.24 m and 650 px at 0.30 m are one too."""
    return all(abs(have - scale * low) < scale for low, have in zip(image, target))


def _header_size(record: Record) -> tuple[int, int] | None:
    """Read (height, width) of an encoded image without decoding it; None where no header can be read."""
    source: Any = record.path if record.data is None else io.BytesIO(record.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no news
        try:
            with Image.open(source) as image:
                # Elsewhere the tag is unusual, and in PNG it may stand behind the pixels.
                turned = image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.size if turned else (image.height, image.width)
        except Exception:  # as in `decode`: Pillow raises nearly anything
            return _raster_size(source)


def _raster_size(source: Any) -> tuple[int, int] | None:
    """Do the same for a TIFF that only rasterio can read; other drivers might follow a file to further ones."""
    try:
        import rasterio

        with rasterio.open(source, driver="GTiff") as raster:
            return raster.height, raster.width
    except Exception:  # whatever it is, the reader says it better
        return None


def _readable(record: Record, num_channels: int) -> Any:
    """Decode an image; one that cannot be read ends the run, since every sample of a labelled set counts."""
    try:
        return decode(record, num_channels)
    except UnreadableImageError as error:
        raise ValueError(f"{error}; replace it, or take it out of the set.") from error


def _bands_last(image: np.ndarray, num_channels: int) -> np.ndarray:
    """(C, H, W), (H, W, C) or (H, W) -> (H, W, C).

    The axis that has the model's number of bands is theirs, the first one where both have; of others the shorter one.
    """
    if image.ndim == 2:
        return image[..., None]
    first, last = image.shape[0], image.shape[2]
    bands_first = first == num_channels or (last != num_channels and first < last)
    return image.transpose(1, 2, 0) if bands_first else image


def _lowered(image: np.ndarray, scale: int) -> np.ndarray:
    """(scale * h, scale * w, C) -> (h, w, C) of the same dtype, bicubic with antialiasing."""
    exact = torch.from_numpy(image.transpose(2, 0, 1).astype(np.promote_types(image.dtype, np.float32)))
    size = (image.shape[0] // scale, image.shape[1] // scale)
    low = F.interpolate(exact[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0].numpy()
    if image.dtype.kind in "ui":
        info = np.iinfo(image.dtype)
        low = low.round().clip(info.min, info.max)  # bicubic overshoots at edges
    return np.ascontiguousarray(low.transpose(1, 2, 0).astype(image.dtype))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"
