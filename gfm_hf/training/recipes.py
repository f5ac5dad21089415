"""Flags -> optimiser and schedule of fine-tuning: the authors' recipe for images, mmsegmentation's two for maps."""

import argparse
from typing import Any

import torch
from torch import nn

from gfm_hf.training.arguments import at_least_zero, share
from gfm_hf.training.optim import CosineSchedule, PolynomialSchedule, Schedule, layer_decay_groups, scale_learning_rate


# mmsegmentation's two recipes for maps; a flag that is given wins.
MAP_RECIPES = {
    "adamw": {
        "learning_rate": 6e-5,
        "min_learning_rate": 0.0,
        "power": 1.0,
        "warmup_steps": 1500,
        "weight_decay": 0.01,
    },
    "sgd": {"learning_rate": 0.01, "min_learning_rate": 1e-4, "power": 0.9, "warmup_steps": 0, "weight_decay": 5e-4},
}


def add_cosine_arguments(group: Any, learning_rate: float, warmup: float, floor: float) -> None:
    """Flags of `cosine_schedule`.

    Args:
        group: A parser or one of its groups.
        learning_rate: Default of the peak, for a batch of 512.
        warmup: Default of the first rate, likewise.
        floor: Default of the last rate, likewise.
    """
    group.add_argument("--learning_rate", type=at_least_zero, default=learning_rate, help="for 512 images; scaled")
    group.add_argument("--warmup_learning_rate", type=at_least_zero, default=warmup, help="scaled likewise")
    group.add_argument("--min_learning_rate", type=at_least_zero, default=floor, help="scaled likewise")
    group.add_argument("--warmup_ratio", type=share, default=0.2, help="share of the steps")
    group.add_argument(
        "--authors_quirks",
        action="store_true",
        help="as the released code: first rate used twice, only the peak lowered by layer decay",
    )


def add_map_recipe_arguments(parser: argparse.ArgumentParser, group: Any, optimizer: str) -> None:
    """Flags of `build_map_optimizer` and `polynomial_schedule`.

    Args:
        parser: Has the flags of `add_finetuning_arguments` already; their defaults become those of maps.
        group: One of its groups.
        optimizer: Default key of `MAP_RECIPES`.
    """
    group.add_argument("--optimizer", choices=list(MAP_RECIPES), default=optimizer)
    told = {
        name: ", ".join(f"{recipe[name]:g} ({key})" for key, recipe in MAP_RECIPES.items())
        for name in MAP_RECIPES["sgd"]
    }
    group.add_argument("--learning_rate", type=at_least_zero, help=f"as it is; default: {told['learning_rate']}")
    group.add_argument("--min_learning_rate", type=at_least_zero, help=f"default: {told['min_learning_rate']}")
    group.add_argument("--power", type=at_least_zero, help=f"of the fall; default: {told['power']}")
    group.add_argument("--warmup_steps", type=int, help=f"a tenth of the run at most; default: {told['warmup_steps']}")
    group.add_argument("--momentum", type=share, default=0.9, help="of sgd")
    group.add_argument("--dice_loss_weight", type=at_least_zero, default=0.0, help="beside cross-entropy")
    parser.set_defaults(weight_decay=None, layer_decay=1.0, max_grad_norm=0.0, eval_steps=500)


def fill_map_recipe(args: argparse.Namespace, max_train_steps: int) -> None:
    """Give flags that were left out the values of the recipe, and a run without a length this many steps."""
    for name, value in MAP_RECIPES[args.optimizer].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.num_train_epochs and args.max_train_steps is None:
        args.max_train_steps = max_train_steps


def build_adamw(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW with layer decay."""
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)


def build_map_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW or SGD over the same groups."""
    if args.optimizer == "adamw":
        return build_adamw(model, args)
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=args.momentum)


def total_steps(args: argparse.Namespace, steps_per_epoch: int) -> int:
    """Updates of the run."""
    return args.max_train_steps or args.num_train_epochs * steps_per_epoch


def cosine_schedule(args: argparse.Namespace, global_batch_size: int, steps: int) -> Schedule:
    """The authors' fine-tuning schedule, rates scaled to the batch."""
    return CosineSchedule(
        peak=scale_learning_rate(args.learning_rate, global_batch_size),
        start=scale_learning_rate(args.warmup_learning_rate, global_batch_size),
        floor=scale_learning_rate(args.min_learning_rate, global_batch_size),
        warmup_steps=round(args.warmup_ratio * steps),
        total_steps=steps,
        repeat_first=args.authors_quirks,
        scale_peak_only=args.authors_quirks,
    )


def polynomial_schedule(args: argparse.Namespace, steps: int) -> Schedule:
    """The schedule of mmsegmentation; rates are used as they are given."""
    return PolynomialSchedule(
        args.learning_rate, args.min_learning_rate, steps, args.power, warmup_steps=min(args.warmup_steps, steps // 10)
    )
