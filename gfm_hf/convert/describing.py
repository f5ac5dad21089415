"""What a checkpoint is, told from its headers alone: no weight is read."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gfm_hf.convert.inward import (
    MODEL_CLASSES,
    STOCK_CLASSES,
    Source,
    architecture_of,
    describe,
    find_source,
    read_config,
    side_file,
    timm_statistics,
)
from gfm_hf.convert.layouts import DERIVED
from gfm_hf.convert.pickles import shown
from gfm_hf.convert.reading import StoredCheckpoint, open_checkpoint
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.modeling_gfm import GFMForImageClassification, GFMForPreTraining, swin_fields


NOT_TOLD = "not told"


def inspect_checkpoint(
    path_or_hub_file: str | Path, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> dict[str, Any]:
    """Describe anything that `convert_checkpoint` reads: bands, normalisation, sizes, heads, what it was trained on.

    Args:
        path_or_hub_file: As for `convert_checkpoint`.
        revision: Branch, tag or commit of the repository.
        token: Token of the Hub.
        cache_dir: Where downloads are kept.

    Returns:
        Plain values by name, in the order in which a person asks.

    Raises:
        CheckpointError: As `convert_checkpoint`, except that what the file does not tell is said to be so.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    source = find_source(path_or_hub_file, **hub)
    if source.file is not None:
        return _describe_file(source, open_checkpoint(source.file))
    return _describe_folder(source, hub)


def _describe_file(source: Source, checkpoint: StoredCheckpoint) -> dict[str, Any]:
    spelling, model_class, fields = describe(source, checkpoint, {})
    training = checkpoint.config.get("TRAIN")
    data = checkpoint.config.get("DATA")
    statistics = timm_statistics(source.config)
    if not statistics and fields["num_channels"] == 3 and checkpoint.config:
        statistics = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    weights = [tensor for name, tensor in checkpoint.tensors.items() if not DERIVED.search(name)]
    assert source.file is not None
    return {
        "file": f"{checkpoint.kind}, {source.file.stat().st_size:,} bytes",
        "names": f"those of {spelling.layout.name}, encoder under {spelling.trunk!r}",
        "becomes": model_class.__name__,
        **_shape(fields, model_class),
        "normalisation": _normalisation(statistics),
        "parameters in the file": f"{sum(math.prod(tensor.shape) for tensor in weights):,}",
        "trained on": shown(data.get("DATA_PATH")) if isinstance(data, Mapping) else NOT_TOLD,
        "epochs": shown(training.get("EPOCHS")) if isinstance(training, Mapping) else NOT_TOLD,
        **checkpoint.facts,
    }


def _describe_folder(source: Source, hub: Mapping[str, Any]) -> dict[str, Any]:
    architecture = architecture_of(source.config)
    config = read_config(source, swin_fields(source.config, GFMConfig))
    model_class: Any = MODEL_CLASSES.get(architecture) or STOCK_CLASSES.get(architecture, MODEL_CLASSES["GFMModel"])
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model_class(config).parameters())
    processor = side_file(source, "preprocessor_config.json", hub)
    results = side_file(source, "all_results.json", hub)
    teacher = config.teacher["name"] if config.teacher else None
    return {
        "file": f"transformers, {source.config['model_type']}",
        "becomes": model_class.__name__,
        **_shape(config.to_dict() | {"num_labels": config.num_labels}, model_class),
        "normalisation": _normalisation(processor),
        "parameters": f"{parameters:,}",
        "teacher": teacher or "none",
        "trained on": results.get("images", NOT_TOLD),
        "steps": results.get("steps", NOT_TOLD),
        "labels": _labels(config) if model_class is GFMForImageClassification else None,
    }


def _shape(fields: Mapping[str, Any], model_class: type) -> dict[str, Any]:
    bands = fields.get("band_names") or fields["num_channels"]
    stages = fields.get("distillation_stages") if model_class is GFMForPreTraining else None
    return {
        "bands": ", ".join(bands) if not isinstance(bands, int) else bands,
        "red, green, blue": ", ".join(map(str, fields["rgb_channels"])) if fields.get("rgb_channels") else None,
        "ground sampling distance": f"{fields['gsd']} m" if fields.get("gsd") else NOT_TOLD,
        "image size": f"{fields['image_size']} px" if fields["image_size"] else f"{NOT_TOLD}: pass image_size",
        "patch size": f"{fields['patch_size']} px",
        "window": f"{fields['window_size']} tokens",
        "embed_dim": fields["embed_dim"],
        "depths": ", ".join(map(str, fields["depths"])),
        "heads": ", ".join(map(str, fields["num_heads"])),
        "distilled stages": ", ".join(map(str, stages)) if stages else None,
        "classes": fields["num_labels"] if model_class is GFMForImageClassification else None,
    }


def _normalisation(statistics: Mapping[str, Any]) -> str:
    if not statistics.get("image_mean"):
        return NOT_TOLD
    mean, std = (", ".join(f"{value:.4g}" for value in statistics[name]) for name in ("image_mean", "image_std"))
    factor = statistics.get("rescale_factor")
    return f"mean {mean}; standard deviation {std}" + (f"; values times {factor:.6g}" if factor else "")


def _labels(config: GFMConfig) -> str:
    names = list((config.id2label or {}).values())
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
