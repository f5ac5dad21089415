"""Average precision of multi-label classification, in NumPy alone.

Average precision ranks all scores of the set, so no sum over batches can stand for it: the state holds every score,
as a list of (scores, labels) of one batch each, float64 and bool (B, K). That is 9 bytes a score: 18 MB for 104,000
images of 19 classes. Equal scores are ranked as one, so the order of images, batches and processes does not matter.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


State = list[tuple[np.ndarray, np.ndarray]]


def new_state() -> State:
    """Start with no scores: an empty list."""
    return []


def update(state: State, predictions: ArrayLike, references: ArrayLike) -> State:
    """Add the scores of a batch.

    Args:
        state: List of batches, left as it is.
        predictions: (B, K) scores, logits or probabilities: only their order matters.
        references: (B, K) labels, 1 = the image has the class, 0 = it has not.

    Returns:
        A list with one batch more.

    Raises:
        ValueError: The shapes are not (B, K), or differ from each other or from earlier batches; a score is nan; a
            label is neither 0 nor 1.
    """
    scores, labels = _array(predictions, "predictions"), _array(references, "references")
    classes = state[0][0].shape[1] if state else "K"
    if scores.ndim != 2 or scores.shape != labels.shape or (state and scores.shape[1] != classes):
        raise ValueError(
            f"predictions has shape {scores.shape} and references {labels.shape}; expected (B, {classes}) for both, "
            "pass one score and one 0/1 label per image and class."
        )
    if np.isnan(scores).any():
        raise ValueError("predictions holds nan, which has no rank; check the model's logits before scoring them.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("references holds values other than 0 and 1; pass multi-hot labels, one column per class.")
    return [*state, (scores, labels == 1)]


def merge(states: Iterable[State]) -> State:
    """Join the batches of several processes, in any order.

    Raises:
        ValueError: They are of different numbers of classes.
    """
    merged = [batch for state in states for batch in state]
    sizes = sorted({scores.shape[1] for scores, _ in merged})
    if len(sizes) > 1:
        raise ValueError(
            f"The states to merge are of {sizes} classes; expected one number, score one model at a time."
        )
    return merged


def compute(state: State) -> dict[str, float | list[float]]:
    """Average precision over the whole set.

    A class without a positive label has no average precision: nan, left out of the macro mean (scikit-learn warns and
    gives 0). Micro is nan only where there is no positive label at all.

    Returns:
        `micro_map`: all N x K scores ranked together; `macro_map`: mean of the classes; `per_class_ap`: list of K
        (empty where the state is). Each in [0, 1] or nan.
    """
    if not state:
        return {"micro_map": math.nan, "macro_map": math.nan, "per_class_ap": []}
    scores, labels = (np.concatenate(parts) for parts in zip(*state))
    per_class = [average_precision(scores[:, k], labels[:, k]) for k in range(scores.shape[1])]
    return {
        "micro_map": average_precision(scores.ravel(), labels.ravel()),
        "macro_map": _mean(per_class),
        "per_class_ap": per_class,
    }


def authors_batch_map(predictions: ArrayLike, references: ArrayLike, batch_size: int) -> float:
    """Mean over batches of each batch's micro average precision: the "mAP" of the GFM authors' BigEarthNet runs.

    It depends on the batch size and on the order of the images, and a small last batch weighs as much as a full one;
    use it to compare with their numbers, and `micro_map` for everything else.

    Args:
        predictions: (N, K) scores in the order of the run.
        references: (N, K) labels, 0 or 1.
        batch_size: Images per batch on one process (theirs: 128).

    Returns:
        Value in [0, 1]; batches without a positive label are left out (torchmetrics 1.9 warns and counts 0), nan
        where all are.

    Raises:
        ValueError: As `update`, or batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1, pass the images per batch of the run.")
    ((scores, labels),) = update(new_state(), predictions, references)
    batches = (slice(start, start + batch_size) for start in range(0, len(scores), batch_size))
    return _mean([average_precision(scores[batch].ravel(), labels[batch].ravel()) for batch in batches])


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum over thresholds of precision times the recall gained; nan without a positive label.

    Args:
        scores: (N,) float without nan; equal scores are one threshold.
        labels: (N,) bool.

    Source: `average_precision_score` of scikit-learn defines the same sum.
    """
    positives = int(labels.sum())
    if not positives:
        return math.nan
    order = np.argsort(-scores)
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last place of each run of equal scores
    hits = np.cumsum(labels[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * (hits / (ends + 1))) / positives)


def _array(values: ArrayLike, name: str) -> np.ndarray:
    """As float64; torch tensors come from any device and in any precision."""
    try:
        array = np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values)
    except ValueError:
        raise ValueError(
            f"{name} has rows of different lengths; expected one column per class in every row."
        ) from None
    if array.size and array.dtype.kind not in "buif":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers, pass an array of shape (B, K).")
    return array.astype(np.float64)


def _mean(scores: list[float]) -> float:
    known = [score for score in scores if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan
