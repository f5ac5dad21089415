"""Our weights out again: as stock Swin, as the authors' code has them, as mmseg, timm or torchvision name them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)
from transformers.initialization import no_init_weights

from gfm_hf.convert.layouts import LAYOUTS, Layout, part_of
from gfm_hf.model.modeling_gfm import (
    GFMBackbone,
    GFMForImageClassification,
    GFMForPreTraining,
    GFMPreTrainedModel,
)
from gfm_hf.model.weights_gfm import TABLE


FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
TARGETS = ("gfm", "swin", "authors", "mmseg", "timm", "torchvision")
STOCK_CLASSES = {
    GFMForImageClassification: SwinForImageClassification,
    GFMForPreTraining: SwinForMaskedImageModeling,
    GFMBackbone: SwinBackbone,
}


@dataclass
class Written:
    """What was written and what was left out.

    Attributes:
        path: File or folder.
        tensors: Number of tensors written.
        dropped: Our name -> why the target has no place for it.
    """

    path: Path
    tensors: int
    dropped: dict[str, str] = field(default_factory=dict)


def write_checkpoint(model: GFMPreTrainedModel, path: str | Path, to: str) -> Written:
    """Write a model's weights for other code, as plain tensors, whole or not at all.

    Args:
        model: Any GFM model.
        path: A file (.pth, .pt, .bin or .safetensors); with `to="swin"` also a folder that transformers loads.
        to: "swin" for stock transformers, "authors" for the authors' code and terratorch's `gfm_swin_base`, "mmseg" for
            mmseg, mmpretrain and terratorch, "timm", or "torchvision" for torchgeo and rslearn too.

    Raises:
        ValueError: The target cannot hold such a model, the path does not fit the target, or there is something.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} already exists; choose another name.")
    if to not in TARGETS[1:]:
        raise ValueError(f"There is no target {to!r}; use one of {', '.join(TARGETS[1:])}.")
    is_file = path.suffix in FILE_SUFFIXES
    if to != "swin" and not is_file:
        raise ValueError(f"{path} has to be a file for --to {to}; end it in .pth or .safetensors.")
    if to == "swin":
        return _write_stock(model, path, is_file)
    layout = LAYOUTS[to]
    tensors, dropped = translate(model, layout)
    _write_file(tensors, path, layout.entry)
    return Written(path, len(tensors), dropped)


def translate(model: GFMPreTrainedModel, layout: Layout) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The model's tensors in another layout, and what has no place there with the reason."""
    config = model.config
    if layout.cuts_tables:
        _check_geometry(config, layout)
    if config.use_absolute_embeddings and layout.name == "torchvision":
        raise ValueError("torchvision's Swin has no absolute position embeddings, which this model uses.")
    trunk = layout.trunk
    if isinstance(model, GFMForImageClassification) and layout.name == "authors":
        trunk = ""  # their classifiers, and Swin's own release, have no prefix
    tensors: dict[str, torch.Tensor] = {}
    fused: dict[str, list[torch.Tensor]] = {}
    dropped = {}
    for name, tensor in model.state_dict().items():
        ours = name.removeprefix("swin.")
        reason = _no_place(ours, layout, model)
        if reason:
            dropped[name] = reason
            continue
        outside = ours.startswith(("decoder.", "projector.", "classifier."))
        theirs = ("" if outside else trunk) + layout.spell(ours)
        if layout.fused and part_of(ours) is not None:
            fused.setdefault(theirs, []).append(tensor)
            tensors[theirs] = tensor  # keeps its place in the order
            continue
        if ours.endswith(TABLE) and layout.cuts_tables:
            whole, tensor = tensor, _cut(tensor, _window(config, _stage(ours)))
            if tensor.count_nonzero() < whole.count_nonzero():
                dropped[name] = f"keeps the offsets inside its map of {_map_side(config, _stage(ours))} tokens a side"
        tensors[theirs] = layout.from_ours(ours, tensor).contiguous()
    tensors |= {name: torch.cat(parts) for name, parts in fused.items()}
    if layout.derived is not None:
        tensors |= {trunk + layout.spell(name): value for name, value in _buffers(config, layout)}
    return tensors, dropped


def _no_place(ours: str, layout: Layout, model: GFMPreTrainedModel) -> str | None:
    """Why the target has no such weight; None if it has."""
    if ours.startswith(("decode_head.", "upscaler.")):
        return "belongs to a head that the target does not have"
    if layout.name == "authors":
        is_classifier = isinstance(model, GFMForImageClassification)
        if ours == "embeddings.mask_token" and is_classifier:
            return "only pretraining uses it"
        if ours.startswith("hidden_states_norms."):
            return "belongs to a dense head"
        if ours.startswith("projector.") and not ours.startswith("projector.0."):
            return "the authors distil one stage"
        return None
    if ours == "embeddings.mask_token":
        return "only pretraining uses it"
    if ours.startswith(("decoder.", "projector.")):
        return "only pretraining uses it"
    if ours.startswith("hidden_states_norms.") and (layout.name != "mmseg" or "stem" in ours):
        return "belongs to a dense head"
    if ours.startswith("classifier.") and layout.name == "mmseg":
        return "a backbone has no classifier"
    return None


