"""Pictures of super-resolution: what came in, what interpolation and the model make of it, and the truth."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from gfm_hf.training.panels import CAPTION_PX, GAP_PX


CAPTIONS = ("low", "bicubic", "model", "truth")


def scale_panel(
    columns: Sequence[torch.Tensor],
    channels: Sequence[int],
    value_range: tuple[float, float] = (0.0, 1.0),
    psnrs: Sequence[tuple[float, float]] | None = None,
    tile_px: int = 256,
) -> Image.Image:
    """Panel with one row per image; pixels are shown as they are, enlarged by whole numbers and never smoothed.

    A truth that reaches the brighter half of its range is shown over this range; a darker one (reflectance, 11 bits) from
    its 2nd to its 98th percentile. The four tiles of a row share one stretch, so that they compare.

    Args:
        columns: Four batches in units of the images: input of the model (B, C, h, w), then interpolated input, output of
            the model and truth (B, C, H, W).
        channels: Red, green and blue among the C bands; one alone is shown in grey.
        value_range: Least and greatest value that an image can have.
        psnrs: B pairs in dB, of bicubic and of model, written into the captions; None for none.
        tile_px: Smallest side of a tile; small images are enlarged to it or beyond.

    Raises:
        ValueError: The batches do not belong together.
    """
    _check(columns)
    truth = columns[-1]
    bands = list(channels) if len(channels) == 3 else [channels[0]] * 3
    height, width = truth.shape[2:]
    factor = max(1, -(-tile_px // max(height, width)))
    size = (width * factor, height * factor)
    step_x, step_y = size[0] + GAP_PX, size[1] + GAP_PX + CAPTION_PX
    canvas = Image.new("RGB", (len(CAPTIONS) * step_x + GAP_PX, len(truth) * step_y + GAP_PX), "white")
    pen = ImageDraw.Draw(canvas)
    for row, images in enumerate(zip(*columns)):
        tiles = [image[bands].detach().float().cpu().numpy() for image in images]
        ends = _stretch(tiles[-1], value_range)
        notes = ["", "", "", ""] if psnrs is None else ["", *(f" {psnr:.2f} dB" for psnr in psnrs[row]), ""]
        for column, (tile, caption, note) in enumerate(zip(tiles, CAPTIONS, notes)):
            left, top = column * step_x + GAP_PX, row * step_y + GAP_PX
            pen.text((left, top), caption + note, fill="black")
            picture = _picture(tile, *ends).resize(size, Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top + CAPTION_PX))
    return canvas


def _check(columns: Sequence[torch.Tensor]) -> None:
    """Refuse batches of different lengths, bands or sizes."""
    shapes = [tuple(batch.shape) for batch in columns]
    alike = len(shapes) == len(CAPTIONS) and len(set(shapes[1:])) == 1 and shapes[0][:2] == shapes[1][:2]
    if not alike or not shapes[0][0]:
        raise ValueError(
            f"{', '.join(CAPTIONS)} came with shapes {', '.join(map(str, shapes))}; pass one batch of at least one image "
            "four times, the last three of one size."
        )


def _stretch(truth: np.ndarray, value_range: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Values (3, 1, 1) shown as black and as white."""
    if truth.max() > sum(value_range) / 2:
        return np.full((3, 1, 1), value_range[0]), np.full((3, 1, 1), value_range[1])
    low, high = (np.percentile(truth, share, axis=(1, 2)).reshape(3, 1, 1) for share in (2, 98))
    return low, np.maximum(high, low + 1e-6)


def _picture(pixels: np.ndarray, black: np.ndarray, white: np.ndarray) -> Image.Image:
    """(3, H, W) -> picture."""
    shares = np.clip((pixels - black) / (white - black), 0, 1)
    return Image.fromarray(np.ascontiguousarray((shares * 255).round().astype(np.uint8).transpose(1, 2, 0)))
