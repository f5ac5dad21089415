"""Fine-tunes several starting points on the sets of `task_sets.py`, with equal flags, and prints the table.

    python benchmarks/five_tasks.py --sets sets --models gfm=my_backbone teacher=teacher random=my_backbone \
        --seeds 0 1 2 --output_dir runs
    python benchmarks/five_tasks.py --output_dir runs --report

A model named `random` takes the configuration of its folder and nothing else; a folder may be a stock Swin. A finished
run is one line of results.jsonl and is not repeated, unless its flags, its model or its set have changed; a half one is
started anew. Several processes may share the output folder if their `--tasks` differ.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from accelerate.state import AcceleratorState
from task_sets import IGNORE, pixels_of
from transformers import AutoImageProcessor

from gfm_hf import GFMForChangeDetection, GFMImageProcessor, GFMModel
from gfm_hf.metrics import change_detection, mean_iou, multilabel_map
from gfm_hf.training.runs import InputError, command


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

RESULTS = "results.jsonl"
RESAMPLES = 10_000

# Rows of a set's training part and of its test part -> the score of an answer that looks at no image.
Trivial = Callable[[list[dict[str, Any]], list[dict[str, Any]]], float]


def majority_share(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Accuracy of always naming the commonest class of the training part (the first one among equals)."""
    label = np.bincount([row["label"] for row in train]).argmax()
    return float(np.mean([row["label"] == label for row in test]))


