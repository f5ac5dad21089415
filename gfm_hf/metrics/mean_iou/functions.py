"""Confusion matrix and scores of semantic segmentation, in NumPy alone.

The state is the confusion matrix, int64 (K, K) in pixels: row = true class, column = predicted class. Counts add up
exactly, so the scores of a whole set do not depend on how it was cut into batches and processes.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def new_state(num_classes: int) -> np.ndarray:
    """Start with nothing counted: int64 (K, K) zeros.

    Raises:
        ValueError: num_classes is below 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected the number of classes of the maps, at least 1.")
    return np.zeros((num_classes, num_classes), dtype=np.int64)


def update(
    state: np.ndarray,
    predictions: ArrayLike,
    references: ArrayLike,
    ignore_index: int | None = 255,
    pixels: ArrayLike | None = None,
) -> np.ndarray:
    """Add the pixels of some maps to the confusion matrix.

    Args:
        state: int64 (K, K), left as it is.
        predictions: Integer class ids 0..K-1 of any shape, usually (B, H, W) or (H, W).
        references: The true ids, of the same shape.
        ignore_index: Pixels whose reference has this id do not count, whatever was predicted there; None = all do.
        pixels: How many pixels each entry stands for, of the same shape; None = one each.

    Returns:
        int64 (K, K): the new counts.

    Raises:
        ValueError: The shapes differ, the ids are no integers, or a pixel that counts has an id outside 0..K-1.
    """
    num_classes = len(state)
    found, true = _label_maps(predictions, references)
    weights = None if pixels is None else np.asarray(pixels, dtype=np.int64)
    if ignore_index is not None:
        kept = true != ignore_index
        found, true, weights = found[kept], true[kept], None if weights is None else weights[kept]
    _check_range(found, "predictions", num_classes, ignore_index)
    _check_range(true, "references", num_classes, ignore_index)
    cells = true * num_classes + found
    if weights is None:
        counts = np.bincount(cells, minlength=num_classes**2)
    else:
        counts = np.zeros(num_classes**2, dtype=np.int64)
        np.add.at(counts, cells, weights)
    return state + counts.reshape(num_classes, num_classes)


def merge(states: Iterable[np.ndarray]) -> np.ndarray:
    """Add up the confusion matrices of several batches or processes, in any order.

    Raises:
        ValueError: There is none, or they are of different numbers of classes.
    """
    states = list(states)
    sizes = sorted({len(state) for state in states})
    if len(sizes) != 1:
        raise ValueError(
            f"The states to merge are of {sizes or 'no'} classes; expected one number, use one new_state."
        )
    return np.sum(states, axis=0)


def compute(state: np.ndarray, ignore_index: int | None = None) -> dict[str, float | list[float]]:
    """Turn a confusion matrix into scores.

    A ratio with nothing under it is nan and is left out of the means: IoU and F1 of a class that is neither predicted
    nor in the references, precision of one never predicted, recall of one not in the references. A class that is
    predicted but not in the references has IoU 0 and counts. Where nothing counts, all is nan.

    Args:
        state: int64 (K, K).
        ignore_index: As in `update`. It matters here only where it is one of the classes 0..K-1: all scores of that
            class are then nan, while other classes still lose the pixels that were given to it.

    Returns:
        `mean_iou`; `mean_accuracy` (mean recall of the classes); `overall_accuracy` (share of right pixels);
        `per_class_iou`, `per_class_precision`, `per_class_recall`, `per_class_f1`: lists of K.
    """
    hit, predicted, true = np.diag(state), state.sum(axis=0), state.sum(axis=1)
    per_class = {
        "iou": _ratios(hit, predicted + true - hit),
        "precision": _ratios(hit, predicted),
        "recall": _ratios(hit, true),
        "f1": _ratios(2 * hit, predicted + true),
    }
    if ignore_index is not None and 0 <= ignore_index < len(state):
        for scores in per_class.values():
            scores[ignore_index] = math.nan
    return {
        "mean_iou": _mean(per_class["iou"]),
        "mean_accuracy": _mean(per_class["recall"]),
        "overall_accuracy": _ratio(hit.sum(), state.sum()),
        **{f"per_class_{name}": scores for name, scores in per_class.items()},
    }


def count_pairs(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shorten two maps to the pairs of ids that occur, with the pixels of each.

    `update(state, predictions, references, pixels=pixels)` with the three arrays counts what the maps themselves do.

    Returns:
        predictions, references, pixels: int64 (P,) each; P is the number of different pairs.

    Raises:
        ValueError: The shapes differ, or the ids are no small integers.
    """
    found, true = _label_maps(predictions, references)
    if not true.size:
        return found, true, np.zeros(0, dtype=np.int64)
    low, high = min(int(found.min()), int(true.min())), max(int(found.max()), int(true.max()))
    span = high - low + 1
    if span > 2**31:
        raise ValueError(f"The maps hold ids from {low} to {high}; expected class ids, check what is passed as a map.")
    keys, pixels = np.unique((true - low) * span + (found - low), return_counts=True)
    return keys % span + low, keys // span + low, pixels.astype(np.int64)


def _label_maps(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat int64 arrays; torch tensors come from any device."""
    found, true = (_array(labels, name) for labels, name in ((predictions, "predictions"), (references, "references")))
    if found.shape != true.shape:
        raise ValueError(
            f"predictions has shape {found.shape} and references {true.shape}; expected one id per pixel in both, "
            "resize the logits and take their argmax first."
        )
    return found.ravel(), true.ravel()


def _array(labels: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if array.size and array.dtype.kind not in "bui":
        raise ValueError(f"{name} has dtype {array.dtype}; expected integer ids, take the argmax of scores first.")
    return array.astype(np.int64)


def _check_range(labels: np.ndarray, name: str, num_classes: int, ignore_index: int | None) -> None:
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"{name} has the id {wrong[0]} where the reference is not ignore_index ({ignore_index}); "
            f"expected 0..{num_classes - 1}, raise num_classes or map the ids first."
        )


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float]:
    return [_ratio(part, whole) for part, whole in zip(parts, wholes)]


def _ratio(part: np.int64, whole: np.int64) -> float:
    return int(part) / int(whole) if whole else math.nan


def _mean(scores: list[float]) -> float:
    known = [score for score in scores if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan
