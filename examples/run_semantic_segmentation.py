"""Fine-tune a backbone to tell the class of every pixel.

    accelerate launch examples/run_semantic_segmentation.py --model_name_or_path my_backbone \
        --data_dir Vaihingen --image_size 512 --output_dir my_segmenter

The folder holds image/ and mask/. The defaults are those of mmsegmentation that the paper refers to: 40,000 steps of
AdamW, a straight fall of the rate after 1,500 warm-up steps, drop path 0.3; scores are taken every 500 steps. A
validation part chooses the weights, an untouched test part is reported, both in pixels of --image_size.
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

from gfm_hf import GFMForSemanticSegmentation
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.label_maps import IGNORE
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import mean_iou
from gfm_hf.training.arguments import at_least_zero, positive, share
from gfm_hf.training.map_panels import map_panel
from gfm_hf.training.recipes import (
    add_map_recipe_arguments,
    build_map_optimizer,
    fill_map_recipe,
    polynomial_schedule,
    total_steps,
)
from gfm_hf.training.runs import InputError, RunFolder, command, running, user_input
from gfm_hf.training.task_arguments import (
    add_data_arguments,
    add_finetuning_arguments,
    add_mask_arguments,
    add_model_arguments,
    source_of,
)
from gfm_hf.training.task_loaders import evaluation_loader, shown_samples, training_loader
from gfm_hf.training.task_models import build_task_model, labels_of, load_config, load_mask_processor
from gfm_hf.training.task_run import TaskRun


MAX_TRAIN_STEPS = 40_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--image_column_name", default="image")
    add_mask_arguments(data, one="class 1")
    data.add_argument("--label_names", nargs="+", help="names of the classes, in the order of their ids")
    data.add_argument("--num_labels", type=positive, help="number of classes; default: found by reading all masks")
    data.add_argument("--do_reduce_labels", action="store_true", help="class 0 is to be ignored, 1 becomes 0")
    data.add_argument("--crop_scale", type=share, default=0.25, help="smallest share of an image in a crop")
    model = add_model_arguments(parser)
    model.add_argument("--decoder_channels", type=positive, help="inside UPerNet; default: the checkpoint's (512)")
    optimisation = add_finetuning_arguments(parser, batch_size=4, epochs=0, patience=None)
    add_map_recipe_arguments(parser, optimisation, optimizer="adamw")
    optimisation.add_argument("--class_weights", type=at_least_zero, nargs="+", help="one per class")
    parser.set_defaults(drop_path_rate=0.3)
    args = parser.parse_args(argv)
    fill_map_recipe(args, MAX_TRAIN_STEPS)
    return args


def train_step(
    model: torch.nn.Module, batch: dict[str, Any], accelerator: Accelerator, accumulation: int = 1
) -> torch.Tensor:
    """Forward and backward of one micro-batch; returns the loss times its share of the global batch.

    The model's loss is a mean over labelled pixels. Times their number and over all pixels it adds up to one number,
    however a batch is cut into micro-batches and processes: the mean over all pixels, to which ignored ones add
    nothing. That is mmsegmentation's default too.
    """
    pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True)
    labels = batch["labels"].to(accelerator.device, non_blocking=True)
    weight = float(batch["loss_weight"]) * batch["num_targets"] / labels.numel()
    loss = model(pixel_values=pixel_values, labels=labels).loss * weight / accumulation
    accelerator.backward(loss)
    return loss.detach()


@torch.no_grad()
def predict(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator, num_labels: int) -> np.ndarray:
    """Confusion matrix of a part, the same on every process.

    Returns:
        (K, K) int64 pixels; row = true class, column = predicted class.
    """
    model.eval()
    state = mean_iou.new_state(num_labels)
    with user_input(), running(loader) as batches:
        for batch in batches:
            found = model(pixel_values=batch["pixel_values"].to(accelerator.device)).logits.argmax(dim=1)
            # The filler of a process that ran out of samples has maps too, but no target.
            if batch["num_targets"]:
                state = mean_iou.update(state, found, batch["labels"], ignore_index=IGNORE)
    return mean_iou.merge(gather_object([state]))


def score(state: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """Mean IoU, accuracies and the IoU of each class; what has no value is left out."""
    found = mean_iou.compute(state)
    scores = {name: found[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    scores |= {f"iou_{name}": value for name, value in zip(names, found["per_class_iou"])}  # type: ignore[arg-type]
    return {name: value for name, value in scores.items() if not math.isnan(value)}  # type: ignore[arg-type,misc]


def open_data(args: argparse.Namespace, processor: Any, num_channels: int, rgb_channels: Any) -> TaskData:
    """The labelled set of the flags."""
    interpreted = args.palette or args.mask_threshold is not None or args.do_reduce_labels
    num_labels = args.num_labels
    if args.palette and not args.label_names and num_labels is None:
        num_labels = len(args.palette) - args.do_reduce_labels
    return open_task(
        "segmentation",
        **source_of(args),
        image_column_name=args.image_column_name,
        mask_column_name=args.mask_column_name,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
        nodata=args.nodata,
        label_names=args.label_names,
        num_labels=num_labels,
        mask_values=args.mask_values,
        mask_reader=processor.read_label_map if interpreted else None,
    )


def fields_of(args: argparse.Namespace, data: TaskData) -> dict[str, Any]:
    """What data and flags decide of the model's configuration."""
    if args.class_weights and len(args.class_weights) != data.num_labels:
        raise InputError(
            f"--class_weights has {len(args.class_weights)} numbers but there are {data.num_labels} classes, "
            f"{', '.join(data.label_names)}; give one for each."
        )
    fields = labels_of(data.label_names) | {"semantic_loss_ignore_index": IGNORE}
    fields |= {"dice_loss_weight": args.dice_loss_weight, "class_weights": args.class_weights}
    return fields | ({"decoder_channels": args.decoder_channels} if args.decoder_channels else {})


