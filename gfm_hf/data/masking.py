"""Which cells of an image are hidden from the student: `bool_masked_pos` from (seed, epoch, index).

Cells are the coarse squares the student must rebuild (32 px in the paper), tokens the patches the model sees (4 px).
True = hidden, everywhere.
"""

import math

import numpy as np
import torch

from gfm_hf.data.seeding import MASK_STREAM, sample_rng


def hidden_cells(
    index: int, epoch: int, seed: int, grid: tuple[int, int] | int = 6, ratio: float = 0.6
) -> torch.Tensor:
    """Choose which cells of one image the student must rebuild.

    Args:
        index: Position of the image in its dataset.
        epoch: Pass over the data, from 0; each pass hides other cells.
        seed: Seed of the run.
        grid: Cells (rows, columns), or cells a side of a square; image_size / mask_patch_size.
        ratio: Share of cells to hide.

    Returns:
        (rows * columns,) bool, row by row, True = hidden; exactly ceil(rows * columns * ratio) are True.

    Raises:
        ValueError: ratio is outside (0, 1) or grid is below 1.

    Source: SimMIM section 3.2; GFM data/data_simmim.py (same count, drawn there from NumPy's global generator).
    """
    rows, columns = _rows_and_columns(grid)
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask ratio is {ratio} but must lie between 0 and 1, both excluded; pass --mask_ratio 0.6.")
    cells = np.zeros(rows * columns, dtype=bool)
    order = sample_rng(seed, epoch, index, MASK_STREAM).permutation(cells.size)
    cells[order[: math.ceil(cells.size * ratio)]] = True
    return torch.from_numpy(cells)


def expand_to_tokens(cells: torch.Tensor, grid: tuple[int, int] | int, factor: int) -> torch.Tensor:
    """Repeat every cell over the tokens it covers.

    Args:
        cells: (..., rows * columns) bool, True = hidden, row by row.
        grid: Cells (rows, columns), or cells a side of a square.
        factor: Tokens a side of one cell (mask_patch_size / patch_size).

    Returns:
        (..., rows * factor * columns * factor) bool, True = hidden, row by row: `bool_masked_pos` of the model.

    Raises:
        ValueError: The last axis of cells does not hold rows * columns values, or factor is below 1.
    """
    rows, columns = _rows_and_columns(grid)
    if factor < 1 or cells.shape[-1] != rows * columns:
        raise ValueError(
            f"cells has {cells.shape[-1]} values and factor is {factor}, but a grid of {rows} x {columns} cells needs "
            f"{rows * columns} values and a factor of 1 or more; take both from mask_grid()."
        )
    square = cells.unflatten(-1, (rows, columns))
    return square.repeat_interleave(factor, -2).repeat_interleave(factor, -1).flatten(-2)


def mask_grid(image_size: int, patch_size: int, mask_patch_size: int) -> tuple[int, int]:
    """Relate pixels, tokens and cells of a square image.

    Args:
        image_size: Side of the image in px.
        patch_size: Side of a token in px.
        mask_patch_size: Side of a cell in px.

    Returns:
        (grid, factor): cells a side of the image, tokens a side of a cell.

    Raises:
        ValueError: A size is below 1, cells do not tile the image, or tokens do not tile a cell.
    """
    if min(image_size, patch_size, mask_patch_size) < 1:
        raise ValueError(
            f"image_size {image_size}, patch_size {patch_size} and mask_patch_size {mask_patch_size} must be 1 px or "
            "more; the paper uses 192, 4 and 32."
        )
    if mask_patch_size % patch_size:
        raise ValueError(
            f"mask_patch_size {mask_patch_size} is no multiple of patch_size {patch_size}; "
            f"pass --mask_patch_size {_nearest_multiples(mask_patch_size, patch_size)}."
        )
    if image_size % mask_patch_size:
        raise ValueError(
            f"image_size {image_size} is no multiple of mask_patch_size {mask_patch_size}; "
            f"use an image size of {_nearest_multiples(image_size, mask_patch_size)}, or another --mask_patch_size."
        )
    return image_size // mask_patch_size, mask_patch_size // patch_size


def _rows_and_columns(grid: tuple[int, int] | int) -> tuple[int, int]:
    """Read a grid given as one side or as (rows, columns)."""
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if min(rows, columns) < 1:
        raise ValueError(f"grid is {grid} but needs at least one cell a side; take it from mask_grid().")
    return rows, columns


def _nearest_multiples(value: int, unit: int) -> str:
    """Name the multiples of unit next to value, for an error's next step."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
