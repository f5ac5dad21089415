"""What the fine-tuning scripts do alike before and after their loop: flags, model, loaders, results."""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoImageProcessor, PreTrainedConfig

from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.modeling_gfm import GFMPreTrainedModel, swin_fields
from gfm_hf.training.adapting import add_lora, count_parameters, freeze_backbone, save_adapter
from gfm_hf.training.arguments import (
    add_batch_arguments,
    add_run_arguments,
    arguments_of,
    at_least_zero,
    positive,
    share,
)
from gfm_hf.training.optim import CosineSchedule, PolynomialSchedule, Schedule, layer_decay_groups, scale_learning_rate
from gfm_hf.training.runs import InputError


def add_data_arguments(parser: argparse.ArgumentParser) -> Any:
    """Where a labelled set is and how it is cut; the names are those of `open_task`."""
    data = parser.add_argument_group("data (one source)")
    data.add_argument(
        "--data_dir", help="folder: one sub-folder per class, or image/ and mask/, or image1/, image2/, mask/"
    )
    data.add_argument("--parquet", nargs="+", help="Parquet files, a pattern or a folder of them")
    data.add_argument("--dataset_name", help="data set of the Hub")
    data.add_argument("--dataset_config_name")
    data.add_argument("--dataset_revision")
    data.add_argument("--cache_dir")
    data.add_argument("--split_column_name", help="column that names each row's part (split)")
    data.add_argument("--validation_fraction", type=share, default=0.2, help="cut off training where there is no part")
    data.add_argument("--test_fraction", type=share, help="likewise; default: 0.2 where the source names no part")
    data.add_argument("--split_seed", type=int, default=0, help="of parts that are cut here")
    data.add_argument(
        "--train_fraction", type=share, default=1.0, help="share of the training part, without repetition"
    )
    data.add_argument("--authors_subset", action="store_true", help="draw that share as the authors: with repetition")
    data.add_argument("--dataloader_num_workers", type=int, default=2)
    return data


def add_model_arguments(parser: argparse.ArgumentParser) -> Any:
    """Which checkpoint is adapted, and what of it is trained."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name_or_path", required=True, help="checkpoint of ours or stock Swin; or a config.json"
    )
    model.add_argument("--model_revision")
    model.add_argument("--random_init", action="store_true", help="take the checkpoint's configuration alone")
    model.add_argument(
        "--image_size", type=positive, help="side of the training images in px; default: the checkpoint's"
    )
    model.add_argument("--window_size", type=positive, help="default: the checkpoint's")
    model.add_argument("--drop_path_rate", type=share, default=0.1)
    model.add_argument("--freeze_backbone", action="store_true", help="train the head alone (linear probe)")
    model.add_argument("--lora_r", type=positive, help="train low-rank additions of this rank and the head")
    model.add_argument("--gradient_checkpointing", action="store_true")
    model.add_argument("--attn_implementation", choices=["eager", "sdpa"], help="default: eager on a CPU, else sdpa")
    return model


def add_finetuning_arguments(
    parser: argparse.ArgumentParser, batch_size: int, epochs: int, patience: int | None
) -> Any:
    """Optimisation, and when to evaluate and to stop."""
    group = parser.add_argument_group("optimisation")
    add_batch_arguments(group, batch_size, epochs)
    group.add_argument("--per_device_eval_batch_size", type=positive, help="default: that of training")
    group.add_argument("--weight_decay", type=at_least_zero, default=0.05)
    group.add_argument(
        "--layer_decay", type=share, default=0.9, help="factor on the rate from one block to the one before"
    )
    group.add_argument("--max_grad_norm", type=at_least_zero, default=5.0, help="0: no clipping")
    group.add_argument("--eval_steps", type=positive, help="default: after every epoch")
    group.add_argument(
        "--early_stopping_patience", type=positive, default=patience, help="evaluations without a better score"
    )
    add_run_arguments(parser, checkpointing_steps=500)
    return group


def source_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that `open_task` takes."""
    names = (
        *("data_dir", "parquet", "dataset_name", "dataset_config_name", "cache_dir", "split_column_name"),
        *("validation_fraction", "test_fraction", "split_seed", "train_fraction", "authors_subset", "seed"),
    )
    return {name: getattr(args, name) for name in names} | {"revision": args.dataset_revision}


def build_task_model(
    model_class: type[GFMPreTrainedModel], args: argparse.Namespace, device: torch.device, **fields: Any
) -> Any:
    """Load the checkpoint as the class of the task.

    Args:
        model_class: The class.
        args: Flags of `add_model_arguments`.
        device: Where it will train.
        **fields: Configuration that the data set decides, such as the labels.

    Raises:
        InputError: The checkpoint cannot be loaded so.
    """
    if args.freeze_backbone and args.lora_r:
        raise InputError("--freeze_backbone and --lora_r contradict each other; choose one.")
    overrides = fields | {"drop_path_rate": args.drop_path_rate}
    overrides |= {name: getattr(args, name) for name in ("image_size", "window_size") if getattr(args, name)}
    origin = {"revision": args.model_revision or "main", "cache_dir": args.cache_dir}
    if args.random_init:
        model: Any = model_class(load_config(args, **overrides))
    else:
        # A head for other labels is drawn anew; everything else has to fit.
        model = model_class.from_pretrained(
            args.model_name_or_path, ignore_mismatched_sizes=True, **origin, **overrides
        )
    # On a CPU torch's fused attention falls back to a slower path as soon as the bias needs a gradient.
    model.set_attn_implementation(args.attn_implementation or ("eager" if device.type == "cpu" else "sdpa"))
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.freeze_backbone:
        freeze_backbone(model)
    return add_lora(model, args.lora_r) if args.lora_r else model


