"""Random crops for training and fixed views for evaluation, for 8-bit pictures and for rasters of any band count.

A picture is a PIL image in mode L or RGB; a raster is an (H, W, C) array of any real dtype. Every function that cuts
takes a box and every function that draws returns one, so one draw can serve several images of the same ground.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gfm_hf.data.seeding import CROP_STREAM, sample_rng


Box = tuple[int, int, int, int]  # top, left, height, width in px
CROP_SCALE = (0.67, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Draw a random rectangle inside an image.

    Area is uniform in scale, the aspect ratio log-uniform. After ten rectangles that do not fit, the largest centred
    one whose aspect ratio is allowed.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        rng: Source of the draws.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.

    Returns:
        (top, left, height, width) in px, inside the image, at least 1 px a side.

    Source: the rule of torchvision's RandomResizedCrop, which the authors use.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return int(top), int(left), rows, columns
    return _centre_box(height, width, ratio)


def crop_and_flip(
    image: Image.Image | np.ndarray,
    index: int,
    epoch: int,
    seed: int,
    size: int,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> np.ndarray:
    """Cut the random training view of one image: crop, resize, mirror left-right half of the time.

    Args:
        image: PIL image in mode L or RGB, or (H, W, C) array.
        index: Position of the image in its dataset.
        epoch: Pass over the data, from 0; each pass cuts another view.
        seed: Seed of the run.
        size: Side of the view in px.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height of the crop.

    Returns:
        (C, size, size) array in the image's dtype.

    Source: GFM data/data_simmim.py (RandomResizedCrop, RandomHorizontalFlip; no colour change).
    """
    rng = sample_rng(seed, epoch, index, CROP_STREAM)
    height, width = image_size(image)
    view = cut(image, crop_box(height, width, rng, scale, ratio), size)
    return np.ascontiguousarray(view[:, :, ::-1]) if rng.random() < 0.5 else view


def centre_view(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Cut the fixed evaluation view of one image: its largest centred square, resized.

    Args:
        image: PIL image in mode L or RGB, or (H, W, C) array.
        size: Side of the view in px.

    Returns:
        (C, size, size) array in the image's dtype.
    """
    height, width = image_size(image)
    return cut(image, _centre_box(height, width, (1.0, 1.0)), size)


def cut(image: Image.Image | np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut a rectangle and resize it to a square, bilinear with antialiasing.

    Pixels outside the rectangle have no influence. Integers are rounded back to their dtype. Both kinds of image give
    the same uint8 values, which are Pillow's within one grey level.

    Args:
        image: PIL image in mode L or RGB, or (H, W, C) array.
        box: (top, left, height, width) in px.
        size: Side of the result in px.

    Returns:
        (C, size, size) array in the image's dtype.
    """
    top, left, height, width = box
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    else:
        pixels = image[top : top + height, left : left + width]
    return _resize_array(np.atleast_3d(pixels), size)


def image_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Return (height, width) in px of a PIL image or an (H, W, C) array."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def _resize_array(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) of any real dtype to (C, size, size) of the same dtype."""
    if pixels.dtype == np.uint8:  # torch has integer arithmetic for bytes, three times as fast as Pillow's
        planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    else:
        # float32 holds 16-bit integers exactly; wider integers and float64 are worked on in float64.
        exact = np.promote_types(pixels.dtype, np.float32)
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=exact))
    resized = F.interpolate(planes[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    if np.issubdtype(pixels.dtype, np.integer) and resized.is_floating_point():
        # Bilinear weights are positive and sum to 1, so rounding stays in the dtype's range.
        resized = resized.round_()
    return resized.contiguous().numpy().astype(pixels.dtype, copy=False)


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Find the largest centred rectangle whose width / height lies in ratio."""
    rows, columns = height, width
    if width / height < ratio[0]:
        rows = round(width / ratio[0])
    elif width / height > ratio[1]:
        columns = round(height * ratio[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns
