"""Pictures of a run: rows of images by Pillow, charts by matplotlib."""

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


def confusion_panel(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Confusion matrix: rows are the truth and add up to 1.

    Args:
        predictions: (N,) class ids.
        labels: (N,) class ids.
        names: K class names.
    """
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.32 * len(names) + 2)
    figure, axes = _figure(side + 1, side)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in zip(*np.nonzero(counts)):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=6, color=shade)
    figure.colorbar(shown, ax=axes, label="share of the true class", fraction=0.046)
    return _drawn(figure)


def curve_panel(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Precision over recall of every class and of all of them together.

    Args:
        scores: (N, K), larger = more likely.
        labels: (N, K) of 0 and 1.
        names: K class names.
    """
    figure, axes = _figure(8, 5)
    for column, name in enumerate(names):
        if labels[:, column].any():
            axes.plot(*_recall_and_precision(scores[:, column], labels[:, column]), linewidth=0.8, label=name)
    axes.plot(*_recall_and_precision(scores.ravel(), labels.ravel()), color="black", linewidth=2, label="all (micro)")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _drawn(figure)


def labelled_panel(
    images: Sequence[np.ndarray], truths: Sequence[str], answers: Sequence[str], columns: int = 6, tile_px: int = 128
) -> Image.Image:
    """Images with what they are and what the model says; a wrong answer is red.

    Args:
        images: (H, W, C) arrays of any type; of more than three bands the first three are shown.
        truths: What each one is.
        answers: What the model says.
        columns: Tiles in a row.
        tile_px: Side of one tile.
    """
    step_x, step_y = tile_px + GAP_PX, tile_px + GAP_PX + 2 * CAPTION_PX
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (image, truth, answer) in enumerate(zip(images, truths, answers)):
        left, top = (place % columns) * step_x + GAP_PX, (place // columns) * step_y + GAP_PX
        canvas.paste(Image.fromarray(shown_pixels(image)).resize((tile_px, tile_px)), (left, top))
        longest = tile_px // 6  # letters of Pillow's own font
        pen.text((left, top + tile_px), truth[:longest], fill="black")
        pen.text((left, top + tile_px + CAPTION_PX - 3), answer[:longest], fill="gray" if truth == answer else "red")
    return canvas


def shown_pixels(image: np.ndarray) -> np.ndarray:
    """(H, W, C) of any type -> (H, W, 3) uint8 for the eye: 8-bit colours as they are, others stretched per band."""
    bands = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if bands.dtype == np.uint8:
        return np.ascontiguousarray(bands)
    values = bands.astype(np.float32)
    low, high = np.nanpercentile(values, 2, axis=(0, 1)), np.nanpercentile(values, 98, axis=(0, 1))
    stretched = np.clip((values - low) / np.maximum(high - low, 1e-6), 0, 1)
    return (np.nan_to_num(stretched) * 255).astype(np.uint8)


def _recall_and_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    return hits / hits[-1], hits / np.arange(1, len(hits) + 1)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # slow to import, and not every run draws

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots()


def _drawn(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
