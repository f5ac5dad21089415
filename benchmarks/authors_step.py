"""The authors' pretraining step, restated plainly as the yardstick of the speed benchmark.

Written from the description of the released code, in its structure: one fused query-key-value layer, roll + partition
around each attention, the shift mask as a buffer of each block, the position bias read anew in each block, and the
teacher as an ordinary sub-module. With the same weights it computes the same loss and gradients as ours.

Dimensions: B batch, L tokens of a map, D channels, W windows of a map, A tokens of a window, N heads.

Source: GFM section 3; the released pretraining code, whose parts follow SimMIM and Swin.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from transformers import SwinConfig

from gfm_hf import GFMConfig


# transformers' names -> the ones below, applied in this order.
RENAMES = (
    ("swin.", "student."),
    ("embeddings.patch_embeddings.projection", "patch_filters"),
    ("embeddings.norm", "patch_norm"),
    ("embeddings.mask_token", "mask_token"),
    ("encoder.layers", "stages"),
    ("attention.relative_position_bias.relative_position_bias_table", "attention.table"),
    ("attention.o_proj", "attention.out"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("downsample", "merging"),
    ("projector.0", "projector"),
)


def to_windows(grid: torch.Tensor, window: int) -> torch.Tensor:
    """(B, H, W, D) -> (B * windows, window, window, D)."""
    batch, height, width, dim = grid.shape
    grid = grid.view(batch, height // window, window, width // window, window, dim)
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, dim)


def from_windows(windows: torch.Tensor, window: int, side: int) -> torch.Tensor:
    """(B * windows, window, window, D) -> (B, side, side, D)."""
    count = side // window
    grid = windows.view(-1, count, count, window, window, windows.shape[-1])
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side, side, windows.shape[-1])


def shift_mask(side: int, window: int, shift: int) -> torch.Tensor:
    """(W, A, A): -100 between tokens that only the shift brought together, else 0."""
    region = torch.zeros(1, side, side, 1)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bands for columns in bands):
        region[:, rows, columns, :] = number
    region = to_windows(region, window).view(-1, window * window)
    return (region[:, None, :] != region[:, :, None]) * -100.0


class WindowAttention(nn.Module):
    """Attention inside windows with a learned bias for each relative position: (B * W, A, D) -> the same."""

    pairs: torch.Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("pairs", offset[0] * (2 * window - 1) + offset[1], persistent=False)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend; `mask` is the block's (W, A, A) or None."""
        count, area, dim = windows.shape
        by_head = self.qkv(windows).reshape(count, area, 3, self.heads, dim // self.heads)
        query, key, value = by_head.permute(2, 0, 3, 1, 4)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        bias = self.table[self.pairs.view(-1)].view(area, area, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, area, area) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, area, area)
        attended = scores.softmax(dim=-1) @ value
        return self.out(attended.transpose(1, 2).reshape(count, area, dim))


class Block(nn.Module):
    """One transformer block on a square map of fixed side: (B, L, D) -> (B, L, D)."""

    mask: torch.Tensor | None

    def __init__(self, dim: int, side: int, window: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(side, window)
        self.shift = window // 2 if shifted and side > window else 0
        self.layernorm_before = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, self.window, heads)
        self.layernorm_after = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        mask = shift_mask(side, self.window, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attention, then the perceptron, each behind a norm and around a shortcut."""
        batch, length, dim = tokens.shape
        grid = self.layernorm_before(tokens).view(batch, self.side, self.side, dim)
        if self.shift:
            grid = torch.roll(grid, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = to_windows(grid, self.window).view(-1, self.window**2, dim)
        windows = self.attention(windows, self.mask).view(-1, self.window, self.window, dim)
        grid = from_windows(windows, self.window, self.side)
        if self.shift:
            grid = torch.roll(grid, shifts=(self.shift, self.shift), dims=(1, 2))
        tokens = tokens + grid.view(batch, length, dim)
        return tokens + self.mlp(self.layernorm_after(tokens))


class Merging(nn.Module):
    """Join each 2 x 2 square of tokens: (B, L, D) -> (B, L / 4, 2 D)."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Column by column within the square, as released checkpoints expect."""
        batch, _, dim = tokens.shape
        grid = tokens.view(batch, self.side, self.side, dim)
        corners = [grid[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).view(batch, -1, 4 * dim)))


