"""Parameter groups and the learning rate of every step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


POSITION_TABLE = "relative_position_bias_table"
# Parameters with more than one axis that are no weight matrices.
UNDECAYED = ("mask_token", "position_embeddings")


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_position_tables: bool = False
) -> list[dict[str, Any]]:
    """Split the trainable parameters into decayed and undecayed ones.

    Vectors (biases, norms), the mask token, position embeddings and position tables are not decayed.

    Args:
        model: Any model with transformers' Swin inside.
        weight_decay: Decay of the first group.
        decay_position_tables: Decay the position tables as well. The authors' pretraining does, because the keyword
            that should exempt them never matches; their fine-tuning does not.

    Returns:
        Two groups with `params` and `weight_decay`, decayed first, each in `named_parameters()` order.
    """
    exempt = UNDECAYED if decay_position_tables else (*UNDECAYED, POSITION_TABLE)
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            keep = parameter.ndim <= 1 or name.rpartition(".")[2] in exempt
            (undecayed if keep else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then a cosine whose phase runs over the whole run, warm-up included.

    Attributes:
        peak: Rate towards which the warm-up rises.
        start: Rate of the first update.
        floor: Rate towards which the cosine falls.
        warmup_steps: Updates of the warm-up.
        total_steps: Updates of the run.
        repeat_first: The authors set the rate after each update, so that the first rate is used twice and the last
            one never; True does the same.

    Source: the authors' configuration with timm's cosine scheduler, `warmup_prefix` off.
    """

    peak: float
    start: float
    floor: float
    warmup_steps: int
    total_steps: int
    repeat_first: bool = False

    def learning_rate(self, step: int) -> float:
        """Rate of update `step`, counted from 0."""
        if self.repeat_first:
            step = max(step - 1, 0)
        if step < self.warmup_steps:
            return self.start + step * (self.peak - self.start) / self.warmup_steps
        return self.floor + (self.peak - self.floor) / 2 * (1 + math.cos(math.pi * step / self.total_steps))


def scale_learning_rate(rate: float, global_batch_size: int, reference: int = 512) -> float:
    """Scale a rate that was given for a batch of `reference` images; peak, start and floor scale alike."""
    return rate * global_batch_size / reference


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use one rate in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
