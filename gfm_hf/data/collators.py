"""Records -> samples in a worker, samples -> one batch of the pretraining loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gfm_hf.data.decoding import Record, UnreadableImageError, decode, with_right_bands
from gfm_hf.data.masking import expand_to_tokens, hidden_cells, mask_grid
from gfm_hf.data.plan import SampleKey
from gfm_hf.data.transforms import CROP_RATIO, CROP_SCALE, centre_view, crop_and_flip


@dataclass
class PretrainingSamples(Dataset[dict[str, Any]]):
    """Views and masks of a pretraining run, one per `SampleKey`; holds no images itself.

    A sample depends on (seed, epoch, record) alone, so workers, ranks and resumed runs make the same one.

    Attributes:
        image_size: Side of a view in px.
        patch_size: Side of a token in px.
        mask_patch_size: Side of a cell, the unit of masking, in px.
        mask_ratio: Share of cells to hide.
        seed: Seed of crops and masks.
        scale: Smallest and largest share of an image's area in a crop.
        ratio: Smallest and largest width / height of a crop.
        num_channels: Bands of the model.
        rgb_channels: Places of red, green and blue among three bands, for pictures; None is (0, 1, 2).
        train: Random crops and flips; otherwise the centred square, always with the masks of epoch 0.

    Raises:
        ValueError: Sizes that do not divide each other, or a mask ratio outside (0, 1).
    """

    image_size: int = 192
    patch_size: int = 4
    mask_patch_size: int = 32
    mask_ratio: float = 0.6
    seed: int = 0
    scale: tuple[float, float] = CROP_SCALE
    ratio: tuple[float, float] = CROP_RATIO
    num_channels: int = 3
    rgb_channels: tuple[int, ...] | None = None
    train: bool = True

    def __post_init__(self) -> None:
        self.grid, self.factor = mask_grid(self.image_size, self.patch_size, self.mask_patch_size)
        self.cells(index=0, epoch=0)  # refuses a bad ratio here, in the main process

    def __getitem__(self, key: SampleKey | tuple[int, Record]) -> dict[str, Any]:
        """Make one sample.

        Args:
            key: What an `EpochPlan` yields, or just (epoch, record).

        Returns:
            `epoch`, `step` and `weight` of the key, and for a readable image `pixel_values` (C, S, S) in the image's
            dtype, `cells` (grid * grid,) bool with True = hidden, `index` and `name`; for an unreadable one
            `unreadable` (its name) and `reason`; for a filler nothing more.

        Raises:
            ValueError: The image's band count is not the model's.
        """
        epoch, record, weight, step = SampleKey(*key)
        sample: dict[str, Any] = {"epoch": epoch, "step": step, "weight": weight}
        if record is None:
            return sample
        try:
            view = self._view(record, epoch)
        except UnreadableImageError as error:
            return sample | {"unreadable": error.name, "reason": error.reason}
        cells = self.cells(record.index, epoch if self.train else 0)
        return sample | {"pixel_values": view, "cells": cells, "index": record.index, "name": record.name}

    def cells(self, index: int, epoch: int) -> torch.Tensor:
        """Hide cells of one image: (grid * grid,) bool, True = hidden."""
        return hidden_cells(index, epoch, self.seed, self.grid, self.mask_ratio)

    def _view(self, record: Record, epoch: int) -> np.ndarray:
        """Decode a record and cut its view, (C, S, S)."""
        image = with_right_bands(decode(record, self.num_channels), self.num_channels, self.rgb_channels, record.name)
        if self.train:
            view = crop_and_flip(image, record.index, epoch, self.seed, self.image_size, self.scale, self.ratio)
        else:
            view = centre_view(image, self.image_size)
        if np.issubdtype(view.dtype, np.floating) and not np.isfinite(view).all():
            raise UnreadableImageError(record.name, "NaN or infinite pixels")
        return view


@dataclass
class PretrainingCollator:
    """Samples of one micro-batch -> tensors of the training step; runs in the worker.

    Attributes:
        processor: Image processor of the model; called as `processor(images=[(C, S, S) arrays],
            input_data_format="channels_first", do_resize=False, return_tensors="pt").pixel_values`.
        samples: The dataset, for the geometry of masks and of the empty batch.
    """

    processor: Callable[..., Any]
    samples: PretrainingSamples

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack the readable samples.

        Args:
            samples: At least one sample of `PretrainingSamples`, all of the same optimizer step.

        Returns:
            `pixel_values` (B, C, S, S) float32, normalised; `bool_masked_pos` (B, N) bool, True = hidden;
            `loss_weight` scalar float32, to multiply the mean loss of this micro-batch with; `unreadable` list of
            (name, reason); `epoch` and `step`, the optimizer step this micro-batch belongs to. B counts readable
            samples; without any it is 1: a zero image of weight 0, so that every rank still has a step to take.
        """
        readable = [sample for sample in samples if "pixel_values" in sample]
        unreadable = [(sample["unreadable"], sample["reason"]) for sample in samples if "unreadable" in sample]
        pixel_values, cells, overflown = self._normalised(readable)
        weight = samples[0]["weight"] * len(pixel_values)
        if not len(pixel_values):
            pixel_values, cells = self._empty()
        return {
            "pixel_values": pixel_values,
            "bool_masked_pos": expand_to_tokens(cells, self.samples.grid, self.samples.factor),
            "loss_weight": torch.tensor(weight, dtype=torch.float32),
            "unreadable": unreadable + overflown,
            "epoch": samples[0]["epoch"],
            "step": samples[0]["step"],
        }

    def _normalised(self, samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, str]]]:
        """Normalise views and stack masks; return what is finite, and (name, reason) of the rest."""
        if not samples:
            pixel_values, cells = self._empty()
            return pixel_values[:0], cells[:0], []
        pixel_values = self._processed(samples)
        cells = torch.stack([sample["cells"] for sample in samples])
        # A finite value can still overflow: a nodata value of -3.4e38 divided by a standard deviation, for one.
        # NaN and infinity stay in a sum, which takes a fortieth of the time of asking every value.
        if torch.isfinite(pixel_values.sum()):
            return pixel_values, cells, []
        finite = torch.isfinite(pixel_values).flatten(1).all(1)
        if finite.all():
            return pixel_values, cells, []
        lost = [(samples[i]["name"], "NaN or infinite pixels") for i in torch.nonzero(~finite).flatten().tolist()]
        return pixel_values[finite], cells[finite], lost

    def _processed(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        """Normalise views, (B, C, S, S); an error names the image it came from."""

        def process(part: list[dict[str, Any]]) -> torch.Tensor:
            images = [sample["pixel_values"] for sample in part]
            arguments = {"input_data_format": "channels_first", "do_resize": False, "return_tensors": "pt"}
            return self.processor(images=images, **arguments).pixel_values

        try:
            return process(samples)
        except ValueError:
            for sample in samples:
                try:
                    process([sample])
                except ValueError as error:
                    raise ValueError(f"image {sample['name']}: {error}") from error
            raise

    def _empty(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the batch of a micro-batch without readable images: one zero image and a mask of the usual count."""
        size = self.samples.image_size
        image = torch.zeros(1, self.samples.num_channels, size, size)
        return image, self.samples.cells(index=0, epoch=0)[None]
