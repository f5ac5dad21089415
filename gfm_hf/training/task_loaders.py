"""Batches of a labelled part for this process: endless ones to train on, one ordered pass to evaluate."""

import argparse
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.mixing import Mixing
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import TaskSplit
from gfm_hf.training.runs import ignore_signals


def training_loader(
    args: argparse.Namespace,
    split: TaskSplit,
    augmentation: Augmentation,
    processor: Any,
    accelerator: Accelerator,
    start: dict[str, Any],
    mixing: Mixing | None = None,
) -> tuple[DataLoader, EpochPlan]:
    """Endless batches from where a run starts.

    Args:
        args: Flags of batches and workers.
        split: The training part.
        augmentation: What is drawn per image.
        processor: Of the model.
        accelerator: Tells which process this is.
        start: `epoch` and `step_in_epoch` of the run's progress.
        mixing: Mixup, CutMix and label smoothing; classification only.
    """
    samples = TaskSamples(split, augmentation, args.seed)
    plan = EpochPlan(
        split.table,
        args.per_device_train_batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
        epoch_start=start["epoch"],
        step_start=start["step_in_epoch"],
    )
    loader = DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=TaskCollator(processor, samples, mixing),
        num_workers=args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(args.seed),
    )
    return loader, plan


def evaluation_loader(
    args: argparse.Namespace, split: TaskSplit, processor: Any, accelerator: Accelerator
) -> DataLoader:
    """A part in its order, each sample once over all processes: whole images, for super-resolution central windows."""
    samples = TaskSamples(split, Augmentation(processor.size["height"]), train=False)
    batch_size = args.per_device_eval_batch_size or args.per_device_train_batch_size
    plan = EvaluationPlan(split.table, batch_size, accelerator.process_index, accelerator.num_processes)
    return DataLoader(
        samples,
        batch_sampler=plan,
        collate_fn=TaskCollator(processor, samples),
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_signals,
    )


def shown_samples(split: TaskSplit, processor: Any, count: int = 6) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Up to `count` samples spread over a part, as evaluation sees them, for a picture.

    Returns:
        The samples (`index`, `images`, ... of `TaskSamples`) and their batch (of `TaskCollator`).
    """
    samples = TaskSamples(split, Augmentation(processor.size["height"]), train=False)
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    shown = [samples[(0, split.table[int(place)])] for place in chosen]
    return shown, TaskCollator(processor, samples)(shown)
