"""The trunk's forward: pixels and hidden tokens in, tokens and maps of every stage out.

transformers' `SwinModel` owns every module and weight; this file only walks them. No function here keeps state or
writes to a module, so any size in any order gives the same answer. What differs from the stock forward, on purpose:

- the window shrinks to the map where the map is smaller, without shift, and the bias of such a window comes from the
  centre of the position table (stock Swin raises, and rewrites its own window and shift as it goes);
- one rule for every head (stock `SwinBackbone` shifts where `SwinModel` does not);
- stochastic depth drops both residual branches (stock Swin drops the attention branch only);
- checkpointing wraps blocks only (stock Swin wraps stages and blocks, and computes some blocks three times);
- geometry is computed once per map size and kept outside the modules.

Everything else equals stock Swin, the zero padding of maps that the window does not divide included: padded positions
take part in attention, as they did when released checkpoints were trained at odd sizes.

Dimensions: B batch, L tokens of a map, D channels, W windows of a map, A tokens of a window (its area), N heads.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer, SwinModel, eager_attention_forward


MapSize = tuple[int, int]


class WindowPlan(NamedTuple):
    """Where the tokens of one map go for the attention of one block, and what each may see there.

    Attributes:
        windows: W.
        area: A.
        slots: (W * A,) token that sits in each window slot; L marks padding.
        places: (L,) slot of each token.
        table_rows: (A * A,) rows of the position table, one for each pair of slots of a window.
        mask: (W, 1, A, A), 0 where a pair may see each other and -100 where the shift brought strangers together;
            None without shift.
    """

    windows: int
    area: int
    slots: torch.Tensor
    places: torch.Tensor
    table_rows: torch.Tensor
    mask: torch.Tensor | None


class StageOutput(NamedTuple):
    """What one stage yields: the tokens it hands on, and its own map before merging."""

    hidden_states: torch.Tensor
    size: MapSize
    feature_tokens: torch.Tensor
    feature_size: MapSize


def to_map(tokens: torch.Tensor, size: MapSize) -> torch.Tensor:
    """(B, L, D) tokens, row by row -> (B, D, height, width)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def embed_pixels(
    swin: SwinModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> tuple[torch.Tensor, MapSize]:
    """Cut the image into patches, hide the masked ones.

    Args:
        swin: Owner of the modules and weights.
        pixel_values: (B, C, H, W); rows and columns are padded with zeros to whole patches.
        bool_masked_pos: (B, L) or (B, h, w) bool, True = hidden: those tokens become the learned mask token.

    Returns:
        (B, L, D) tokens, row by row, and the map's size.

    Raises:
        ValueError: The number of bands, or the mask's size, is not the model's.
    """
    embeddings = swin.embeddings
    if pixel_values.ndim != 4 or pixel_values.shape[1] != swin.config.num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)} but the model takes (batch, "
            f"{swin.config.num_channels}, height, width); select bands by name in the processor (bands=[...]) or load "
            "the model with another num_channels."
        )
    patches = embeddings.patch_embeddings
    tokens, size = patches(pixel_values.to(patches.projection.weight.dtype))
    tokens = embeddings.norm(tokens)
    if bool_masked_pos is not None:
        hidden = bool_masked_pos.flatten(1)
        transposed = bool_masked_pos.ndim == 3 and tuple(bool_masked_pos.shape[1:]) != tuple(size)
        if hidden.shape != tokens.shape[:2] or transposed:
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)} but the image has {size[0]} x {size[1]} "
                f"tokens; it takes ({tokens.shape[0]}, {tokens.shape[1]}), row by row."
            )
        if embeddings.mask_token is None:
            raise ValueError("This Swin has no mask token; build it with use_mask_token=True.")
        weight = hidden.unsqueeze(-1).type_as(tokens)
        tokens = tokens * (1 - weight) + embeddings.mask_token.to(tokens.dtype) * weight
    if embeddings.position_embeddings is not None:
        tokens = tokens + _position_embeddings(embeddings.position_embeddings, embeddings.patch_grid, size)
    return embeddings.dropout(tokens), size


def run_stages(
    swin: SwinModel, tokens: torch.Tensor, size: MapSize, last_stage: int | None = None
) -> list[StageOutput]:
    """Run the encoder's stages one after the other.

    Args:
        swin: Owner of the modules and weights.
        tokens: (B, L, D) from `embed_pixels`.
        size: Rows and columns of the token map.
        last_stage: Stop after this stage, 1-based; by default run all.

    Returns:
        One `StageOutput` a stage. `hidden_states` of stage i is what stock Swin calls `hidden_states[i]`.
    """
    outputs = []
    for stage in cast(Iterable[Any], swin.encoder.layers[:last_stage]):
        for index, block in enumerate(stage.blocks):
            window = block.attention.relative_position_bias.window_size[0]
            plan = window_plan(size, window, shifted=index % 2 == 1, device=tokens.device)
            tokens = _run_block(block, tokens, plan)
        feature_tokens, feature_size = tokens, size
        if stage.downsample is not None:
            tokens = stage.downsample(tokens, size)
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        outputs.append(StageOutput(tokens, size, feature_tokens, feature_size))
    return outputs


def window_plan(size: MapSize, window: int, shifted: bool, device: torch.device) -> WindowPlan:
    """The geometry of one block's attention, computed once for each map size and device.

    Args:
        size: Rows and columns of the token map.
        window: Configured tokens a side of a window; shrinks to the map's shorter side.
        shifted: Whether the block is one of those that shift by half a window. Where the window covers the map's
            shorter side nothing is shifted.
        device: Where the indices live.
    """
    arguments = (*size, window, shifted and min(size) > window, device)
    # A traced program must own its constants: a traced tensor kept here would leak into later calls.
    return _build_plan(*arguments) if torch.compiler.is_compiling() else _cached_plan(*arguments)


