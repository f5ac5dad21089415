"""The two terms of the continual-pretraining objective: tensors in, scalar out."""

import torch
from torch import nn


def pixel_mask(bool_masked_pos: torch.Tensor, token_size: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Spread a token mask over the pixels of each token.

    Args:
        bool_masked_pos: (B, N) or (B, h, w) bool, True = hidden, row by row.
        token_size: Rows h and columns w of the token map.
        patch_size: Pixels a side of one token.

    Returns:
        (B, 1, h * patch_size, w * patch_size) bool.
    """
    mask = bool_masked_pos.reshape(-1, 1, *token_size)
    return mask.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)


def masked_reconstruction_loss(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean absolute error over hidden pixels and channels, counted over the whole batch.

    Args:
        reconstruction: (B, C, H, W).
        pixel_values: (B, C, H, W), the normalised image.
        mask: (B, 1, H, W), True = hidden.

    Returns:
        Scalar in float32 or wider.

    Source: GFM equation 2; the normaliser (sum + 1e-5) * C is SimMIM's.
    """
    reconstruction = reconstruction.to(torch.promote_types(reconstruction.dtype, torch.float32))
    error = (pixel_values.to(reconstruction.dtype) - reconstruction).abs() * mask
    return error.sum() / (mask.sum() + 1e-5) / pixel_values.shape[1]


def feature_distillation_loss(projected: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Minus the mean cosine between the student's projected features and the teacher's.

    Args:
        projected: (B, D), the student's features after the projector.
        teacher_features: (B, D); no gradient flows into them.

    Returns:
        Scalar in [-1, 1], float32 or wider.

    Source: GFM equation 3.
    """
    dtype = torch.promote_types(projected.dtype, torch.float32)
    return -nn.functional.cosine_similarity(projected.to(dtype), teacher_features.detach().to(dtype), dim=1).mean()
