"""Other people's Swin weights in: a file, a folder or a place on the Hub -> a GFM model."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers.initialization import no_init_weights
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gfm_hf.convert.geometry import Weights, infer_config, norm_stages, unknown_model, usual_size
from gfm_hf.convert.layouts import DERIVED, DROPPED, Spelling, part_of, recognise
from gfm_hf.convert.pickles import shown
from gfm_hf.convert.reading import CheckpointError, StoredCheckpoint, StoredTensor, line, open_checkpoint
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.modeling_gfm import (
    GFMBackbone,
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
    GFMModel,
    GFMPreTrainedModel,
    swin_fields,
)
from gfm_hf.model.weights_gfm import TABLE, fit_state_dict


WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
URL = re.compile(r"https?://[^/]+/(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+)")
# Fields that the weights fix: another value is a contradiction, not a wish.
SHAPES = (
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "use_absolute_embeddings",
    "num_labels",
)
# Fields whose change moves weights.
MOVING = ("window_size", "num_channels", "rgb_channels")
# What a stored processor's settings mean for ours too.
PROCESSOR_FIELDS = (
    *("image_mean", "image_std", "rescale_factor", "resample"),
    *("do_resize", "do_rescale", "do_normalize", "check_values"),
)
# What the authors' pretraining does not decay, besides vectors.
UNDECAYED = ("mask_token", "absolute_pos_embed")
# What a file of another purpose may lack, and what stands there then.
NEUTRAL = {"mask_token": 0.0, "layernorm.weight": 1.0, "layernorm.bias": 0.0}
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
# Stock Swin's classes and ours for the same weights.
STOCK_CLASSES = {
    "SwinForImageClassification": GFMForImageClassification,
    "SwinForMaskedImageModeling": GFMForPreTraining,
    "SwinBackbone": GFMBackbone,
}


@dataclass
class Conversion:
    """A converted model and where every weight went.

    Attributes:
        model: One of the GFM classes, in eval mode.
        source: The file or folder as the caller named it.
        layout: Whose names it used.
        facts: What the file says of itself, such as the epoch.
        statistics: `image_mean` and `image_std` where they came with the weights.
        derived: Names of buffers that are computed anew.
        dropped: Name -> reason of what was left behind.
        initialised: Our names that the file does not have, set to a neutral value.
        assumed: Fields of the configuration that nobody told: the paper's values.
    """

    model: GFMPreTrainedModel
    source: str
    layout: str
    facts: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where weights are: a folder (or Hub name) that transformers loads, or a file and what lies beside it.

    Attributes:
        name: As the caller gave it.
        folder: Folder or Hub name that transformers loads; None for a file.
        file: The local weight file; None for a folder.
        config: The config.json beside it.
    """

    name: str
    folder: str | None = None
    file: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)


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
        `GFMBackbone` where there are norms for dense heads, else `GFMModel`.

    Raises:
        CheckpointError: The file is unsafe, damaged or no Swin; a weight has no place; a needed fact is not told.
        ValueError: The overrides contradict each other or the weights.
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
    if source.folder is not None:
        hub = {"revision": revision or "main", "token": token, "cache_dir": cache_dir}
        return _load_folder(source, config_overrides, hub)
    assert source.file is not None
    checkpoint = open_checkpoint(source.file)
    return _convert(source, checkpoint, config_overrides)


# ---- where the weights are -------------------------------------------------------------------------------------------


def find_source(name: str | Path, revision: str | None, token: str | None, cache_dir: str | None) -> Source:
    """Resolve what a caller may give; downloads what lies on the Hub.

    Raises:
        CheckpointError: There is nothing, or several weight files to choose from.
    """
    name = str(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(name, path)
    if path.is_file():
        if path.name == "model.safetensors" and _json(path.parent / "config.json").get("model_type") in (
            "gfm",
            "swin",
        ):
            return _in_folder(name, path.parent)
        return Source(name, file=path)
    address = URL.fullmatch(name)
    parts = name.split("/", 2)
    if address:
        repo, file, revision = address["repo"], address["file"], revision or address["revision"]
    elif len(parts) >= 2 and all(re.fullmatch(r"[\w][\w.-]*", part) for part in parts[:2]):
        repo, file = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    else:
        raise CheckpointError(f"{name} does not exist; give a file, a folder, or owner/name/file of the Hub.")
    try:
        return _on_hub(name, repo, file, {"revision": revision, "token": token, "cache_dir": cache_dir})
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{name} is no local file, and the Hub does not give it ({lines[0][:160]}); check name, revision and token."
        ) from error


