"""Random views of labelled images: one draw of (seed, epoch, index) moves an image, its label map and both dates alike.

Images are (H, W, C) arrays of any real dtype and band count, label maps (H, W) arrays. Views come out as
(C, S, S) and (S, S) arrays of the same dtype. Images are resized bilinear with antialiasing, maps by nearest
pixel: no label appears that was not there, and "ignore" stays "ignore".
"""

from dataclasses import dataclass

import numpy as np

from gfm_hf.data.seeding import CROP_STREAM, sample_rng
from gfm_hf.data.transforms import CROP_RATIO, CROP_SCALE, Box, crop_box, cut


@dataclass(frozen=True)
class View:
    """One draw: where to cut and how to turn; the same for all images of one place.

    Attributes:
        box: (top, left, height, width) in px of the image.
        mirror: Swap left and right.
        upside_down: Swap top and bottom.
        quarter_turns: Turns of 90 degrees, counter-clockwise, after the mirrors.
        brightness: Factor on all values.
        contrast: Factor on the distance of each band from its mean.
    """

    box: Box
    mirror: bool = False
    upside_down: bool = False
    quarter_turns: int = 0
    brightness: float = 1.0
    contrast: float = 1.0

    def enlarged(self, factor: int) -> "View":
        """The same view of an image with `factor` times as many pixels a side."""
        top, left, height, width = (factor * length for length in self.box)
        changes = (self.mirror, self.upside_down, self.quarter_turns, self.brightness, self.contrast)
        return View((top, left, height, width), *changes)


