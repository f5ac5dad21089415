"""What a checkpoint is, told from its headers alone: no weight is read."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfm_hf.convert.companions import stored_statistics
from gfm_hf.convert.inward import describe
from gfm_hf.convert.layouts import DERIVED
from gfm_hf.convert.pickles import shown
from gfm_hf.convert.sources import find_source
from gfm_hf.model.modeling_gfm import GFMForPreTraining


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
        Plain values by name, in the order in which a person asks; None where a question does not arise.

    Raises:
        CheckpointError: As `convert_checkpoint`, except that what the file does not tell is said to be so.
    """
    source = find_source(path_or_hub_file, revision, token, cache_dir)
    checkpoint = source.open()
    about = describe(source, checkpoint, {})
    results = source.beside.get("all_results.json", {})
    weights = [tensor for name, tensor in checkpoint.tensors.items() if not DERIVED.search(name)]
    teacher = about.fields.get("teacher")
    return {
        "file": f"{checkpoint.kind}, {sum(file.stat().st_size for file in source.files):,} bytes",
        "names": f"those of {about.spelling.layout.name}, encoder under {about.spelling.trunk!r}",
        "becomes": about.model_class.__name__,
        **_shape(about.fields, about.model_class),
        "normalisation": _normalisation(stored_statistics(source), source.beside.get("preprocessor_config.json", {})),
        "parameters in the file": f"{sum(math.prod(tensor.shape) for tensor in weights):,}",
        "teacher": shown(teacher.get("name")) if isinstance(teacher, Mapping) else None,
        "trained on": _training_set(checkpoint.config, results),
        "epochs": shown(_section(checkpoint.config, "TRAIN").get("EPOCHS")) if checkpoint.config else None,
        "steps": results.get("steps"),
        **checkpoint.facts,
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
        "classes": fields.get("num_labels"),
        "labels": _labels(fields),
    }


def _labels(fields: Mapping[str, Any]) -> str | None:
    names = fields.get("id2label")
    if "num_labels" not in fields or not isinstance(names, Mapping):
        return None
    shown_names = [shown(name, 40) for name in list(names.values())[:12]]
    return ", ".join(shown_names) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _normalisation(statistics: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
    if not statistics:
        return f"{NOT_TOLD}: convert takes ImageNet's for red, green and blue and asks for others"
    mean, std = (", ".join(f"{value:.4g}" for value in statistics[name]) for name in ("image_mean", "image_std"))
    factor = processor.get("rescale_factor")
    return f"mean {mean}; standard deviation {std}" + (f"; values times {factor:.6g}" if factor else "")


def _training_set(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    said = results.get("images") or _section(config, "DATA").get("DATA_PATH")
    return shown(said, 200) if said else NOT_TOLD


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}
