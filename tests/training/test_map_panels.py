import numpy as np
import pytest
from PIL import Image

from gfm_hf.training.map_panels import (
    CHANGED,
    FOUND,
    INVENTED,
    MISSED,
    UNCHANGED,
    UNKNOWN,
    change_panel,
    class_colours,
    map_panel,
    with_legend,
)
from gfm_hf.training.panels import CAPTION_PX, GAP_PX


SIDE = 16


def tile(picture, row, column):
    """Pixels (SIDE, SIDE, 3) of one tile."""
    top, left = row * (SIDE + GAP_PX) + GAP_PX + CAPTION_PX, column * (SIDE + GAP_PX) + GAP_PX
    return np.asarray(picture)[top : top + SIDE, left : left + SIDE]


def colours_in(pixels):
    return {tuple(map(int, colour)) for colour in pixels.reshape(-1, 3)}


def legend_of(picture, rows):
    """Colours of whole swatches: letters have soft edges of any grey."""
    strip = np.asarray(picture)[rows * (SIDE + GAP_PX) + GAP_PX + CAPTION_PX :]
    return {colour for colour in colours_in(strip) if (strip == colour).all(-1).sum() > 40}


@pytest.mark.parametrize(("count", "apart"), [(2, 300), (7, 100), (40, 8)])
def test_classes_have_different_colours(count, apart):
    colours = np.array(class_colours(count), dtype=int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(count, dtype=int)
    assert distances.min() > apart
    assert np.abs(colours - np.array(UNKNOWN)).sum(-1).min() > 60
    assert class_colours(count)[:2] == class_colours(2)


def test_maps_stand_beside_their_image_in_the_colours_of_the_legend():
    images = [np.full((5, 5, 3), 200, np.uint8), np.zeros((5, 5, 3), np.uint8)]
    truths = [np.zeros((5, 5), int), np.full((5, 5), 255)]
    truths[0][:, 3:] = 1
    predictions = [np.ones((5, 5), int), np.zeros((5, 5), int)]
    picture = map_panel(images, truths, predictions, ["field", "roof", "sea"], tile_px=SIDE)
    field, roof, sea = class_colours(3)
    assert tile(picture, 0, 0).mean() == 200
    assert colours_in(tile(picture, 0, 1)) == {field, roof}  # 5 px made 16: no colour in between
    assert tuple(tile(picture, 0, 1)[0, 0]) == field and tuple(tile(picture, 0, 1)[0, -1]) == roof
    assert colours_in(tile(picture, 0, 2)) == {roof}
    assert colours_in(tile(picture, 1, 1)) == {UNKNOWN} and colours_in(tile(picture, 1, 2)) == {field}
    legend = legend_of(picture, 2)
    assert {field, roof, UNKNOWN} <= legend and sea not in legend


def test_changes_are_found_invented_or_missed():
    truth = np.array([[1, 1], [0, 0]])
    found = np.array([[1, 0], [1, 0]])
    dates = [np.full((2, 2, 6), 10, np.uint16)], [np.full((2, 2, 3), 90, np.uint8)]
    picture = change_panel(*dates, [truth], [found], tile_px=SIDE)
    assert tile(picture, 0, 1).mean() == 90
    assert colours_in(tile(picture, 0, 2)) == {CHANGED, UNCHANGED}
    answer = tile(picture, 0, 3)
    corners = [tuple(map(int, answer[row, column])) for row in (0, -1) for column in (0, -1)]
    assert corners == [FOUND, MISSED, INVENTED, UNCHANGED]
    assert {FOUND, MISSED, INVENTED} <= legend_of(picture, 1) and UNKNOWN not in legend_of(picture, 1)
    unknown = change_panel(*dates, [np.full((2, 2), 255)], [found], tile_px=SIDE)
    assert colours_in(tile(unknown, 0, 3)) == {UNKNOWN} and UNKNOWN in legend_of(unknown, 1)


def test_a_long_legend_breaks_its_lines():
    picture = Image.new("RGB", (120, 10), "white")
    colours = class_colours(9)
    tall = with_legend(picture, [(f"class {label}", colour) for label, colour in enumerate(colours)])
    assert tall.width == 120 and tall.height > 10 + 4 * CAPTION_PX
    assert set(colours) <= colours_in(np.asarray(tall))
