"""Parameter groups and the learning rate of every step."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


POSITION_TABLE = "relative_position_bias_table"
# mmsegmentation's warm-up starts at this share of the rate.
WARMUP_RATIO = 1e-6
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


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters by depth as well: the nearer to the pixels, the lower the rate.

    The patch embedding is level 0, the blocks follow one by one, a merging belongs to the block before it, and all
    that stands behind the last block (norms, heads) is the last level, whose rate is not lowered.

    Args:
        model: Any model with transformers' Swin inside as `swin`.
        weight_decay: Decay of weight matrices; `parameter_groups` says what is none.
        layer_decay: Factor from one level to the next lower one; 1 for one rate everywhere.

    Returns:
        Groups with `params`, `weight_decay`, `lr_scale` and `name` ("layer_3_decay"), by level.

    Source: the authors' fine-tuning code (0.9), after BEiT.
    """
    depths = [len(stage.blocks) for stage in _trunk_of(model).encoder.layers]
    last = sum(depths) + 1
    groups: dict[str, dict[str, Any]] = {}
    for level in range(last + 1):
        for decayed in (True, False):
            name = f"layer_{level}_{'decay' if decayed else 'no_decay'}"
            scale = layer_decay ** (last - level)
            groups[name] = {"params": [], "weight_decay": weight_decay * decayed, "lr_scale": scale, "name": name}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name.rpartition(".")[2] not in (*UNDECAYED, POSITION_TABLE)
            groups[f"layer_{_level(name, depths)}_{'decay' if decayed else 'no_decay'}"]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _trunk_of(model: nn.Module) -> Any:
    """The Swin inside, wherever an adapter or a wrapper has put it."""
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "swin")


def _level(name: str, depths: list[int]) -> int:
    if ".embeddings." in name:
        return 0
    match = re.search(r"swin\.encoder\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)", name)
    if match is None:
        return sum(depths) + 1
    stage, block = int(match[1]), match[2]
    return sum(depths[:stage]) + int(block) + 1 if block is not None else sum(depths[: stage + 1])


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then a cosine whose phase runs over the whole run, warm-up included.

    Attributes:
        peak: Rate towards which the warm-up rises.
        start: Rate of the first update.
        floor: Rate towards which the cosine falls.
        warmup_steps: Updates of the warm-up.
        total_steps: Updates of the run.
        scale_peak_only: In groups with a rate of their own the authors lower the peak alone, so that the rates of the
            deepest groups rise to the floor; False lowers all three.
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
    scale_peak_only: bool = False

    def learning_rate(self, step: int, scale: float = 1.0) -> float:
        """Rate of update `step`, counted from 0, in a group whose rates are lowered by `scale`."""
        if self.repeat_first:
            step = max(step - 1, 0)
        ends = 1.0 if self.scale_peak_only else scale
        start, peak, floor = self.start * ends, self.peak * scale, self.floor * ends
        if step < self.warmup_steps:
            return start + step * (peak - start) / self.warmup_steps
        return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * step / self.total_steps))


@dataclass(frozen=True)
class PolynomialSchedule:
    """Linear warm-up, then a fall by a power of what is left of the run.

    Attributes:
        peak: Rate of the first update behind the warm-up.
        floor: Rate towards which it falls.
        total_steps: Updates of the run.
        power: 1 for a straight line.
        warmup_steps: Updates of the warm-up, which starts at a millionth of the line.

    Source: mmsegmentation's "poly" policy (power 0.9 and floor 1e-4 with SGD, power 1 after 1,500 steps with AdamW).
    """

    peak: float
    floor: float
    total_steps: int
    power: float = 0.9
    warmup_steps: int = 0

    def learning_rate(self, step: int, scale: float = 1.0) -> float:
        """Rate of update `step`, counted from 0, in a group whose rates are lowered by `scale`."""
        rate = (self.peak - self.floor) * (1 - step / self.total_steps) ** self.power + self.floor
        if step < self.warmup_steps:
            rate *= 1 - (1 - step / self.warmup_steps) * (1 - WARMUP_RATIO)
        return rate * scale


Schedule = CosineSchedule | PolynomialSchedule


def scale_learning_rate(rate: float, global_batch_size: int, reference: int = 512) -> float:
    """Scale a rate that was given for a batch of `reference` images; peak, start and floor scale alike."""
    return rate * global_batch_size / reference


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Give every group its rate of an update; returns the rate of a group that is not lowered."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate(step, group.get("lr_scale", 1.0))
    return schedule.learning_rate(step)
