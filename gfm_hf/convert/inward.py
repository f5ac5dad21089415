"""Other people's Swin weights in: a file, a folder or a place on the Hub -> a GFM model."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from gfm_hf.convert.geometry import Weights, infer_config, norm_stages, unknown_model, usual_size
from gfm_hf.convert.layouts import DERIVED, DROPPED, Spelling, part_of, recognise
from gfm_hf.convert.pickles import shown
from gfm_hf.convert.reading import CheckpointError, StoredCheckpoint, StoredTensor
from gfm_hf.convert.sources import Source, find_source
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.loading_gfm import swin_fields
from gfm_hf.model.modeling_gfm import (
    GFMBackbone,
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
    GFMModel,
    GFMPreTrainedModel,
)
from gfm_hf.model.weights_gfm import TABLE, fit_state_dict


# Fields that the weights fix: another value is a contradiction, not a wish.
SHAPES = (
    *("patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "use_absolute_embeddings"),
    *("num_labels", "teacher_hidden_sizes"),
)
# Fields whose change moves weights.
MOVING = ("window_size", "num_channels", "rgb_channels")
# What a file of another purpose may lack, and what stands there then.
NEUTRAL = {"embeddings.mask_token": 0.0, "layernorm.weight": 1.0, "layernorm.bias": 0.0}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MODEL_CLASSES = {
    cls.__name__: cls
    for cls in (
        GFMModel,
        GFMBackbone,
        GFMForPreTraining,
        GFMForImageClassification,
        GFMForSemanticSegmentation,
        GFMForChangeDetection,
        GFMForImageSuperResolution,
    )
}


@dataclass
class Conversion:
    """A converted model and where every weight went.

    Attributes:
        model: One of the GFM classes, in eval mode.
        source: Where the weights were.
        layout: Whose names they had.
        facts: What the file says of itself, such as the epoch.
        stored_config: Configuration of the weights as they were stored, before any wish.
        derived: Names of buffers that are computed anew.
        dropped: Name -> reason of what was left behind.
        initialised: Our names that the file does not have, set to a neutral value.
        assumed: Fields that nobody told, with the value that was taken.
    """

    model: GFMPreTrainedModel
    source: Source
    layout: str
    facts: dict[str, Any]
    stored_config: GFMConfig
    derived: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)


def convert_checkpoint(
    path_or_hub_file: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    **config_overrides: Any,
) -> GFMPreTrainedModel:
    """Load Swin weights of any known layout as a GFM model.

    Known are the authors' training checkpoints, bare students and fine-tuned classifiers, SimMIM's, the release files of
    Swin, timm's, torchvision's, mmseg's and terratorch's names, transformers' folders, each also as safetensors.

    Args:
        path_or_hub_file: A local file or folder, `owner/name` (a repository with one weight file), `owner/name/file`
            or the address of a file on the Hub.
        revision: Branch, tag or commit of the repository.
        token: Token of the Hub.
        cache_dir: Where downloads are kept.
        **config_overrides: Fields of `GFMConfig`. They win over what the file says; with another `window_size` position
            tables are resampled, with another `num_channels` the filters of red, green and blue are moved.

    Returns:
        `GFMForPreTraining` where there is a pixel decoder, `GFMForImageClassification` where there is a classifier,
        `GFMBackbone` where there are norms for dense heads, else `GFMModel`; of a folder the class that wrote it.

    Raises:
        CheckpointError: The file is unsafe, damaged or no Swin; a weight has no place; a needed fact is not told; an
            override contradicts the weights.
    """
    return read_model(path_or_hub_file, revision, token, cache_dir, **config_overrides).model


def read_model(
    path_or_hub_file: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    **config_overrides: Any,
) -> Conversion:
    """`convert_checkpoint` with the account of what happened to every weight."""
    source = find_source(path_or_hub_file, revision, token, cache_dir)
    return _convert(source, source.open(), config_overrides)


# ---- what it is ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What weights are, known without reading one.

    Attributes:
        spelling: Their names.
        model_class: What they become.
        fields: Of the configuration; `image_size` is None where nobody tells it.
        guessed: Which of them are a choice between two possibilities.
    """

    spelling: Spelling
    model_class: Any
    fields: dict[str, Any]
    guessed: tuple[str, ...] = ()


