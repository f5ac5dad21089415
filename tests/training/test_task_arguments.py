"""Flags that the fine-tuning scripts share: each means what `open_task` or the run makes of it."""

import argparse
import inspect

import pytest

from gfm_hf.data.tasks import open_task
from gfm_hf.training.task_arguments import (
    add_data_arguments,
    add_finetuning_arguments,
    add_mask_arguments,
    add_model_arguments,
    colour,
    source_of,
)


def flags(*words):
    parser = argparse.ArgumentParser()
    add_mask_arguments(add_data_arguments(parser), one="change", colours=2)
    add_model_arguments(parser)
    add_finetuning_arguments(parser, batch_size=3, epochs=5, patience=7)
    return parser.parse_args(["--model_name_or_path", "x", "--output_dir", "y", *map(str, words)])


# One value per flag of the data, none of them the default.
GIVEN = {
    "data_dir": "folder",
    "parquet": ["a", "b"],
    "dataset_name": "name",
    "dataset_config_name": "config",
    "cache_dir": "cache",
    "split_column_name": "part",
    "validation_fraction": 0.3,
    "test_fraction": 0.4,
    "split_seed": 5,
    "train_fraction": 0.6,
    "authors_subset": True,
    "seed": 8,
}


def test_every_flag_of_the_data_reaches_the_set():
    words = ["--dataset_revision", "tag"]
    for name, value in GIVEN.items():
        words += [f"--{name}", *([] if value is True else value if isinstance(value, list) else [value])]
    found = source_of(flags(*words))
    assert found == {**GIVEN, "revision": "tag"}
    parameters = inspect.signature(open_task).parameters
    assert set(found) <= set(parameters)
    # Whoever says nothing gets what the function does by itself.
    silent = source_of(flags())
    assert all(silent[name] == parameters[name].default for name in silent)


def test_defaults_of_the_scripts_are_those_they_ask_for():
    args = flags()
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.early_stopping_patience) == (3, 5, 7)
    assert (args.layer_decay, args.weight_decay, args.max_grad_norm, args.drop_path_rate) == (0.9, 0.05, 5.0, 0.1)
    assert args.window_size is None and args.image_size is None and not args.gradient_checkpointing


def test_colours():
    assert flags("--palette", "000000", "#ff8001").palette == [[0, 0, 0], [255, 128, 1]]
    with pytest.raises(argparse.ArgumentTypeError, match="no colour of six digits"):
        colour("fff")


WRONG = {
    "no share": ("--drop_path_rate", 1.5),
    "negative": ("--weight_decay", -1),
    "no image": ("--per_device_train_batch_size", 0),
    "too many colours": ("--palette", "000000", "ffffff", "00ff00"),
    "two ways to read": ("--palette", "000000", "ffffff", "--mask_threshold", 3),
}


@pytest.mark.parametrize("case", WRONG)
def test_numbers_that_cannot_be_are_refused(case, capsys):
    with pytest.raises(SystemExit):
        flags(*WRONG[case])
    assert WRONG[case][0] in capsys.readouterr().err or case == "two ways to read"
