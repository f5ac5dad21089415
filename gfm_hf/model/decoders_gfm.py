"""What stands behind the trunk: from tokens back to pixels, and from student to teacher features."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead


class PixelDecoder(nn.Sequential):
    """One linear layer from the last map's channels to the pixels below each token.

    Forward: (B, D, h, w) -> (B, C, h * stride, w * stride). Parameters are named as in transformers' Swin for masked
    image modelling (`decoder.0`).

    Source: SimMIM section 3.3; D of GFM section 3.2.
    """

    def __init__(self, hidden_size: int, num_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(hidden_size, stride**2 * num_channels, kernel_size=1),
            nn.PixelShuffle(stride),
        )


class Projection(nn.Linear):
    """A linear layer with bias; its own type, because it is not initialised like the trunk's linear layers."""


class FeatureProjector(nn.ModuleList):
    """One linear layer for each distilled stage, on the student's side only; dropped after pretraining.

    Source: the projector of GFM section 3.3.
    """

    def __init__(self, student_sizes: Sequence[int], teacher_sizes: Sequence[int]) -> None:
        super().__init__(Projection(student, teacher) for student, teacher in zip(student_sizes, teacher_sizes))

    def forward(self, pooled: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Project one pooled vector (B, D_student) per distilled stage to (B, D_teacher)."""
        return [projection(features) for projection, features in zip(self, pooled)]


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch has only one value per channel.

    That is a batch of one image below the pyramid's coarsest cell, which has no variance; torch refuses it.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class MapDecoder(nn.Module):
    """UPerNet on the maps of all stages, and a small second head on one of them that only training uses.

    Both heads are transformers' own.

    Args:
        channels: Channels of each map, finest first.
        num_labels: Classes.
        decoder_channels: Channels inside UPerNet.
        pool_scales: Cells a side to which the last map is pooled.
        auxiliary_channels: Channels inside the second head; 0 for none.

    Forward: maps [(B, D_i, h_i, w_i)] -> (B, K, h_0, w_0) logits, and those of the second head (B, K, h_2, w_2) while
    training, else None.

    Source: Xiao et al. 2018 (UPerNet); mmsegmentation's defaults, which GFM section 4 refers to.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_labels: int,
        decoder_channels: int,
        pool_scales: Sequence[int],
        auxiliary_channels: int,
    ) -> None:
        super().__init__()
        config = UperNetConfig(
            hidden_size=decoder_channels, pool_scales=list(pool_scales), auxiliary_channels=auxiliary_channels
        )
        config.num_labels = num_labels
        self.main = UperNetHead(config, list(channels))
        in_index = min(2, len(channels) - 1)
        self.auxiliary = UperNetFCNHead(config, list(channels), in_index=in_index) if auxiliary_channels else None
        for module in self.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _BatchNorm

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Classify every token of the finest map."""
        auxiliary = self.auxiliary(maps) if self.auxiliary is not None and self.training else None
        return self.main(maps), auxiliary


class Correction(nn.Conv2d):
    """A convolution whose result is added to something; its own type, because it starts at zero."""


class Upscaler(nn.Sequential):
    """Convolutions and pixel shuffles from an image to one of `scale` times its sides.

    Forward: (B, C, H, W) -> (B, C, scale * H, scale * W).

    Args:
        num_channels: Bands C.
        scale: 2, 3 or 4 (twice 2).
        residual: Whether the result is added to an interpolated image.
        width: Channels in between.

    Source: the "classic" upsampler of SwinIR (Liang et al. 2021), which GFM section 4 uses.
    """

    def __init__(self, num_channels: int, scale: int, residual: bool, width: int = 64) -> None:
        steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
        layers: list[nn.Module] = [nn.Conv2d(num_channels, width, kernel_size=3, padding=1), nn.LeakyReLU()]
        for step in steps:
            layers += [nn.Conv2d(width, width * step**2, kernel_size=3, padding=1), nn.PixelShuffle(step)]
        last = Correction if residual else nn.Conv2d
        super().__init__(*layers, last(width, num_channels, kernel_size=3, padding=1))
