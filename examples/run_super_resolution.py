"""Fine-tune a backbone to enlarge images two, three or four times.

    accelerate launch examples/run_super_resolution.py --model_name_or_path my_backbone --scale 4 --image_size 32 \
        --data_dir my_scenes --learning_rate 5e-3 --output_dir my_upscaler

A set has pairs, `image` (low) and `target` (high), or images alone, which are lowered by `--scale`: bicubic with
antialiasing. Training cuts random windows of `--image_size` low px and flips them, evaluation takes the central window.
The defaults are the paper's: 100 epochs, batch 64, AdamW, base rate 1.25e-5, everything else as SimMIM's fine-tuning
(layer decay 0.9, warm-up over a fifth of the steps). A base rate is one for 512 images, as
in SimMIM's code, so that 64 images learn with 1.6e-6 (the paper takes some 16,500 steps). A short run needs a higher
one, such as the 5e-3 above, which makes 6e-4.

Scores are means over images, after undoing the normalisation and clipping to `--value_range` (no rounding to whole
levels, no border cut off): PSNR and SSIM of the model, of bicubic interpolation beside it, and the gain over that. A
validation part chooses the epoch by PSNR, an untouched test part is reported.
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
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gfm_hf import GFMForImageSuperResolution
from gfm_hf.cards import write_card
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import psnr_ssim
from gfm_hf.metrics.psnr_ssim.functions import WINDOW
from gfm_hf.training.arguments import at_least_zero, hub_name, share
from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.finetuning import BestWeights, FineTuning, finetune
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import InputError, RunFolder, StopSignal, command, ignore_signals, running, user_input
from gfm_hf.training.scale_panels import scale_panel
from gfm_hf.training.task_runs import (
    add_data_arguments,
    add_finetuning_arguments,
    add_model_arguments,
    build_adamw,
    build_task_model,
    cosine_schedule,
    describe_task_run,
    load_config,
    load_processor,
    source_of,
    total_steps,
    write_task_model,
)


# An image that is met exactly has infinite PSNR, and one such (a black tile) would make every mean infinite.
MOST_DB = 100.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--image_column_name", default="image")
    data.add_argument("--target_column_name", default="target", help="without it, images are lowered by --scale")
    data.add_argument("--no_flips", action="store_true", help="as the paper: windows are cut, but not flipped")
    data.add_argument(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("LEAST", "GREATEST"),
        help="of an image, after rescale_factor: scores refer to it; default: 0 1, if the processor rescales",
    )
    model = add_model_arguments(parser)
    model.add_argument("--scale", type=int, choices=[2, 3, 4], help="default: that of the first pair")
    model.add_argument("--no_residual", action="store_true", help="do not add the interpolated input")
    optimisation = add_finetuning_arguments(parser, batch_size=64, epochs=100, patience=None)
    optimisation.add_argument(
        "--learning_rate", type=at_least_zero, default=1.25e-5, help="for a batch of 512; scaled"
    )
    optimisation.add_argument("--warmup_learning_rate", type=at_least_zero, default=2.5e-7, help="scaled likewise")
    optimisation.add_argument("--min_learning_rate", type=at_least_zero, default=2.5e-7, help="scaled likewise")
    optimisation.add_argument("--warmup_ratio", type=share, default=0.2, help="share of the steps")
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


def bicubic(pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
    """Interpolate (B, C, H, W) to (B, C, scale * H, scale * W) as the model's own residual does (a = -0.75).

    An untrained model with a residual therefore gains exactly 0. The kernel of PIL and MATLAB (a = -0.5) is weaker: on
    UC Merced x4 by 0.08 dB and 0.005 of SSIM, which would look like something learned.
    """
    return F.interpolate(pixel_values, scale_factor=scale, mode="bicubic", align_corners=False)


def in_units(values: torch.Tensor, processor: Any, value_range: tuple[float, float]) -> torch.Tensor:
    """Normalised (B, C, H, W) -> the same in the images' own units, clipped to what an image can hold."""
    return processor.denormalize(values.float().cpu()).clamp(*value_range)


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    processor: Any,
    value_range: tuple[float, float],
) -> np.ndarray:
    """Score every image of a part, in its order, the same on every process.

    Returns:
        (N, 4) float64: PSNR in dB and SSIM of the model, then of bicubic interpolation.
    """
    model.eval()
    rows = []
    data_range = value_range[1] - value_range[0]
    with user_input(), running(loader) as batches:
        for batch in batches:
            low, labels = batch["pixel_values"], batch["labels"]
            answer = model(pixel_values=low.to(accelerator.device)).reconstruction
            if not torch.isfinite(answer).all():
                raise InputError("The model's images are not finite; lower --learning_rate and resume.")
            truth = in_units(labels, processor, value_range)
            scores = [
                psnr_ssim.update(psnr_ssim.new_state(), in_units(found, processor, value_range), truth, data_range)
                for found in (answer, bicubic(low, labels.shape[-1] // low.shape[-1]))
            ]
            rows += list(zip(batch["index"].tolist(), np.concatenate(scores, axis=1)))
    # Fillers of a process that ran out of samples have index -1.
    rows = sorted((row for row in gather_object(rows) if row[0] >= 0), key=lambda row: row[0])
    return np.stack([row[1] for row in rows])


def score(rows: np.ndarray) -> dict[str, float]:
    """Means of what `predict` returns, and what the model is better by; an image counts with at most `MOST_DB`."""
    capped = np.minimum(rows, [MOST_DB, 1, MOST_DB, 1])
    ours, plain = psnr_ssim.compute(capped[:, :2]), psnr_ssim.compute(capped[:, 2:])
    scores: dict[str, Any] = {"psnr": ours["psnr"], "ssim": ours["ssim"]}
    scores |= {f"bicubic_{name}": plain[name] for name in ("psnr", "ssim")}
    return scores | {f"{name}_gain": scores[name] - scores[f"bicubic_{name}"] for name in ("psnr", "ssim")}


def open_data(args: argparse.Namespace, num_channels: int, rgb_channels: Any) -> TaskData:
    """The set of the flags: pairs, or images that are lowered."""
    return open_task(
        "super_resolution",
        **source_of(args),
        image_column_name=args.image_column_name,
        target_column_name=args.target_column_name,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
        scale=args.scale,
    )


def range_of_values(args: argparse.Namespace, processor: Any) -> tuple[float, float]:
    """Least and greatest value of an image, in units after `rescale_factor`."""
    if args.value_range is None and not processor.do_rescale:
        raise InputError(
            "the processor does not rescale, so the range of the images is not known; pass --value_range LEAST GREATEST."
        )
    least, greatest = args.value_range or (0.0, 1.0)
    if not least < greatest:
        raise InputError(f"--value_range is {least:g} {greatest:g} but the first number has to be the smaller one.")
    return least, greatest


def check_window(window_px: int, scale: int) -> None:
    """Refuse windows on which SSIM is not defined, before the first step."""
    if window_px * scale < WINDOW:
        raise InputError(
            f"targets of {window_px * scale} px a side are smaller than SSIM's window of {WINDOW} px; use a larger "
            "--image_size."
        )


def evaluation_loader(
    args: argparse.Namespace, split: TaskSplit, processor: Any, accelerator: Accelerator
) -> DataLoader:
    """Central windows of a part in its order, each image once over all processes."""
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
    """Endless batches of random windows of the training part from where a run starts."""
    flips = not args.no_flips
    augmentation = Augmentation(processor.size["height"], horizontal_flip=flips, vertical_flip=flips)
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
def draw(
    folder: RunFolder,
    model: torch.nn.Module,
    split: TaskSplit,
    processor: Any,
    device: torch.device,
    rows: np.ndarray,
    value_range: tuple[float, float],
) -> None:
    """Picture of low, bicubic, model and truth for six images of a part."""
    samples = TaskSamples(split, Augmentation(processor.size["height"]), train=False)
    chosen = np.linspace(0, len(split) - 1, min(6, len(split))).astype(int)
    batch = TaskCollator(processor, samples)([samples[(0, split.table[int(index)])] for index in chosen])
    low = batch["pixel_values"]
    model.eval()
    answer = model(pixel_values=low.to(device)).reconstruction
    columns = (low, bicubic(low, split.reading.scale), answer, batch["labels"])
    panel = scale_panel(
        [in_units(values, processor, value_range) for values in columns],
        split.reading.rgb_channels or (0,),
        value_range,
        psnrs=[(float(rows[index, 2]), float(rows[index, 0])) for index in chosen],
    )
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
        processor: Any = load_processor(args)
        config = load_config(args)
        value_range = range_of_values(args, processor)
        data = open_data(args, config.num_channels, config.rgb_channels)
        check_window(processor.size["height"], data.scale)
        fields = {"upscale": data.scale, "upscale_residual": not args.no_residual}
        model = build_task_model(GFMForImageSuperResolution, args, accelerator.device, **fields)
    about = describe_task_run(args, accelerator, model, data)
    about |= {
        "scale": data.scale,
        "window_px": processor.size["height"],
        "data_range": value_range[1] - value_range[0],
    }

    # Where to start, optimiser, batches
    identity = {"data": data.fingerprint, "seed": args.seed, "trained": about["trained_parameters"]}
    identity |= {"window_px": about["window_px"]}
    progress: dict[str, Any] = {"step": 0, "epoch": 0, "step_in_epoch": 0, "images": 0, "run": identity}
    best = BestWeights(model, metric="psnr")
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
        print(f"steps {progress['step']} to {steps}, {plan.global_batch_size} images each, x{data.scale}")
    if args.report_to:
        accelerator.init_trackers("gfm-super-resolution", {name: str(value) for name, value in vars(args).items()})

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
            lambda: score(predict(prepared, validation, accelerator, processor, value_range)),
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
    rows = predict(
        prepared, evaluation_loader(args, split, processor, accelerator), accelerator, processor, value_range
    )
    scores = score(rows)
    if accelerator.is_main_process:
        draw(folder, model, split, processor, accelerator.device, rows, value_range)
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
