"""Fine-tune a backbone to tell classes of images, one or several per image.

    accelerate launch examples/run_image_classification.py --model_name_or_path my_backbone \
        --data_dir UCMerced_LandUse/Images --output_dir my_classifier

The defaults are the authors' recipe: 100 epochs, AdamW with layer decay 0.9, warm-up and cosine, Mixup and CutMix,
label smoothing 0.1. A validation part chooses the epoch, an untouched test part is reported.
"""

import argparse
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

from gfm_hf import GFMForImageClassification
from gfm_hf.cards import write_card
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.mixing import Mixing
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import multilabel_map
from gfm_hf.training.arguments import at_least_zero, hub_name, share
from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.finetuning import BestWeights, FineTuning, finetune
from gfm_hf.training.panels import confusion_panel, curve_panel, labelled_panel
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import InputError, RunFolder, StopSignal, command, ignore_signals, running, user_input
from gfm_hf.training.task_runs import (
    add_data_arguments,
    add_finetuning_arguments,
    add_model_arguments,
    build_adamw,
    build_task_model,
    cosine_schedule,
    describe_task_run,
    labels_of,
    load_config,
    load_processor,
    source_of,
    total_steps,
    write_task_model,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--image_column_name", default="image")
    data.add_argument("--label_column_name", help="label, or labels with a list per image")
    model = add_model_arguments(parser)
    model.add_argument("--problem_type", choices=["single_label_classification", "multi_label_classification"])
    optimisation = add_finetuning_arguments(parser, batch_size=128, epochs=100, patience=None)
    optimisation.add_argument("--learning_rate", type=at_least_zero, default=1e-4, help="for a batch of 512; scaled")
    optimisation.add_argument("--warmup_learning_rate", type=at_least_zero, default=1e-7, help="scaled likewise")
    optimisation.add_argument("--min_learning_rate", type=at_least_zero, default=1e-5, help="scaled likewise")
    optimisation.add_argument("--warmup_ratio", type=share, default=0.2, help="share of the steps")
    optimisation.add_argument("--mixup_alpha", type=at_least_zero, default=0.8)
    optimisation.add_argument("--cutmix_alpha", type=at_least_zero, default=1.0)
    optimisation.add_argument("--label_smoothing", type=share, default=0.1)
    optimisation.add_argument("--crop_scale", type=share, default=0.67, help="smallest share of an image in a crop")
    optimisation.add_argument(
        "--authors_quirks",
        action="store_true",
        help="as the released code: first rate used twice, only the peak lowered by layer decay",
    )
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
    """Accuracy for one label per image; micro and macro average precision for several."""
    if labels.ndim == 1:
        right = logits.argmax(axis=1) == labels
        per_class = [right[labels == label].mean() for label in np.unique(labels)]
        return {"accuracy": float(right.mean()), "mean_class_accuracy": float(np.mean(per_class))}
    scores = 1 / (1 + np.exp(-logits))
    found = multilabel_map.compute(multilabel_map.update(multilabel_map.new_state(), scores, labels))
    return {name: float(found[name]) for name in ("micro_map", "macro_map")}  # type: ignore[arg-type]


def open_data(args: argparse.Namespace, num_channels: int, rgb_channels: Any) -> TaskData:
    """The labelled set of the flags."""
    return open_task(
        "classification",
        **source_of(args),
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
    )


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
    augmentation = Augmentation(processor.size["height"], scale=(args.crop_scale, 1.0))
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
    mixing = Mixing(args.mixup_alpha, args.cutmix_alpha, label_smoothing=args.label_smoothing)
    loader = DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=TaskCollator(processor, samples, mixing),
        num_workers=args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(args.seed),
    )
    return loader, plan


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
        processor, config = load_processor(args), load_config(args)
        data = open_data(args, config.num_channels, config.rgb_channels)
        if args.problem_type and args.problem_type != data.problem_type:
            raise InputError(f"--problem_type is {args.problem_type} but the labels make it {data.problem_type}.")
        fields = labels_of(data.label_names) | {"problem_type": data.problem_type}
        model = build_task_model(GFMForImageClassification, args, accelerator.device, **fields)
    about = describe_task_run(args, accelerator, model, data)

    # Where to start, optimiser, batches
    identity = {
        "data": data.fingerprint,
        "seed": args.seed,
        "trained": about["trained_parameters"],
        "image_size": processor.size["height"],
    }
    progress: dict[str, Any] = {"step": 0, "epoch": 0, "step_in_epoch": 0, "images": 0, "run": identity}
    single_label = data.problem_type == "single_label_classification"
    best = BestWeights(model, metric="accuracy" if single_label else "micro_map")
    optimizer = build_adamw(model, args)
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
    schedule = cosine_schedule(args, plan.global_batch_size, steps)
    if accelerator.is_main_process:
        print(f"{data.description}; {about['trained_parameters']:,} of {about['parameters']:,} parameters train")
        print(f"steps {progress['step']} to {steps}, {plan.global_batch_size} images each")
    if args.report_to:
        accelerator.init_trackers("gfm-classification", {name: str(value) for name, value in vars(args).items()})

    # Train
    def card(path: Path, facts: dict[str, Any]) -> None:
        write_card(path, hub_name(args), facts)

    write = partial(write_task_model, args=args, model=model, processor=processor, about=about, write_card=card)
    publisher = None
    if args.push_to_hub and accelerator.is_main_process:
        publisher = BackgroundPush(folder.path, hub_name(args), args.hub_private_repo, args.hub_token)
    work = FineTuning(
        args, accelerator, prepared, optimizer, schedule, plan.steps_per_epoch or 1, loader, folder, stop, energy, best
    )
    with publisher or nullcontext():
        progress = finetune(
            work,
            progress,
            train_step,
            lambda: score(*predict(prepared, validation, accelerator)),
            publisher,
            write,
        )
    if not progress["finished"]:
        if accelerator.is_main_process:
            print(f"stopped at step {progress['step']}; go on with --resume_from_checkpoint latest")
        return {}

    # The best epoch on the untouched part
    best.restore()
    split = data.test or data.validation
    logits, labels = predict(prepared, evaluation_loader(args, split, processor, accelerator), accelerator)
    scores = score(logits, labels)
    if accelerator.is_main_process:
        draw(folder, data, split, logits, labels)
    folder.save_result(partial(write, progress=progress, scores=scores))
    if accelerator.is_main_process:
        if publisher:
            publisher.push_result(args.hub_timeout_s, stopped=lambda: stop.received)
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"done: {progress['step']} steps, best at {progress['best_step']}; {split.name}: {told}; {folder.path}")
    accelerator.end_training()
    return {**about, "steps": progress["step"], "best_step": progress["best_step"], "scores": scores}


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