# ---- what smaller maps change ----------------------------------------------------------------------------------------


def _stage(ours: str) -> int:
    return int(ours.split("layers.")[1].split(".")[0])


def _check_geometry(config: Any, layout: Layout) -> None:
    """The authors' and timm's modules are made for one size, which their windows have to divide."""
    for stage in range(len(config.depths)):
        pixels = config.patch_size * 2**stage
        window = _window(config, stage)
        if config.image_size % pixels or not window or _map_side(config, stage) % window:
            raise ValueError(
                f"{layout.name} needs image_size and windows that divide each stage's map, but stage {stage + 1} has "
                f"{config.image_size / pixels:g} tokens a side and window_size is {config.window_size}; pass another "
                "image_size or window_size (--set on the command line)."
            )


def _map_side(config: Any, stage: int) -> int:
    return config.image_size // config.patch_size // 2**stage


def _window(config: Any, stage: int) -> int:
    """The authors' and timm's modules shrink the window to the map of the training images."""
    return min(config.window_size, _map_side(config, stage))


def _cut(table: torch.Tensor, window: int) -> torch.Tensor:
    """The middle of a position table: the offsets inside a smaller window."""
    side, inner = round(len(table) ** 0.5), 2 * window - 1
    border = (side - inner) // 2
    kept = slice(border, border + inner)
    return table.unflatten(0, (side, side))[kept, kept].flatten(0, 1)


def _buffers(config: Any, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """What the target's modules keep beside their parameters, under our names."""
    for stage, depth in enumerate(config.depths):
        window = _window(config, stage) if layout.cuts_tables else config.window_size
        for block in range(depth):
            name = f"encoder.layers.{stage}.blocks.{block}."
            index = _position_index(window)
            yield (
                f"{name}attention.relative_position_bias.relative_position_index",
                index if layout.derived != "flat" else index.flatten(),
            )
            side = _map_side(config, stage)
            if layout.derived == "masks" and block % 2 and side > window:
                yield f"{name}attn_mask", _shift_mask(side, window)


def _position_index(window: int) -> torch.Tensor:
    """(w * w, w * w) int64: the row of the position table for each pair of tokens."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    down, right = (places[:, :, None] - places[:, None, :]) + window - 1
    return down * (2 * window - 1) + right


def _shift_mask(side: int, window: int) -> torch.Tensor:
    """(windows, w * w, w * w): -100 between tokens that only meet because the map was rolled by half a window."""
    line = torch.zeros(side, dtype=torch.long)
    line[-window:] = 1
    line[-(window // 2) :] = 2
    regions = 3 * line[:, None] + line[None, :]
    count = side // window
    tokens = regions.view(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)
    return torch.where(tokens[:, None, :] == tokens[:, :, None], 0.0, -100.0)


# ---- writing ---------------------------------------------------------------------------------------------------------


def stock_model(model: GFMPreTrainedModel) -> Any:
    """The class of transformers' own Swin that fits, with the model's weights."""
    stock_class = STOCK_CLASSES.get(type(model), SwinModel)
    fields = model.config.to_dict()
    # What only a GFM configuration knows stays behind; so do the doors to our classes.
    own: dict[str, Any] = {name: fields[name] for name in SwinConfig().to_dict() if name in fields}
    del own["model_type"]
    arguments = {"use_mask_token": True} if stock_class is SwinModel else {}
    with no_init_weights():
        stock: Any = stock_class(SwinConfig(**own), **arguments)
    stock.to(model.dtype)
    wanted = set(stock.state_dict())
    missing, _ = stock.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if name in wanted}, strict=False
    )
    if missing:
        raise ValueError(f"Stock Swin wants {', '.join(missing[:3])}, which this model does not have.")
    return stock


def _write_stock(model: GFMPreTrainedModel, path: Path, is_file: bool) -> Written:
    stock = stock_model(model)
    dropped = {name: "stock Swin has no place for it" for name in model.state_dict() if name not in stock.state_dict()}
    temporary = _unfinished(path if not is_file else path.with_suffix(""))
    try:
        stock.save_pretrained(temporary)
        if is_file:
            _write_file(load_file(temporary / "model.safetensors"), path, None)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(path, len(stock.state_dict()), dropped)


def _write_file(tensors: dict[str, torch.Tensor], path: Path, entry: str | None) -> None:
    """Write under another name first, so that a killed process leaves no half file."""
    temporary = _unfinished(path)
    try:
        if path.suffix == ".safetensors":
            save_file(tensors, temporary, metadata={"format": "pt"})
        else:
            torch.save({entry: tensors} if entry else tensors, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    """A free name beside the path for what is not whole yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{path.name}")
    if temporary.is_dir():  # of a killed process
        shutil.rmtree(temporary)
    return temporary
