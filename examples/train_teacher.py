"""Train a small supervised Swin classifier to serve as the frozen teacher where no network is at hand.

The paper's teacher is a Swin-B trained on ImageNet-22k; with network access give its Hub name to
`run_continual_pretraining.py --teacher` and skip this script. The folder written here is a stock transformers
checkpoint: `AutoModel.from_pretrained(folder)` returns a `SwinModel`.

Example:
    python examples/train_teacher.py --train_parquet photos.parquet --split_column split --output_dir teacher \
        --image_size 96 --window_size 3 --embed_dim 48 --depths 2 2 6 2 --num_heads 3 6 12 24 --max_seconds 600
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import SwinConfig, SwinForImageClassification, ViTImageProcessorPil

from gfm_hf.data.labelled import LabelledImages, open_labelled_images
from gfm_hf.training.probe import stratified_split
from gfm_hf.training.runs import command, user_input


IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, R G B in 0..1: what the Hub's Swin teachers use
IMAGE_STD = (0.229, 0.224, 0.225)
WARMUP = 0.05  # share of the run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", type=Path, help="folder with one sub-folder per class")
    parser.add_argument("--train_parquet", type=Path, nargs="+", help="Parquet files with image and label columns")
    parser.add_argument("--image_column_name", default="image")
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--split_column", help="column with the values train and val; default: hold out a tenth")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--window_size", type=int, default=3)
    parser.add_argument("--patch_size", type=int, default=4)
    parser.add_argument("--embed_dim", type=int, default=48)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 2, 6, 2])
    parser.add_argument("--num_heads", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--drop_path_rate", type=float, default=0.1)
    parser.add_argument("--per_device_train_batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--label_smoothing", type=float, default=0.1)
    parser.add_argument("--num_train_epochs", type=int, default=100)
    parser.add_argument("--max_seconds", type=float, default=math.inf, help="end earlier; the schedule follows")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if problem := shape_problem(args):
        parser.error(problem)
    return args


def shape_problem(args: argparse.Namespace) -> str | None:
    """Say in one sentence why no Swin of this shape works, or return None.

    transformers' Swin fails on maps smaller than a window and pads maps that windows do not divide, so the map of the
    last stage has to hold whole windows; the maps before it, each twice as large, then do too.
    """
    if len(args.depths) != len(args.num_heads):
        return f"--depths has {len(args.depths)} stages but --num_heads {len(args.num_heads)}; give one head count a stage."
    if any(args.embed_dim * 2**i % heads for i, heads in enumerate(args.num_heads)):
        return (
            f"--num_heads {args.num_heads} does not divide the widths of the stages, {args.embed_dim} and its doubles."
        )
    unit = args.patch_size * 2 ** (len(args.depths) - 1)
    if args.image_size % (unit * args.window_size):
        return (
            f"--image_size {args.image_size} must be a multiple of {unit * args.window_size} (last stage's cell of "
            f"{unit} px times --window_size {args.window_size}); try --image_size {unit * args.window_size}."
        )
    return None


def split_parts(data: LabelledImages, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the held-out part: by the split column, else a stratified 90 / 10.

    Raises:
        ValueError: The split column lacks the value train or val.
    """
    if data.splits is None:
        first, second = stratified_split(data.labels, (0.9, 0.1), seed)
        return data.subset(first), data.subset(second)
    found = sorted(set(data.splits))
    if "train" not in found or "val" not in found:
        raise ValueError(
            f"The split column holds {found}; it needs the values train and val, or leave --split_column out."
        )
    return data.subset(data.splits == "train"), data.subset(data.splits == "val")


def build_model(args: argparse.Namespace, class_names: Sequence[str]) -> SwinForImageClassification:
    """Build a stock Swin classifier with random weights."""
    config = SwinConfig(
        image_size=args.image_size,
        patch_size=args.patch_size,
        embed_dim=args.embed_dim,
        depths=args.depths,
        num_heads=args.num_heads,
        window_size=args.window_size,
        drop_path_rate=args.drop_path_rate,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
    )
    return SwinForImageClassification(config)


