"""Fit stored weights to another window size or other bands: position tables, patch filters, pixel decoder."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel


TABLE = "relative_position_bias_table"
PATCH_FILTERS = "embeddings.patch_embeddings.projection.weight"
DECODER_WEIGHT = "decoder.0.weight"
DECODER_BIAS = "decoder.0.bias"


def fit_state_dict(
    state_dict: dict[str, torch.Tensor], model: PreTrainedModel, source_rgb: tuple[int, ...] | None = None
) -> dict[str, torch.Tensor]:
    """Return the state dict with every tensor resized whose shape tells of another window or band count.

    Args:
        state_dict: Stored tensors under the model's names.
        model: The model that will take them; what stored bands do not cover keeps its own initial values.
        source_rgb: Indices of red, green and blue among the stored bands.

    Raises:
        ValueError: Bands have to move, but it is not known which are red, green and blue.
    """
    fitted = dict(state_dict)
    target_rgb = _target_rgb(model)
    reordered = source_rgb is not None and target_rgb is not None and tuple(source_rgb) != target_rgb
    for name, target in model.state_dict().items():
        stored = state_dict.get(name)
        banded = name.endswith((PATCH_FILTERS, DECODER_WEIGHT, DECODER_BIAS))
        if stored is None or (stored.shape == target.shape and not (banded and reordered)):
            continue
        if name.endswith(TABLE) and stored.shape[1] == target.shape[1]:
            fitted[name] = resize_position_table(stored, target.shape[0])
        elif name.endswith(PATCH_FILTERS) and stored.shape[0] == target.shape[0]:
            fitted[name] = move_bands(stored, target, source_rgb, target_rgb, axis=1)
        elif banded and stored.shape[1:] == target.shape[1:]:
            bands, target_bands = _bands_of(stored, model), model.config.num_channels
            moved = move_bands(
                stored.unflatten(0, (bands, -1)),
                target.unflatten(0, (target_bands, -1)),
                source_rgb,
                target_rgb,
                axis=0,
                keep_response=False,
            )
            fitted[name] = moved.flatten(0, 1)
    return fitted


def resize_position_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resample a relative position table for another window, by the authors' scheme.

    The stored offsets are placed on a grid whose steps grow geometrically from the centre, so that near offsets keep
    their values and far ones stretch; a bicubic spline through them is read at the new offsets.

    Args:
        table: ((2 * window - 1)**2, heads).
        length: (2 * new window - 1)**2.

    Returns:
        (length, heads) in the table's dtype.

    Source: SimMIM's and GFM's checkpoint loaders.
    """
    side, new_side = math.isqrt(table.shape[0]), math.isqrt(length)
    if side**2 != table.shape[0] or new_side**2 != length:
        raise ValueError(
            f"A position table of {table.shape[0]} rows cannot become one of {length}: both have to be (2 * window - 1)**2."
        )
    grid = _geometric_offsets(side, new_side)
    wanted = np.arange(new_side) - new_side // 2
    # Outside the stored offsets the spline repeats its edge.
    spline = _spline_matrix(grid, np.clip(wanted, grid[0], grid[-1]))
    values = table.detach().cpu().double().numpy().reshape(side, side, -1)
    resized = np.einsum("ai,ijh,bj->abh", spline, values, spline)
    return torch.from_numpy(resized).reshape(length, -1).to(table.device, table.dtype)