def _in_folder(name: str, folder: Path) -> Source:
    config = _json(folder / "config.json")
    if config.get("model_type") in ("gfm", "swin"):
        return Source(name, folder=str(folder), config=config)
    file = _only_weights(name, sorted(path.name for path in folder.iterdir() if path.is_file()))
    return Source(name, file=folder / file, config=config)


def _on_hub(name: str, repo: str, file: str | None, hub: dict[str, Any]) -> Source:
    if file is not None and not file.endswith("model.safetensors"):
        return Source(name, file=Path(hf_hub_download(repo, file, **hub)))
    try:
        config = _json(Path(hf_hub_download(repo, "config.json", **hub)))
    except EntryNotFoundError:
        config = {}
    if config.get("model_type") in ("gfm", "swin"):
        return Source(name, folder=repo, config=config)
    if file is None:
        listed = HfApi(token=hub["token"]).list_repo_files(repo, revision=hub["revision"])
        file = _only_weights(name, listed)
    return Source(name, file=Path(hf_hub_download(repo, file, **hub)), config=config)


def _only_weights(name: str, files: list[str]) -> str:
    weights = [file for file in files if file.endswith(WEIGHT_SUFFIXES)]
    # One model in two formats is no choice to make.
    safe = [file for file in weights if file.endswith(".safetensors")]
    found = safe if len(safe) == 1 else weights
    if len(found) != 1:
        what = f"{len(found)} weight files ({', '.join(found[:5])})" if found else "no weight file"
        raise CheckpointError(
            f"{name} has {what}; name the one to convert, such as {name}/{(found or ['model.pth'])[0]}."
        )
    return found[0]


