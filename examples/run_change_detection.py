"""Fine-tune a backbone to find what changed between two dates.

    accelerate launch examples/run_change_detection.py --model_name_or_path my_backbone \
        --data_dir OSCD --output_dir my_change_detector

The folder holds image1/ (before), image2/ (after) and mask/. The defaults are those of the paper: 4,000 steps of SGD,
whose rate falls by a power of 0.9; scores are taken every 500 steps. A validation part chooses the weights by the F1
of change, an untouched test part is reported, both in pixels of --image_size.
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

from gfm_hf import GFMForChangeDetection
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.label_maps import IGNORE
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import change_detection
from gfm_hf.training.arguments import at_least_zero, positive, share
from gfm_hf.training.map_panels import change_panel
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


MAX_TRAIN_STEPS = 4_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--before_column_name", default="image1")
    data.add_argument("--after_column_name", default="image2")
    add_mask_arguments(data, one="change", colours=2)
    data.add_argument("--crop_scale", type=share, default=0.5, help="smallest share of a pair in a crop")
    model = add_model_arguments(parser)
    model.add_argument("--decoder_channels", type=positive, help="inside UPerNet; default: the checkpoint's (512)")
    model.add_argument("--change_fusion", choices=["difference", "concat"], default="difference")
    optimisation = add_finetuning_arguments(parser, batch_size=8, epochs=0, patience=None)
    add_map_recipe_arguments(parser, optimisation, optimizer="sgd")
    optimisation.add_argument("--class_weights", type=at_least_zero, nargs=2, help="of no change and change")
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
def predict(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> np.ndarray:
    """Counts of a part, the same on every process.

    Returns:
        (4,) int64 pixels: change found, invented and missed, and agreement on no change.
    """
    model.eval()
    state = change_detection.new_state()
    with user_input(), running(loader) as batches:
        for batch in batches:
            found = model(pixel_values=batch["pixel_values"].to(accelerator.device)).logits.argmax(dim=1)
            # The filler of a process that ran out of samples has maps too, but no target.
            if batch["num_targets"]:
                state = change_detection.update(state, found, batch["labels"], ignore_index=IGNORE)
    return change_detection.merge(gather_object([state]))


def score(state: np.ndarray) -> dict[str, float]:
    """Precision, recall, F1 and IoU of change over all pixels; what has no value is left out."""
    return {name: value for name, value in change_detection.compute(state).items() if not math.isnan(value)}


def open_data(args: argparse.Namespace, processor: Any, num_channels: int, rgb_channels: Any) -> TaskData:
    """The labelled set of the flags."""
    interpreted = args.palette or args.mask_threshold is not None
    return open_task(
        "change",
        **source_of(args),
        before_column_name=args.before_column_name,
        after_column_name=args.after_column_name,
        mask_column_name=args.mask_column_name,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
        nodata=args.nodata,
        mask_values=args.mask_values,
        mask_reader=processor.read_label_map if interpreted else None,
    )


def fields_of(args: argparse.Namespace, data: TaskData) -> dict[str, Any]:
    """What data and flags decide of the model's configuration."""
    fields = labels_of(data.label_names) | {"semantic_loss_ignore_index": IGNORE}
    fields |= {"dice_loss_weight": args.dice_loss_weight, "class_weights": args.class_weights}
    fields["change_fusion"] = args.change_fusion
    return fields | ({"decoder_channels": args.decoder_channels} if args.decoder_channels else {})


@torch.no_grad()
def draw(folder: RunFolder, model: torch.nn.Module, processor: Any, split: TaskSplit) -> None:
    """Pictures of what the model does on a part."""
    model.eval()
    shown, batch = shown_samples(split, processor)
    device = next(model.parameters()).device
    found = model(pixel_values=batch["pixel_values"].to(device)).logits.argmax(dim=1).cpu().numpy()
    bands = list(split.reading.rgb_channels or range(min(3, split.reading.num_channels)))
    before, after = ([sample["images"][date][bands].transpose(1, 2, 0) for sample in shown] for date in (0, 1))
    panel = change_panel(before, after, list(batch["labels"].numpy()), list(found), IGNORE)
    folder.save_picture(panel, "panels/samples.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as the flags say, and write everything into the output folder.

    Returns:
        Scores of the test part (of validation where there is none) and what else all_results.json holds; empty after
        a signal.
    """
    task = TaskRun(args, "gfm-change")

    # Processor, data, model
    with user_input():
        processor, config = load_mask_processor(args), load_config(args)
        data = open_data(args, processor, config.num_channels, config.rgb_channels)
        processor.num_labels = data.num_labels
        if data.train.reading.mask_values == "binary":
            processor.mask_threshold = 128
        model = build_task_model(GFMForChangeDetection, args, task.accelerator.device, **fields_of(args, data))
    task.prepare(model, processor, data, build_map_optimizer(model, args), metric="f1")

    # Batches from where the run stands
    with user_input():
        # Seen from above nothing stands upright: turns are views as good as any.
        augmentation = Augmentation(processor.size["height"], scale=(args.crop_scale, 1.0), quarter_turns=True)
        loader, plan = training_loader(args, data.train, augmentation, processor, task.accelerator, task.progress)
        validation = evaluation_loader(args, data.validation, processor, task.accelerator)

    # Train
    def evaluate() -> dict[str, float]:
        scores = score(predict(task.model, validation, task.accelerator))
        if "recall" not in scores:
            raise InputError("The validation part has no changed pixel to choose by; give it pairs that changed.")
        return scores

    schedule = polynomial_schedule(args, total_steps(args, plan.steps_per_epoch or 1))
    if not task.train(loader, plan, schedule, train_step, evaluate):
        return {}

    # The best weights on the untouched part
    split = data.test or data.validation
    scores = score(predict(task.model, evaluation_loader(args, split, processor, task.accelerator), task.accelerator))
    if task.accelerator.is_main_process:
        draw(task.folder, model, processor, split)
    return task.finish(split.name, scores)


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
