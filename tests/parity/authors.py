"""The authors' recorded numbers: their rule for weights and inputs, their names, and our models built from them.

Shapes: B images, C bands, H rows, W columns, D features.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import SwinConfig, SwinModel
from transformers.initialization import no_init_weights

from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.modeling_gfm import GFMForPreTraining, GFMForPreTrainingOutput
from gfm_hf.model.swin_gfm import embed_pixels, to_map
from gfm_hf.training.teacher import GFMTeacher


TABLE = "relative_position_bias_table"
INPUT_AMPLITUDE = 1.7
# Numbers made at a time: what fits a core's cache is ten times faster than whole tensors.
RULE_CHUNK = 1 << 16
# Our names -> the authors', applied in this order.
RENAMES = (
    ("encoder.layers.", "layers."),
    ("swin.", "encoder."),
    ("projector.0.", "projector."),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.position_embeddings", "absolute_pos_embed"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm", "norm"),
    ("attention.relative_position_bias.", "attn."),
    ("attention.o_proj", "attn.proj"),
)
# (authors' name, authors' shape) -> values.
Source = Callable[[str, tuple[int, ...]], torch.Tensor]


# ---- the rule that replaces stored weights ---------------------------------------------------------------------------


def rule_numbers(name: str, count: int) -> np.ndarray:
    """The first `count` numbers of the tensor called `name`, float64 in [-1, 1)."""
    numbers = np.empty(count)
    first = (zlib.crc32(name.encode("ascii")) << 32) + 1
    for start in range(0, count, RULE_CHUNK):
        stop = min(start + RULE_CHUNK, count)
        z = np.arange(first + start, first + stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
        numbers[start:stop] = (z >> np.uint64(40)) * 2.0**-23 - 1
    return numbers


@lru_cache(maxsize=4)  # query, key and value are three slices of one tensor
def rule_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 parameter that the rule gives for a name and shape of the authors."""
    numbers = rule_numbers(name, int(np.prod(shape)))
    if name.endswith(TABLE):
        values = numbers
    elif name.endswith(("mask_token", "absolute_pos_embed")):
        values = 0.5 * numbers
    elif name.endswith(".bias"):
        values = 0.1 * numbers
    elif len(shape) == 1:
        values = 1 + 0.2 * numbers
    else:
        values = np.sqrt(3 / np.prod(shape[1:])) * numbers
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def rule_input(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 images that the rule gives."""
    values = INPUT_AMPLITUDE * rule_numbers(name, int(np.prod(shape)))
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


# ---- names -----------------------------------------------------------------------------------------------------------


def authors_name(name: str) -> tuple[str, int | None]:
    """Our parameter name -> theirs, and which third of it (query, key, value) ours is, or None for all of it."""
    for ours, theirs in RENAMES:
        name = name.replace(ours, theirs)
    projection = re.search(r"attention\.([qkv])_proj", name)
    if projection is None:
        return name, None
    return name.replace(projection[0], "attn.qkv"), "qkv".index(projection[1])


def under_authors_names(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Our (name, tensor) pairs under the authors' names, query, key and value joined."""
    parts: dict[str, list[torch.Tensor]] = {}
    for name, tensor in named:  # modules register query, key and value in this order
        parts.setdefault(authors_name(name)[0], []).append(tensor.detach())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, under the authors' names."""
    with_gradient = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return under_authors_names((name, gradient) for name, gradient in with_gradient if gradient is not None)


def norms(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Euclidean norm of each tensor, added up in float64: float32 would lose 3e-4 over millions of entries."""
    return {name: tensor.double().norm().item() for name, tensor in tensors.items()}


def centre_of_table(table: torch.Tensor, rows: int) -> torch.Tensor:
    """The rows of a position table that a smaller window uses: (side**2, heads) -> (rows, heads)."""
    side, inner = round(len(table) ** 0.5), round(rows**0.5)
    border = (side - inner) // 2
    kept = slice(border, border + inner)
    return table.unflatten(0, (side, side))[kept, kept].flatten(0, 1)


def table_around(centre: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse: zeros around a smaller window's table."""
    side, inner = round(rows**0.5), round(len(centre) ** 0.5)
    border = (side - inner) // 2
    square = centre.unflatten(0, (inner, inner))
    return nn.functional.pad(square, (0, 0, border, border, border, border)).flatten(0, 1)


# ---- models ----------------------------------------------------------------------------------------------------------


def student_config(recorded: dict[str, Any]) -> GFMConfig:
    """A recorded configuration as ours."""
    return GFMConfig(
        image_size=recorded["image_size"],
        window_size=recorded["window_size"],
        mask_patch_size=recorded["mask_patch_size"],
        mask_ratio=recorded["mask_ratio"],
        distillation_weight=recorded["alpha"],
        **_shared_fields(recorded),
    )


def teacher_config(recorded: dict[str, Any]) -> SwinConfig:
    """The teacher that goes with it: the same widths and depths at 224 px with window 7."""
    return SwinConfig(
        image_size=recorded["teacher_image_size"],
        window_size=recorded["teacher_window_size"],
        **_shared_fields(recorded),
    )


def _shared_fields(recorded: dict[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": recorded["patch_size"],
        "num_channels": recorded["in_chans"],
        "embed_dim": recorded["embed_dim"],
        "depths": tuple(recorded["depths"]),
        "num_heads": tuple(recorded["num_heads"]),
        "mlp_ratio": recorded["mlp_ratio"],
        "qkv_bias": recorded["qkv_bias"],
        "use_absolute_embeddings": recorded["ape"],
        "drop_path_rate": recorded["drop_path_rate"],
    }


@torch.no_grad()
def fill(model: nn.Module, config: SwinConfig, source: Source, owner: str = "") -> None:
    """Give every parameter the authors' values.

    Args:
        model: Any model with Swin inside.
        config: Its configuration.
        source: Where the values come from.
        owner: Put in front of our names: "teacher." for a teacher.
    """
    for name, parameter in model.named_parameters():
        theirs, part = authors_name(owner + name)
        values = source(theirs, _authors_shape(theirs, parameter, part, config))
        if part is not None:
            values = values.chunk(3)[part]
        if name.endswith(TABLE):
            values = table_around(values, len(parameter))
        assert values.shape == parameter.shape, name
        parameter.copy_(values)


def _authors_shape(name: str, parameter: torch.Tensor, part: int | None, config: SwinConfig) -> tuple[int, ...]:
    rows, *rest = parameter.shape
    if part is not None:
        rows *= 3
    if name.endswith(TABLE):  # their table shrinks with the window where the map is smaller
        stage = int(re.findall(r"layers\.(\d+)", name)[0])
        window = min(config.window_size, config.image_size // config.patch_size // 2**stage)
        rows = (2 * window - 1) ** 2
    return (rows, *rest)


class Pair(NamedTuple):
    """A student, the network behind its teacher (already cut), and the teacher."""

    model: GFMForPreTraining
    teacher_model: SwinModel
    teacher: GFMTeacher

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the teacher says of the images: (B, D)."""
        return self.teacher(pixel_values)[0]


def build_pair(recorded: dict[str, Any], source: Source, dtype: torch.dtype = torch.float64) -> Pair:
    """Student and teacher of a recorded configuration, weights filled in."""
    model = build_student(recorded, source, dtype)
    teacher_model = build_teacher_model(recorded, source, dtype)
    return Pair(model, teacher_model, GFMTeacher(teacher_model, [3], recorded["teacher_image_size"]))


def build_student(recorded: dict[str, Any], source: Source, dtype: torch.dtype) -> GFMForPreTraining:
    """The student of a recorded configuration."""
    with no_init_weights():
        model = GFMForPreTraining(student_config(recorded)).to(dtype)
    fill(model, model.config, source)
    return model


def build_teacher_model(recorded: dict[str, Any], source: Source, dtype: torch.dtype) -> SwinModel:
    """The network behind a teacher, whole, without a head."""
    with no_init_weights():
        model = SwinModel(teacher_config(recorded), add_pooling_layer=False).to(dtype)
    fill(model, model.config, source, "teacher.")
    return model


# ---- cases -----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A recorded case: its numbers, its tensors, its batch and its mask."""

    record: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    pixel_values: torch.Tensor
    mask: torch.Tensor

    def pair(self, dtype: torch.dtype = torch.float64) -> Pair:
        """Student and teacher with the stored weights."""
        return build_pair(self.record["config"], lambda name, _: self.tensors[f"state.{name}"], dtype)


@lru_cache
def read_json(path: Path) -> dict[str, Any]:
    """A file of records."""
    return json.loads(path.read_text())


def load_case(folder: Path, letter: str) -> Case:
    """One of the tiny cases "a", "b", "c", its images in float64."""
    record = read_json(folder / f"case_{letter}.json")
    tensors = load_file(folder / f"case_{letter}.safetensors")
    mask = token_mask(tensors["mask_coarse"], record["config"])
    return Case(record, tensors, tensors["input_q"].double() / 32, mask)


def token_mask(cells: Any, recorded: dict[str, Any]) -> torch.Tensor:
    """Mask cells, (B, g * g) or (B, g, g) of 0 and 1 -> (B, h, w) bool, True = hidden."""
    side = recorded["image_size"] // recorded["mask_patch_size"]
    repeat = recorded["mask_patch_size"] // recorded["patch_size"]
    grid = torch.as_tensor(cells).reshape(-1, side, side).bool()
    return grid.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)


# ---- what is compared ------------------------------------------------------------------------------------------------


class Features(NamedTuple):
    """The student's inner results under the authors' letters.

    Attributes:
        patch_embed: (B, N, D) tokens before any of them is hidden.
        stages: Tokens after every stage and its merging.
        zs: (B, D) pooled feature.
        zs_proj: (B, D), projected.
        r: (B, D, h, w) last map after the norm.
    """

    patch_embed: torch.Tensor
    stages: list[torch.Tensor]
    zs: torch.Tensor
    zs_proj: torch.Tensor
    r: torch.Tensor


@torch.no_grad()
def student_features(
    model: GFMForPreTraining, pixel_values: torch.Tensor, output: GFMForPreTrainingOutput
) -> Features:
    """Read what was recorded of the student's trunk from an output with hidden states."""
    _, *stages = (tokens.detach() for tokens in output.hidden_states)
    last = output.reshaped_hidden_states[-1]
    r = to_map(model.swin.layernorm(stages[-1]), last.shape[2:])
    zs = stages[2].mean(dim=1)
    return Features(embed_pixels(model.swin, pixel_values)[0], stages, zs, model.projector([zs])[0], r)


def cosines(output: torch.Tensor, target: torch.Tensor) -> list[float]:
    """Cosine of each sample's pair of vectors, (B, D) each."""
    return nn.functional.cosine_similarity(output, target, dim=1).tolist()


def statistics(tensor: torch.Tensor) -> dict[str, Any]:
    """The recorded summary of a tensor."""
    flat = tensor.detach().double().flatten()
    return {
        "n": len(flat),
        "mean": flat.mean().item(),
        "std": flat.std(correction=0).item(),
        "l2": flat.norm().item(),
        "absmax": flat.abs().max().item(),
        "head": flat[:6].tolist(),
        "tail": flat[-6:].tolist(),
    }


def loss_terms(output: GFMForPreTrainingOutput, alpha: float) -> dict[str, float]:
    """Loss and terms as the authors print them: the distillation term is already weighted."""
    return {
        "loss": output.loss.item(),
        "loss_recon": output.reconstruction_loss.item(),
        "loss_distill": alpha * output.distillation_loss.item(),
    }


def assert_close(ours: Any, recorded: Any, rtol: float = 1e-9, atol: float = 0.0, what: str = "") -> None:
    """Compare numbers, lists, tensors or dictionaries of them; every recorded key has to be there."""
    if isinstance(recorded, dict):
        for key in recorded:
            assert_close(ours[key], recorded[key], rtol, atol, f"{what} {key}".strip())
        return
    np.testing.assert_allclose(np.asarray(ours), np.asarray(recorded), rtol=rtol, atol=atol, err_msg=what)
