"""One generator per sample and purpose, so that no draw depends on the draws before it.

Workers, ranks and resumed runs ask for the same (seed, epoch, index) and get the same numbers.
"""

import numpy as np


# Each purpose has its own stream: a mask never depends on how many numbers a crop has drawn.
ORDER_STREAM, CROP_STREAM, MASK_STREAM, HOLD_OUT_STREAM, SUBSET_STREAM, MIXING_STREAM = range(6)


def sample_rng(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """Make the generator of one sample in one epoch for one purpose.

    Args:
        seed: Seed of the run, 0 or more.
        epoch: Pass over the data, from 0.
        index: Sample in that pass, from 0.
        stream: One of the `..._STREAM` constants.

    Returns:
        A generator whose numbers are independent of those of every other argument tuple.

    Raises:
        ValueError: A negative number, which a seed sequence cannot hold.
    """
    if min(seed, epoch, index) < 0:
        raise ValueError(f"seed {seed}, epoch {epoch} and index {index} must all be 0 or more; pass --seed 0 or more.")
    return np.random.default_rng([seed, epoch, index, stream])