class Stage(nn.Module):
    """Blocks of one resolution and the merging behind them."""

    def __init__(self, dim: int, side: int, window: int, depth: int, heads: int, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, side, window, heads, shifted=i % 2 == 1) for i in range(depth))
        self.merging = Merging(dim, side) if merges else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L / 4, 2 D), or (B, L, D) without merging."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.merging is None else self.merging(tokens)


class Encoder(nn.Module):
    """Swin for one image size."""

    def __init__(self, config: SwinConfig, use_mask_token: bool) -> None:
        super().__init__()
        patch_size = cast(int, config.patch_size)
        side = cast(int, config.image_size) // patch_size
        self.patch_filters = nn.Conv2d(3, config.embed_dim, patch_size, stride=patch_size)
        self.patch_norm = nn.LayerNorm(config.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if use_mask_token else None
        last = len(config.depths) - 1
        self.stages = nn.ModuleList(
            Stage(config.embed_dim * 2**i, side // 2**i, config.window_size, depth, heads, merges=i < last)
            for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads))
        )
        self.layernorm = nn.LayerNorm(config.embed_dim * 2**last)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None, last_stage: int | None) -> list[torch.Tensor]:
        """Tokens (B, L_i, D_i) after every stage up to `last_stage`, without the final norm."""
        tokens = self.patch_norm(self.patch_filters(images).flatten(2).transpose(1, 2))
        if mask is not None and self.mask_token is not None:
            hidden = self.mask_token.expand(*tokens.shape[:2], -1)
            weight = mask.flatten(1).unsqueeze(-1).type_as(hidden)
            tokens = tokens * (1.0 - weight) + hidden * weight
        outputs = []
        for stage in self.stages[:last_stage]:
            tokens = stage(tokens)
            outputs.append(tokens)
        return outputs


class AuthorsStep(nn.Module):
    """Student, decoder, projector and teacher in one module; the forward returns the loss.

    The teacher is built whole and has trainable parameters, though its feature is detached: a graph is recorded at
    each step and thrown away. So the released code does, unless the teacher's file name contains "finetune".
    """

    def __init__(self, config: GFMConfig, teacher_config: SwinConfig) -> None:
        super().__init__()
        self.patch_size, self.weight = config.patch_size, config.distillation_weight
        self.student = Encoder(config, use_mask_token=True)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, config.encoder_stride**2 * 3, kernel_size=1),
            nn.PixelShuffle(config.encoder_stride),
        )
        student_size = config.stage_hidden_sizes[3]
        self.projector = nn.Linear(student_size, student_size)
        self.teacher_size = cast(int, teacher_config.image_size)
        self.teacher = Encoder(teacher_config, use_mask_token=False)

    def teacher_feature(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D): mean over the tokens behind the third stage, of the unmasked image at the teacher's size."""
        size = (self.teacher_size, self.teacher_size)
        images = nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=True)
        return self.teacher(images, None, last_stage=3)[2].mean(dim=1).detach()

    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss of a batch: images (B, 3, H, W), mask (B, h, w) with 1 = hidden -> scalar."""
        stages = self.student(images, mask, last_stage=None)
        tokens = self.student.layernorm(stages[-1]).transpose(1, 2)
        side = int(tokens.shape[-1] ** 0.5)
        rebuilt = self.decoder(tokens.reshape(*tokens.shape[:2], side, side))
        pixels = mask.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)
        pixels = pixels.unsqueeze(1).contiguous()
        error = nn.functional.l1_loss(images, rebuilt, reduction="none")
        reconstruction = (error * pixels).sum() / (pixels.sum() + 1e-5) / images.shape[1]
        projected = self.projector(stages[2].mean(dim=1))
        cosine = nn.functional.cosine_similarity(projected, self.teacher_feature(images), dim=1)
        return reconstruction - self.weight * cosine.mean()


def authors_names(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors of a transformers-style model under the names above, query, key and value joined."""
    parts: dict[str, list[torch.Tensor]] = {}
    for name, tensor in named:  # modules register query, key and value in this order
        for theirs, ours in RENAMES:
            name = name.replace(theirs, ours)
        for projection in ("q_proj", "k_proj", "v_proj"):
            name = name.replace(projection, "qkv")
        parts.setdefault(name, []).append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}
