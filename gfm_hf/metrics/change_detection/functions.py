"""Counts and scores of the class "change" (label 1), in NumPy alone.

The state is four counts, int64 (4,): change found (true positives), change invented (false positives), change missed
(false negatives), and agreement on no change (true negatives), in pixels. Counts add up exactly, so the scores of a
whole set do not depend on how it was cut into batches and processes.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def new_state() -> np.ndarray:
    """Start with nothing counted: int64 (4,) zeros."""
    return np.zeros(4, dtype=np.int64)


def update(
    state: np.ndarray,
    predictions: ArrayLike,
    references: ArrayLike,
    ignore_index: int | None = 255,
    pixels: ArrayLike | None = None,
) -> np.ndarray:
    """Add the pixels of some maps to the counts.

    Args:
        state: int64 (4,), left as it is.
        predictions: Integer labels of any shape, usually (B, H, W) or (H, W): 0 = no change, 1 = change.
        references: The true labels, of the same shape.
        ignore_index: Pixels whose reference has this label do not count, whatever was predicted there; None = all do.
        pixels: How many pixels each entry stands for, of the same shape; None = one each.

    Returns:
        int64 (4,): the new counts.

    Raises:
        ValueError: The shapes differ, the labels are no integers, or a pixel that counts has another label.
    """
    found, true = _label_maps(predictions, references)
    weights = np.ones(true.shape, dtype=np.int64) if pixels is None else np.asarray(pixels, dtype=np.int64)
    if ignore_index is not None:
        kept = true != ignore_index
        found, true, weights = found[kept], true[kept], weights[kept]
    _check_binary(found, "predictions", ignore_index)
    _check_binary(true, "references", ignore_index)
    changed, expected = found == 1, true == 1
    cells = (changed & expected, changed & ~expected, ~changed & expected, ~changed & ~expected)
    return state + np.array([weights[cell].sum() for cell in cells], dtype=np.int64)


def merge(states: Iterable[np.ndarray]) -> np.ndarray:
    """Add up the counts of several batches or processes, in any order.

    Args:
        states: int64 (4,) each; none at all gives a new state.
    """
    return sum(states, new_state())


def compute(state: np.ndarray) -> dict[str, float]:
    """Turn counts into scores.

    A ratio with nothing under it is nan, never 0 or 1: precision where no change was predicted, recall where there is
    none in the references, F1 and IoU where there is neither. So a map without change that is predicted as such
    scores nothing, and change that is missed altogether has F1 0. This is scikit-learn's `zero_division=nan`.

    Returns:
        `precision`, `recall`, `f1`, `iou`, each in [0, 1] or nan.
    """
    hit, invented, missed, _ = (int(count) for count in state)
    return {
        "precision": _ratio(hit, hit + invented),
        "recall": _ratio(hit, hit + missed),
        "f1": _ratio(2 * hit, 2 * hit + invented + missed),
        "iou": _ratio(hit, hit + invented + missed),
    }


def count_pairs(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shorten two maps to the pairs of labels that occur, with the pixels of each.

    `update(state, predictions, references, pixels=pixels)` with the three arrays counts what the maps themselves do.

    Returns:
        predictions, references, pixels: int64 (P,) each; P is the number of different pairs.

    Raises:
        ValueError: The shapes differ, or the labels are no small integers.
    """
    found, true = _label_maps(predictions, references)
    if not true.size:
        return found, true, np.zeros(0, dtype=np.int64)
    low, high = min(int(found.min()), int(true.min())), max(int(found.max()), int(true.max()))
    span = high - low + 1
    if span > 2**31:
        raise ValueError(
            f"The maps hold labels from {low} to {high}; expected class ids, check what is passed as a map."
        )
    keys, pixels = np.unique((true - low) * span + (found - low), return_counts=True)
    return keys % span + low, keys // span + low, pixels.astype(np.int64)


def _label_maps(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat int64 arrays; torch tensors come from any device."""
    found, true = (_array(labels, name) for labels, name in ((predictions, "predictions"), (references, "references")))
    if found.shape != true.shape:
        raise ValueError(
            f"predictions has shape {found.shape} and references {true.shape}; expected one label per pixel in both, "
            "resize the logits and take their argmax first."
        )
    return found.ravel(), true.ravel()


def _array(labels: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if array.size and array.dtype.kind not in "bui":
        raise ValueError(f"{name} has dtype {array.dtype}; expected integer labels, take the argmax of scores first.")
    return array.astype(np.int64)


def _check_binary(labels: np.ndarray, name: str, ignore_index: int | None) -> None:
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.size:
        raise ValueError(
            f"{name} has the label {wrong[0]} where the reference is not ignore_index ({ignore_index}); "
            "expected 0 (no change) or 1 (change), map the labels first."
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
