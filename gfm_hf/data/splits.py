"""Which samples train, validate and test: parts by name, parts cut by us, and smaller training sets."""

from collections.abc import Sequence

import numpy as np

from gfm_hf.data.seeding import HOLD_OUT_STREAM, SUBSET_STREAM, sample_rng


PARTS = ("train", "validation", "test")
_PART_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def part_of_name(name: str) -> str | None:
    """Return which part a folder, file, split or cell names ("val" is "validation"); None if it names no part."""
    return _PART_OF_NAME.get(str(name).strip().lower())


def cut_off(groups: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Cut parts off a set, the same share of every group.

    Args:
        groups: (N,) group of each sample, ids from 0; classes for a stratified cut, zeros otherwise.
        shares: Share of each part to cut off, from 0; a share above 0 takes at least one sample of every group that
            can spare it.
        seed: Seed of the draw.

    Returns:
        Positions of each part in the order of `shares`, then those of the rest, all ascending. The rest keeps at
        least one sample of every group.
    """
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for members in _shuffled_groups(groups, seed, HOLD_OUT_STREAM):
        left = members.tolist()
        for part, share in zip(parts, shares):
            count = min(max(round(share * len(members)), 1), len(left) - 1) if share else 0
            part += left[:count]
            left = left[count:]
        parts[-1] += left
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def nested_subset(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose a share of a set without repetition, the same share of every group.

    Args:
        groups: (N,) group of each sample, ids from 0; classes for a stratified choice, zeros otherwise.
        fraction: Share to keep, above 0; at least one sample of every group stays.
        seed: Seed of the choice. With one seed, a smaller fraction is always part of a larger one.

    Returns:
        Positions, ascending.

    Raises:
        ValueError: fraction is outside (0, 1].
    """
    _check_fraction(fraction)
    chosen = [
        members[: max(round(fraction * len(members)), 1)] for members in _shuffled_groups(groups, seed, SUBSET_STREAM)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def subset_with_repetition(length: int, fraction: float) -> np.ndarray:
    """Choose a share of a set as the authors do: drawn with repetition, always with seed 42.

    Args:
        length: N samples.
        fraction: Share to draw; int(fraction * N) draws.

    Returns:
        Positions in the order of the draws; about 5 % of them are repetitions at a fraction of 0.1.

    Raises:
        ValueError: fraction is outside (0, 1], or too small for a single draw.

    Source: GFM data/ben_data.py.
    """
    _check_fraction(fraction)
    if not int(fraction * length):
        raise ValueError(f"a train_fraction of {fraction} of {length} samples is none; use a larger one.")
    return np.random.default_rng(42).choice(length, int(fraction * length))


def _shuffled_groups(groups: np.ndarray, seed: int, stream: int) -> list[np.ndarray]:
    """List the positions of each group's members, in random order."""
    return [
        sample_rng(seed, 0, int(group), stream).permutation(np.flatnonzero(groups == group))
        for group in np.unique(groups)
    ]


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"train_fraction is {fraction} but must be above 0 and at most 1; 0.1 is a tenth.")
