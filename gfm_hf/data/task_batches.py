"""Samples of a labelled part -> views in a worker, views -> one batch of a fine-tuning or evaluation loop.

data = open_task("segmentation", data_dir=...)
samples = TaskSamples(data.train, Augmentation(256), seed)
plan = EpochPlan(data.train.table, batch_size, rank, world, accumulation, seed)
loader = DataLoader(samples, batch_sampler=plan, collate_fn=TaskCollator(processor, samples))

samples = TaskSamples(data.validation, Augmentation(256), train=False)
plan = EvaluationPlan(data.validation.table, batch_size, rank, world)
loader = DataLoader(samples, batch_sampler=plan, collate_fn=TaskCollator(processor, samples))
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from gfm_hf.data.augmentation import Augmentation, View, view_of_image, view_of_map, whole_view
from gfm_hf.data.label_maps import IGNORE
from gfm_hf.data.mixing import Mixing, mix_images, soft_targets
from gfm_hf.data.plan import SampleKey
from gfm_hf.data.reading import TaskSample
from gfm_hf.data.sources import ImageTable
from gfm_hf.data.tasks import TaskSplit


@dataclass
class TaskSamples(Dataset[dict[str, Any]]):
    """Views of a labelled part, one per `SampleKey`.

    A view depends on (seed, epoch, position in the part) alone, so workers, ranks and resumed runs make the same one.

    Attributes:
        records: The part.
        augmentation: Size of the views, and what training draws.
        seed: Seed of the views.
        train: Random views; otherwise the whole image resized, or for super-resolution its central window.
    """

    records: TaskSplit
    augmentation: Augmentation
    seed: int = 0
    train: bool = True

    def __getitem__(self, key: SampleKey | tuple[int, Any]) -> dict[str, Any]:
        """Make one sample.

        Args:
            key: What a plan over `records.table` yields, or just (epoch, record).

        Returns:
            `epoch`, `step` and `weight` of the key; unless it is a filler also `index`, `name`, `images` (1 or 2 arrays
            (C, S, S)) and the one of these that the task has: `label` (id or (K,) multi-hot), `label_map` (S, S),
            `target` (C, scale * S, scale * S).

        Raises:
            ValueError: The sample cannot be read, or is too small; the message names the file.
        """
        epoch, record, weight, step = SampleKey(*key)
        sample: dict[str, Any] = {"epoch": epoch, "step": step, "weight": weight}
        if record is None:
            return sample
        decoded = self.records[record.index]
        try:
            return sample | {"index": record.index, "name": decoded.name} | self._views(decoded, epoch)
        except ValueError as error:
            raise ValueError(f"image {decoded.name}: {error}") from error

    def _views(self, sample: TaskSample, epoch: int) -> dict[str, Any]:
        """Cut the views of one sample, all by one draw."""
        size = self.augmentation.image_size
        view = self._view(sample, epoch)
        views: dict[str, Any] = {"images": [view_of_image(image, view, size) for image in sample.images]}
        if sample.label is not None:
            views["label"] = sample.label
        if sample.label_map is not None:
            views["label_map"] = view_of_map(sample.label_map, view, size)
        if sample.target is not None:
            scale = self.records.reading.scale
            views["target"] = view_of_image(sample.target, view.enlarged(scale), size * scale)
        return views

    def _view(self, sample: TaskSample, epoch: int) -> View:
        """Draw a view, or take the fixed one. Targets are cut without resizing, which would invent their detail."""
        height, width = sample.images[0].shape[:2]
        if self.train:
            windows = sample.target is not None
            draw = self.augmentation.draw_window if windows else self.augmentation.draw
            return draw(sample.index, epoch, self.seed, height, width)
        return whole_view(height, width) if sample.target is None else self.augmentation.centre_window(height, width)


@dataclass
class TaskCollator:
    """Samples of one micro-batch -> tensors of a step; runs in the worker.

    Attributes:
        processor: Image processor of the model; called as `processor(images=[(C, S, S) arrays],
            input_data_format="channels_first", do_resize=False, return_tensors="pt")`, with pairs
            [(before, after)] in place of arrays, and for maps also with `segmentation_maps=[(S, S) ids]` and
            `maps_are_ids=True`; gives `pixel_values`, and `labels` that are ignored where an image lacks pixels.
        samples: The dataset, for its geometry and seed.
        mixing: Mixup, CutMix and label smoothing of training; classification only.

    Raises:
        ValueError: Mixing for another task.
    """

    processor: Callable[..., Any]
    samples: TaskSamples
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        self.reading = self.samples.records.reading
        if self.mixing and self.reading.task != "classification":
            raise ValueError(f"mixing is for classification, not for {self.reading.task}; leave it out.")

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples.

        Args:
            samples: At least one sample of `TaskSamples`, all of one step.

        Returns:
            `pixel_values`: (B, C, S, S) float32, normalised; (B, 2, C, S, S) for pairs.
            `labels`: ids (B,); multi-hot or mixed (B, K) float32; maps (B, S, S) int64 with 255 = ignore; or normalised
                targets (B, C, scale * S, scale * S).
            `loss_weight`: scalar; loss is a mean over B, so under an `EpochPlan` the mean of loss_weight * loss over
                ranks and micro-batches of a step, and under an `EvaluationPlan` the sum over all ranks and batches, is
                the mean over samples.
            `num_targets`: Pixels that are not ignored, for maps; else samples. Where maps have ignored pixels, the mean
                over all pixels is sum(num_targets * loss) / sum(num_targets).
            `index`: (B,) int64 position of each sample in its part; `names`: list of B.
            `epoch`, `step`: of the key.
            A batch of a filler alone is one zero image with `loss_weight` and `num_targets` 0 and `index` -1, so that
            every rank has a step to take.

        Raises:
            ValueError: The processor refuses an image or map; the message names the file.
        """
        real = [sample for sample in samples if "images" in sample]
        batch = self._tensors(real) if real else self._filler()
        first = samples[0]
        if self.mixing:
            batch = self._mixed(batch, first["epoch"], first["step"])
        maps = "label_map" in real[0] if real else False
        return batch | {
            "loss_weight": torch.tensor(first["weight"] * len(real), dtype=torch.float32),
            "num_targets": int((batch["labels"] != IGNORE).sum()) if maps else len(real),
            "index": torch.tensor([sample["index"] for sample in real] or [-1]),
            "names": [sample["name"] for sample in real],
            "epoch": first["epoch"],
            "step": first["step"],
        }

    def _tensors(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Normalise images, maps and targets; an error names the sample it came from."""
        try:
            return self._processed(samples)
        except ValueError:
            for sample in samples:
                try:
                    self._processed([sample])
                except ValueError as error:
                    raise ValueError(f"image {sample['name']}: {error}") from error
            raise

    def _processed(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Normalise and stack."""
        images = [tuple(views) if len(views) == 2 else views[0] for views in (sample["images"] for sample in samples)]
        if "label_map" not in samples[0]:
            return {"pixel_values": self._process(images).pixel_values, "labels": self._labels(samples)}
        maps = [sample["label_map"] for sample in samples]
        outputs = self._process(images, segmentation_maps=maps, maps_are_ids=True)
        return {"pixel_values": outputs.pixel_values, "labels": outputs.labels}

    def _labels(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        """Stack labels, or normalised targets."""
        if "target" in samples[0]:
            return self._process([sample["target"] for sample in samples]).pixel_values
        return torch.from_numpy(np.stack([sample["label"] for sample in samples]))

    def _process(self, images: list[Any], **maps: Any) -> Any:
        """Call the processor on views of the right size."""
        arguments = {"input_data_format": "channels_first", "do_resize": False, "return_tensors": "pt"}
        return self.processor(images=images, **maps, **arguments)

    def _filler(self) -> dict[str, torch.Tensor]:
        """Make a batch without samples: zeros, with labels that any loss accepts."""
        reading, size = self.reading, self.samples.augmentation.image_size
        dates = (2,) if len(reading.image_columns) == 2 else ()
        labels = self.samples.records.labels
        if reading.task == "super_resolution":
            zeros = torch.zeros(1, reading.num_channels, size * reading.scale, size * reading.scale)
        elif labels is None:
            zeros = torch.zeros(1, size, size, dtype=torch.int64)
        else:
            zeros = torch.from_numpy(np.zeros_like(labels[:1]))
        return {"pixel_values": torch.zeros(1, *dates, reading.num_channels, size, size), "labels": zeros}

    def _mixed(self, batch: dict[str, torch.Tensor], epoch: int, step: int) -> dict[str, torch.Tensor]:
        """Mix images and soften targets, by the draw of the step."""
        mixing, pixel_values = self.mixing, batch["pixel_values"]
        assert mixing is not None
        mix = mixing.draw(self.samples.seed, epoch, step, *pixel_values.shape[-2:])
        soft = soft_targets(batch["labels"], self.reading.num_labels, mixing.label_smoothing, mix.lam)
        return {"pixel_values": mix_images(pixel_values, mix), "labels": soft}


class EvaluationPlan(Sampler[list[SampleKey]]):
    """Batch sampler of one pass in the order of the table: each record once over all ranks.

    Batches are those of a single process, dealt out in turn: rank r gets r, r + world, ... All ranks get equally many;
    one that would lack its last batch gets a filler of weight 0. Key weights are 1 / N, so the sum of
    loss_weight * loss over all ranks and batches is the mean over the N records.

    Args:
        table: What to evaluate on.
        batch_size: Records of a batch.
        rank: This process, from 0.
        world: Number of processes.

    Raises:
        ValueError: A size below 1, or a rank outside the world.
    """

    def __init__(self, table: ImageTable, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size {batch_size} must be 1 or more and rank {rank} from 0 to world {world} - 1; check both."
            )
        self.table, self.batch_size, self.rank, self.world = table, batch_size, rank, world

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-len(self.table) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield this rank's batches, always of epoch 0."""
        for step in range(len(self)):
            first = (step * self.world + self.rank) * self.batch_size
            records = [self.table[i] for i in range(first, min(first + self.batch_size, len(self.table)))]
            keys = [SampleKey(0, record, 1 / len(self.table), step) for record in records]
            yield keys or [SampleKey(0, None, 0.0, step)]
