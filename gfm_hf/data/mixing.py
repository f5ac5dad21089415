"""Mixup and CutMix of a batch with itself in reverse order, and the soft targets that go with them.

Image i is mixed with image B - 1 - i, all with one share `lam`: timm's mode "batch", which the authors use. Of an odd
batch the middle image meets itself and stays as it is.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gfm_hf.data.seeding import MIXING_STREAM, sample_rng


class Mix(NamedTuple):
    """One draw for one batch.

    Attributes:
        lam: Share of each image's own content and target, 0 to 1.
        box: (top, bottom, left, right) px that CutMix takes from the other image; None for Mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """What a run mixes; the defaults are the authors'.

    Attributes:
        mixup_alpha: Both parameters of Mixup's beta distribution; 0: no Mixup.
        cutmix_alpha: Those of CutMix; 0: no CutMix.
        probability: How often a batch is mixed at all.
        switch_probability: How often it is CutMix where both are on.
        label_smoothing: s; targets are 1 - s + s/K where the label is and s/K elsewhere, mixed or not.

    Raises:
        ValueError: A negative alpha, or a share outside 0 to 1.

    Source: Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019); values of GFM config_finetune.py.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.probability, self.switch_probability, self.label_smoothing)
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"{self} cannot be; alphas must be 0 or more, the other numbers between 0 and 1.")

    def draw(self, seed: int, epoch: int, step: int, height: int, width: int) -> Mix:
        """Draw the mix of one optimizer step; all ranks and micro-batches of the step draw the same.

        Args:
            seed: Seed of the run.
            epoch: Pass over the data, from 0.
            step: Optimizer step inside the epoch, from 0.
            height: Rows of the images.
            width: Columns of the images.
        """
        return self.draw_from(sample_rng(seed, epoch, step, MIXING_STREAM), height, width)

    def draw_from(self, rng: Any, height: int, width: int) -> Mix:
        """Draw a mix, in the order of draws of timm's Mixup.

        Args:
            rng: NumPy generator, or anything with its `random`, `beta` and `integers`.
            height: Rows of the images.
            width: Columns of the images.
        """
        if not (self.mixup_alpha or self.cutmix_alpha) or rng.random() >= self.probability:
            return Mix(1.0)
        cutmix = self.cutmix_alpha > 0
        if cutmix and self.mixup_alpha > 0:
            cutmix = rng.random() < self.switch_probability
        alpha = self.cutmix_alpha if cutmix else self.mixup_alpha
        lam = float(rng.beta(alpha, alpha))
        if not cutmix:
            return Mix(lam)
        box = _random_box(rng, lam, height, width)
        area = (box[1] - box[0]) * (box[3] - box[2])
        return Mix(1 - area / (height * width), box)  # of what the box really covers, clipped at the borders


def _random_box(rng: Any, lam: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw a rectangle of the share 1 - lam around a random centre, clipped to the image."""
    side = math.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = int(rng.integers(0, height)), int(rng.integers(0, width))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    return top, bottom, left, right


def mix_images(pixel_values: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Mix a batch with itself in reverse order.

    Args:
        pixel_values: (B, ..., H, W) float.
        mix: Share, and for CutMix the box.

    Returns:
        (B, ..., H, W): lam * x + (1 - lam) * x reversed, or x with the box of x reversed.
    """
    if mix.box is None:
        return pixel_values * mix.lam + pixel_values.flip(0) * (1 - mix.lam)
    top, bottom, left, right = mix.box
    mixed = pixel_values.clone()
    mixed[..., top:bottom, left:right] = pixel_values.flip(0)[..., top:bottom, left:right]
    return mixed


def soft_targets(labels: torch.Tensor, num_labels: int, label_smoothing: float, lam: float = 1.0) -> torch.Tensor:
    """Smooth targets and mix them with those of the reversed batch.

    Args:
        labels: (B,) class ids, or (B, K) multi-hot.
        num_labels: K.
        label_smoothing: s.
        lam: Share of each image's own target.

    Returns:
        (B, K) float32. Multi-hot rows are 1 - s + s/K where the label is set and s/K elsewhere, before mixing, so
        they do not sum to 1; the authors' rule too.

    Source: timm data/mixup.py (`mixup_target`), GFM data/ben_data.py.
    """
    hot = labels.float() if labels.ndim == 2 else torch.nn.functional.one_hot(labels, num_labels).float()
    # In this order float32 rounds as the authors' targets do.
    own = hot * (1 - label_smoothing) + label_smoothing / num_labels
    return own if lam == 1 else own * lam + own.flip(0) * (1 - lam)
