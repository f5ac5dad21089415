"""Continual pretraining: a student rebuilds masked pixels and stays close to a frozen teacher's features.

    accelerate launch examples/run_continual_pretraining.py --train_dir my_images \
        --teacher microsoft/swin-base-patch4-window7-224-in22k --output_dir my_backbone

The defaults are the paper's recipe: Swin-B student at 192 px with window 6 from a random start, 32 px mask cells of
which 60 % are hidden, distillation after stage 3, 100 epochs.
"""

import argparse
import json
import math
import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gfm_hf import GFMConfig, GFMForPreTraining, GFMImageProcessor, GFMTeacher
from gfm_hf.cards import write_card
from gfm_hf.data.collators import PretrainingCollator, PretrainingSamples
from gfm_hf.data.decoding import Record
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.sources import ImageStream, ImageTable, hold_out, open_images
from gfm_hf.training.arguments import (
    add_batch_arguments,
    add_run_arguments,
    arguments_of,
    at_least_zero,
    hub_name,
    positive,
    share,
)
from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.meters import StepMeter, UnreadableImages
from gfm_hf.training.optim import CosineSchedule, parameter_groups, scale_learning_rate, set_learning_rate
from gfm_hf.training.panels import pretraining_panel
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import (
    InputError,
    RunFolder,
    StopSignal,
    command,
    end_training,
    ignore_signals,
    running,
    user_input,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("images (one source)")
    data.add_argument("--train_dir", help="folder of images, searched recursively")
    data.add_argument("--train_parquet", nargs="+", help="Parquet files, a pattern or a folder of them")
    data.add_argument("--dataset_name", help="data set of the Hub")
    data.add_argument("--dataset_config_name")
    data.add_argument("--dataset_revision")
    data.add_argument("--split", default="train")
    data.add_argument("--image_column_name", default="image")
    data.add_argument(
        "--streaming", action="store_true", help="read the data set as a stream; needs --max_train_steps"
    )
    data.add_argument("--cache_dir")
    data.add_argument(
        "--num_eval_images", type=positive, default=64, help="images held out of training for evaluation"
    )
    data.add_argument("--dataloader_num_workers", type=int, default=2)

    bands = parser.add_argument_group("bands (default: red, green, blue in 8 bits)")
    bands.add_argument("--band_names", nargs="+", help="names of the bands, in the order of the files")
    bands.add_argument("--rgb_channels", nargs=3, type=int, help="indices of red, green and blue among the bands")
    bands.add_argument("--image_mean", nargs="+", type=float, help="mean per band, after --rescale_factor")
    bands.add_argument("--image_std", nargs="+", type=float)
    bands.add_argument("--rescale_factor", type=float, default=1 / 255, help="1e-4 for reflectance in 0..10000")
    bands.add_argument("--gsd", type=float, help="ground sampling distance in metres, for the card")

    model = parser.add_argument_group("teacher and student")
    model.add_argument("--teacher", help="Hub id or folder; without one this is masked image modelling alone")
    model.add_argument("--teacher_revision")
    model.add_argument("--teacher_image_size", type=positive, help="default: the teacher's own")
    model.add_argument("--teacher_dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    model.add_argument("--config_name", help="student's configuration; default: the teacher's architecture")
    model.add_argument("--student_init", choices=["random", "teacher"], default="random")
    model.add_argument(
        "--model_name_or_path", help="pretrain this checkpoint further: its configuration, encoder, decoder, projector"
    )
    model.add_argument("--image_size", type=positive, help="side of the crops in pixels (192)")
    model.add_argument("--window_size", type=positive, help="side of the attention windows in tokens (6)")
    model.add_argument("--mask_patch_size", type=positive, help="side of a mask cell in pixels (32)")
    model.add_argument("--mask_ratio", type=float, help="share of hidden cells (0.6)")
    model.add_argument("--distillation_weight", type=float, help="the paper's alpha (1.0)")
    model.add_argument("--distillation_stages", nargs="+", type=int, help="stages whose features are distilled (3)")
    model.add_argument("--attn_implementation", choices=["eager", "sdpa"], help="default: eager on a CPU, else sdpa")
    model.add_argument("--gradient_checkpointing", action="store_true")

    optimisation = parser.add_argument_group("optimisation (METHOD: AdamW, warm-up, cosine)")
    add_batch_arguments(optimisation, batch_size=128, epochs=100)
    optimisation.add_argument(
        "--learning_rate", type=at_least_zero, default=2e-4, help="for a global batch of 512; scaled"
    )
    optimisation.add_argument("--warmup_learning_rate", type=at_least_zero, default=1e-6, help="scaled likewise")
    optimisation.add_argument("--min_learning_rate", type=at_least_zero, default=1e-5, help="scaled likewise")
    optimisation.add_argument("--warmup_ratio", type=share, default=0.1, help="share of the steps")
    optimisation.add_argument("--weight_decay", type=at_least_zero, default=0.05)
    optimisation.add_argument("--max_grad_norm", type=at_least_zero, default=5.0, help="0: no clipping")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an epoch's smaller last batch")
    optimisation.add_argument(
        "--authors_quirks",
        action="store_true",
        help="as the released code: first rate used twice, position tables decayed",
    )
    optimisation.add_argument("--eval_steps", type=positive, default=500)
    add_run_arguments(parser, checkpointing_steps=500)
    return parser.parse_args(argv)


def build_teacher(args: argparse.Namespace, config: GFMConfig, device: torch.device) -> GFMTeacher | None:
    """Load the frozen teacher on the training device."""
    if not args.teacher:
        return None
    if config.rgb_channels is None:
        raise InputError(
            f"The teacher looks at red, green and blue, but which of the {config.num_channels} bands these are is not "
            "known; pass --rgb_channels or --band_names."
        )
    dtype = GFMTeacher.fast_dtype(device) if args.teacher_dtype == "auto" else getattr(torch, args.teacher_dtype)
    mean, std = band_statistics(args, config)
    rgb = list(config.rgb_channels)
    # Only 8-bit pictures share a unit with the teacher's own statistics; other bands go in as they are normalised.
    pictures = args.rescale_factor == 1 / 255
    return GFMTeacher.from_pretrained(
        args.teacher,
        config.distillation_stages or (),
        image_size=args.teacher_image_size,
        rgb_channels=None if rgb == list(range(config.num_channels)) else rgb,
        image_mean=[mean[channel] for channel in rgb] if pictures else None,
        image_std=[std[channel] for channel in rgb] if pictures else None,
        dtype=dtype,
        revision=args.teacher_revision,
        cache_dir=args.cache_dir,
    ).to(device)


def build_config(args: argparse.Namespace) -> GFMConfig:
    """The student: --model_name_or_path, --config_name or the teacher's architecture, with the flags on top."""
    if args.model_name_or_path and (args.config_name or args.student_init == "teacher"):
        raise InputError(
            "--model_name_or_path brings configuration and weights; leave --config_name and --student_init out."
        )
    for flag in ("teacher", "config_name", "model_name_or_path"):
        name = getattr(args, flag)
        if name and (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).exists():
            raise InputError(f"--{flag} {name} does not exist; check the path, or give a model's name on the Hub.")
        if name and Path(name).is_file():
            raise InputError(f"--{flag} {name} is a file; make a folder of it with: gfm-hf convert {name} FOLDER")
        if name and Path(name).is_dir() and not (Path(name) / "config.json").exists():
            raise InputError(f"--{flag} {name} has no config.json; give a folder written by save_pretrained.")
    overrides: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("image_size", "window_size", "mask_patch_size", "mask_ratio", "distillation_weight", "gsd")
        if getattr(args, name) is not None
    }
    if args.band_names or args.image_mean:
        overrides["num_channels"] = len(args.band_names or args.image_mean)
    if args.band_names:
        overrides["band_names"] = tuple(args.band_names)
    if args.rgb_channels:
        overrides["rgb_channels"] = tuple(args.rgb_channels)
    if not args.teacher:
        if args.distillation_stages or args.distillation_weight is not None:
            raise InputError(
                "--distillation_stages and --distillation_weight need a --teacher; add one or leave them out."
            )
        # Without a teacher a projector would be parameters that nothing trains.
        overrides["distillation_stages"] = ()
    elif args.distillation_stages:
        overrides["distillation_stages"] = tuple(args.distillation_stages)
    # Of a folder its name alone: the configuration travels, the paths of this machine do not.
    teacher = Path(args.teacher).resolve().name if args.teacher and Path(args.teacher).exists() else args.teacher
    overrides["teacher"] = {"name": teacher, "revision": args.teacher_revision} if teacher else None
    overrides["teacher_hidden_sizes"] = None  # known once the teacher is loaded

    configured = args.model_name_or_path or args.config_name
    if configured:
        config = GFMConfig.from_pretrained(configured, cache_dir=args.cache_dir, **overrides)
        if args.teacher and not config.distillation_stages:  # stored by a run without a teacher
            config.distillation_stages = (min(3, len(config.depths)),)
        return config
    if not args.teacher:
        return GFMConfig(**overrides)
    architecture = AutoConfig.from_pretrained(args.teacher, revision=args.teacher_revision, cache_dir=args.cache_dir)
    if architecture.model_type not in ("swin", "gfm"):
        raise InputError(
            f"The teacher {args.teacher} is a {architecture.model_type} model, whose architecture a GFM student cannot "
            "take over; name the student's configuration with --config_name."
        )
    shape = ("patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "hidden_act")
    return GFMConfig(**{name: getattr(architecture, name) for name in shape}, **overrides)


def build_processor(args: argparse.Namespace, config: GFMConfig) -> GFMImageProcessor:
    """The processor that goes with the student."""
    mean, std = band_statistics(args, config)
    names = config.band_names
    if names is None and config.num_channels == 3 and config.rgb_channels is not None:
        names = tuple("RGB"[config.rgb_channels.index(channel)] for channel in range(3))
    return GFMImageProcessor(
        size=config.image_size,
        image_mean=mean,
        image_std=std,
        rescale_factor=args.rescale_factor,
        band_names=names,
    )


def build_schedule(args: argparse.Namespace, plan: EpochPlan) -> CosineSchedule:
    """Warm-up and cosine over the whole run, scaled to the global batch."""
    total_steps = args.max_train_steps or args.num_train_epochs * (plan.steps_per_epoch or 0)
    return CosineSchedule(
        peak=scale_learning_rate(args.learning_rate, plan.global_batch_size),
        start=scale_learning_rate(args.warmup_learning_rate, plan.global_batch_size),
        floor=scale_learning_rate(args.min_learning_rate, plan.global_batch_size),
        warmup_steps=round(args.warmup_ratio * total_steps),
        total_steps=total_steps,
        repeat_first=args.authors_quirks,
    )


def check_window(config: GFMConfig) -> None:
    """Refuse crops whose maps the stages or the window do not divide: padding would take part in training."""
    unit = config.patch_size * 2 ** (len(config.depths) - 1)
    if config.image_size % unit:
        sizes = [size for size in (config.image_size // unit * unit, (config.image_size // unit + 1) * unit) if size]
        raise InputError(
            f"--image_size {config.image_size} is no multiple of {unit} px, the side of the last stage's tokens; use "
            f"{' or '.join(map(str, sizes))}."
        )
    maps = [config.image_size // config.patch_size // 2**stage for stage in range(len(config.depths))]

    def fits(window: int) -> bool:
        return all(size <= window or size % window == 0 for size in maps)

    if not fits(config.window_size):
        windows = sorted(
            (window for window in range(4, 13) if fits(window)), key=lambda w: abs(w - config.window_size)
        )
        advice = f"--window_size {windows[0]}" if windows else f"--image_size {config.window_size * unit}"
        raise InputError(
            f"--image_size {config.image_size} gives maps of {maps} tokens a side, which --window_size "
            f"{config.window_size} does not divide; use {advice}."
        )


def band_statistics(args: argparse.Namespace, config: GFMConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band; ImageNet's for red, green and blue."""
    given = [len(values) for values in (args.image_mean, args.image_std) if values]
    if given and given != [config.num_channels] * 2:
        raise InputError(
            f"--image_mean has {len(args.image_mean or [])} and --image_std {len(args.image_std or [])} numbers but the "
            f"student has {config.num_channels} bands; pass both, one number per band."
        )
    if given:
        return args.image_mean, args.image_std
    if config.num_channels == 3 and config.rgb_channels is not None:
        order = [config.rgb_channels.index(channel) for channel in range(3)]
        return [IMAGENET_DEFAULT_MEAN[colour] for colour in order], [IMAGENET_DEFAULT_STD[colour] for colour in order]
    raise InputError(
        f"The student's {config.num_channels} bands are not just red, green and blue, so their statistics are unknown; "
        "pass --image_mean and --image_std, one number per band."
    )


def build_model(
    args: argparse.Namespace, config: GFMConfig, teacher: GFMTeacher | None, device: torch.device
) -> GFMForPreTraining:
    """The student, from a random start, the teacher's weights or a checkpoint."""
    config.teacher_hidden_sizes = tuple(teacher.hidden_sizes) if teacher else None
    if args.student_init == "teacher":
        if not args.teacher:
            raise InputError("--student_init teacher needs a --teacher whose weights to start from.")
        origin = {"revision": args.teacher_revision, "cache_dir": args.cache_dir}
        kind = AutoConfig.from_pretrained(args.teacher, **origin).model_type
        if kind not in ("swin", "gfm"):
            raise InputError(
                f"--student_init teacher needs a Swin teacher but {args.teacher} is a {kind} model; leave it out."
            )
        model = GFMForPreTraining.from_pretrained(args.teacher, config=config, **origin)
        model.train()
    elif args.model_name_or_path:
        try:
            model = GFMForPreTraining.from_pretrained(args.model_name_or_path, config=config, cache_dir=args.cache_dir)
        except RuntimeError as error:  # transformers' word for weights of another shape
            raise InputError(
                f"--model_name_or_path {args.model_name_or_path} was distilled from a teacher with other features than "
                f"{args.teacher}; use the same kind of teacher, or start with --config_name."
            ) from error
        model.train()
    else:
        model = GFMForPreTraining(config)
    # On a CPU torch's fused attention falls back to a slower path as soon as the bias needs a gradient.
    on_cpu = device.type == "cpu"
    model.set_attn_implementation(args.attn_implementation or ("eager" if on_cpu else "sdpa"))
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def train_step(
    model: torch.nn.Module,
    teacher: GFMTeacher | None,
    batch: dict[str, Any],
    accelerator: Accelerator,
    accumulation: int = 1,
) -> torch.Tensor:
    """Forward and backward of one micro-batch.

    Returns:
        (3,) loss, reconstruction loss and distillation loss, each times the micro-batch's share of the global batch.
    """
    pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True)
    masks = batch["bool_masked_pos"].to(accelerator.device, non_blocking=True)
    weight = batch["loss_weight"].to(accelerator.device, non_blocking=True)
    features = teacher(pixel_values) if teacher else None
    outputs = model(pixel_values, bool_masked_pos=masks, teacher_features=features)
    accelerator.backward(outputs.loss * weight / accumulation)
    distillation = outputs.distillation_loss if teacher else torch.zeros_like(outputs.loss)
    return torch.stack([outputs.loss, outputs.reconstruction_loss, distillation]).detach() * weight / accumulation


@torch.no_grad()
def evaluate(
    model: GFMForPreTraining, teacher: GFMTeacher | None, batches: list[dict[str, Any]], processor: GFMImageProcessor
) -> tuple[dict[str, float], Image.Image]:
    """Losses on the held-out images, under fixed masks, and a panel of the first ones."""
    model.eval()
    terms = np.zeros((len(batches), 2))
    for row, batch in zip(terms, batches):
        pixel_values = batch["pixel_values"].to(model.device)
        masks = batch["bool_masked_pos"].to(model.device)
        outputs = model(pixel_values, masks, teacher(pixel_values) if teacher else None)
        row[:] = outputs.reconstruction_loss.item(), outputs.distillation_loss.item() if teacher else 0.0
        if batch is batches[0]:
            panel = pretraining_panel(model.config, processor, pixel_values, masks, outputs.reconstruction)
    model.train()
    sizes = [len(batch["pixel_values"]) for batch in batches]
    reconstruction, distillation = np.average(terms, axis=0, weights=sizes)
    scores = {
        "eval_loss": reconstruction + model.config.distillation_weight * distillation,
        "eval_reconstruction_loss": reconstruction,
        "eval_distillation_loss": distillation,
    }
    return scores, panel


def load_evaluation(
    records: list[Record], samples: PretrainingSamples, collator: PretrainingCollator, batch_size: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Decode the held-out images once, they stay in memory; also name those that cannot be read."""
    batches = [
        collator([samples[0, record] for record in records[start : start + batch_size]])
        for start in range(0, len(records), batch_size)
    ]
    unreadable = dict(pair for batch in batches for pair in batch["unreadable"])
    readable = [batch for batch in batches if batch["loss_weight"] > 0]
    if not batches:
        raise InputError("There is no image to hold out for evaluation; check the data set and its split.")
    if not readable:
        name, reason = next(iter(unreadable.items()))
        raise InputError(
            f"None of the {len(unreadable)} images held out for evaluation can be read, the first is {name} ({reason}); "
            "check the images."
        )
    return readable, unreadable


def describe_run(
    args: argparse.Namespace, accelerator: Accelerator, images: ImageTable | ImageStream, plan: EpochPlan
) -> dict[str, Any]:
    """What is known of a run before its first step, for results and card."""
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if on_gpu else platform.processor() or platform.machine()
    origin = args.teacher if args.student_init == "teacher" else args.model_name_or_path
    about = {
        "images": images.description,
        "data_fingerprint": images.fingerprint,
        "dataset_name": None if Path(args.dataset_name or ".").exists() else args.dataset_name,
        "license": args.license,
        "student_init": args.model_name_or_path or args.student_init,
        # In the Hub's words a finetune of what its weights came from; a teacher that only showed features is not that.
        "base_model": None if Path(origin or ".").exists() else origin,
        "global_batch_size": plan.global_batch_size,
        "devices": accelerator.num_processes,
        "hardware": f"{accelerator.num_processes} x {device}",
        "country_iso_code": args.country_iso_code,
    }
    return {name: value for name, value in about.items() if value is not None}


def write_model(
    path: Path,
    args: argparse.Namespace,
    model: GFMForPreTraining,
    processor: GFMImageProcessor,
    about: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    """Write model, processor, code, results, log and card into a new folder."""
    seconds = progress["energy"]["device_hours"] * 3600 / about["devices"]
    facts = {**about, "steps": progress["step"], **progress["scores"], **progress["energy"]}
    facts |= {"images_per_second": progress["images"] / seconds}
    results = {**facts, "unreadable": progress["unreadable"], "arguments": arguments_of(args)}
    model.save_pretrained(path)
    processor.save_pretrained(path)
    (path / "all_results.json").write_text(json.dumps(results, indent=2))
    card = Path(args.output_dir) / "README.md"
    if card.exists():  # a person may have written into it
        shutil.copyfile(card, path / card.name)
    try:
        write_card(path, hub_name(args), facts)
    except ValueError as error:
        print(f"warning: README.md stays as it is: {error}", file=sys.stderr)


@command
def main(argv: list[str] | None = None) -> None:
    """Set up and train."""
    args = parse_args(argv)
    if args.streaming and args.max_train_steps is None:
        raise InputError("--streaming does not know how long an epoch is; pass --max_train_steps.")
    with user_input():
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision, log_with=args.report_to, project_dir=args.output_dir
        )
    if args.report_to and not accelerator.log_with:
        raise InputError(f"--report_to {args.report_to} is not installed; pip install it, or leave the flag out.")
    stop = StopSignal()
    hub_name(args)  # refused now rather than after the last step
    folder = RunFolder(args.output_dir, accelerator, args.checkpoints_total_limit)
    resume_from = folder.checkpoint_to_resume(args.resume_from_checkpoint)

    # Images, teacher, student
    with user_input():
        set_seed(args.seed)
        images = open_images(
            dataset_name=args.dataset_name,
            dataset_config_name=args.dataset_config_name,
            train_dir=args.train_dir,
            train_parquet=args.train_parquet,
            split=args.split,
            streaming=args.streaming,
            image_column_name=args.image_column_name,
            seed=args.seed,
            cache_dir=args.cache_dir,
            revision=args.dataset_revision,
        )
        training_images, held_out = hold_out(images, args.num_eval_images, args.seed)
        config = build_config(args)
        check_window(config)
        teacher = build_teacher(args, config, accelerator.device)
        processor = build_processor(args, config)
        model = build_model(args, config, teacher, accelerator.device)

    # Batches: which image each process sees in which step, and how it becomes a sample
    with user_input():
        geometry = {
            name: getattr(config, name)
            for name in ("image_size", "patch_size", "mask_patch_size", "mask_ratio", "num_channels", "rgb_channels")
        }
        samples = PretrainingSamples(**geometry, seed=args.seed)
        fixed_samples = PretrainingSamples(**geometry, seed=args.seed, train=False)
        fixed_collator = PretrainingCollator(processor, fixed_samples)
        evaluation, lost = load_evaluation(held_out, fixed_samples, fixed_collator, args.per_device_train_batch_size)
        plan = EpochPlan(
            training_images,
            args.per_device_train_batch_size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed,
            drop_last=args.drop_last,
        )
        loader = DataLoader(
            samples,
            batch_sampler=plan,
            collate_fn=PretrainingCollator(processor, samples),
            num_workers=args.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
            # Its own: the global generator, which a resumed run restores, belongs to the model.
            generator=torch.Generator().manual_seed(args.seed),
        )

    # Optimiser and schedule
    groups = parameter_groups(model, args.weight_decay, decay_position_tables=args.authors_quirks)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = build_schedule(args, plan)

    # Where to start
    run = {
        "images": images.fingerprint,
        "held_out": len(held_out),
        "global_batch_size": plan.global_batch_size,
        "seed": args.seed,
        "steps": schedule.total_steps,
        "student": {name: value for name, value in json.loads(config.to_json_string()).items() if name != "auto_map"},
        "normalisation": [processor.image_mean, processor.image_std, args.rescale_factor],
        "student_init": args.model_name_or_path or args.student_init,
    }
    run = json.loads(json.dumps(run))  # as a checkpoint gives it back
    progress: dict[str, Any] = {"step": 0, "epoch": 0, "step_in_epoch": 0, "images": 0, "unreadable": lost, "run": run}
    if resume_from:
        progress = folder.load_checkpoint(resume_from, run)
    folder.cut_log(progress["step"])
    with user_input():
        energy = EnergyMeter(accelerator.num_processes, args.country_iso_code, progress.get("energy"))
    plan.epoch_start, plan.step_start = progress["epoch"], progress["step_in_epoch"]
    if accelerator.is_main_process:
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{images.description}; student with {count:,} parameters on {accelerator.device}")
        print(f"steps {progress['step']} to {schedule.total_steps}, {plan.global_batch_size} images each")
    if args.report_to:
        accelerator.init_trackers("gfm-pretraining", {name: str(value) for name, value in arguments_of(args).items()})

    about = describe_run(args, accelerator, images, plan)
    write = partial(write_model, args=args, model=accelerator.unwrap_model(model), processor=processor, about=about)
    publisher = None
    if args.push_to_hub and accelerator.is_main_process:
        publisher = BackgroundPush(folder.path, hub_name(args), args.hub_private_repo, args.hub_token)
    with publisher or nullcontext():
        progress = train(
            args,
            accelerator,
            model,
            teacher,
            optimizer,
            schedule,
            plan,
            loader,
            evaluation,
            processor,
            folder,
            stop,
            energy,
            progress,
            publisher,
            write,
        )
    if progress["step"] < schedule.total_steps:
        if accelerator.is_main_process:
            print(f"stopped at step {progress['step']}; go on with --resume_from_checkpoint latest")
        end_training(accelerator)
        return

    folder.save_result(partial(write, progress=progress))
    if accelerator.is_main_process:
        if publisher:
            publisher.push_result(args.hub_timeout_s, stopped=lambda: stop.received)
        for name, reason in progress["unreadable"].items():
            print(f"skipped {name}: {reason}")
        print(
            f"done: {progress['step']} steps, eval reconstruction {progress['scores']['eval_reconstruction_loss']:.4f}, "
            f"distillation {progress['scores']['eval_distillation_loss']:.4f}, {progress['energy']['energy_kwh']:.3f} kWh; "
            f"AutoModel.from_pretrained({str(folder.path)!r})"
        )
    end_training(accelerator)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    teacher: GFMTeacher | None,
    optimizer: torch.optim.Optimizer,
    schedule: CosineSchedule,
    plan: EpochPlan,
    loader: DataLoader,
    evaluation: list[dict[str, Any]],
    processor: GFMImageProcessor,
    folder: RunFolder,
    stop: StopSignal,
    energy: EnergyMeter,
    progress: dict[str, Any],
    publisher: BackgroundPush | None,
    write: Callable[..., None],
) -> dict[str, Any]:
    """The loop, from `progress` to the last step or a signal; returns the progress."""
    total, accumulation = schedule.total_steps, args.gradient_accumulation_steps
    known_images = len(plan.source) if isinstance(plan.source, ImageTable) else None
    unreadable = UnreadableImages(accelerator, known_images, progress["unreadable"])
    scores = progress.get("scores", {})
    meter = StepMeter(accelerator, ("loss", "reconstruction_loss", "distillation_loss"))
    bar = tqdm(
        total=total, initial=progress["step"], disable=not accelerator.is_main_process, unit="step", mininterval=1
    )
    model.train()
    with bar, running(loader) as batches:
        for step in range(progress["step"], total):
            rate = set_learning_rate(optimizer, schedule, step)
            for micro_step in range(accumulation):
                with meter.waiting(), user_input():
                    batch = next(batches)
                unreadable.add(batch)
                last = micro_step == accumulation - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    losses = train_step(model, teacher, batch, accelerator, accumulation)
                meter.add(losses, images=len(batch["pixel_values"]), last=last)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            bar.update()
            stopping = done == total or stop.agreed(accelerator)
            saving = stopping or done % args.checkpointing_steps == 0
            if done % args.logging_steps == 0 or saving:
                record = {"step": done, "epoch": batch["epoch"], "learning_rate": rate, **meter.close()}
                if not math.isfinite(record["loss"]):
                    raise InputError(f"The loss is {record['loss']} at step {done}; lower --learning_rate and resume.")
                folder.log(record)
                accelerator.log(record, step=done)
                if publisher:
                    publisher.poll()
                bar.set_postfix_str(
                    f"reconstruction {record['reconstruction_loss']:.4f}, distillation {record['distillation_loss']:.4f}, "
                    f"{record['images_per_second']:.1f} images/s"
                )
            if (done % args.eval_steps == 0 or done == total) and accelerator.is_main_process:
                with meter.paused():
                    scores, panel = evaluate(accelerator.unwrap_model(model), teacher, evaluation, processor)
                folder.log({"step": done, "epoch": batch["epoch"], **scores})
                accelerator.log(scores, step=done)
                folder.save_picture(panel, f"panels/step-{done:07d}.png")
            if saving:
                progress = progress | {
                    "step": done,
                    "epoch": batch["epoch"],
                    "step_in_epoch": batch["step"] + 1,
                    "images": progress["images"] + meter.take_images(),
                    "unreadable": unreadable.gather(),
                    "energy": energy.report(),
                    "scores": scores,
                }
                folder.save_checkpoint(done, progress)
                if publisher and not stopping:
                    publisher.offer(done, partial(write, progress=progress))
            if stopping:
                break
    return progress


if __name__ == "__main__":
    sys.exit(main())