def move_bands(
    stored: torch.Tensor,
    target: torch.Tensor,
    source_rgb: tuple[int, ...] | None,
    target_rgb: tuple[int, ...] | None,
    axis: int,
    keep_response: bool = True,
) -> torch.Tensor:
    """Copy what belongs to red, green and blue to where the target model has them.

    Of as many bands in another order, the others fill the remaining places in their own order.

    Args:
        stored: Tensor with the stored bands on `axis`.
        target: Tensor of the new shape; where the count differs, bands besides red, green and blue keep its values.
        source_rgb: Indices of red, green and blue among the stored bands; None for a single band.
        target_rgb: The same among the target's bands.
        axis: The band axis.
        keep_response: Keep the answer to a grey image when one band becomes three or three become one (filters are
            divided or added); otherwise repeat or average.

    Raises:
        ValueError: One side has several bands and does not say which are red, green and blue.
    """
    source = _require_rgb(source_rgb, stored.shape[axis], "stored")
    place = _require_rgb(target_rgb, target.shape[axis], "wanted")
    if stored.shape == target.shape:
        source += [band for band in range(stored.shape[axis]) if band not in source]
        place += [band for band in range(target.shape[axis]) if band not in place]
    picked = stored.index_select(axis, torch.tensor(source)).to(target)
    if len(source) == 1 and len(place) == 3:
        picked = picked.repeat_interleave(3, dim=axis) / (3 if keep_response else 1)
    elif len(source) == 3 and len(place) == 1:
        picked = picked.sum(axis, keepdim=True) / (1 if keep_response else 3)
    return target.index_copy(axis, torch.tensor(place), picked)


def _require_rgb(rgb: tuple[int, ...] | None, bands: int, which: str) -> list[int]:
    if bands == 1:
        return [0]
    if rgb is None:
        raise ValueError(
            f"The {which} model has {bands} bands and does not say which are red, green and blue; pass "
            "rgb_channels=(red, green, blue) or band_names."
        )
    return list(rgb)


def _target_rgb(model: PreTrainedModel) -> tuple[int, ...] | None:
    rgb = model.config.rgb_channels
    return None if rgb is None else tuple(rgb)


def _bands_of(decoder_tensor: torch.Tensor, model: PreTrainedModel) -> int:
    return decoder_tensor.shape[0] // model.config.encoder_stride**2


def _geometric_offsets(side: int, new_side: int) -> np.ndarray:
    """Places of the stored offsets: steps 1, q, q**2, ... away from the centre, q in [1.01, 1.5] by bisection."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (side // 2)) / (1 - q) > new_side // 2:
            high = q
        else:
            low = q
    half = np.cumsum(q ** np.arange(side // 2))
    return np.concatenate([-half[::-1], [0.0], half])


def _spline_matrix(grid: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Matrix from values on `grid` to an interpolating cubic spline at `wanted`.

    The spline has no knot at the second and the last but one point ("not a knot"). Fewer than four points carry a
    lower degree.

    Returns:
        (len(wanted), len(grid)).
    """
    degree = min(3, len(grid) - 1)
    if degree < 3:
        degree = min(degree, 1)
        inner = grid[1:-1]
    else:
        inner = grid[2:-2]
    knots = np.concatenate([[grid[0]] * (degree + 1), inner, [grid[-1]] * (degree + 1)])
    return _spline_basis(knots, degree, wanted) @ np.linalg.inv(_spline_basis(knots, degree, grid))


def _spline_basis(knots: np.ndarray, degree: int, points: np.ndarray) -> np.ndarray:
    """B-spline basis functions at the points, by the Cox-de Boor recursion: (len(points), len(knots) - degree - 1)."""
    last = len(knots) - degree - 2
    span = np.clip(np.searchsorted(knots, points, side="right") - 1, degree, last)
    basis = (span[:, None] == np.arange(len(knots) - 1)[None, :]).astype(np.float64)
    for order in range(1, degree + 1):
        rise, fall = knots[order:-1] - knots[: -order - 1], knots[order + 1 :] - knots[1:-order]
        left = np.where(rise > 0, (points[:, None] - knots[: -order - 1]) / np.where(rise > 0, rise, 1), 0)
        right = np.where(fall > 0, (knots[order + 1 :] - points[:, None]) / np.where(fall > 0, fall, 1), 0)
        basis = left * basis[:, :-1] + right * basis[:, 1:]
    return basis