@dataclass(frozen=True)
class Augmentation:
    """What a training run draws per image; the defaults are the authors' (resized crop and both flips).

    Attributes:
        image_size: Side S of a view in px.
        scale: Smallest and largest share of an image's area in a crop.
        ratio: Smallest and largest width / height of a crop.
        horizontal_flip: Swap left and right half of the time.
        vertical_flip: Swap top and bottom half of the time.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees, a quarter of the time each.
        brightness: Largest change of brightness, a share from 0 to 1; for 8-bit images of up to three bands.
        contrast: Largest change of contrast, likewise.

    Raises:
        ValueError: A size below 1, an empty range, or a share outside 0 to 1.

    Source: GFM data/data_finetune.py (RandomResizedCrop 0.67 to 1, horizontal and vertical flip).
    """

    image_size: int
    scale: tuple[float, float] = CROP_SCALE
    ratio: tuple[float, float] = CROP_RATIO
    horizontal_flip: bool = True
    vertical_flip: bool = True
    quarter_turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size} px but must be 1 or more; the paper uses 192.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"crops of scale {self.scale} and ratio {self.ratio} do not exist; pass a scale within 0 to 1 and a "
                f"ratio above 0, the smaller number first, such as {CROP_SCALE} and (0.75, 1.33)."
            )
        if not (0 <= self.brightness < 1 and 0 <= self.contrast < 1):
            raise ValueError(
                f"brightness {self.brightness} and contrast {self.contrast} must be 0 or more and below 1; 0.2 is usual."
            )

    def draw(self, index: int, epoch: int, seed: int, height: int, width: int) -> View:
        """Draw the view of one image in one epoch: crop, flips, turn and colour.

        Args:
            index: Position of the sample in its part.
            epoch: Pass over the data, from 0; each pass draws another view.
            seed: Seed of the run.
            height: Rows of the image.
            width: Columns of the image.

        Returns:
            The view; a function of the arguments alone.
        """
        rng = sample_rng(seed, epoch, index, CROP_STREAM)
        return self._turned(crop_box(height, width, rng, self.scale, self.ratio), rng)

    def draw_window(self, index: int, epoch: int, seed: int, height: int, width: int) -> View:
        """Draw a view that cuts S x S px as they are, without resizing, for super-resolution; else as `draw`.

        Raises:
            ValueError: The image is smaller than a view.
        """
        self._check_room(height, width)
        rng = sample_rng(seed, epoch, index, CROP_STREAM)
        size = self.image_size
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        return self._turned((int(top), int(left), size, size), rng)

    def centre_window(self, height: int, width: int) -> View:
        """Return the view of the central S x S px.

        Raises:
            ValueError: The image is smaller than a view.
        """
        self._check_room(height, width)
        size = self.image_size
        return View(((height - size) // 2, (width - size) // 2, size, size))

    def _turned(self, box: Box, rng: np.random.Generator) -> View:
        """Draw flips, turn and colour. Every draw is made, so switching one of them off leaves the others as they are."""
        mirror, upside_down = rng.random(2) < 0.5
        turns, (brightness, contrast) = int(rng.integers(4)), rng.uniform(-1, 1, 2)
        return View(
            box,
            bool(mirror and self.horizontal_flip),
            bool(upside_down and self.vertical_flip),
            turns if self.quarter_turns else 0,
            1 + self.brightness * brightness,
            1 + self.contrast * contrast,
        )

    def _check_room(self, height: int, width: int) -> None:
        if min(height, width) < self.image_size:
            raise ValueError(
                f"an image of {height} x {width} px holds no window of {self.image_size} px; use a smaller image_size."
            )


def view_of_image(image: np.ndarray, view: View, size: int) -> np.ndarray:
    """Cut the view of an image.

    Args:
        image: (H, W, C) array of any real dtype.
        view: What to cut. A box of size x size px is copied, any other one resized.
        size: Side S of the result in px.

    Returns:
        (C, S, S) array in the image's dtype.

    Raises:
        ValueError: The view changes colours of an image that is not 8-bit with up to three bands.
    """
    top, left, height, width = view.box
    if (height, width) == (size, size):
        pixels = image[top : top + size, left : left + size].transpose(2, 0, 1)
    else:
        pixels = cut(image, view.box, size)
    return np.ascontiguousarray(_turn(_recolour(pixels, view), view, axes=(1, 2)))


def view_of_map(label_map: np.ndarray, view: View, size: int) -> np.ndarray:
    """Cut the view of a label map by nearest pixel.

    Args:
        label_map: (H, W) ids of the same ground as the image.
        view: What to cut.
        size: Side S of the result in px.

    Returns:
        (S, S) array in the map's dtype.
    """
    top, left, height, width = view.box
    # The pixel under the centre of each new pixel, in whole numbers: floor((i + 1/2) * length / size).
    centres = 2 * np.arange(size) + 1
    rows, columns = top + centres * height // (2 * size), left + centres * width // (2 * size)
    return np.ascontiguousarray(_turn(label_map[np.ix_(rows, columns)], view, axes=(0, 1)))


def whole_view(height: int, width: int) -> View:
    """The view of a whole image, upright: what evaluation looks at."""
    return View((0, 0, height, width))


def _turn(pixels: np.ndarray, view: View, axes: tuple[int, int]) -> np.ndarray:
    """Mirror and turn along the axes of rows and columns."""
    flipped = tuple(axis for axis, chosen in zip(axes, (view.upside_down, view.mirror)) if chosen)
    return np.rot90(np.flip(pixels, flipped), view.quarter_turns, axes)


def _recolour(pixels: np.ndarray, view: View) -> np.ndarray:
    """Change contrast, then brightness, of (C, S, S) 8-bit values."""
    if view.brightness == 1 and view.contrast == 1:
        return pixels
    if pixels.dtype != np.uint8 or len(pixels) > 3:
        raise ValueError(
            f"brightness and contrast change 8-bit images of up to three bands only, not {len(pixels)} bands of "
            f"{pixels.dtype}; set both to 0."
        )
    mean = pixels.mean((1, 2), keepdims=True)
    values = (mean + view.contrast * (pixels - mean)) * view.brightness
    return values.round().clip(0, 255).astype(np.uint8)