def side_file(source: Source, name: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON file in the folder of a source; empty where there is none."""
    assert source.folder is not None
    if Path(source.folder).is_dir():
        return _json(Path(source.folder) / name)
    try:
        return _json(Path(hf_hub_download(source.folder, name, **hub)))
    except EntryNotFoundError:
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---- folders of transformers -----------------------------------------------------------------------------------------


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that wrote a folder, by its config.json; empty where it does not say."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def _check_size(source: Source) -> None:
    """Refuse a configuration of far more weights than the folder has, before they are allocated."""
    weights = Path(source.folder or "") / "model.safetensors"
    if not weights.is_file():
        return
    stored = sum(math.prod(tensor.shape) for tensor in open_checkpoint(weights).tensors.values())
    config = read_config(source, swin_fields(source.config, GFMConfig))
    told = sum(tensor.numel() for tensor in _skeleton(GFMModel, config).state_dict().values())
    if told > 2 * stored:
        raise CheckpointError(
            f"{source.name}: config.json tells of {told:,} weights but there are {stored:,}; check both files."
        )


def _load_folder(source: Source, overrides: dict[str, Any], hub: dict[str, Any]) -> Conversion:
    architecture = architecture_of(source.config)
    model_class: Any = MODEL_CLASSES.get(architecture) or STOCK_CLASSES.get(architecture, GFMModel)
    _check_size(source)
    try:
        model, info = model_class.from_pretrained(source.folder, output_loading_info=True, **overrides, **hub)
    # Whatever transformers, safetensors or torch stumble over is in the folder.
    except (
        RuntimeError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise CheckpointError(f"{source.name} cannot be loaded ({line(error)}); check its files.") from error
    _refuse_not_finite(source.name, dict(model.named_parameters()))
    stored = side_file(source, "preprocessor_config.json", hub)
    # Statistics of other bands than the model now has say nothing.
    same = len(stored.get("image_mean") or ()) == model.config.num_channels
    return Conversion(
        model,
        source.name,
        f"transformers ({architecture or source.config['model_type']})",
        statistics={name: stored[name] for name in PROCESSOR_FIELDS if name in stored} if same else {},
        dropped={name: "has no place in this class" for name in info["unexpected_keys"]},
        initialised=sorted(info["missing_keys"]),
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def describe(
    source: Source, checkpoint: StoredCheckpoint, given: Mapping[str, Any]
) -> tuple[Spelling, type, dict[str, Any]]:
    """What a weight file holds, without reading a weight: its names, the class for it, its configuration's fields."""
    spelling = recognise(checkpoint.tensors)
    if spelling is None:
        raise CheckpointError(f"{source.name}: {unknown_model(list(checkpoint.tensors))}")
    empty = [name for name, tensor in checkpoint.tensors.items() if 0 in tensor.shape]
    if empty:
        raise CheckpointError(
            f"{source.name}: {shown(empty[0])} is empty, which no weight of a Swin is; check the file."
        )
    weights = Weights(checkpoint.tensors, spelling)
    if "image_size" not in given and _timm_size(source.config):
        given = {**given, "image_size": _timm_size(source.config)}
    try:
        fields = infer_config(weights, checkpoint.config, given)
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    norms = norm_stages(weights, len(fields["depths"]))
    if weights.shape("decoder.0.weight") is not None:
        return spelling, GFMForPreTraining, fields
    if "num_labels" in fields:
        return spelling, GFMForImageClassification, fields
    if norms:
        return spelling, GFMBackbone, fields | {"out_features": list(norms)}
    return spelling, GFMModel, fields


def _timm_size(config: Mapping[str, Any]) -> int | None:
    """Side of the images in a config.json of timm."""
    stored = config.get("pretrained_cfg")
    size = stored.get("input_size") if isinstance(stored, dict) else None
    return size[1] if isinstance(size, list) and len(size) == 3 and type(size[1]) is int and size[1] > 0 else None


def timm_statistics(config: Mapping[str, Any]) -> dict[str, Any]:
    """`image_mean` and `image_std` of a config.json of timm; empty where there are none."""
    stored = config.get("pretrained_cfg")
    names = {"image_mean": "mean", "image_std": "std"}
    if not isinstance(stored, dict) or not all(isinstance(stored.get(name), list) for name in names.values()):
        return {}
    return {ours: stored[theirs] for ours, theirs in names.items()}


def _convert(source: Source, checkpoint: StoredCheckpoint, overrides: dict[str, Any]) -> Conversion:
    spelling, model_class, fields = describe(source, checkpoint, overrides)
    if fields["image_size"] is None:
        raise CheckpointError(
            f"{source.name} does not tell the side of its training images in pixels; pass image_size, for instance "
            f"{usual_size(fields)} (on the command line --set image_size={usual_size(fields)})."
        )
    for name in SHAPES:
        wanted = overrides.get(name, fields.get(name))
        wanted = tuple(wanted) if isinstance(wanted, list) else wanted
        if name in fields and wanted != fields[name]:
            raise CheckpointError(
                f"{source.name}: {name} is {wanted} by your wish but {fields[name]} by the weights; leave it out."
            )
    same_bands = overrides.get("num_channels", fields["num_channels"]) == fields["num_channels"]
    bands = {name: overrides[name] for name in ("band_names", "rgb_channels") if name in overrides and same_bands}
    stored_config = read_config(source, fields, **bands)
    config = read_config(source, stored_config.to_dict(), **overrides)

    # Nothing is allocated before every weight is known to be in the file, in the shape that the others imply.
    account = Conversion(_skeleton(model_class, stored_config), source.name, spelling.layout.name, checkpoint.facts)
    places = _places(account, checkpoint, spelling)
    state = _our_weights(checkpoint, spelling, places, stored_config.window_size)
    _refuse_not_finite(source.name, state)
    moves = any(getattr(config, name) != getattr(stored_config, name) for name in MOVING)
    with nullcontext() if moves else no_init_weights():
        account.model = model_class(config)
    if moves:
        rgb = stored_config.rgb_channels
        state = fit_state_dict(state, account.model, None if rgb is None else tuple(rgb))
    _fill(source.name, account.model, state)
    account.statistics = timm_statistics(source.config)
    if model_class is GFMForPreTraining:
        told = {*fields, *overrides}
        objective = ("mask_patch_size", "mask_ratio", "distillation_weight")
        account.assumed = {name: getattr(config, name) for name in objective if name not in told}
    return account


def read_config(source: Source, fields: dict[str, Any], **overrides: Any) -> GFMConfig:
    """A configuration from what a source tells; its contradictions are the source's.

    Raises:
        CheckpointError: Fields have the wrong type or contradict each other.
    """
    try:
        return GFMConfig.from_dict(fields, **overrides)
    # The fields' types are checked by exceptions that are no ValueError.
    except Exception as error:
        raise CheckpointError(f"{source.name}: {' '.join(str(error).split())}") from error


def _skeleton(model_class: Any, config: GFMConfig) -> Any:
    """The model without memory for its weights: names and shapes."""
    with torch.device("meta"), no_init_weights():
        return model_class(config)


def _places(account: Conversion, checkpoint: StoredCheckpoint, spelling: Spelling) -> dict[str, str]:
    """Where in the file each of our weights is, after a look at every name and shape in it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in account.model.state_dict().items()}
    places = {name: spelling.of(name.removeprefix("swin."), checkpoint.tensors) for name in shapes}
    account.initialised = [name for name, theirs in places.items() if theirs not in checkpoint.tensors]
    _account_for_missing(account)
    _account_for_rest(account, set(checkpoint.tensors) - set(places.values()), spelling)
    found = {name: theirs for name, theirs in places.items() if theirs in checkpoint.tensors}
    for name, theirs in found.items():
        _check_stored(account.source, theirs, checkpoint.tensors[theirs], spelling, name, shapes[name])
    return found


def _check_stored(
    source: str, theirs: str, stored: StoredTensor, spelling: Spelling, name: str, shape: tuple[int, ...]
) -> None:
    if stored.dtype not in FLOATS:
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
            f"{account.source} holds weights that have no place in a Swin: {', '.join(map(shown, unknown[:4]))}{more}; it is another "
            "architecture, or remove them from the file."
        )


def _account_for_missing(account: Conversion) -> None:
    missing = [name for name in account.initialised if not name.endswith(tuple(NEUTRAL))]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CheckpointError(
            f"{account.source} is not complete: it lacks what is {', '.join(missing[:4])}{more} here; check the file."
        )


def _fill(name: str, model: GFMPreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Make the tensors the model's own; the file's precision is the model's, a mixed one becomes single."""
    dtypes = {tensor.dtype for tensor in state.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    for full_name, target in model.state_dict().items():
        if full_name not in state:
            value = next(value for suffix, value in NEUTRAL.items() if full_name.endswith(suffix))
            state[full_name] = torch.full_like(target, value)
        if target.shape != state[full_name].shape:
            raise CheckpointError(
                f"{name}: {full_name} has shape {tuple(state[full_name].shape)} but {tuple(target.shape)} follows from the "
                "other weights and your wishes; check both."
            )
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
    trained = [
        name
        for name in checkpoint.tensors
        if not DERIVED.search(name) and not name.startswith(f"{spelling.outer}teacher.")
    ]
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


def processor_for(conversion: Conversion, settings: Mapping[str, Any]) -> GFMImageProcessor:
    """The image processor that goes with converted weights.

    Args:
        conversion: What `read_model` gave.
        settings: `image_mean`, `image_std`, `rescale_factor`, `resample`; win over what came with the weights.

    Raises:
        CheckpointError: The statistics of other bands than red, green and blue are not told.
    """
    config = conversion.model.config
    known = {**conversion.statistics, **settings}
    names, rgb = config.band_names, config.rgb_channels
    pictures = config.num_channels == 3 and rgb is not None
    if known.get("image_mean") is None or known.get("image_std") is None:
        if not pictures:
            raise CheckpointError(
                f"{conversion.source} does not tell the statistics of its {config.num_channels} bands; pass image_mean "
                "and image_std, one number per band (on the command line --set image_mean=[...] --set image_std=[...])."
            )
        order = [list(rgb or ()).index(channel) for channel in range(3)]
        known["image_mean"] = [IMAGENET_DEFAULT_MEAN[colour] for colour in order]
        known["image_std"] = [IMAGENET_DEFAULT_STD[colour] for colour in order]
    if names is None and pictures:
        names = tuple("RGB"[list(rgb or ()).index(channel)] for channel in range(3))
    return GFMImageProcessor(size=config.image_size, band_names=names, **known)
