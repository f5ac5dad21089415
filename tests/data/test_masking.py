import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gfm_hf.data.masking import expand_to_tokens, hidden_cells, mask_grid
from gfm_hf.data.seeding import CROP_STREAM, sample_rng


REFERENCE = Path(__file__).parents[3] / "shared" / "parity" / "mask_stats.json"


@pytest.mark.parametrize("grid, ratio", [(6, 0.6), (4, 0.6), (7, 0.5), (1, 0.6), ((2, 5), 0.3), (12, 0.99)])
def test_exact_count_hidden(grid, ratio):
    cells = hidden_cells(3, 1, 0, grid, ratio)
    n = grid * grid if isinstance(grid, int) else grid[0] * grid[1]
    assert cells.dtype == torch.bool and cells.shape == (n,)
    assert cells.sum() == math.ceil(n * ratio)


def test_paper_hides_22_of_36():
    assert hidden_cells(0, 0, 0).sum() == 22


def test_pure_function_of_seed_epoch_index():
    base = hidden_cells(5, 2, 7)
    assert torch.equal(base, hidden_cells(5, 2, 7))
    for other in [(6, 2, 7), (5, 3, 7), (5, 2, 8), (7, 2, 5), (2, 5, 7)]:
        assert not torch.equal(base, hidden_cells(*other)), other


def test_masks_do_not_follow_the_numbers_of_the_crop():
    permutation = sample_rng(0, 0, 0, CROP_STREAM).permutation(36)
    assert not torch.equal(hidden_cells(0, 0, 0), torch.from_numpy(np.isin(np.arange(36), permutation[:22])))


def test_every_cell_is_hidden_equally_often():
    draws, p = 3000, 22 / 36
    counts = sum(hidden_cells(i % 500, i // 500, 1).int() for i in range(draws)).double()
    # Without replacement the counts are correlated; 35/36 corrects the statistic to 35 degrees of freedom.
    chi2 = ((counts - draws * p) ** 2 / (draws * p * (1 - p))).sum() * 35 / 36
    assert 12 < chi2 < 75  # 0.01 % beyond each end


def test_pairs_of_cells_are_hidden_together_as_often_as_chance_says():
    masks = torch.stack([hidden_cells(i, 0, 2) for i in range(3000)]).double()
    together = (masks.T @ masks / len(masks))[~torch.eye(36, dtype=torch.bool)]
    assert abs(together - 22 / 36 * 21 / 35).max() < 0.045  # 5 standard errors


def test_expand_repeats_each_cell_row_by_row():
    cells = torch.tensor([True, False, False, True])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(expand_to_tokens(cells, 2, 2), expected.flatten())


def test_expand_batches_and_oblong_grids_equal_kron():
    cells = torch.stack([hidden_cells(i, 0, 0, (2, 3)) for i in range(4)])
    tokens = expand_to_tokens(cells, (2, 3), 4)
    assert tokens.shape == (4, 2 * 3 * 16) and tokens.dtype == torch.bool
    for one, many in zip(cells, tokens, strict=True):
        assert np.array_equal(np.kron(one.view(2, 3), np.ones((4, 4), dtype=bool)), many.view(8, 12))


@pytest.mark.parametrize("factor, values", [(0, 36), (8, 35)])
def test_expand_refuses_wrong_sizes(factor, values):
    with pytest.raises(ValueError, match="mask_grid"):
        expand_to_tokens(torch.zeros(values, dtype=torch.bool), 6, factor)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratio_outside_the_open_interval_is_refused(ratio):
    with pytest.raises(ValueError, match="--mask_ratio"):
        hidden_cells(0, 0, 0, ratio=ratio)


@pytest.mark.parametrize("grid", [0, -1, (3, 0)])
def test_grid_below_one_is_refused(grid):
    with pytest.raises(ValueError, match="grid"):
        hidden_cells(0, 0, 0, grid=grid)


def test_mask_grid_of_the_paper():
    assert mask_grid(192, 4, 32) == (6, 8)
    assert mask_grid(64, 4, 16) == (4, 4)


@pytest.mark.parametrize(
    "sizes, hint",
    [((200, 4, 32), "192 or 224"), ((20, 4, 32), "size of 32,"), ((192, 5, 32), "30 or 35"), ((0, 4, 32), "1 px")],
)
def test_mask_grid_names_the_nearest_valid_size(sizes, hint):
    with pytest.raises(ValueError, match=hint):
        mask_grid(*sizes)


def test_counts_and_statistics_of_the_authors_generator():
    if not REFERENCE.exists():
        pytest.skip("the recorded statistics of the authors' generator are not beside this repository")
    stats = json.loads(REFERENCE.read_text())
    for key, expected in stats["counts"].items():
        image, cell, patch, ratio = (float(part) for part in key.split(","))
        grid, factor = mask_grid(int(image), int(patch), int(cell))
        assert (grid * grid, factor) == (expected["cells"], expected["cell_scale"])
        if 0 < ratio < 1:
            cells = hidden_cells(0, 0, 0, grid, ratio)
            assert cells.sum() == expected["masked_cells"]
            assert expand_to_tokens(cells, grid, factor).sum() == expected["masked_tokens"]
    draws = 2000
    rate = sum(hidden_cells(i, 0, 3).double() for i in range(draws)) / draws
    reference = torch.tensor(stats["uniformity"]["counts"]).double() / stats["uniformity"]["draws"]
    assert abs(rate - reference).max() < 5 * (22 / 36 * 14 / 36 * (1 / draws + 1 / 20000)) ** 0.5
