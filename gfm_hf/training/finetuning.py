"""The loop that fine-tuning on any task shares: train, evaluate, keep the best, stop early, resume exactly."""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.meters import StepMeter
from gfm_hf.training.optim import Schedule, set_learning_rate
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import BEST, InputError, RunFolder, StopSignal, running, user_input


# (model, batch, accelerator, accumulation) -> the loss times the micro-batch's share; has called backward.
TrainStep = Callable[[torch.nn.Module, dict[str, Any], Accelerator, int], torch.Tensor]
# () -> scores of the validation part, equal on every process.
Evaluate = Callable[[], dict[str, float]]


@dataclass
class BestWeights:
    """The trained weights at the best evaluation so far, on the CPU.

    Frozen weights never change and are left out, so that an adapter's best is as small as the adapter.

    Attributes:
        model: The unwrapped model.
        metric: Name of the score to choose by.
        larger_is_better: Whether a larger score is the better one.
        weights: Name -> tensor; None before the first evaluation.
    """

    model: torch.nn.Module
    metric: str
    larger_is_better: bool = True
    weights: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def offer(self, scores: dict[str, float], best: float | None) -> bool:
        """Take the present weights if they score better than `best`; a score that is no number is only the first."""
        score = scores[self.metric]
        better = best is None or math.isnan(best) or (score > best if self.larger_is_better else score < best)
        if self.weights is not None and (math.isnan(score) or not better):
            return False
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in self._changing().items()}
        return True

    def read(self, checkpoint: Path) -> None:
        """Take what a checkpoint holds."""
        if (checkpoint / BEST).exists():
            self.weights = load_file(checkpoint / BEST)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back into the model."""
        for name, tensor in self._changing().items():
            if self.weights is not None:
                tensor.copy_(self.weights[name])

    def _changing(self) -> dict[str, torch.Tensor]:
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        fixed = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if name in trained or name not in fixed}


@dataclass
class FineTuning:
    """What the loop works with; everything is built by the script.

    Attributes:
        args: `gradient_accumulation_steps`, `max_grad_norm`, `logging_steps`, `eval_steps` (None: after every epoch),
            `checkpointing_steps`, `early_stopping_patience` (None: never).
        accelerator: Of the run.
        model: Prepared by the accelerator.
        optimizer: Prepared likewise.
        schedule: Rate of every update; knows how many there are.
        steps_per_epoch: Updates of one pass.
        loader: Endless, of this process alone.
        folder: Where checkpoints and logs go.
        stop: Told to end?
        energy: Counts.
        best: Keeps the best weights.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    steps_per_epoch: int
    loader: DataLoader
    folder: RunFolder
    stop: StopSignal
    energy: EnergyMeter
    best: BestWeights


def finetune(
    run: FineTuning,
    progress: dict[str, Any],
    train_step: TrainStep,
    evaluate: Evaluate,
    publisher: BackgroundPush | None = None,
    write: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Train from `progress` to the last step, to an early stop or to a signal.

    Args:
        run: What to work with.
        progress: `step`, `epoch`, `step_in_epoch`, `images`, and of an earlier part `best_score`, `best_step`, `stale`.
        train_step: Forward and backward of one micro-batch.
        evaluate: Scores of the validation part.
        publisher: Pushes checkpoints; main process only.
        write: Writes the model of a progress into a folder, for the publisher.

    Returns:
        The progress; `finished` tells an end of its own from a signal.
    """
    args, accelerator, total = run.args, run.accelerator, run.schedule.total_steps
    accumulation = args.gradient_accumulation_steps
    progress = {"best_score": None, "best_step": 0, "stale": 0, "scores": {}, "finished": False} | progress
    meter = StepMeter(accelerator)
    bar = tqdm(
        total=total, initial=progress["step"], disable=not accelerator.is_main_process, unit="step", mininterval=1
    )
    run.model.train()
    with bar, running(run.loader) as batches:
        for step in range(progress["step"], 0 if progress["finished"] else total):
            rate = set_learning_rate(run.optimizer, run.schedule, step)
            for micro_step in range(accumulation):
                with meter.waiting(), user_input():
                    batch = next(batches)
                last = micro_step == accumulation - 1
                with nullcontext() if last else accelerator.no_sync(run.model):
                    loss = train_step(run.model, batch, accelerator, accumulation)
                meter.add(loss.reshape(1), images=len(batch["names"]), last=last)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(run.model.parameters(), args.max_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()

            done = step + 1
            bar.update()
            evaluating = done == total or _is_due(done, args.eval_steps, batch, run.steps_per_epoch)
            if evaluating:
                with meter.paused():
                    progress |= _evaluated(run, progress, done, evaluate())
            impatient = args.early_stopping_patience and progress["stale"] >= args.early_stopping_patience
            finished = done == total or bool(impatient)
            stopping = finished or run.stop.agreed(accelerator)
            saving = stopping or done % args.checkpointing_steps == 0
            if done % args.logging_steps == 0 or saving:
                record = {"step": done, "epoch": batch["epoch"], "learning_rate": rate, **meter.close()}
                if not math.isfinite(record["loss"]):
                    raise InputError(f"The loss is {record['loss']} at step {done}; lower --learning_rate and resume.")
                run.folder.log(record)
                accelerator.log(record, step=done)
                bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['images_per_second']:.1f} images/s")
                if publisher:
                    publisher.poll()
            if saving:
                progress |= {
                    "step": done,
                    "epoch": batch["epoch"],
                    "step_in_epoch": batch["step"] + 1,
                    "images": progress["images"] + meter.take_images(),
                    "energy": run.energy.report(),
                    "finished": finished,
                }
                run.folder.save_checkpoint(done, progress, run.best.weights)
                if publisher and write and not stopping:
                    publisher.offer(done, partial(write, progress=progress))
            if stopping:
                break
    return progress


def _is_due(done: int, eval_steps: int | None, batch: dict[str, Any], steps_per_epoch: int) -> bool:
    return done % eval_steps == 0 if eval_steps else batch["step"] + 1 == steps_per_epoch


def _evaluated(run: FineTuning, progress: dict[str, Any], done: int, scores: dict[str, float]) -> dict[str, Any]:
    """What an evaluation changes in the progress."""
    run.model.train()
    run.folder.log({"step": done, **{f"eval_{name}": value for name, value in scores.items()}})
    run.accelerator.log({f"eval_{name}": value for name, value in scores.items()}, step=done)
    if run.best.offer(scores, progress["best_score"]):
        return {"scores": scores, "best_score": scores[run.best.metric], "best_step": done, "stale": 0}
    return {"stale": progress["stale"] + 1}