def prevalence_map(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Micro average precision of giving every image the shares of the classes in the training part."""
    names = sorted({one for row in train + test for one in row["labels"]})
    labels = [np.array([[name in row["labels"] for name in names] for row in rows]) for rows in (train, test)]
    scores = np.broadcast_to(labels[0].mean(axis=0), labels[1].shape)
    found = multilabel_map.compute(multilabel_map.update(multilabel_map.new_state(), scores, labels[1]))
    return float(found["micro_map"])  # type: ignore[arg-type]


def all_change_f1(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """F1 of calling every pixel changed."""
    changed = np.concatenate([(pixels_of(row["mask"]) >= 128).ravel() for row in test])
    return change_detection.compute(
        change_detection.update(change_detection.new_state(), np.ones_like(changed, dtype=int), changed.astype(int))
    )["f1"]


def majority_iou(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Mean IoU of giving every pixel the commonest class of the training part."""
    known, true = (np.concatenate([pixels_of(row["mask"]).ravel() for row in rows]) for rows in (train, test))
    counts = np.bincount(known[known != IGNORE])
    state = mean_iou.new_state(int(max(known[known != IGNORE].max(), true[true != IGNORE].max())) + 1)
    found = mean_iou.compute(mean_iou.update(state, np.full_like(true, counts.argmax()), true, IGNORE))
    return float(found["mean_iou"])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        title: What the table calls it.
        script: Of `examples/`.
        data: Name of the set.
        score: Which of the script's scores counts; the larger the better.
        flags: Of the script; the same for every model.
        trivial: What no image is needed for; None: bicubic interpolation, which the script scores itself.
        factor: Score to the table's unit.
        bands: Configuration of a model with the set's bands; its statistics lie beside the set. None: red, green, blue.
        pairs: Keep the counts of every test pair, for an interval.
    """

    title: str
    script: str
    data: str
    score: str
    flags: dict[str, Any]
    trivial: Trivial | None
    factor: float = 100.0
    bands: dict[str, Any] | None = None
    pairs: bool = False


COMMON = {
    "mixed_precision": "bf16",
    "dataloader_num_workers": 0,
    # The one checkpoint is that of the end.
    "checkpointing_steps": 10**6,
    "checkpoints_total_limit": 1,
}
# Short runs from few images: no Mixup, and rates well above those of the long recipes.
CLASSIFY = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-2,
    "min_learning_rate": 1e-5,
    "mixup_alpha": 0,
    "cutmix_alpha": 0,
    "drop_path_rate": 0.0,
}
MAPS = {
    "image_size": 128,
    "per_device_train_batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "drop_path_rate": 0.0,
    "decoder_channels": 64,
}
UPSCALE = {
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-2,
    "drop_path_rate": 0.0,
}
TASKS = {
    "ucmerced": Task(
        "UC Merced, accuracy, %",
        "run_image_classification",
        "ucmerced",
        "accuracy",
        CLASSIFY | {"image_size": 96, "num_train_epochs": 12},
        majority_share,
    ),
    "ucmerced_lora": Task(
        # Few weights take smaller steps, so that twice as many are made.
        "UC Merced, LoRA of rank 8, accuracy, %",
        "run_image_classification",
        "ucmerced",
        "accuracy",
        CLASSIFY | {"image_size": 96, "num_train_epochs": 24, "lora_r": 8, "layer_decay": 1.0, "learning_rate": 0.05},
        majority_share,
    ),
    "aid_1_percent": Task(
        "AID, 1 % of the labels, accuracy, %",
        "run_image_classification",
        "aid",
        "accuracy",
        CLASSIFY | {"image_size": 96, "train_fraction": 0.01, "max_train_steps": 100, "eval_steps": 100},
        majority_share,
    ),
    "aid_10_percent": Task(
        "AID, 10 % of the labels, accuracy, %",
        "run_image_classification",
        "aid",
        "accuracy",
        CLASSIFY | {"image_size": 96, "train_fraction": 0.1, "max_train_steps": 240, "eval_steps": 120},
        majority_share,
    ),
    "sentinel2": Task(
        "Sentinel-2 land cover, 12 bands, micro mAP, %",
        "run_image_classification",
        "sentinel2_multilabel",
        "micro_map",
        CLASSIFY | {"image_size": 64, "max_train_steps": 150, "eval_steps": 25},
        prevalence_map,
        bands={"num_channels": 12, "rgb_channels": (3, 2, 1)},
    ),
    "change_real": Task(
        "Change, real pairs, F1, %",
        "run_change_detection",
        "change_quarters",
        "f1",
        MAPS
        | {
            "mask_values": "binary",
            "class_weights": [1, 3],
            "learning_rate": 3e-4,
            "max_train_steps": 300,
            "eval_steps": 50,
        },
        all_change_f1,
        pairs=True,
    ),
    "change_pasted": Task(
        "Change, pasted patches, F1, %",
        "run_change_detection",
        "change_pasted",
        "f1",
        MAPS | {"mask_values": "binary", "class_weights": [1, 3], "max_train_steps": 200, "eval_steps": 100},
        all_change_f1,
    ),
    "dubai": Task(
        "Dubai, 5 classes, mean IoU, %",
        "run_semantic_segmentation",
        "dubai",
        "mean_iou",
        MAPS
        | {
            "mask_values": "ids",
            "label_names": ["building", "land", "road", "vegetation", "water"],
            "max_train_steps": 300,
            "eval_steps": 50,
        },
        majority_iou,
    ),
    "roads": Task(
        "Roads, 2 classes, mean IoU, %",
        "run_semantic_segmentation",
        "roads",
        "mean_iou",
        MAPS | {"mask_values": "ids", "label_names": ["other", "road"], "max_train_steps": 300, "eval_steps": 50},
        majority_iou,
    ),
    "sr_ucmerced": Task(
        "UC Merced x4, PSNR, dB",
        "run_super_resolution",
        "sr_ucmerced",
        "psnr",
        UPSCALE | {"image_size": 24, "scale": 4, "max_train_steps": 250, "eval_steps": 125},
        None,
        factor=1.0,
    ),
    "sr_worldview": Task(
        "WorldView x2, PSNR, dB",
        "run_super_resolution",
        "sr_worldview",
        "psnr",
        UPSCALE | {"image_size": 40, "scale": 2, "max_train_steps": 300, "eval_steps": 50},
        None,
        factor=1.0,
        bands={"num_channels": 1},
    ),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, help="what task_sets.py wrote")
    parser.add_argument("--models", nargs="+", type=named_folder, default=[], metavar="NAME=DIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="only print the table of what is there")
    args = parser.parse_args(argv)
    if not args.report and not (args.sets and args.models):
        parser.error("--sets and --models are needed, unless --report is given")
    return args


def named_folder(text: str) -> tuple[str, Path]:
    """Read NAME=DIR."""
    name, equals, folder = text.partition("=")
    if not (name.isidentifier() and equals and folder):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR")
    return name, Path(folder)


def command_line(flags: dict[str, Any]) -> list[str]:
    """Flags as words; True stands alone, a list follows its flag."""
    words = []
    for name, value in flags.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def read_parts(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the training part and of the test part, images still encoded."""
    if not file.exists():
        raise InputError(f"{file} is missing; write it with task_sets.py.")
    rows = pyarrow.parquet.read_table(file).to_pylist()
    train, test = ([row for row in rows if row["split"] == part] for part in ("train", "test"))
    return train, test


def digest_of(*paths: Path) -> str:
    """Digest of files, and of the configuration and weights of folders."""
    files = [path / name for path in paths if path.is_dir() for name in ("config.json", "model.safetensors")]
    files += [path for path in paths if not path.is_dir()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def start_for(task: Task, name: str, model: Path, sets: Path, output_dir: Path) -> Path:
    """The folder that a task starts from: the model's, or one with the set's bands and statistics.

    Filters of red, green and blue move to their bands (one band gets their sum); those of other bands are drawn by
    seed 0, alike for all models of one shape.
    """
    if task.bands is None:
        return model
    folder = output_dir / "starts" / f"{task.data}-{name}-{digest_of(model, sets / f'{task.data}.json')[:8]}"
    if not folder.exists():
        unfinished = folder.with_name(f"unfinished-{folder.name}")
        facts = json.loads((sets / f"{task.data}.json").read_text())
        fields = ("image_mean", "image_std", "rescale_factor", "band_names")  # no names: None, not red, green and blue
        torch.manual_seed(0)
        GFMModel.from_pretrained(model, **task.bands).save_pretrained(unfinished)
        settings = {field: facts.get(field) for field in fields}
        GFMImageProcessor(size=task.flags["image_size"], **settings).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def fine_tune(key: str, name: str, model: Path, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """One run, as a line of the results; None after a signal.

    Whatever an interrupted run has left in this run's folder is removed first.
    """
    task, folder = TASKS[key], args.output_dir / f"{key}-{name}-{seed}"
    if folder.exists():
        shutil.rmtree(folder)
    flags = flags_of(task, name)
    own = {
        "model_name_or_path": start_for(task, name, model, args.sets, args.output_dir),
        "parquet": args.sets / f"{task.data}.parquet",
        "cache_dir": args.output_dir / "cache",
        "output_dir": folder,
        "seed": seed,
    }
    script = importlib.import_module(task.script)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    AcceleratorState._reset_state(True)
    begin = time.perf_counter()
    found = script.run(script.parse_args(command_line(own | flags)))
    seconds = time.perf_counter() - begin
    for number, handler in handlers.items():  # between runs a signal ends the process
        signal.signal(number, handler)
    if not found:
        return None
    train, test = read_parts(args.sets / f"{task.data}.parquet")
    scores = found["scores"]
    line = {
        **{"task": key, "model": name, "seed": seed, "score": scores[task.score], "scores": scores},
        "trivial": task.trivial(train, test) if task.trivial else scores["bicubic_psnr"],
        **{"steps": found["steps"], "best_step": found["best_step"], "seconds": round(seconds, 1)},
        **{"started_from": found["started_from"], "flags": flags},
        "inputs": digest_of(model, args.sets / f"{task.data}.parquet"),
    }
    if task.pairs:
        line["pairs"] = counts_of_pairs(folder, test)
    for checkpoint in folder.glob("checkpoint-*"):  # three times the model, and of no use any more
        shutil.rmtree(checkpoint)
    return line


def flags_of(task: Task, name: str) -> dict[str, Any]:
    """All flags of a run but its folders and its seed."""
    return {**COMMON, **task.flags, **({"random_init": True} if name == "random" else {})}


@torch.no_grad()
def counts_of_pairs(folder: Path, rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Counts of `change_detection` for each pair of scenes, all its chips together.

    Args:
        folder: Of a finished run of change detection.
        rows: Of the test part; what stands before the last slash of `name` is the pair.
    """
    model = GFMForChangeDetection.from_pretrained(folder, attn_implementation="eager").eval()
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    counts: dict[str, Any] = {}
    for row in rows:
        images = [tuple(pixels_of(row[name]) for name in ("image1", "image2"))]
        batch = processor(images=images, segmentation_maps=[pixels_of(row["mask"])], return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as in the run
            found = model(pixel_values=batch["pixel_values"]).logits.argmax(dim=1)
        pair = row["name"].rpartition("/")[0]
        before = counts.get(pair, change_detection.new_state())
        counts[pair] = change_detection.update(before, found, batch["labels"], ignore_index=IGNORE)
    return {pair: state.tolist() for pair, state in counts.items()}


def interval(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean F1 over seeds: pairs are drawn with repetition, the same ones in every run.

    Chips of one pair are not drawn apart, for they are not independent. What it tells is how far the choice of the
    test pairs carries, not that of the training pairs.
    """
    pairs = sorted(lines[0]["pairs"])
    counts = np.array([[line["pairs"][pair] for pair in pairs] for line in lines])  # (runs, pairs, 4)
    drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    hit, invented, missed = np.moveaxis(counts[:, drawn].sum(axis=2), -1, 0)[:3]  # (runs, RESAMPLES) each
    f1 = 2 * hit / np.maximum(2 * hit + invented + missed, 1)
    low, high = np.percentile(f1.mean(axis=0), [2.5, 97.5])
    return float(low), float(high)


def read_results(output_dir: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Finished runs by task, model and seed; of two lines the later one counts, half a line does not."""
    file = output_dir / RESULTS
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return {(line["task"], line["model"], line["seed"]): line for line in lines}


def append(output_dir: Path, line: dict[str, Any]) -> None:
    """Add a line by one write, so that two processes do not mix theirs."""
    file = os.open(output_dir / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def table(results: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """The results in Markdown: mean and sample deviation over seeds, and how many seeds where they are not all."""
    models = list(dict.fromkeys(model for _, model, _ in results))
    most = max((sum(key[:2] == other[:2] for other in results) for key in results), default=0)
    rows = [f"| task | trivial | {' | '.join(models)} |", "|---" * (2 + len(models)) + "|"]
    for key, task in TASKS.items():
        groups = [[line for (t, m, _), line in sorted(results.items()) if (t, m) == (key, model)] for model in models]
        if not any(groups):
            continue
        digits = 1 if task.factor == 100 else 2
        trivial = np.mean([line["trivial"] for group in groups for line in group]) * task.factor
        cells = []
        for group in groups:
            scores = np.array([line["score"] for line in group]) * task.factor
            spread = f" ± {scores.std(ddof=1):.{digits}f}" if len(scores) > 1 else ""
            number = f" ({len(scores)})" if len(scores) < most else ""
            cells.append(f"{scores.mean():.{digits}f}{spread}{number}" if len(scores) else "-")
        rows.append(f"| {task.title} | {trivial:.{digits}f} | {' | '.join(cells)} |")
        if task.trivial is None:
            found = [np.array([line["scores"]["ssim"] for line in group]) for group in groups]
            plain = np.mean([line["scores"]["bicubic_ssim"] for group in groups for line in group])
            told = [f"{one.mean():.4f}" if len(one) else "-" for one in found]
            rows.append(f"| - SSIM | {plain:.4f} | {' | '.join(told)} |")
        if task.pairs:
            ends = [interval(group) if group else None for group in groups]
            told = [f"{task.factor * e[0]:.1f} to {task.factor * e[1]:.1f}" if e else "-" for e in ends]
            count = len(next(group for group in groups if group)[0]["pairs"])
            rows.append(f"| - 95 % interval over {count} test pairs | | {' | '.join(told)} |")
    return "\n".join(rows)


@command
def main(argv: list[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    args = parse_args(argv)
    if not args.report:
        for name, folder in args.models:
            if not (folder / "config.json").exists():
                raise InputError(f"--models {name}={folder} holds no config.json; pass the folder of a checkpoint.")
        args.output_dir.mkdir(parents=True, exist_ok=True)
        wanted = [(t, m, f, s) for t in TASKS if t in args.tasks for m, f in args.models for s in args.seeds]
        # An adapter needs a stored base: what was drawn by chance is none.
        wanted = [one for one in wanted if not (one[1] == "random" and "lora_r" in TASKS[one[0]].flags)]
        for key, name, folder, seed in wanted:
            done = read_results(args.output_dir).get((key, name, seed))
            # Through JSON, since the stored flags came that way.
            wanted_flags = json.loads(json.dumps(flags_of(TASKS[key], name)))
            inputs = digest_of(folder, args.sets / f"{TASKS[key].data}.parquet")
            if done and done["flags"] == wanted_flags and done.get("inputs") == inputs:
                continue
            line = fine_tune(key, name, folder, seed, args)
            if line is None:
                print(f"stopped in {key}, {name}, seed {seed}; the same command goes on")
                return
            append(args.output_dir, line)
    print(table(read_results(args.output_dir)))


if __name__ == "__main__":
    raise SystemExit(main())
