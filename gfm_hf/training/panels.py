"""Pictures of a run, made with Pillow alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from gfm_hf.model.losses_gfm import pixel_mask


GAP_PX = 4
CAPTION_PX = 16


def pretraining_panel(
    config: Any,
    processor: Any,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    reconstruction: torch.Tensor,
    rows: int = 6,
) -> Image.Image:
    """Panel of the first images of a pretraining batch, in natural colours where the bands allow it.

    Args:
        config: The model's configuration.
        processor: The model's image processor, to undo the normalisation.
        pixel_values: (B, C, H, W), normalised; whole patches.
        bool_masked_pos: (B, N) bool, True = hidden.
        reconstruction: (B, C, H, W) of the model's output.
        rows: Images to show.
    """
    channels = list(config.rgb_channels or [0] * 3)
    images, rebuilt = (
        processor.denormalize(tensor[:rows].float())[:, channels] for tensor in (pixel_values, reconstruction)
    )
    size = (pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size)
    return reconstruction_panel(images, rebuilt, pixel_mask(bool_masked_pos[:rows], size, config.patch_size))


def reconstruction_panel(
    images: torch.Tensor, reconstructions: torch.Tensor, masks: torch.Tensor, tile_px: int = 128
) -> Image.Image:
    """Rows of input, masked input and reconstruction.

    Args:
        images: (B, 3, H, W) in [0, 1].
        reconstructions: (B, 3, H, W) in the same units; what lies outside [0, 1] is clipped.
        masks: (B, 1, H, W) bool, True = hidden. Visible pixels of the third column are the input's.
        tile_px: Side of one tile.
    """
    hidden = torch.where(masks, torch.full_like(images, 0.5), images)
    rebuilt = torch.where(masks, reconstructions, images)
    return tile_panel(["input", "masked", "reconstruction"], [images, hidden, rebuilt], tile_px)


def tile_panel(captions: Sequence[str], columns: Sequence[torch.Tensor], tile_px: int) -> Image.Image:
    """One captioned column of tiles per batch (B, 3, H, W) of images in [0, 1]."""
    step = tile_px + GAP_PX
    canvas = Image.new("RGB", (len(columns) * step + GAP_PX, len(columns[0]) * step + GAP_PX + CAPTION_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (caption, images) in enumerate(zip(captions, columns)):
        draw.text((column * step + GAP_PX, 2), caption, fill="black")
        for row, image in enumerate(images):
            pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize((tile_px, tile_px), Image.Resampling.BILINEAR)
            canvas.paste(tile, (column * step + GAP_PX, row * step + GAP_PX + CAPTION_PX))
    return canvas
