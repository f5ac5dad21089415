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
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader

from gfm_hf import GFMForSemanticSegmentation
from gfm_hf.cards import write_card
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.label_maps import IGNORE, MASK_VALUES
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import mean_iou
from gfm_hf.training.arguments import at_least_zero, hub_name, positive, share
from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.finetuning import BestWeights, FineTuning, finetune
from gfm_hf.training.map_panels import map_panel
from gfm_hf.training.optim import layer_decay_groups
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import InputError, RunFolder, StopSignal, command, ignore_signals, running, user_input
from gfm_hf.training.task_runs import (
    add_data_arguments,
    add_finetuning_arguments,
    add_model_arguments,
    build_adamw,
    build_task_model,
    describe_task_run,
    labels_of,
    load_config,
    load_processor,
    polynomial_schedule,
    source_of,
    total_steps,
    write_task_model,
)


# mmsegmentation's two recipes; a flag that is given wins.
RECIPES = {
    "adamw": {
        "learning_rate": 6e-5,
        "min_learning_rate": 0.0,
        "power": 1.0,
        "warmup_steps": 1500,
        "weight_decay": 0.01,
    },
    "sgd": {"learning_rate": 0.01, "min_learning_rate": 1e-4, "power": 0.9, "warmup_steps": 0, "weight_decay": 5e-4},
}
MAX_TRAIN_STEPS = 40_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--image_column_name", default="image")
    data.add_argument("--mask_column_name", default="mask")
    data.add_argument("--label_names", nargs="+", help="names of the classes, in the order of their ids")
    data.add_argument("--num_labels", type=positive, help="number of classes; default: found by reading all masks")
    masks = data.add_mutually_exclusive_group()
    masks.add_argument("--mask_values", choices=MASK_VALUES, default="auto", help="binary: from 128 on is class 1")
    masks.add_argument("--palette", nargs="+", type=colour, help="colours of the classes in turn, such as ff0000")
    masks.add_argument("--mask_threshold", type=float, help="two classes: from this value on is class 1")
    data.add_argument("--palette_tolerance", type=int, default=0, help="levels a colour may be off, for JPEG masks")
    data.add_argument("--do_reduce_labels", action="store_true", help="class 0 is to be ignored, 1 becomes 0")
    data.add_argument("--nodata", type=float, help="value of image pixels without measurement; they are ignored")
    data.add_argument("--crop_scale", type=share, default=0.25, help="smallest share of an image in a crop")
    model = add_model_arguments(parser)
    model.add_argument("--decoder_channels", type=positive, help="inside UPerNet; default: the checkpoint's (512)")
    optimisation = add_finetuning_arguments(parser, batch_size=4, epochs=0, patience=None)
    optimisation.add_argument("--optimizer", choices=list(RECIPES), default="adamw")
    optimisation.add_argument("--learning_rate", type=at_least_zero, help="as it is; default: 6e-5, of sgd 0.01")
    optimisation.add_argument("--min_learning_rate", type=at_least_zero, help="default: 0, of sgd 1e-4")
    optimisation.add_argument("--power", type=at_least_zero, help="of the fall; default: 1, of sgd 0.9")
    optimisation.add_argument("--warmup_steps", type=int, help="a tenth of the run at most; default: 1500, of sgd 0")
    optimisation.add_argument("--momentum", type=share, default=0.9, help="of sgd")
    optimisation.add_argument("--dice_loss_weight", type=at_least_zero, default=0.0, help="beside cross-entropy")
    optimisation.add_argument("--class_weights", type=at_least_zero, nargs="+", help="one per class")
    parser.set_defaults(weight_decay=None, layer_decay=1.0, max_grad_norm=0.0, drop_path_rate=0.3, eval_steps=500)
    args = parser.parse_args(argv)
    for name, value in RECIPES[args.optimizer].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.num_train_epochs and args.max_train_steps is None:
        args.max_train_steps = MAX_TRAIN_STEPS
    return args


def colour(text: str) -> list[int]:
    """Read RRGGBB, with or without #."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise argparse.ArgumentTypeError(f"{text} is no colour of six digits, such as ff0000")
    return [int(digits[place : place + 2], 16) for place in (0, 2, 4)]


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


def read_processor(args: argparse.Namespace) -> Any:
    """The checkpoint's processor, set to read the masks of the flags; the saved one will read such masks likewise."""
    processor: Any = load_processor(args)
    for name in ("palette", "palette_tolerance", "mask_threshold", "do_reduce_labels"):
        setattr(processor, name, getattr(args, name))
    processor.ignore_index, processor.num_labels = IGNORE, None
    if args.nodata is not None:
        processor.nodata = "nan"  # what reading makes of the value
    return processor


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


