import numpy as np
import pytest
import torch

from gfm_hf import GFMImageProcessor
from gfm_hf.training.panels import CAPTION_PX, GAP_PX, pretraining_panel, reconstruction_panel, tile_panel


def tile(picture, row: int, column: int, side: int) -> np.ndarray:
    """Pixels (side, side, 3) of one tile."""
    top, left = row * (side + GAP_PX) + GAP_PX + CAPTION_PX, column * (side + GAP_PX) + GAP_PX
    return np.asarray(picture)[top : top + side, left : left + side]


def test_tiles_stand_where_they_belong():
    columns = [torch.full((2, 3, 4, 4), 0.2), torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 7.0)])]
    picture = tile_panel(["a", "b"], columns, 16)
    assert picture.size == (2 * 20 + GAP_PX, 2 * 20 + GAP_PX + CAPTION_PX) and picture.mode == "RGB"
    values = [[int(tile(picture, row, column, 16).mean()) for column in (0, 1)] for row in (0, 1)]
    assert values == [[51, 0], [51, 255]]  # 7.0 is clipped
    assert (np.asarray(picture)[:CAPTION_PX] < 128).any() and (np.asarray(picture)[-GAP_PX:] == 255).all()


def test_hidden_pixels_are_grey_then_rebuilt_and_visible_ones_the_inputs():
    images, rebuilt = torch.full((1, 3, 8, 8), 1.0), torch.zeros(1, 3, 8, 8)
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[..., :4] = True
    picture = reconstruction_panel(images, rebuilt, masks, tile_px=8)
    halves = [
        [int(tile(picture, 0, column, 8)[:, half].mean()) for half in (slice(3), slice(5, 8))] for column in range(3)
    ]
    assert halves == [[255, 255], [128, 255], [0, 255]]


@pytest.mark.parametrize(("bands", "rgb"), [(3, (0, 1, 2)), (5, (4, 2, 0)), (2, None)])
def test_panel_of_a_batch_is_in_natural_colours_where_it_can_be(tiny_config, bands, rgb):
    mean, std = [0.1 * (band + 1) for band in range(bands)], [0.5] * bands
    processor = GFMImageProcessor(size=64, image_mean=mean, image_std=std, band_names=None)
    tiny_config.num_channels, tiny_config.rgb_channels = bands, rgb
    pixels = torch.zeros(8, bands, 64, 64)  # every band at its mean
    picture = pretraining_panel(
        tiny_config, processor, pixels, torch.ones(8, 256, dtype=torch.bool), pixels + 1, rows=2
    )
    assert picture.size[1] == 2 * (128 + GAP_PX) + GAP_PX + CAPTION_PX
    channels = rgb or (0, 0, 0)
    shown = tile(picture, 1, 0, 128).mean((0, 1)) / 255
    rebuilt = tile(picture, 1, 2, 128).mean((0, 1)) / 255
    assert shown == pytest.approx([mean[channel] for channel in channels], abs=0.01)
    assert rebuilt == pytest.approx([min(mean[channel] + 0.5, 1) for channel in channels], abs=0.01)
    assert (tile(picture, 1, 1, 128) == 128).all()
