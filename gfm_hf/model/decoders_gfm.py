"""What stands behind the trunk: from tokens back to pixels, and from student to teacher features."""

from collections.abc import Sequence

import torch
from torch import nn


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
