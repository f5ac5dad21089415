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
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gfm_hf import GFMForImageSuperResolution
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.tasks import TaskData, TaskSplit, open_task
from gfm_hf.metrics import psnr_ssim
from gfm_hf.metrics.psnr_ssim.functions import WINDOW
from gfm_hf.training.recipes import add_cosine_arguments, build_adamw, cosine_schedule, total_steps
from gfm_hf.training.runs import InputError, RunFolder, command, running, user_input
from gfm_hf.training.scale_panels import scale_panel
from gfm_hf.training.task_arguments import (
    add_data_arguments,
    add_finetuning_arguments,
    add_model_arguments,
    source_of,
)
from gfm_hf.training.task_loaders import evaluation_loader, shown_samples, training_loader
from gfm_hf.training.task_models import build_task_model, load_config, load_processor
from gfm_hf.training.task_run import TaskRun


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
    add_cosine_arguments(optimisation, learning_rate=1.25e-5, warmup=2.5e-7, floor=2.5e-7)
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


def random_windows(args: argparse.Namespace, processor: Any) -> Augmentation:
    """What training looks at: windows of the processor's size, flipped unless the flags say otherwise."""
    flips = not args.no_flips
    return Augmentation(processor.size["height"], horizontal_flip=flips, vertical_flip=flips)


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
    shown, batch = shown_samples(split, processor)
    low = batch["pixel_values"]
    model.eval()
    answer = model(pixel_values=low.to(device)).reconstruction
    columns = (low, bicubic(low, split.reading.scale), answer, batch["labels"])
    panel = scale_panel(
        [in_units(values, processor, value_range) for values in columns],
        split.reading.rgb_channels or (0,),
        value_range,
        psnrs=[(float(rows[sample["index"], 2]), float(rows[sample["index"], 0])) for sample in shown],
    )
    folder.save_picture(panel, "panels/samples.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as the flags say, and write everything into the output folder.

    Returns:
        Scores of the test part (of validation where there is none) and what else all_results.json holds; empty after
        a signal.
    """
    task = TaskRun(args, "gfm-super-resolution")

    # Processor, data, model
    with user_input():
        processor, config = load_processor(args), load_config(args)
        value_range = range_of_values(args, processor)
        data = open_data(args, config.num_channels, config.rgb_channels)
        window_px = processor.size["height"]
        check_window(window_px, data.scale)
        fields = {"upscale": data.scale, "upscale_residual": not args.no_residual}
        model = build_task_model(GFMForImageSuperResolution, args, task.accelerator.device, **fields)
    facts = {"scale": data.scale, "window_px": window_px, "data_range": value_range[1] - value_range[0]}
    task.prepare(model, processor, data, build_adamw(model, args), metric="psnr", **facts)

    # Random windows from where the run stands
    with user_input():
        windows = random_windows(args, processor)
        loader, plan = training_loader(args, data.train, windows, processor, task.accelerator, task.progress)
        validation = evaluation_loader(args, data.validation, processor, task.accelerator)

    # Train
    def evaluate() -> dict[str, float]:
        return score(predict(task.model, validation, task.accelerator, processor, value_range))

    schedule = cosine_schedule(args, plan.global_batch_size, total_steps(args, plan.steps_per_epoch or 1))
    if not task.train(loader, plan, schedule, train_step, evaluate):
        return {}

    # The best epoch on the untouched part
    split = data.test or data.validation
    loader = evaluation_loader(args, split, processor, task.accelerator)
    rows = predict(task.model, loader, task.accelerator, processor, value_range)
    if task.accelerator.is_main_process:
        draw(task.folder, model, split, processor, task.accelerator.device, rows, value_range)
    return task.finish(split.name, score(rows))


@command
def main(argv: list[str] | None = None) -> None:
    """Run as a command."""
    run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
