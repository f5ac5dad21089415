"""Losses: tensors in, scalar out."""

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


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None) -> torch.Tensor:
    """Cross-entropy for one label per image, binary cross-entropy for several.

    Args:
        logits: (B, K).
        labels: (B,) class indices; or (B, K) float: multi-hot for several labels, probabilities for one (as mixing
            images gives them).
        problem_type: "single_label_classification" or "multi_label_classification"; None takes floats for multi-hot.

    Returns:
        Scalar in float32 or wider.

    Raises:
        ValueError: The labels' shape or type fits neither.

    Source: the authors' fine-tuning code (cross-entropy, MultiLabelSoftMarginLoss).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if problem_type not in (None, "single_label_classification", "multi_label_classification"):
        raise ValueError(
            f"problem_type is {problem_type!r}; use single_label_classification or multi_label_classification."
        )
    multi_label = problem_type == "multi_label_classification" or (problem_type is None and labels.is_floating_point())
    expected = logits.shape if multi_label or labels.is_floating_point() else logits.shape[:1]
    if labels.shape != expected:
        kind = "multi-hot labels" if multi_label else "labels"
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} but {tuple(expected)} was expected for {kind}; check problem_type."
        )
    if multi_label:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    target = labels.to(logits.dtype) if labels.is_floating_point() else labels
    return nn.functional.cross_entropy(logits, target)