def describe(source: Source, checkpoint: StoredCheckpoint, given: Mapping[str, Any]) -> Description:
    """Recognise names, class and configuration of weights."""
    spelling = recognise(checkpoint.tensors)
    if spelling is None:
        raise CheckpointError(f"{source.name}: {unknown_model(list(checkpoint.tensors))}")
    empty = [name for name, tensor in checkpoint.tensors.items() if 0 in tensor.shape]
    if empty:
        raise CheckpointError(
            f"{source.name}: {shown(empty[0])} is empty, which no weight of a Swin is; check the file."
        )
    weights = Weights(checkpoint.tensors, spelling)
    said = _said_beside(source)
    hints = {"image_size": said.get("image_size") or _timm_size(source.config)} | dict(given)
    try:
        told = infer_config(weights, checkpoint.config, hints)
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    _check_agreement(source, said, told)
    named = MODEL_CLASSES.get(f"GFM{architecture_of(source.config).removeprefix('GFM').removeprefix('Swin')}")
    norms = norm_stages(weights, len(told["depths"]))
    model_class = named if source.is_transformers and named else _class_by_heads(weights, told, norms)
    if model_class is GFMBackbone and norms:
        told["out_features"] = list(norms)
    guessed = (
        ("distillation_stages",) if told.pop("stage_is_a_guess", False) and "distillation_stages" not in said else ()
    )
    if "distillation_stages" in said:
        told.pop("distillation_stages", None)
    return Description(spelling, model_class, said | told, guessed)


def _class_by_heads(weights: Weights, told: Mapping[str, Any], norms: tuple[str, ...]) -> Any:
    if weights.shape("decoder.0.weight") is not None:
        return GFMForPreTraining
    if "num_labels" in told:
        return GFMForImageClassification
    return GFMBackbone if norms else GFMModel


def _said_beside(source: Source) -> dict[str, Any]:
    """What transformers' config.json says; shapes are left to the weights."""
    if not source.is_transformers:
        return {}
    said = swin_fields(source.config, GFMConfig)
    config = read_config(source, said).to_dict()
    service = ("architectures", "auto_map", "dtype", "transformers_version", "model_type", "_name_or_path")
    kept = (set(said) | {"id2label", "label2id", "problem_type"}) & set(config) - set(service)
    return {name: config[name] for name in kept}


