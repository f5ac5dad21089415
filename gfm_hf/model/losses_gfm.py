"""Losses: tensors in, scalar out."""

from collections.abc import Sequence

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


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    class_weights: Sequence[float] | None = None,
    dice_weight: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy over the labelled pixels of a batch, with a soft Dice term on request.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) class ids; `ignore_index` where nothing is known.
        ignore_index: Label of pixels that do not count. A batch of nothing else has loss 0.
        class_weights: One factor per class; the mean is weighted by them too.
        dice_weight: Factor of one minus the Dice coefficient, averaged over the classes that occur.

    Returns:
        Scalar in float32 or wider.

    Raises:
        ValueError: Labels have another shape or lie outside the classes.

    Source: mmsegmentation's defaults for UPerNet (cross-entropy); Dice: Milletari et al. 2016.
    """
    if labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} but {(len(logits), *logits.shape[2:])} was expected; masks have to "
            "be as large as the images."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = labels != ignore_index
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    # Ignored pixels get some class and then no weight: a mean over no pixel at all would be no number.
    safe = torch.where(known, labels, 0)
    pixel_weights = known.to(logits.dtype) if weights is None else known * weights[safe]
    errors = nn.functional.cross_entropy(logits, safe, reduction="none")
    loss = (errors * pixel_weights).sum() / pixel_weights.sum().clamp(min=torch.finfo(logits.dtype).tiny)
    return loss + dice_weight * _dice_loss(logits, safe, known) if dice_weight else loss


def _dice_loss(logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """One minus the Dice coefficient of probabilities and labels, over the whole batch, averaged over classes."""
    shown = known.unsqueeze(1).to(logits.dtype)
    probabilities = logits.softmax(dim=1) * shown
    truth = nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1) * shown
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    sizes = probabilities.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    occurs = (truth.sum(dim=(0, 2, 3)) > 0).to(logits.dtype)
    dice = 2 * overlap / sizes.clamp(min=torch.finfo(logits.dtype).eps)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)
