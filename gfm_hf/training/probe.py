"""Frozen-feature evaluation: how much do a network's features say about the classes?

The network is never trained here. Its features are computed once (`pooled_features`), then a linear classifier and
a nearest-neighbour vote are fitted on the training part and scored on the test part. Nothing is chosen on the test
part: the strength of the linear classifier's penalty is picked inside the training part.

Works with every vision model of transformers. scikit-learn (extra `[train]`) is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch


PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strength C of the linear probe, chosen inside the training part


def stratified_split(labels: np.ndarray, fractions: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Divide indices at random so that every class is shared out in the same proportions.

    Args:
        labels: (N,) class of each sample.
        fractions: Share of each part; they may sum to less than 1, what is left belongs to no part.
        seed: The same seed gives the same parts.

    Returns:
        One sorted (M,) int array of indices per part, disjoint. Counts are rounded class by class.

    Raises:
        ValueError: A share is not positive or they sum to more than 1.
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or (shares <= 0).any() or shares.sum() > 1 + 1e-9:
        raise ValueError(f"fractions is {list(fractions)}; give positive shares that sum to at most 1.")
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.floor(np.cumsum(shares) * len(members) + 0.5).astype(int)
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(members[start:end])
    return [np.sort(np.concatenate(part)) for part in parts]


def _pool(outputs: Any, stage: int | None) -> torch.Tensor:
    """Reduce a model's output to one vector (B, D) per picture."""
    pooled = getattr(outputs, "pooler_output", None)
    if stage is None and pooled is not None:
        return pooled.flatten(1)
    states = outputs.last_hidden_state if stage is None else outputs.hidden_states[stage]
    return states.mean(dim=1) if states.ndim == 3 else states.flatten(2).mean(dim=2)


@torch.no_grad()
def pooled_features(
    model: torch.nn.Module, pixel_values_batches: Iterable[torch.Tensor], stage: int | None = None
) -> np.ndarray:
    """Compute one feature vector per picture with the model as it is.

    Args:
        model: Any vision model of transformers; it is put into evaluation mode and back.
        pixel_values_batches: Batches (B, C, H, W), normalised as the model expects; moved to the model's device.
        stage: None takes the model's pooled output (else the mean over its last tokens). A number takes the mean over
            `hidden_states[stage]`, without the final norm; 3 is the stage that GFM distils.

    Returns:
        (N, D) float32, in the order of the batches.

    Raises:
        ValueError: There is no batch, or the model has no such stage.
    """
    device, was_training = next(model.parameters()).device, model.training
    features = []
    model.eval()
    for pixel_values in pixel_values_batches:
        outputs = model(pixel_values=pixel_values.to(device), output_hidden_states=stage is not None)
        if stage is not None and not 0 <= stage < len(outputs.hidden_states):
            raise ValueError(f"stage is {stage}; this model offers 0 to {len(outputs.hidden_states) - 1}.")
        features.append(_pool(outputs, stage).float().cpu().numpy())
    model.train(was_training)
    if not features:
        raise ValueError("There is no batch to compute features of; give at least one picture.")
    return np.concatenate(features)


def linear_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int = 0
) -> float:
    """Return the accuracy of a linear classifier on frozen features.

    Features are standardised with the training part's statistics. The penalty of the logistic regression is the one
    of `PENALTIES` that does best on a stratified fifth of the training part; the final fit uses all of that part.

    Args:
        train_x: (N, D) features.
        train_y: (N,) classes.
        test_x: (M, D) features.
        test_y: (M,) classes.
        seed: Seed of the inner split.

    Returns:
        Share of correct answers on the test part, 0..1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(penalty: float, rows: np.ndarray) -> Any:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000, tol=1e-3))
        return classifier.fit(train_x[rows], train_y[rows])

    inner, held_out = stratified_split(train_y, (0.8, 0.2), seed)
    if len(held_out) == 0:
        raise ValueError(f"{len(train_y)} training pictures are too few to choose a penalty; give 3 or more a class.")
    scores = [fitted(penalty, inner).score(train_x[held_out], train_y[held_out]) for penalty in PENALTIES]
    best = PENALTIES[int(np.argmax(scores))]  # the strongest penalty among equals
    return float(fitted(best, np.arange(len(train_y))).score(test_x, test_y))


def knn_probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int = 5) -> float:
    """Return the accuracy of a vote among the `k` training pictures with the most similar features (cosine).

    Args:
        train_x: (N, D) features.
        train_y: (N,) classes.
        test_x: (M, D) features.
        test_y: (M,) classes.
        k: Voters; no more than there are training pictures.

    Returns:
        Share of correct answers on the test part, 0..1.
    """
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(min(k, len(train_y)), metric="cosine").fit(train_x, train_y)
    return float(voters.score(test_x, test_y))


def repeat_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    seeds: Sequence[int] = (0, 1, 2),
    k: int = 5,
) -> list[dict[str, float]]:
    """Repeat both probes, each time with another stratified 80 % of the training part and the same test part.

    Returns:
        One dict per seed: "seed", "linear" and "knn" (accuracies, 0..1).
    """
    results = []
    for seed in seeds:
        (rows,) = stratified_split(train_y, (0.8,), seed)
        part = (train_x[rows], train_y[rows], test_x, test_y)
        results.append({"seed": seed, "linear": linear_probe(*part, seed=seed), "knn": knn_probe(*part, k=k)})
    return results


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
