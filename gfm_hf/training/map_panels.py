"""Pictures of label maps beside their images, with a legend."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from gfm_hf.training.panels import CAPTION_PX, GAP_PX, shown_pixels, tile_panel


Colour = tuple[int, int, int]
UNKNOWN: Colour = (128, 128, 128)
CHANGED: Colour = (255, 255, 255)
UNCHANGED: Colour = (0, 0, 0)
FOUND: Colour = (60, 180, 75)
INVENTED: Colour = (230, 50, 50)
MISSED: Colour = (60, 120, 255)
LETTER_PX = 6  # width of Pillow's own font
# A turn of the hue by the golden ratio keeps any number of first colours apart.
HUE_STEP = 0.618


def class_colours(count: int) -> list[Colour]:
    """Colours that tell classes apart; those of few classes are the first of those of many.

    Args:
        count: K, the number of classes.

    Returns:
        K different colours of 0 to 255, neither grey nor black.
    """
    colours = []
    for label in range(count):
        # Every other round of a few hues is paler and darker, so that near hues still differ.
        saturation, value = ((0.85, 0.95), (0.55, 0.75), (0.45, 1.0))[label // 7 % 3]
        red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def map_panel(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    names: Sequence[str],
    ignore_index: int = 255,
    tile_px: int = 192,
) -> Image.Image:
    """Rows of image, true map and predicted map, above a legend of the classes that occur in either.

    Args:
        images: B arrays (H, W, C) of any type; of more than three bands the first three are shown.
        truths: B arrays (H, W) of class ids; `ignore_index` is grey.
        predictions: B arrays (H, W) of class ids.
        names: K class names.
        ignore_index: Id of pixels about which nothing is known.
        tile_px: Side of one tile.
    """
    colours = class_colours(len(names))
    table = dict(enumerate(colours)) | {ignore_index: UNKNOWN}
    columns = [
        _photographs(images, tile_px),
        _maps([_coloured(ids, table) for ids in truths], tile_px),
        _maps([_coloured(ids, table) for ids in predictions], tile_px),
    ]
    present = {int(label) for ids in (*truths, *predictions) for label in np.unique(ids)}
    entries = [(name, colours[label]) for label, name in enumerate(names) if label in present]
    entries += [("unknown", UNKNOWN)] if ignore_index in present else []
    return with_legend(tile_panel(["image", "truth", "prediction"], columns, tile_px), entries)


def change_panel(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    ignore_index: int = 255,
    tile_px: int = 192,
) -> Image.Image:
    """Rows of both dates, the true changes, and what of them was found, invented or missed; a legend below.

    Args:
        before: B arrays (H, W, C) of any type; of more than three bands the first three are shown.
        after: B likewise.
        truths: B arrays (H, W): 0 = no change, 1 = change; `ignore_index` is grey.
        predictions: B arrays (H, W): 0 = no change, 1 = change.
        ignore_index: Id of pixels about which nothing is known.
        tile_px: Side of one tile.
    """
    table = {0: UNCHANGED, 1: CHANGED, ignore_index: UNKNOWN}
    columns = [
        _photographs(before, tile_px),
        _photographs(after, tile_px),
        _maps([_coloured(ids, table) for ids in truths], tile_px),
        _maps([_judged(found, true, ignore_index) for found, true in zip(predictions, truths)], tile_px),
    ]
    entries = [("change", CHANGED), ("found", FOUND), ("invented", INVENTED), ("missed", MISSED)]
    entries += [("unknown", UNKNOWN)] if any((ids == ignore_index).any() for ids in truths) else []
    return with_legend(tile_panel(["before", "after", "change", "prediction"], columns, tile_px), entries)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Put named colours under a picture, in as many lines as its width asks for.

    Args:
        picture: RGB.
        entries: Name and colour of each.
    """
    places, left, line = [], GAP_PX, 0
    for name, _ in entries:
        width = CAPTION_PX + (len(name) + 2) * LETTER_PX
        if left > GAP_PX and left + width > picture.width:
            left, line = GAP_PX, line + 1
        places.append((left, picture.height + line * CAPTION_PX))
        left += width
    canvas = Image.new("RGB", (picture.width, picture.height + (line + 1) * CAPTION_PX + GAP_PX), "white")
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for (left, top), (name, colour) in zip(places, entries):
        pen.rectangle((left, top + 2, left + CAPTION_PX - 6, top + CAPTION_PX - 4), fill=colour, outline="black")
        pen.text((left + CAPTION_PX, top + 1), name, fill="black")
    return canvas


def _coloured(ids: np.ndarray, table: dict[int, Colour]) -> np.ndarray:
    """(H, W) ids -> (H, W, 3) uint8."""
    picture = np.zeros((*ids.shape, 3), dtype=np.uint8)
    for label in np.unique(ids):
        picture[ids == label] = table[int(label)]
    return picture


def _judged(found: np.ndarray, true: np.ndarray, ignore_index: int) -> np.ndarray:
    """(H, W) predicted and true changes -> (H, W, 3) uint8: right, wrong and missing in colour."""
    picture = _coloured(np.zeros_like(true), {0: UNCHANGED})
    for predicted, expected, colour in ((1, 1, FOUND), (1, 0, INVENTED), (0, 1, MISSED)):
        picture[(found == predicted) & (true == expected)] = colour
    picture[true == ignore_index] = UNKNOWN
    return picture


def _photographs(images: Sequence[np.ndarray], tile_px: int) -> torch.Tensor:
    """B (H, W, C) arrays of any size -> (B, 3, tile_px, tile_px) in [0, 1]."""
    return _tiles([shown_pixels(image) for image in images], tile_px, Image.Resampling.BILINEAR)


def _maps(pictures: Sequence[np.ndarray], tile_px: int) -> torch.Tensor:
    """As `_photographs`, by nearest pixel: between two classes lies no third colour."""
    return _tiles(pictures, tile_px, Image.Resampling.NEAREST)


def _tiles(pictures: Sequence[np.ndarray], tile_px: int, resample: Image.Resampling) -> torch.Tensor:
    tiles = [np.array(Image.fromarray(picture).resize((tile_px, tile_px), resample)) for picture in pictures]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255
