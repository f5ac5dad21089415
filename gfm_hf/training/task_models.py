"""A checkpoint as the model of a task, and its processor, as the flags say."""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedConfig

from gfm_hf.data.label_maps import IGNORE
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.loading_gfm import swin_fields
from gfm_hf.model.modeling_gfm import GFMPreTrainedModel
from gfm_hf.training.adapting import add_lora, freeze_backbone, is_adapter, merge_adapter
from gfm_hf.training.runs import InputError


NO_MASKS = {
    "palette": None,
    "palette_tolerance": 0,
    "mask_threshold": None,
    "do_reduce_labels": False,
    "num_labels": None,
}


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
    if args.random_init and args.lora_r:
        raise InputError("--lora_r adds to a stored base, which a --random_init is not; leave one of them out.")
    overrides = fields | {"drop_path_rate": args.drop_path_rate}
    overrides |= {name: getattr(args, name) for name in ("image_size", "window_size") if getattr(args, name)}
    origin = {"revision": args.model_revision or "main", "cache_dir": args.cache_dir}
    if args.random_init:
        # No teacher has taught these weights, whatever the configuration's own ones were.
        model: Any = model_class(load_config(args, **overrides | {"teacher": None}))
    elif is_adapter(args.model_name_or_path, **origin):
        if args.lora_r:
            raise InputError(
                f"--model_name_or_path {args.model_name_or_path} is an adapter, onto which --lora_r cannot put another; "
                "write the whole model with gfm_hf.training.adapting.merge_adapter(adapter, output_dir) and start there."
            )
        with tempfile.TemporaryDirectory() as merged:
            merge_adapter(args.model_name_or_path, merged, **origin)
            model = model_class.from_pretrained(merged, ignore_mismatched_sizes=True, **overrides)
    else:
        # A head for other labels is drawn anew; everything else has to fit.
        model = model_class.from_pretrained(
            args.model_name_or_path, ignore_mismatched_sizes=True, **origin, **overrides
        )
        if Path(args.model_name_or_path).is_dir():
            model.name_or_path = str(Path(args.model_name_or_path).resolve())  # where an adapter will look for it
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


def load_processor(args: argparse.Namespace) -> Any:
    """The checkpoint's processor; of a stock Swin its statistics in one of ours."""
    origin = {"revision": args.model_revision or "main", "cache_dir": args.cache_dir}
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, **origin)
    if type(processor).__name__ != "GFMImageProcessor":
        fields = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
        size = processor.size.get("height") or processor.size.get("shortest_edge")
        known = {name: getattr(processor, name) for name in fields if getattr(processor, name, None) is not None}
        processor = GFMImageProcessor(size=size, **known)
    # Which masks an earlier task had is none of this one's business.
    for name, value in NO_MASKS.items():
        setattr(processor, name, value)
    if getattr(args, "nodata", None) is not None:
        # Reading makes NaN of the value, which the processor always takes for missing.
        processor.nodata = "nan" if math.isnan(args.nodata) else args.nodata
    if args.image_size:
        processor.size = {"height": args.image_size, "width": args.image_size}
    return processor


def load_mask_processor(args: argparse.Namespace, do_reduce_labels: bool = False) -> Any:
    """The same, set to read the masks of `add_mask_arguments`; the saved one will read such masks likewise."""
    processor = load_processor(args)
    for name in ("palette", "palette_tolerance", "mask_threshold"):
        setattr(processor, name, getattr(args, name))
    processor.do_reduce_labels = do_reduce_labels
    processor.ignore_index = IGNORE
    return processor


def labels_of(names: tuple[str, ...]) -> dict[str, Any]:
    """Number and names of classes as a configuration has them."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
