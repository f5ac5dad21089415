"""Flags that the fine-tuning scripts share: one meaning and one check each."""

import argparse
from typing import Any

from gfm_hf.data.label_maps import MASK_VALUES
from gfm_hf.training.arguments import add_batch_arguments, add_run_arguments, at_least_zero, positive, share


def add_data_arguments(parser: argparse.ArgumentParser) -> Any:
    """Where a labelled set is and how it is cut; the names are those of `open_task`."""
    data = parser.add_argument_group("data (one source)")
    data.add_argument(
        "--data_dir", help="folder: one sub-folder per class, or image/ and mask/, or image1/, image2/, mask/"
    )
    data.add_argument("--parquet", nargs="+", help="Parquet files, a pattern or a folder of them")
    data.add_argument("--dataset_name", help="data set of the Hub")
    data.add_argument("--dataset_config_name")
    data.add_argument("--dataset_revision")
    data.add_argument("--cache_dir")
    data.add_argument("--split_column_name", help="column that names each row's part (split)")
    data.add_argument("--validation_fraction", type=share, default=0.2, help="cut off training where there is no part")
    data.add_argument("--test_fraction", type=share, help="likewise; default: 0.2 where the source names no part")
    data.add_argument("--split_seed", type=int, default=0, help="of parts that are cut here")
    data.add_argument(
        "--train_fraction", type=share, default=1.0, help="share of the training part, without repetition"
    )
    data.add_argument("--authors_subset", action="store_true", help="draw that share as the authors: with repetition")
    data.add_argument(
        "--pretraining_data",
        help="what the backbone was pretrained on (folder, Parquet, Hub id), to warn of test images that were in it; "
        "default: what the checkpoint's folder records, if it is here; none: do not look",
    )
    data.add_argument("--dataloader_num_workers", type=int, default=2)
    return data


def add_mask_arguments(group: Any, one: str, colours: int | str = "+") -> None:
    """How masks are read.

    Args:
        group: A parser or one of its groups.
        one: What id 1 means where there are two classes.
        colours: How many a palette has; "+": any number.
    """
    group.add_argument("--mask_column_name", default="mask")
    masks = group.add_mutually_exclusive_group()
    masks.add_argument("--mask_values", choices=MASK_VALUES, default="auto", help=f"binary: from 128 on is {one}")
    masks.add_argument("--palette", nargs=colours, type=colour, help="colours of the classes in turn: 000000 ff0000")
    masks.add_argument("--mask_threshold", type=float, help=f"from this value on is {one}")
    group.add_argument("--palette_tolerance", type=int, default=0, help="levels a colour may be off, for JPEG masks")
    group.add_argument("--nodata", type=float, help="value of image pixels without measurement; they are ignored")


def colour(text: str) -> list[int]:
    """Read RRGGBB, with or without #."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise argparse.ArgumentTypeError(f"{text} is no colour of six digits, such as ff0000")
    return [int(digits[place : place + 2], 16) for place in (0, 2, 4)]


def add_model_arguments(parser: argparse.ArgumentParser) -> Any:
    """Which checkpoint is adapted, and what of it is trained."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name_or_path", required=True, help="checkpoint of ours or stock Swin; or a config.json"
    )
    model.add_argument("--model_revision")
    model.add_argument("--random_init", action="store_true", help="take the checkpoint's configuration alone")
    model.add_argument(
        "--image_size", type=positive, help="side of the training images in px; default: the checkpoint's"
    )
    model.add_argument("--window_size", type=positive, help="default: the checkpoint's")
    model.add_argument("--drop_path_rate", type=share, default=0.1)
    model.add_argument("--freeze_backbone", action="store_true", help="train the head alone (linear probe)")
    model.add_argument("--lora_r", type=positive, help="train low-rank additions of this rank and the head")
    model.add_argument("--gradient_checkpointing", action="store_true")
    model.add_argument("--attn_implementation", choices=["eager", "sdpa"], help="default: eager on a CPU, else sdpa")
    return model


def add_finetuning_arguments(
    parser: argparse.ArgumentParser, batch_size: int, epochs: int, patience: int | None
) -> Any:
    """Optimisation, and when to evaluate and to stop."""
    group = parser.add_argument_group("optimisation")
    add_batch_arguments(group, batch_size, epochs)
    group.add_argument("--per_device_eval_batch_size", type=positive, help="default: that of training")
    group.add_argument("--weight_decay", type=at_least_zero, default=0.05)
    group.add_argument(
        "--layer_decay", type=share, default=0.9, help="factor on the rate from one block to the one before"
    )
    group.add_argument("--max_grad_norm", type=at_least_zero, default=5.0, help="0: no clipping")
    group.add_argument("--eval_steps", type=positive, help="default: after every epoch, for maps every 500")
    group.add_argument(
        "--early_stopping_patience", type=positive, default=patience, help="evaluations without a better score"
    )
    add_run_arguments(parser, checkpointing_steps=500)
    return group


def source_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that `open_task` takes."""
    names = (
        *("data_dir", "parquet", "dataset_name", "dataset_config_name", "cache_dir", "split_column_name"),
        *("validation_fraction", "test_fraction", "split_seed", "train_fraction", "authors_subset", "seed"),
    )
    return {name: getattr(args, name) for name in names} | {"revision": args.dataset_revision}