def to_pixel_values(images: torch.Tensor) -> torch.Tensor:
    """Normalise (B, 3, H, W) of 0..255 with the ImageNet statistics."""
    mean = torch.tensor(IMAGE_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def random_crops(images: torch.Tensor, generator: torch.Generator, lowest_area: float = 0.35) -> torch.Tensor:
    """Crop, stretch back and flip a whole batch in one resampling.

    Args:
        images: (B, 3, H, W), any dtype.
        generator: Source of randomness on the CPU.
        lowest_area: Smallest share of the picture that a crop may keep.

    Returns:
        (B, 3, H, W) float; each picture has its own crop (area `lowest_area`..1, ratio 3/4..4/3) and flip.
    """
    draw = torch.rand(5, len(images), generator=generator)
    area, ratio = lowest_area + (1 - lowest_area) * draw[0], torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (2 * draw[2] - 1) * (1 - width), (2 * draw[3] - 1) * (1 - height)
    zero, flip = torch.zeros(len(images)), torch.where(draw[4] < 0.5, -1.0, 1.0)
    theta = torch.stack([flip * width, zero, x, zero, height, y], dim=1).view(-1, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)


def learning_rate_factor(progress: float) -> float:
    """Rise linearly over the first `WARMUP` of the run, then follow a cosine to 0; `progress` is 0..1."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1.0)))


def build_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW without decay on norms, biases and position-bias tables."""
    named = dict(model.named_parameters())
    plain = {n for n, p in named.items() if p.ndim < 2 or "relative_position_bias_table" in n}
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": args.weight_decay},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate)


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> float:
    """Return the share of correct answers; images (N, 3, H, W) uint8, labels (N,)."""
    model.eval()
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = sum((model(to_pixel_values(x)).logits.argmax(1) == y).sum().item() for x, y in parts)
    model.train()
    return right / len(labels)


def train(
    model: SwinForImageClassification,
    part: tuple[torch.Tensor, torch.Tensor],
    args: argparse.Namespace,
    after_epoch: Callable[[int, float, float], None],
) -> None:
    """Train until the epochs or the seconds are used up, whichever comes first.

    Args:
        model: Changed in place; everything runs on its device.
        part: Images (N, 3, H, W) uint8 and labels (N,), on the model's device.
        args: The command line.
        after_epoch: Called with the epoch (from 1), its mean loss and the progress 0..1.
    """
    images, labels = part
    optimizer, generator = build_optimizer(model, args), torch.Generator().manual_seed(args.seed)
    steps = math.ceil(len(labels) / args.per_device_train_batch_size)
    started, step, progress = time.monotonic(), 0, 0.0
    model.train()
    for epoch in range(1, args.num_train_epochs + 1):
        losses = []
        for batch in torch.randperm(len(labels), generator=generator).chunk(steps):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * learning_rate_factor(progress)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                logits = model(to_pixel_values(random_crops(images[batch], generator))).logits
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=args.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            elapsed = time.monotonic() - started
            progress = max(step / (steps * args.num_train_epochs), elapsed / args.max_seconds)
            if progress >= 1:
                break
        after_epoch(epoch, sum(losses) / len(losses), min(progress, 1.0))
        if progress >= 1:
            return


def in_memory(data: LabelledImages, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode everything once: images (N, 3, size, size) uint8 and labels (N,)."""
    images = torch.from_numpy(data.pictures(size)).permute(0, 3, 1, 2).contiguous()
    return images.to(device), torch.from_numpy(data.labels).to(device)


def save(model: SwinForImageClassification, log: list[dict[str, float]], args: argparse.Namespace) -> None:
    """Write model, image processor and results, in the form that `from_pretrained` reads."""
    size = {"height": args.image_size, "width": args.image_size}
    model.save_pretrained(args.output_dir)
    ViTImageProcessorPil(size=size, image_mean=IMAGE_MEAN, image_std=IMAGE_STD).save_pretrained(args.output_dir)
    (args.output_dir / "all_results.json").write_text(json.dumps({**log[-1], "history": log}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> float:
    """Train, save and return the accuracy on the held-out part."""
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = open_labelled_images(
        args.train_dir, args.train_parquet, args.image_column_name, args.label_column_name, args.split_column
    )
    train_part, held_out_part = (in_memory(part, args.image_size, device) for part in split_parts(data, args.seed))
    model = build_model(args, data.class_names)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` and loses its signature
    print(
        f"{len(train_part[1])} training and {len(held_out_part[1])} held-out pictures, {len(data.class_names)} classes"
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    started = time.monotonic()
    log: list[dict[str, float]] = []

    def after_epoch(epoch: int, loss: float, progress: float) -> None:
        score = accuracy(model, *held_out_part, args.per_device_train_batch_size)
        seconds = round(time.monotonic() - started, 1)
        log.append({"epoch": epoch, "loss": loss, "accuracy": score, "seconds": seconds})
        print(
            f"epoch {epoch} ({progress:.0%}, {seconds} s): loss {loss:.3f}, held-out accuracy {score:.3f}", flush=True
        )

    train(model, train_part, args, after_epoch)
    save(model, log, args)
    print(f"Teacher saved in {args.output_dir}: held-out accuracy {log[-1]['accuracy']:.3f}")
    return log[-1]["accuracy"]


@command
def run(argv: Sequence[str] | None = None) -> None:
    """The script's end: exit code 2 and one sentence where the input is at fault."""
    with user_input():
        main(argv)


if __name__ == "__main__":
    sys.exit(run())