def build_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW or SGD over the same groups."""
    if args.optimizer == "adamw":
        return build_adamw(model, args)
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=args.momentum)


def evaluation_loader(
    args: argparse.Namespace, split: TaskSplit, processor: Any, accelerator: Accelerator
) -> DataLoader:
    """A part in its order, each image once over all processes."""
    samples = TaskSamples(split, Augmentation(processor.size["height"]), train=False)
    batch_size = args.per_device_eval_batch_size or args.per_device_train_batch_size
    plan = EvaluationPlan(split.table, batch_size, accelerator.process_index, accelerator.num_processes)
    return DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=TaskCollator(processor, samples),
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_signals,
    )


def training_loader(
    args: argparse.Namespace, data: TaskData, processor: Any, accelerator: Accelerator, start: dict[str, Any]
) -> tuple[DataLoader, EpochPlan]:
    """Endless batches of the training part from where a run starts."""
    # Seen from above nothing stands upright: turns are views as good as any.
    augmentation = Augmentation(processor.size["height"], scale=(args.crop_scale, 1.0), quarter_turns=True)
    samples = TaskSamples(data.train, augmentation, args.seed)
    plan = EpochPlan(
        data.train.table,
        args.per_device_train_batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
        epoch_start=start["epoch"],
        step_start=start["step_in_epoch"],
    )
    loader = DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=TaskCollator(processor, samples),
        num_workers=args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(args.seed),
    )
    return loader, plan


@torch.no_grad()
def draw(folder: RunFolder, model: torch.nn.Module, processor: Any, data: TaskData, split: TaskSplit) -> None:
    """Pictures of what the model does on a part."""
    model.eval()
    samples = TaskSamples(split, Augmentation(processor.size["height"]), train=False)
    chosen = np.linspace(0, len(split) - 1, min(6, len(split))).astype(int)
    shown = [samples[(0, split.table[int(place)])] for place in chosen]
    batch = TaskCollator(processor, samples)(shown)
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
    with user_input():
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision, log_with=args.report_to, project_dir=args.output_dir
        )
    stop = StopSignal()
    hub_name(args)  # refused now rather than after the last step
    folder = RunFolder(args.output_dir, accelerator, args.checkpoints_total_limit)
    resume_from = folder.checkpoint_to_resume(args.resume_from_checkpoint)

    # Processor, data, model
    with user_input():
        set_seed(args.seed)
        processor, config = read_processor(args), load_config(args)
        data = open_data(args, processor, config.num_channels, config.rgb_channels)
        processor.num_labels = data.num_labels
        if data.train.reading.mask_values == "binary":
            processor.mask_threshold = 128
        model = build_task_model(GFMForSemanticSegmentation, args, accelerator.device, **fields_of(args, data))
    about = describe_task_run(args, accelerator, model, data)

    # Where to start, optimiser, batches
    identity = {"data": data.fingerprint, "seed": args.seed, "trained": about["trained_parameters"]}
    identity["masks"] = [args.palette, args.palette_tolerance, args.mask_threshold, args.do_reduce_labels]
    progress: dict[str, Any] = {"step": 0, "epoch": 0, "step_in_epoch": 0, "images": 0, "run": identity}
    best = BestWeights(model, metric="mean_iou")
    optimizer = build_optimizer(model, args)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if resume_from:
        progress = folder.load_checkpoint(resume_from, identity)
        best.read(resume_from)
    folder.cut_log(progress["step"])
    with user_input():
        loader, plan = training_loader(args, data, processor, accelerator, progress)
        validation = evaluation_loader(args, data.validation, processor, accelerator)
        energy = EnergyMeter(accelerator.num_processes, args.country_iso_code, progress.get("energy"))
    steps = total_steps(args, plan.steps_per_epoch or 1)
    schedule = polynomial_schedule(args, steps)
    if accelerator.is_main_process:
        print(f"{data.description}; {about['trained_parameters']:,} of {about['parameters']:,} parameters train")
        print(f"steps {progress['step']} to {steps}, {plan.global_batch_size} images each")
    if args.report_to:
        accelerator.init_trackers("gfm-segmentation", {name: str(value) for name, value in vars(args).items()})

    # Train
    def card(path: Path, facts: dict[str, Any]) -> None:
        write_card(path, hub_name(args), facts)

    def evaluate() -> dict[str, float]:
        scores = score(predict(prepared, validation, accelerator, data.num_labels), data.label_names)
        if "mean_iou" not in scores:
            raise InputError("The validation part has no labelled pixel to choose by; give it samples with labels.")
        return scores

    write = partial(write_task_model, args=args, model=model, processor=processor, about=about, write_card=card)
    publisher = None
    if args.push_to_hub and accelerator.is_main_process:
        publisher = BackgroundPush(folder.path, hub_name(args), args.hub_private_repo, args.hub_token)
    work = FineTuning(
        args, accelerator, prepared, optimizer, schedule, plan.steps_per_epoch or 1, loader, folder, stop, energy, best
    )
    with publisher or nullcontext():
        progress = finetune(work, progress, train_step, evaluate, publisher, write)
    if not progress["finished"]:
        if accelerator.is_main_process:
            print(f"stopped at step {progress['step']}; go on with --resume_from_checkpoint latest")
        return {}

    # The best weights on the untouched part
    best.restore()
    split = data.test or data.validation
    state = predict(prepared, evaluation_loader(args, split, processor, accelerator), accelerator, data.num_labels)
    scores = score(state, data.label_names)
    if accelerator.is_main_process:
        draw(folder, model, processor, data, split)
    folder.save_result(partial(write, progress=progress, scores=scores))
    if accelerator.is_main_process:
        if publisher:
            publisher.push_result(args.hub_timeout_s, stopped=lambda: stop.received)
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if not name.startswith("iou_"))
        print(f"done: {progress['step']} steps, best at {progress['best_step']}; {split.name}: {told}; {folder.path}")
    accelerator.end_training()
    return {**about, "steps": progress["step"], "best_step": progress["best_step"], "scores": scores}


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
