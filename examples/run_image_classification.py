"""Fine-tune a backbone to tell classes of images, one or several per image.

    accelerate launch examples/run_image_classification.py --model_name_or_path my_backbone \
        --data_dir UCMerced_LandUse/Images --output_dir my_classifier

The defaults are the authors' recipe: 100 epochs, AdamW with layer decay 0.9, warm-up and cosine, Mixup and CutMix,
label smoothing 0.1. A validation part chooses the epoch, an untouched test part is reported.
"""

import argparse
import math
import sys
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from gfm_hf import GFMForImageClassification
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.mixing import Mixing
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import multilabel_map
from gfm_hf.training.arguments import at_least_zero, share
from gfm_hf.training.panels import confusion_panel, curve_panel, labelled_panel
from gfm_hf.training.recipes import add_cosine_arguments, build_adamw, cosine_schedule, total_steps
from gfm_hf.training.runs import InputError, RunFolder, command, running, user_input
from gfm_hf.training.task_arguments import (
    add_data_arguments,
    add_finetuning_arguments,
    add_model_arguments,
    source_of,
)
from gfm_hf.training.task_loaders import evaluation_loader, training_loader
from gfm_hf.training.task_models import build_task_model, labels_of, load_config, load_processor
from gfm_hf.training.task_run import TaskRun


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--image_column_name", default="image")
    data.add_argument("--label_column_name", help="label, or labels with a list per image")
    data.add_argument("--nodata", type=float, help="value of image pixels without measurement; they become the mean")
    model = add_model_arguments(parser)
    model.add_argument("--problem_type", choices=["single_label_classification", "multi_label_classification"])
    optimisation = add_finetuning_arguments(parser, batch_size=128, epochs=100, patience=None)
    add_cosine_arguments(optimisation, learning_rate=1e-4, warmup=1e-7, floor=1e-5)
    optimisation.add_argument("--mixup_alpha", type=at_least_zero, default=0.8)
    optimisation.add_argument("--cutmix_alpha", type=at_least_zero, default=1.0)
    optimisation.add_argument("--label_smoothing", type=share, default=0.1)
    optimisation.add_argument("--crop_scale", type=share, default=0.67, help="smallest share of an image in a crop")
    return parser.parse_args(argv)


def train_step(
    model: torch.nn.Module, batch: dict[str, Any], accelerator: Accelerator, accumulation: int = 1
) -> torch.Tensor:
    """Forward and backward of one micro-batch; returns the loss times its share of the global batch."""
    pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True)
    labels = batch["labels"].to(accelerator.device, non_blocking=True)
    weight = batch["loss_weight"].to(accelerator.device, non_blocking=True)
    loss = model(pixel_values=pixel_values, labels=labels).loss * weight / accumulation
    accelerator.backward(loss)
    return loss.detach()


@torch.no_grad()
def predict(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a part, in its order, the same on every process.

    Returns:
        (N, K) float32 logits; (N,) ids or (N, K) multi-hot labels.
    """
    model.eval()
    rows = []
    with user_input(), running(loader) as batches:
        for batch in batches:
            logits = model(pixel_values=batch["pixel_values"].to(accelerator.device)).logits.float().cpu().numpy()
            rows += list(zip(batch["index"].tolist(), logits, batch["labels"].numpy()))
    # Fillers of a process that ran out of samples have index -1.
    rows = sorted((row for row in gather_object(rows) if row[0] >= 0), key=lambda row: row[0])
    return np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy for one label per image; micro and macro average precision for several, where there is any."""
    if labels.ndim == 1:
        right = logits.argmax(axis=1) == labels
        per_class = [right[labels == label].mean() for label in np.unique(labels)]
        return {"accuracy": float(right.mean()), "mean_class_accuracy": float(np.mean(per_class))}
    scores = 1 / (1 + np.exp(-logits))
    found = multilabel_map.compute(multilabel_map.update(multilabel_map.new_state(), scores, labels))
    scored = {name: float(found[name]) for name in ("micro_map", "macro_map")}  # type: ignore[arg-type]
    return {name: value for name, value in scored.items() if not math.isnan(value)}


def open_data(args: argparse.Namespace, num_channels: int, rgb_channels: Any) -> TaskData:
    """The labelled set of the flags."""
    return open_task(
        "classification",
        **source_of(args),
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
        nodata=args.nodata,
    )


def draw(folder: RunFolder, data: TaskData, split: TaskSplit, logits: np.ndarray, labels: np.ndarray) -> None:
    """Pictures of what the model does on a part."""
    names, several = data.label_names, labels.ndim == 2
    if several:
        folder.save_picture(curve_panel(logits, labels, names), "panels/precision_recall.png")
    else:
        folder.save_picture(confusion_panel(logits.argmax(axis=1), labels, names), "panels/confusion.png")
    chosen = np.linspace(0, len(split) - 1, min(24, len(split))).astype(int)

    def told(row: np.ndarray) -> str:
        return ", ".join(names[index] for index in np.nonzero(row > 0)[0])

    truths = [told(labels[i]) if several else names[labels[i]] for i in chosen]
    answers = [told(logits[i]) if several else names[logits[i].argmax()] for i in chosen]
    folder.save_picture(labelled_panel([split[i].images[0] for i in chosen], truths, answers), "panels/samples.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as the flags say, and write everything into the output folder.

    Returns:
        Scores of the test part (of validation where there is none) and what else all_results.json holds; empty after
        a signal.
    """
    task = TaskRun(args, "gfm-classification")

    # Processor, data, model
    with user_input():
        processor, config = load_processor(args), load_config(args)
        data = open_data(args, config.num_channels, config.rgb_channels)
        if args.problem_type and args.problem_type != data.problem_type:
            raise InputError(f"--problem_type is {args.problem_type} but the labels make it {data.problem_type}.")
        fields = labels_of(data.label_names) | {"problem_type": data.problem_type}
        model = build_task_model(GFMForImageClassification, args, task.accelerator.device, **fields)
    single_label = data.problem_type == "single_label_classification"
    metric = "accuracy" if single_label else "micro_map"
    task.prepare(model, processor, data, build_adamw(model, args), metric)

    # Batches from where the run stands
    with user_input():
        augmentation = Augmentation(processor.size["height"], scale=(args.crop_scale, 1.0))
        mixing = Mixing(args.mixup_alpha, args.cutmix_alpha, label_smoothing=args.label_smoothing)
        loader, plan = training_loader(
            args, data.train, augmentation, processor, task.accelerator, task.progress, mixing
        )
        validation = evaluation_loader(args, data.validation, processor, task.accelerator)

    # Train
    def evaluate() -> dict[str, float]:
        scores = score(*predict(task.model, validation, task.accelerator))
        if metric not in scores:
            raise InputError("The validation part has no label to choose by; give it images with labels.")
        return scores

    schedule = cosine_schedule(args, plan.global_batch_size, total_steps(args, plan.steps_per_epoch or 1))
    if not task.train(loader, plan, schedule, train_step, evaluate):
        return {}

    # The best epoch on the untouched part
    split = data.test or data.validation
    logits, labels = predict(task.model, evaluation_loader(args, split, processor, task.accelerator), task.accelerator)
    if task.accelerator.is_main_process:
        draw(task.folder, data, split, logits, labels)
    return task.finish(split.name, score(logits, labels))


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
