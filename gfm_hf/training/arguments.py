"""Flags that several training scripts have: one meaning and one check each."""

import argparse
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from gfm_hf.training.runs import InputError


def positive(text: str) -> int:
    """Read a whole number that has to be 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def at_least_zero(text: str) -> float:
    """Read a number that must not be negative."""
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return float(text)


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def add_batch_arguments(group: Any, batch_size: int, epochs: int) -> None:
    """Size of a batch and length of a run.

    Args:
        group: A parser or one of its groups.
        batch_size: Default images per process.
        epochs: Default passes over the data.
    """
    group.add_argument("--per_device_train_batch_size", type=positive, default=batch_size)
    group.add_argument("--gradient_accumulation_steps", type=positive, default=1)
    group.add_argument("--num_train_epochs", type=positive, default=epochs)
    group.add_argument("--max_train_steps", type=positive)
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    group.add_argument("--seed", type=int, default=0)


def add_run_arguments(parser: argparse.ArgumentParser, checkpointing_steps: int) -> None:
    """Where a run writes, how often, and whether it pushes."""
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True)
    run.add_argument("--logging_steps", type=positive, default=10)
    run.add_argument("--checkpointing_steps", type=positive, default=checkpointing_steps)
    run.add_argument("--checkpoints_total_limit", type=positive, default=2)
    run.add_argument("--resume_from_checkpoint", help='a checkpoint folder, or "latest"')
    run.add_argument("--report_to", help="tracker of Accelerate, such as tensorboard, wandb or trackio")
    run.add_argument("--country_iso_code", help="grid for codecarbon, such as USA; default: the paper's formula")
    run.add_argument("--license", help="licence of the weights, for the card, such as cc-by-4.0")
    run.add_argument(
        "--push_to_hub", action="store_true", help="at each checkpoint, beside the training, and at the end"
    )
    run.add_argument("--hub_model_id", help="namespace/name; default: the name of --output_dir, in your namespace")
    run.add_argument("--hub_private_repo", action="store_true", default=None, help="refuses an existing public one")
    run.add_argument("--hub_token", help="default: the one of `hf auth login`")
    run.add_argument("--hub_timeout_s", type=positive, default=600, help="seconds for the last push")


def arguments_of(args: argparse.Namespace) -> dict[str, Any]:
    """The command line without its secret."""
    return {name: value for name, value in vars(args).items() if name != "hub_token"}


def hub_name(args: argparse.Namespace) -> str:
    """The repository that a run is pushed to, and the name on its card."""
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    if args.push_to_hub:
        try:
            validate_repo_id(name)
        except ValueError as error:
            raise InputError(
                f"--push_to_hub cannot use {name!r} as a name; give --hub_model_id namespace/name."
            ) from error
    return name
