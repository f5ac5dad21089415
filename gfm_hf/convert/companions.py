"""What goes with converted weights: the image processor, and the optimizer's moments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gfm_hf.convert.inward import Conversion
from gfm_hf.convert.layouts import DERIVED, recognise
from gfm_hf.convert.reading import CheckpointError, open_checkpoint
from gfm_hf.convert.sources import Source
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.modeling_gfm import GFMPreTrainedModel


# What a stored processor's settings mean for ours too.
SETTINGS = (
    *("rescale_factor", "resample", "do_resize", "do_rescale", "do_normalize", "check_values"),
    *("ignore_index", "do_reduce_labels", "palette", "palette_tolerance", "mask_threshold", "num_labels", "nodata"),
)
STATISTICS = ("image_mean", "image_std")
# What the authors' pretraining does not decay, besides vectors.
UNDECAYED = ("mask_token", "absolute_pos_embed")


def stored_statistics(source: Source) -> dict[str, Any]:
    """`image_mean` and `image_std` that lie beside weights, as transformers or timm write them; empty where none do."""
    processor = source.beside.get("preprocessor_config.json", {})
    timm = source.config.get("pretrained_cfg")
    named = {"image_mean": processor.get("image_mean"), "image_std": processor.get("image_std")}
    if named["image_mean"] is None and isinstance(timm, dict):
        named = {"image_mean": timm.get("mean"), "image_std": timm.get("std")}
    return named if all(isinstance(values, list) for values in named.values()) else {}


def processor_for(conversion: Conversion, settings: Mapping[str, Any]) -> GFMImageProcessor:
    """The image processor that goes with converted weights; what it has to assume is added to `conversion.assumed`.

    Args:
        conversion: What `read_model` gave.
        settings: Fields of the processor; win over what lies beside the weights.

    Raises:
        CheckpointError: The statistics of the bands are not told, or a setting cannot be.
    """
    config, source = conversion.model.config, conversion.source
    stored = source.beside.get("preprocessor_config.json", {})
    known = {name: stored[name] for name in SETTINGS if name in stored}
    known |= _moved_statistics(stored_statistics(source), conversion.stored_config, config) | dict(settings)
    names, rgb = config.band_names, config.rgb_channels
    pictures = config.num_channels == 3 and rgb is not None
    if known.get("image_mean") is None or known.get("image_std") is None:
        if not pictures or stored_statistics(source):
            raise CheckpointError(
                f"{source.name} does not tell the statistics of these {config.num_channels} bands; pass image_mean "
                "and image_std, one number per band (on the command line --set image_mean=[...] --set image_std=[...])."
            )
        order = [list(rgb or ()).index(channel) for channel in range(3)]
        known["image_mean"] = [IMAGENET_DEFAULT_MEAN[colour] for colour in order]
        known["image_std"] = [IMAGENET_DEFAULT_STD[colour] for colour in order]
        conversion.assumed |= {name: known[name] for name in STATISTICS}
    if names is None and pictures:
        names = tuple("RGB"[list(rgb or ()).index(channel)] for channel in range(3))
    try:
        return GFMImageProcessor(size=config.image_size, band_names=names, **known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source.name}: the processor cannot be so ({error}); correct --set.") from error


def _moved_statistics(statistics: dict[str, Any], stored: GFMConfig, wanted: GFMConfig) -> dict[str, Any]:
    """The statistics in the order of the wanted bands; empty where that order cannot be known."""
    order = _order(stored, wanted)
    if not statistics or order is None or any(len(values) != len(order) for values in statistics.values()):
        return {}
    return {name: [values[place] for place in order] for name, values in statistics.items()}


def _order(stored: GFMConfig, wanted: GFMConfig) -> list[int] | None:
    """Where each wanted band stands among the stored ones."""
    if stored.num_channels != wanted.num_channels:
        return None
    if stored.band_names == wanted.band_names and stored.rgb_channels == wanted.rgb_channels:
        return list(range(stored.num_channels))
    before, after = _labels(stored), _labels(wanted)
    if before is None or after is None or set(before) != set(after):
        return None
    return [list(before).index(band) for band in after]


def _labels(config: GFMConfig) -> Sequence[Any] | None:
    """What tells bands apart: the colours of three of them, else their names."""
    if config.num_channels == 3 and config.rgb_channels is not None:
        return [list(config.rgb_channels).index(channel) for channel in range(3)]
    return config.band_names


def adam_state(path: str | Path, model: GFMPreTrainedModel) -> dict[str, dict[str, torch.Tensor]]:
    """The moments of AdamW in a training checkpoint of the authors, to go on with training as they would.

    Put them into an optimizer over `model` with `optimizer.state[parameter] = state[name]`.

    Args:
        path: A local training checkpoint.
        model: What `convert_checkpoint` made of it, in the file's own geometry.

    Returns:
        Name of each of the model's parameters -> `step`, `exp_avg` and `exp_avg_sq`.

    Raises:
        CheckpointError: The file has no optimizer state, or not of these weights.

    Source: the authors number parameters group by group, first all with weight decay.
    """
    checkpoint = open_checkpoint(path)
    spelling = recognise(checkpoint.tensors)
    if spelling is None or not checkpoint.optimizer:
        raise CheckpointError(f"{path} holds no state of an optimizer; start a fresh one.")
    teacher = f"{spelling.outer}teacher."
    trained = [name for name in checkpoint.tensors if not DERIVED.search(name) and not name.startswith(teacher)]
    plain = [name for name in trained if len(checkpoint.tensors[name].shape) == 1 or name.endswith(UNDECAYED)]
    order = [name for name in trained if name not in plain] + plain
    moments = {name: checkpoint.optimizer.get(index, {}) for index, name in enumerate(order)}
    state = {}
    for full_name, parameter in model.named_parameters():
        ours = full_name.removeprefix("swin.")
        entry = moments.get(spelling.of(ours, checkpoint.tensors), {})
        if not {"step", "exp_avg", "exp_avg_sq"} <= set(entry):
            raise CheckpointError(f"{path} holds no moments for {full_name}; start a fresh optimizer.")
        averages = {name: spelling.layout.to_ours(ours, entry[name]()).clone() for name in ("exp_avg", "exp_avg_sq")}
        if any(average.shape != parameter.shape for average in averages.values()):
            raise CheckpointError(f"{path}: the moments of {full_name} are not of its shape; start a fresh optimizer.")
        state[full_name] = {"step": entry["step"](), **averages}
    return state