@torch.no_grad()
def draw(folder: RunFolder, model: torch.nn.Module, processor: Any, data: TaskData, split: TaskSplit) -> None:
    """Pictures of what the model does on a part."""
    model.eval()
    shown, batch = shown_samples(split, processor)
    device = next(model.parameters()).device
    found = model(pixel_values=batch["pixel_values"].to(device)).logits.argmax(dim=1).cpu().numpy()
    bands = list(split.reading.rgb_channels or range(min(3, split.reading.num_channels)))
    images = [sample["images"][0][bands].transpose(1, 2, 0) for sample in shown]
    panel = map_panel(images, list(batch["labels"].numpy()), list(found), data.label_names, IGNORE)
    folder.save_picture(panel, "panels/samples.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as the flags say, and write everything into the output folder.

    Returns:
        Scores of the test part (of validation where there is none) and what else all_results.json holds; empty after
        a signal.
    """
    task = TaskRun(args, "gfm-segmentation")

    # Processor, data, model
    with user_input():
        processor, config = load_mask_processor(args, args.do_reduce_labels), load_config(args)
        data = open_data(args, processor, config.num_channels, config.rgb_channels)
        processor.num_labels = data.num_labels
        if data.train.reading.mask_values == "binary":
            processor.mask_threshold = 128
        model = build_task_model(GFMForSemanticSegmentation, args, task.accelerator.device, **fields_of(args, data))
    task.prepare(model, processor, data, build_map_optimizer(model, args), metric="mean_iou")

    # Batches from where the run stands
    with user_input():
        # Seen from above nothing stands upright: turns are views as good as any.
        augmentation = Augmentation(processor.size["height"], scale=(args.crop_scale, 1.0), quarter_turns=True)
        loader, plan = training_loader(args, data.train, augmentation, processor, task.accelerator, task.progress)
        validation = evaluation_loader(args, data.validation, processor, task.accelerator)

    # Train
    def evaluate() -> dict[str, float]:
        scores = score(predict(task.model, validation, task.accelerator, data.num_labels), data.label_names)
        if "mean_iou" not in scores:
            raise InputError("The validation part has no labelled pixel to choose by; give it samples with labels.")
        return scores

    schedule = polynomial_schedule(args, total_steps(args, plan.steps_per_epoch or 1))
    if not task.train(loader, plan, schedule, train_step, evaluate):
        return {}

    # The best weights on the untouched part
    split = data.test or data.validation
    loader = evaluation_loader(args, split, processor, task.accelerator)
    scores = score(predict(task.model, loader, task.accelerator, data.num_labels), data.label_names)
    if task.accelerator.is_main_process:
        draw(task.folder, model, processor, data, split)
    return task.finish(split.name, scores, told=("mean_iou", "mean_accuracy", "overall_accuracy"))


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