@lru_cache(maxsize=64)
def _cached_plan(height: int, width: int, table_window: int, shifted: bool, device: torch.device) -> WindowPlan:
    # Inference tensors could never be saved for a later backward.
    with torch.inference_mode(False), torch.no_grad():
        return _build_plan(height, width, table_window, shifted, device)


def _build_plan(height: int, width: int, table_window: int, shifted: bool, device: torch.device) -> WindowPlan:
    window = min(table_window, height, width)
    shift = window // 2 if shifted else 0
    rows, columns = -(-height // window) * window, -(-width // window) * window

    row = torch.arange(rows, device=device)
    column = torch.arange(columns, device=device)
    # The token that the shift brings to each position of the padded map; L where that position is padding.
    from_row = (row + shift) % rows
    from_column = (column + shift) % columns
    inside = (from_row < height)[:, None] & (from_column < width)[None, :]
    token = torch.where(inside, from_row[:, None] * width + from_column[None, :], height * width)
    slots = _by_window(token, window).reshape(-1)

    # Positions that were neighbours before the shift share a region; only those may see each other.
    mask = None
    if shift:
        region_row = (row >= rows - window).long() + (row >= rows - shift).long()
        region_column = (column >= columns - window).long() + (column >= columns - shift).long()
        region = _by_window(region_row[:, None] * 3 + region_column[None, :], window)
        mask = (region[:, None, :] != region[:, :, None]).unsqueeze(1) * -100.0

    slot_of = torch.zeros(height * width + 1, dtype=torch.long, device=device)
    slot_of = slot_of.scatter(0, slots, torch.arange(slots.numel(), device=device))

    # Offsets from -(window - 1) to window - 1 around the table's centre.
    side = 2 * table_window - 1
    position = torch.arange(window, device=device)
    offset = position[:, None] - position[None, :] + table_window - 1
    table_rows = offset[:, None, :, None] * side + offset[None, :, None, :]
    return WindowPlan(
        windows=slots.numel() // window**2,
        area=window**2,
        slots=slots,
        places=slot_of[:-1],
        table_rows=table_rows.reshape(-1),
        mask=mask,
    )


def _by_window(grid: torch.Tensor, window: int) -> torch.Tensor:
    """(rows, columns) -> (W, A)."""
    rows, columns = grid.shape
    grid = grid.view(rows // window, window, columns // window, window)
    return grid.transpose(1, 2).reshape(-1, window * window)


def _run_block(block: SwinLayer, tokens: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
    if block.gradient_checkpointing and block.training:
        return cast(Any, block)._gradient_checkpointing_func(_block_forward, block, tokens, plan)
    return _block_forward(block, tokens, plan)


def _block_forward(block: SwinLayer, tokens: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
    """(B, L, D) -> (B, L, D)."""
    batch, length, dim = tokens.shape
    # Padding enters as zeros after the norm, as in stock Swin.
    windows = _Rearrange.apply(block.layernorm_before(tokens), plan.slots, plan.places)
    windows = windows.view(batch * plan.windows, plan.area, dim)
    attended = _attend(block.attention, windows, plan).view(batch, plan.windows * plan.area, dim)
    attended = _Rearrange.apply(block.dropout(attended), plan.places, plan.slots)
    tokens = tokens + block.drop_path(attended)
    return tokens + block.drop_path(block.dropout(block.mlp(block.layernorm_after(tokens))))


def _attend(attention: SwinAttention, windows: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
    """Self-attention inside each window: (B * W, A, D) -> (B * W, A, D)."""
    by_head = (*windows.shape[:-1], -1, attention.head_dim)
    query = attention.q_proj(windows).view(by_head).transpose(1, 2)
    key = attention.k_proj(windows).view(by_head).transpose(1, 2)
    value = attention.v_proj(windows).view(by_head).transpose(1, 2)

    table = attention.relative_position_bias.relative_position_bias_table
    bias = table[plan.table_rows].view(plan.area, plan.area, -1).permute(2, 0, 1).unsqueeze(0).to(query.dtype)
    if plan.mask is not None:
        bias = (bias + plan.mask.to(bias.dtype)).repeat(windows.shape[0] // plan.windows, 1, 1, 1)

    interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    attended, _ = interface(
        attention,
        query,
        key,
        value,
        bias,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
    )
    return attention.o_proj(attended.reshape(windows.shape))


class _Rearrange(torch.autograd.Function):
    """Reorder tokens: `output[:, i] = tokens[:, index[i]]`, zeros where `index` points behind the last token.

    `index` and `inverse` undo each other, so that the backward pass is the same cheap gather the other way round
    (autograd's own would be a scattered addition).
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index, inverse)
        return _gather(tokens, index, len(inverse))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _gather(gradient, inverse, len(index)), None, None


def _gather(tokens: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    if len(index) > length:
        tokens = nn.functional.pad(tokens, (0, 0, 0, 1))
    return tokens.index_select(1, index)


def _position_embeddings(table: torch.Tensor, grid: MapSize, size: MapSize) -> torch.Tensor:
    """Absolute position embeddings, (1, L, D), resized bicubically where the map is not the configured one."""
    if grid == size:
        return table
    resized = nn.functional.interpolate(to_map(table, grid), size=size, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