def _check_agreement(source: Source, said: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """A config.json and the weights beside it have to describe one model."""
    for name in (*SHAPES, "window_size", "num_channels"):
        values = [tuple(value) if isinstance(value, list) else value for value in (said.get(name), told.get(name))]
        if None not in values and values[0] != values[1]:
            raise CheckpointError(
                f"{source.name}: config.json says {name} {values[0]} but the weights say {values[1]}; check both files."
            )


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that wrote a folder, by its config.json; empty where it does not say."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def _timm_size(config: Mapping[str, Any]) -> int | None:
    """Side of the images in a config.json of timm."""
    stored = config.get("pretrained_cfg")
    size = stored.get("input_size") if isinstance(stored, dict) else None
    return size[1] if isinstance(size, list) and len(size) == 3 and type(size[1]) is int and size[1] > 0 else None


def read_config(source: Source, fields: Mapping[str, Any], **overrides: Any) -> GFMConfig:
    """A configuration from what a source tells; its contradictions are the source's.

    Raises:
        CheckpointError: Fields have the wrong type or contradict each other.
    """
    try:
        return GFMConfig.from_dict(dict(fields), **overrides)
    # The fields' types are checked by exceptions that are no ValueError.
    except Exception as error:
        raise CheckpointError(f"{source.name}: {' '.join(str(error).split())}") from error


# ---- converting ------------------------------------------------------------------------------------------------------


def _convert(source: Source, checkpoint: StoredCheckpoint, overrides: dict[str, Any]) -> Conversion:
    about = describe(source, checkpoint, overrides)
    fields = about.fields
    if fields["image_size"] is None:
        raise CheckpointError(
            f"{source.name} does not tell the side of its training images in pixels; pass image_size, for instance "
            f"{usual_size(fields)} (on the command line --set image_size={usual_size(fields)})."
        )
    _check_wishes(source, fields, overrides)
    same_bands = overrides.get("num_channels", fields["num_channels"]) == fields["num_channels"]
    unnamed = fields.get("band_names") is None and fields.get("rgb_channels") is None
    names = ("band_names", "rgb_channels")
    # Of weights that do not say what their bands are, the caller's word counts.
    bands = {name: overrides[name] for name in names if name in overrides and same_bands and unnamed}
    stored_config = read_config(source, fields, **bands)
    config = read_config(source, stored_config.to_dict(), **overrides)

    # Nothing is allocated before every weight is known to be in the file, in the shape that the others imply.
    skeleton = _skeleton(about.model_class, stored_config)
    account = Conversion(skeleton, source, about.spelling.layout.name, checkpoint.facts, stored_config)
    places = _places(account, checkpoint, about.spelling)
    state = _our_weights(checkpoint, about.spelling, places, stored_config.window_size)
    _refuse_not_finite(source.name, state)
    moves = any(getattr(config, name) != getattr(stored_config, name) for name in MOVING)
    with nullcontext() if moves else no_init_weights():
        account.model = about.model_class(config)
    if moves:
        rgb = stored_config.rgb_channels
        state = fit_state_dict(state, account.model, None if rgb is None else tuple(rgb))
    _fill(source.name, account.model, state)
    if about.model_class is GFMForPreTraining:
        told = {*fields, *overrides}.difference(about.guessed)
        objective = ("mask_patch_size", "mask_ratio", "distillation_weight", *about.guessed)
        account.assumed = {name: getattr(config, name) for name in objective if name not in told}
    return account


def _check_wishes(source: Source, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    for name in SHAPES:
        wanted = overrides.get(name, fields.get(name))
        wanted = tuple(wanted) if isinstance(wanted, list) else wanted
        if name in fields and wanted != fields[name]:
            raise CheckpointError(
                f"{source.name}: {name} is {wanted!r} by your wish but {fields[name]!r} by the weights; leave it out."
            )


def _skeleton(model_class: Any, config: GFMConfig) -> Any:
    """The model without memory for its weights: names and shapes."""
    with torch.device("meta"), no_init_weights():
        return model_class(config)


def _places(account: Conversion, checkpoint: StoredCheckpoint, spelling: Spelling) -> dict[str, str]:
    """Where in the file each of our weights is, after a look at every name and shape in it."""
    name = account.source.name
    shapes = {name: tuple(tensor.shape) for name, tensor in account.model.state_dict().items()}
    places = {name: spelling.of(name.removeprefix("swin."), checkpoint.tensors) for name in shapes}
    account.initialised = [name for name, theirs in places.items() if theirs not in checkpoint.tensors]
    _account_for_missing(account)
    _account_for_rest(account, set(checkpoint.tensors) - set(places.values()), spelling)
    found = {name: theirs for name, theirs in places.items() if theirs in checkpoint.tensors}
    for ours, theirs in found.items():
        _check_stored(name, theirs, checkpoint.tensors[theirs], spelling, ours, shapes[ours])
    return found


def _check_stored(
    source: str, theirs: str, stored: StoredTensor, spelling: Spelling, name: str, shape: tuple[int, ...]
) -> None:
    if stored.dtype not in FLOATS and not name.endswith("num_batches_tracked"):
        raise CheckpointError(
            f"{source}: {shown(theirs)} is of type {stored.dtype}; only floating point weights convert, so save these as "
            "such."
        )
    if name.endswith(TABLE):
        return  # a smaller one is fine, and all of a stage were compared with each other
    if spelling.layout.fused and part_of(name) is not None:
        shape = (3 * shape[0], *shape[1:])
    if stored.shape != shape:
        raise CheckpointError(
            f"{source}: {shown(theirs)} has shape {stored.shape} but {shape} follows from the other weights; check the file."
        )


def _our_weights(
    checkpoint: StoredCheckpoint, spelling: Spelling, places: Mapping[str, str], window: int
) -> dict[str, torch.Tensor]:
    """The file's tensors under the model's names, in the file's own geometry."""
    names: dict[str, list[str]] = {}
    for name, theirs in places.items():
        names.setdefault(theirs, []).append(name)
    state = {}
    for theirs, ours in names.items():  # one block of the file in memory beside what was taken from it
        stored = checkpoint.read(theirs)
        for name in ours:
            tensor = spelling.layout.to_ours(name.removeprefix("swin."), stored)
            if name.endswith(TABLE):
                tensor = _centred(tensor, (2 * window - 1) ** 2)
            # A part of a larger block keeps the whole block alive, and thirds of one block would be saved as one.
            owns = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
            state[name] = tensor if owns else tensor.clone(memory_format=torch.contiguous_format)
    return state


def _centred(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Put the table of a smaller window where a larger one looks for the same offsets: in its middle, zeros around."""
    if len(table) == rows:
        return table
    side, inner = math.isqrt(rows), math.isqrt(len(table))
    border = (side - inner) // 2
    square = table.unflatten(0, (inner, inner))
    return torch.nn.functional.pad(square, (0, 0, border, border, border, border)).flatten(0, 1)


def _account_for_rest(account: Conversion, names: set[str], spelling: Spelling) -> None:
    """Every weight without a place here is known to be derived or somebody else's; another one is an error."""
    unknown = []
    for name in sorted(names):
        inside = name.removeprefix(spelling.outer)
        reason = next((reason for pattern, reason in DROPPED if pattern.search(inside)), None)
        if DERIVED.search(name):
            account.derived.append(name)
        elif reason is not None:
            account.dropped[name] = reason
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise CheckpointError(
            f"{account.source.name} holds weights that have no place in a {type(account.model).__name__}: "
            f"{', '.join(map(shown, unknown[:4]))}{more}; it is another architecture, or remove them from the file."
        )


def _account_for_missing(account: Conversion) -> None:
    missing = [name for name in account.initialised if name.removeprefix("swin.") not in NEUTRAL]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CheckpointError(
            f"{account.source.name} is not complete: it lacks what is {', '.join(missing[:4])}{more} here; check the file."
        )


def _fill(name: str, model: GFMPreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Make the tensors the model's own; the file's precision is the model's, a mixed one becomes single."""
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    for full_name, target in model.state_dict().items():
        if full_name not in state:
            state[full_name] = torch.full_like(target, NEUTRAL[full_name.removeprefix("swin.")])
        if target.shape != state[full_name].shape:
            raise CheckpointError(
                f"{name}: {full_name} has shape {tuple(state[full_name].shape)} but {tuple(target.shape)} follows from the "
                "other weights and your wishes; check both."
            )
        if state[full_name].is_floating_point():
            state[full_name] = state[full_name].to(dtype)
    model.load_state_dict(state, assign=True)  # a copy would need the memory twice
    model.config.dtype = dtype
    model.eval()


def _refuse_not_finite(name: str, state: Mapping[str, torch.Tensor]) -> None:
    broken = [weight for weight, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{name}: {len(broken)} weights hold NaN or infinity, the first is {broken[0]}; the training diverged or the "
            "file is damaged, use an earlier checkpoint."
        )
