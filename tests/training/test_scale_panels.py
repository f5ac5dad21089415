import numpy as np
import pytest
import torch

from gfm_hf.training.panels import CAPTION_PX, GAP_PX
from gfm_hf.training.scale_panels import CAPTIONS, scale_panel


def tile(picture, row: int, column: int, side: int) -> np.ndarray:
    """Pixels (side, side, 3) of one tile."""
    top = row * (side + GAP_PX + CAPTION_PX) + GAP_PX + CAPTION_PX
    left = column * (side + GAP_PX) + GAP_PX
    return np.asarray(picture)[top : top + side, left : left + side]


def batches(bands=3, size=8, scale=2, rows=2):
    low = torch.full((rows, bands, size // scale, size // scale), 0.2)
    bicubic, model = (torch.full((rows, bands, size, size), value) for value in (0.4, 0.6))
    return low, bicubic, model, torch.ones(rows, bands, size, size)


def test_tiles_stand_where_they_belong():
    picture = scale_panel(batches(), channels=(0, 1, 2), tile_px=32)
    assert picture.size == (4 * (32 + GAP_PX) + GAP_PX, 2 * (32 + GAP_PX + CAPTION_PX) + GAP_PX)
    for row in range(2):
        assert [int(tile(picture, row, column, 32).mean()) for column in range(4)] == [51, 102, 153, 255]
    assert (np.asarray(picture)[: CAPTION_PX + GAP_PX] < 128).any()  # captions
    assert len(CAPTIONS) == 4


def test_pixels_are_enlarged_by_whole_numbers_and_not_smoothed():
    low, bicubic, model, truth = batches(rows=1)
    truth[..., ::2] = 0
    low[..., 0] = 1
    picture = scale_panel((low, bicubic, model, truth), channels=(0, 1, 2), tile_px=30)  # 8 px -> 32, the next whole
    assert set(np.unique(tile(picture, 0, 3, 32))) == {0, 255}
    assert (tile(picture, 0, 3, 32)[:, :4] == 0).all() and (tile(picture, 0, 3, 32)[:, 4:8] == 255).all()
    assert (tile(picture, 0, 0, 32)[:, :8] == 255).all() and (tile(picture, 0, 0, 32)[:, 8:] == 51).all()


def test_scores_are_written_above_bicubic_and_model():
    plain, scored = (
        np.asarray(scale_panel(batches(rows=1), channels=(0, 1, 2), psnrs=psnrs, tile_px=128))
        for psnrs in (None, [(20.0, 21.5)])
    )
    changed = (plain != scored).any(axis=(0, 2)).reshape(-1)
    places = [changed[column * 132 + GAP_PX : (column + 1) * 132 + GAP_PX].any() for column in range(4)]
    assert places == [False, True, True, False]


@pytest.mark.parametrize(("channels", "shown"), [((4, 2, 0), (4, 2, 0)), ((1,), (1, 1, 1))])
def test_bands_that_are_shown(channels, shown):
    truth = (torch.arange(5) / 10 + 0.55)[None, :, None, None].expand(1, 5, 8, 8)
    picture = scale_panel((truth[..., :4, :4], truth, truth, truth), channels=channels, tile_px=8)
    expected = [(band / 10 + 0.55) * 255 for band in shown]
    assert tile(picture, 0, 3, 8).mean((0, 1)) == pytest.approx(expected, abs=1)


def test_dark_images_are_stretched_by_the_truth_alone():
    dark = torch.linspace(0.0, 0.1, 64).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    picture = scale_panel((dark[..., ::2, ::2], dark, dark / 2, dark), channels=(0, 1, 2), tile_px=8)
    assert tile(picture, 0, 3, 8).max() == 255 and (tile(picture, 0, 3, 8) == tile(picture, 0, 1, 8)).all()
    assert tile(picture, 0, 2, 8).mean() == pytest.approx(tile(picture, 0, 3, 8).mean() / 2, abs=4)


def test_a_range_of_other_units():
    low, bicubic, model, truth = (100 + 100 * values for values in batches(rows=1))
    picture = scale_panel((low, bicubic, model, truth), channels=(0, 1, 2), value_range=(100.0, 200.0), tile_px=8)
    assert [int(tile(picture, 0, column, 8).mean()) for column in range(4)] == [51, 102, 153, 255]


def test_batches_that_do_not_belong_together():
    low, bicubic, model, truth = batches()
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 7\).*of one size"):
        scale_panel((low, bicubic, model[..., :7], truth), channels=(0, 1, 2))
    with pytest.raises(ValueError, match="at least one image"):
        scale_panel([batch[:0] for batch in batches()], channels=(0, 1, 2))