def load_config(args: argparse.Namespace, **overrides: Any) -> GFMConfig:
    """The checkpoint's configuration, also that of a stock Swin, with fields on top."""
    origin = {"revision": args.model_revision or "main", "cache_dir": args.cache_dir}
    stored, _ = PreTrainedConfig.get_config_dict(args.model_name_or_path, **origin)
    return GFMConfig.from_dict(swin_fields(stored, GFMConfig), **overrides)


def load_processor(args: argparse.Namespace) -> GFMImageProcessor:
    """The checkpoint's processor; of a stock Swin its statistics in one of ours."""
    origin = {"revision": args.model_revision or "main", "cache_dir": args.cache_dir}
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, **origin)
    if type(processor).__name__ != "GFMImageProcessor":
        fields = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
        size = processor.size.get("height") or processor.size.get("shortest_edge")
        known = {name: getattr(processor, name) for name in fields if getattr(processor, name, None) is not None}
        processor = GFMImageProcessor(size=size, **known)
    if args.image_size:
        processor.size = {"height": args.image_size, "width": args.image_size}
    return processor


def labels_of(names: tuple[str, ...]) -> dict[str, Any]:
    """Number and names of classes as a configuration has them."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def build_adamw(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW with layer decay."""
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)


def total_steps(args: argparse.Namespace, steps_per_epoch: int) -> int:
    """Updates of the run."""
    return args.max_train_steps or args.num_train_epochs * steps_per_epoch


def describe_task_run(args: argparse.Namespace, accelerator: Accelerator, model: Any, data: Any) -> dict[str, Any]:
    """What is known before the first step, for results and card."""
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if on_gpu else platform.processor() or platform.machine()
    trained, parameters = count_parameters(model)
    origin = None if Path(args.model_name_or_path).exists() or args.random_init else args.model_name_or_path
    about = {
        "images": data.description,
        "data_fingerprint": data.fingerprint,
        "dataset_name": None if Path(args.dataset_name or ".").exists() else args.dataset_name,
        "license": args.license,
        "started_from": "a random start" if args.random_init else Path(args.model_name_or_path).name,
        "base_model": origin,
        "trained": f"rank {args.lora_r} additions" if args.lora_r else "the head" if args.freeze_backbone else "all",
        "trained_parameters": trained,
        "parameters": parameters,
        "devices": accelerator.num_processes,
        "hardware": f"{accelerator.num_processes} x {device}",
        "country_iso_code": args.country_iso_code,
        "seed": args.seed,
    }
    return {name: value for name, value in about.items() if value is not None}


def write_task_model(
    path: Path,
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    about: dict[str, Any],
    progress: dict[str, Any],
    write_card: Callable[[Path, dict[str, Any]], None],
    scores: dict[str, Any] | None = None,
) -> None:
    """Write model or adapter, processor, code, results and card into a new folder.

    Args:
        path: Empty folder.
        args: All flags.
        model: Unwrapped.
        processor: Of the model.
        about: What `describe_task_run` says.
        progress: Of the loop.
        write_card: Writes README.md of a folder from facts.
        scores: Of the test part, at the end.
    """
    seconds = progress["energy"]["device_hours"] * 3600 / about["devices"]
    validation = {f"eval_{name}": value for name, value in progress["scores"].items()}
    facts = {**about, "steps": progress["step"], "best_step": progress["best_step"], **validation}
    facts |= {f"test_{name}": value for name, value in (scores or {}).items()}
    facts |= {**progress["energy"], "images_per_second": progress["images"] / max(seconds, 1e-9)}
    save_adapter(model, path) if args.lora_r else model.save_pretrained(path)
    processor.save_pretrained(path)
    (path / "all_results.json").write_text(json.dumps(facts | {"arguments": arguments_of(args)}, indent=2))
    write_card(path, facts)


def cosine_schedule(args: argparse.Namespace, global_batch_size: int, steps: int) -> Schedule:
    """The authors' fine-tuning schedule, rates scaled to the batch."""
    return CosineSchedule(
        peak=scale_learning_rate(args.learning_rate, global_batch_size),
        start=scale_learning_rate(args.warmup_learning_rate, global_batch_size),
        floor=scale_learning_rate(args.min_learning_rate, global_batch_size),
        warmup_steps=round(args.warmup_ratio * steps),
        total_steps=steps,
        repeat_first=args.authors_quirks,
        scale_peak_only=args.authors_quirks,
    )


def polynomial_schedule(args: argparse.Namespace, steps: int) -> Schedule:
    """The schedule of mmsegmentation; rates are used as they are given."""
    return PolynomialSchedule(
        args.learning_rate, args.min_learning_rate, steps, args.power, warmup_steps=min(args.warmup_steps, steps // 10)
    )
