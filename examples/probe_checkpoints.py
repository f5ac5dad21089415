"""Compare checkpoints by their frozen features: linear probe and nearest neighbours on labelled pictures.

`random:FOLDER` stands for a network with that folder's configuration and untrained weights, the floor to compare with.
The spread is the standard deviation over the seeds; each seed draws another 80 % of the training part.

Example:
    python examples/probe_checkpoints.py --models random:student student teacher --data_dir scenes --output probe.json
    python examples/probe_checkpoints.py --models student --train_parquet ucmerced.parquet --split_column split
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import gfm_hf  # noqa: F401  registers GFM with the Auto classes
from gfm_hf.data.labelled import LabelledImages, open_labelled_images
from gfm_hf.training.probe import mean_and_spread, pooled_features, repeat_probe, stratified_split
from gfm_hf.training.runs import command, user_input


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="CKPT", help="folder, Hub name or random:CKPT")
    parser.add_argument(
        "--data_dir", type=Path, help="folder with one sub-folder per class; a fifth becomes the test part"
    )
    parser.add_argument("--train_parquet", type=Path, nargs="+", help="Parquet files with image and label columns")
    parser.add_argument("--test_parquet", type=Path, nargs="+", help="the same for the test part")
    parser.add_argument(
        "--split_column", help="column of --train_parquet with the values train and test (others are left out)"
    )
    parser.add_argument("--image_column_name", default="image")
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--image_size", type=int, help="side in px; default: each model's own")
    parser.add_argument("--stage", type=int, help="mean over hidden_states[stage]; default: the model's pooled output")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    if args.test_parquet and (args.split_column or not args.train_parquet):
        parser.error("--test_parquet goes with --train_parquet and without --split_column; leave one of them out.")
    return args


def train_and_test(data: LabelledImages, test: LabelledImages | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Choose the training and the test part.

    Args:
        data: All pictures, or the training part when `test` is given.
        test: A test part of its own; it must have the same classes.

    Returns:
        `data` and `test`; else the rows marked train and test; else a stratified 80 / 20 that never changes.

    Raises:
        ValueError: The classes of the two parts differ, or no row is marked train or test.
    """
    if test is not None:
        if test.class_names != data.class_names:
            raise ValueError(
                f"The test part has the classes {test.class_names}, the training part {data.class_names}; they must agree."
            )
        return data, test
    if data.splits is None:
        first, second = stratified_split(data.labels, (0.8, 0.2), seed=0)
        return data.subset(first), data.subset(second)
    found = sorted(set(data.splits))
    if "train" not in found or "test" not in found:
        raise ValueError(
            f"The split column holds {found}; it needs the values train and test, or give --test_parquet."
        )
    return data.subset(data.splits == "train"), data.subset(data.splits == "test")


def load_model(name: str) -> tuple[torch.nn.Module, Any]:
    """Load a network and its image processor; `random:NAME` keeps only the configuration of NAME.

    Raises:
        ValueError: There is no checkpoint of that name.
    """
    folder = name.removeprefix("random:")
    try:
        processor, config = AutoImageProcessor.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    except OSError as error:
        raise ValueError(
            f"No checkpoint can be read from '{folder}'; give a folder with config.json, or a Hub name."
        ) from error
    if folder == name:
        return AutoModel.from_pretrained(folder), processor
    torch.manual_seed(0)
    return AutoModel.from_config(config), processor


def pixel_batches(data: LabelledImages, processor: Any, size: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield normalised batches (B, 3, size, size); every model gets the same cut, its processor only normalises."""
    for start in range(0, len(data), batch_size):
        images = [data.picture(i, size) for i in range(start, min(start + batch_size, len(data)))]
        yield processor(images=images, do_resize=False, return_tensors="pt")["pixel_values"]


def probe_model(
    model: torch.nn.Module,
    processor: Any,
    train: LabelledImages,
    test: LabelledImages,
    image_size: int | None = None,
    stage: int | None = None,
    batch_size: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:
    """Probe one network.

    Returns:
        "linear" and "knn": {"mean", "spread"} accuracies in 0..1; "runs": one dict per seed; "image_size", "features"
        (D), "train_images", "test_images"; and the arrays "train_features" (N, D), "test_features" (M, D).

    Raises:
        ValueError: No image size is given and the model does not name one.
    """
    size = image_size or getattr(model.config, "image_size", None)
    if not isinstance(size, int):
        raise ValueError(f"The model's own image size is {size}; give one side in px with --image_size.")
    features = [
        pooled_features(model, pixel_batches(part, processor, size, batch_size), stage) for part in (train, test)
    ]
    runs = repeat_probe(features[0], train.labels, features[1], test.labels, seeds)
    result: dict[str, Any] = {}
    for probe in ("linear", "knn"):
        mean, spread = mean_and_spread([run[probe] for run in runs])
        result[probe] = {"mean": mean, "spread": spread}
    counts = {"features": features[0].shape[1], "train_images": len(train), "test_images": len(test)}
    arrays = {"train_features": features[0], "test_features": features[1]}
    return {**result, "runs": runs, "image_size": size, **counts, **arrays}


def markdown_table(results: dict[str, dict[str, Any]]) -> str:
    """Write one row per model; accuracies in per cent."""
    rows = ["| model | linear probe (%) | 5-NN (%) |", "|---|---|---|"]
    for name, result in results.items():
        cells = [f"{100 * result[p]['mean']:.1f} ± {100 * result[p]['spread']:.1f}" for p in ("linear", "knn")]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Probe every model, print a table, write the JSON file and return its content."""
    args = parse_args(argv)
    columns = (args.image_column_name, args.label_column_name)
    data = open_labelled_images(args.data_dir, args.train_parquet, *columns, args.split_column)
    own_test = open_labelled_images(None, args.test_parquet, *columns) if args.test_parquet else None
    train, test = train_and_test(data, own_test)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for name in args.models:
        model, processor = load_model(name)
        result = probe_model(
            model.to(device), processor, train, test, args.image_size, args.stage, args.batch_size, args.seeds
        )
        results[name] = {key: value for key, value in result.items() if not key.endswith("_features")}
    print(markdown_table(results))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    return results


@command
def run(argv: Sequence[str] | None = None) -> None:
    """The script's end: exit code 2 and one sentence where the input is at fault."""
    with user_input():
        main(argv)


if __name__ == "__main__":
    sys.exit(run())
