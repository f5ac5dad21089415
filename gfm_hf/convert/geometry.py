"""What the weights of a Swin tell of its configuration."""

import math
import re
from collections.abc import Mapping
from typing import Any

from gfm_hf.convert.layouts import Spelling
from gfm_hf.convert.pickles import shown
from gfm_hf.convert.reading import CheckpointError, StoredTensor


BLOCK = "encoder.layers.{stage}.blocks.{block}."
TABLE = "attention.relative_position_bias.relative_position_bias_table"
# Far beyond any Swin; a file of names alone must not make a model of them.
MAX_STAGES, MAX_BLOCKS, MAX_SIDE_PX = 8, 256, 2**15
# Where three bands stand among the n of the authors' multispectral classifiers: B02, B03, B04, ... in this order.
AUTHORS_RGB = (3, 2, 1)


class Weights:
    """The tensors of a file under our names: shapes only.

    Args:
        tensors: What the file has, under its own names.
        spelling: How it spells ours.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], spelling: Spelling) -> None:
        self._tensors = tensors
        self._spelling = spelling

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of what the file has in the place of our name; query, key and value may be one tensor there."""
        tensor = self._tensors.get(self._spelling.of(name, self._tensors))
        return None if tensor is None else tensor.shape

    def require(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that has to be there."""
        shape = self.shape(name)
        if shape is None or len(shape) != dimensions or 0 in shape:
            stored = self._spelling.of(name, self._tensors)
            found = "is missing" if shape is None else f"has shape {shape}"
            raise CheckpointError(f"{stored} {found}, so these are not the weights of a Swin; check the file.")
        return shape

    def buffer(self, block: str, buffer: str) -> tuple[int, ...] | None:
        """Shape of a buffer that the file's modules keep in a block."""
        stored = self._spelling.trunk + self._spelling.layout.spell(f"{block}{buffer}")
        tensor = self._tensors.get(stored)
        return None if tensor is None else tensor.shape


def infer_config(weights: Weights, embedded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a GFM configuration that a file tells, by its weights and by the configuration stored with them.

    Args:
        weights: The file's tensors.
        embedded: The authors' configuration, may be empty.
        given: What the caller says of the images.

    Returns:
        Fields of `GFMConfig`; `image_size` is None where nobody tells it.

    Raises:
        CheckpointError: The weights are not those of a Swin, or of one with options that transformers' Swin lacks.
    """
    embed_dim, num_channels, patch_size, patch_width = weights.require(
        "embeddings.patch_embeddings.projection.weight", 4
    )
    if patch_size != patch_width:
        raise CheckpointError(f"The patches are {patch_size} by {patch_width} pixels; only square ones are supported.")
    depths = _depths(weights)
    tables = [_table(weights, stage, depth) for stage, depth in enumerate(depths)]
    windows = [_window(rows) for rows, _ in tables]
    first = BLOCK.format(stage=0, block=0)
    swin = _section(embedded, "MODEL", "SWIN")
    _refuse_options(weights, swin)
    fields = {
        "patch_size": patch_size,
        "num_channels": num_channels,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": tuple(heads for _, heads in tables),
        "window_size": max(windows),
        "mlp_ratio": weights.require(f"{first}mlp.fc1.weight", 2)[0] / embed_dim,
        "qkv_bias": weights.shape(f"{first}attention.q_proj.bias") is not None,
        "use_absolute_embeddings": weights.shape("embeddings.position_embeddings") is not None,
    }
    fields["image_size"] = _image_size(weights, embedded, given, fields, windows)
    if num_channels > 3 and embedded:
        fields["rgb_channels"] = AUTHORS_RGB
    return fields | _objective(weights, embedded, fields) | _labels(weights)


def _depths(weights: Weights) -> tuple[int, ...]:
    """Blocks of each stage, counted without a gap."""
    depths: list[int] = []
    while True:
        block = 0
        while weights.shape(BLOCK.format(stage=len(depths), block=block) + "layernorm_before.weight"):
            block += 1
        if not block:
            return tuple(depths)
        depths.append(block)
        if block > MAX_BLOCKS or len(depths) > MAX_STAGES:
            raise CheckpointError(f"There are {len(depths)} stages, the last of {block} blocks, which no Swin has.")


def _table(weights: Weights, stage: int, depth: int) -> tuple[int, ...]:
    """Rows and heads of the position tables of a stage, which all have to be alike."""
    shapes = {weights.require(BLOCK.format(stage=stage, block=block) + TABLE, 2) for block in range(depth)}
    if len(shapes) > 1:
        raise CheckpointError(
            f"The position tables of stage {stage + 1} have the shapes {sorted(shapes)}; all blocks of a stage share one."
        )
    return shapes.pop()


def _window(rows: int) -> int:
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise CheckpointError(
            f"A position table has {rows} rows; a window of w tokens a side has (2w - 1)**2. Check the file."
        )
    return (side + 1) // 2


def _refuse_options(weights: Weights, swin: Mapping[str, Any]) -> None:
    """Options of the authors' Swin that transformers' Swin does not have."""
    if weights.shape("embeddings.norm.weight") is None:
        raise CheckpointError("The patch embedding has no norm (PATCH_NORM False), which this Swin always has.")
    if swin.get("QK_SCALE") is not None:
        raise CheckpointError(
            f"QK_SCALE is {shown(swin['QK_SCALE'], 40)}, but attention here always divides by the root of the head's size."
        )


def _image_size(
    weights: Weights,
    embedded: Mapping[str, Any],
    given: Mapping[str, Any],
    fields: Mapping[str, Any],
    windows: list[int],
) -> int | None:
    """Side of the training images: said, or told by a mask, a cut table or the absolute positions; None if it is not."""
    positions = weights.shape("embeddings.position_embeddings")
    if positions is not None and len(positions) == 3:
        return math.isqrt(positions[1]) * fields["patch_size"]
    if given.get("image_size") is not None:
        return given["image_size"]
    said = _section(embedded, "DATA").get("IMG_SIZE")
    if said is not None:
        if type(said) is not int or not 0 < said <= MAX_SIDE_PX:
            raise CheckpointError(f"IMG_SIZE of the stored configuration is {shown(said)}; pass image_size.")
        return said
    for stage, (depth, window) in enumerate(zip(fields["depths"], windows)):
        pixels = fields["patch_size"] * 2**stage
        if window < max(windows):  # cut down to the map
            return window * pixels
        masks = [weights.buffer(BLOCK.format(stage=stage, block=block), "attn_mask") for block in range(depth)]
        for mask in masks:
            if mask is not None and len(mask) == 3:
                return min(math.isqrt(mask[0]) * window * pixels, MAX_SIDE_PX)
    return None


def usual_size(fields: Mapping[str, Any]) -> int:
    """The size whose last map is one window: 224 for window 7, 192 for 6."""
    return fields["patch_size"] * fields["window_size"] * 2 ** (len(fields["depths"]) - 1)


def _objective(weights: Weights, embedded: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Masking and distillation of a pretraining checkpoint."""
    if weights.shape("decoder.0.weight") is None:
        return {}
    data = _section(embedded, "DATA")
    told = {
        "mask_patch_size": _number(data.get("MASK_PATCH_SIZE")),
        "mask_ratio": _number(data.get("MASK_RATIO")),
        "distillation_weight": _number(embedded.get("ALPHA")),
    }
    # What cannot be trained with was not trained with.
    found: dict[str, Any] = {
        name: value for name, value in told.items() if value is not None and math.isfinite(value) and value > 0
    }
    if weights.shape("projector.1.weight") is not None:  # only our own folders have several, and they say which
        return found
    if weights.shape("projector.0.weight") is None:
        return found | {"distillation_stages": ()}
    teacher_size, student_size = weights.require("projector.0.weight", 2)
    stages = len(fields["depths"])
    sizes = [fields["embed_dim"] * 2 ** min(stage, stages - 1) for stage in range(1, stages + 1)]
    fitting = [stage for stage, size in enumerate(sizes, start=1) if size == student_size]
    if not fitting:
        raise CheckpointError(f"The projector takes {student_size} features but no stage has as many.")
    # The last two stages have the same width; the method distils the third of four.
    found |= {"distillation_stages": tuple(fitting[:1]), "teacher_hidden_sizes": (teacher_size,)}
    return found | ({"stage_is_a_guess": True} if len(fitting) > 1 else {})


def _labels(weights: Weights) -> dict[str, Any]:
    head = weights.shape("classifier.weight") or weights.shape("decode_head.main.classifier.weight")
    return {} if head is None else {"num_labels": head[0]}


def _section(embedded: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    section: Any = embedded
    for name in names:
        section = section.get(name)
        if not isinstance(section, Mapping):
            return {}
    return section


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def norm_stages(weights: Weights, stages: int) -> tuple[str, ...]:
    """Stages behind which the file has a norm for a dense head, as mmseg's backbones do."""
    names = [f"stage{stage}" for stage in range(1, stages + 1)]
    return tuple(name for name in names if weights.shape(f"hidden_states_norms.{name}.weight") is not None)


def unknown_model(names: list[str]) -> str:
    """One sentence on weights that no layout names."""
    text = " ".join(names)
    if re.search(r"logit_scale|cpb_mlp|continuous_position_bias_mlp", text):
        return "These are the weights of a Swin V2, another architecture; give those of a Swin (V1)."
    if re.search(r"(^|[ .])cls_token|pos_embed ", text):
        return "These are the weights of a ViT; as a teacher it can be used as it is (--teacher), converted it cannot."
    there = ", ".join(shown(name) for name in names[:4]) or "nothing"
    return f"These are not the weights of a Swin in any layout that is known (there is {there}); check the file."
