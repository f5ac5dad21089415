"""One fine-tuning run from its folder to its result: what every task does alike around its own model and scores.

task = TaskRun(args, "gfm-classification")
task.prepare(model, processor, data, optimizer, metric="accuracy")
finished = task.train(loader, plan, schedule, train_step, evaluate)
task.finish(split.name, scores)
"""

import argparse
import json
import platform
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from gfm_hf.cards import write_card
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.tasks import TaskData
from gfm_hf.hub import complete_code
from gfm_hf.training.adapting import count_parameters, save_adapter
from gfm_hf.training.arguments import arguments_of, hub_name
from gfm_hf.training.energy import EnergyMeter
from gfm_hf.training.finetuning import BestWeights, Evaluate, FineTuning, TrainStep, finetune
from gfm_hf.training.optim import Schedule
from gfm_hf.training.publishing import BackgroundPush
from gfm_hf.training.runs import RunFolder, StopSignal, end_training, user_input
from gfm_hf.training.seen import seen_in_pretraining


# Flags that do not change what a run computes, or whose effect is known otherwise: where things are and how they run.
MAY_CHANGE = {
    *("data_dir", "parquet", "dataset_name", "dataset_config_name", "dataset_revision", "cache_dir"),
    "pretraining_data",
    *("model_name_or_path", "model_revision", "attn_implementation", "gradient_checkpointing"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    *("dataloader_num_workers", "output_dir", "logging_steps", "checkpointing_steps", "checkpoints_total_limit"),
    *("resume_from_checkpoint", "report_to", "country_iso_code", "license", "push_to_hub", "hub_model_id"),
    *("hub_private_repo", "hub_token", "hub_timeout_s"),
}


class TaskRun:
    """A run's accelerator, folder and progress; the script adds model, data, steps and scores.

    Attributes:
        accelerator: Of the run.
        folder: Where everything is written.
        model: Prepared by the accelerator; from `prepare` on.
        progress: Where the run stands; from `prepare` on.
        about: Facts for results and card; from `prepare` on.

    Args:
        args: All flags of the script.
        name: Of the project in a tracker.

    Raises:
        InputError: Flags of the run that cannot be followed.
    """

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.args, self._name = args, name
        with user_input():
            self.accelerator = Accelerator(
                mixed_precision=args.mixed_precision, log_with=args.report_to, project_dir=args.output_dir
            )
        self._stop = StopSignal()
        hub_name(args)  # refused now rather than after the last step
        self.folder = RunFolder(args.output_dir, self.accelerator, args.checkpoints_total_limit)
        self._resume_from = self.folder.checkpoint_to_resume(args.resume_from_checkpoint)
        self._publisher: BackgroundPush | None = None
        set_seed(args.seed)

    def prepare(
        self,
        model: Any,
        processor: Any,
        data: TaskData,
        optimizer: torch.optim.Optimizer,
        metric: str,
        **about: Any,
    ) -> None:
        """Take what is trained, from a checkpoint where the run is resumed.

        Args:
            model: Unwrapped.
            processor: Of the model.
            data: The labelled set.
            optimizer: Over the model.
            metric: Score of the validation part to choose the weights by; the larger the better.
            **about: More facts for results and card; a resumed run has to have the same ones.
        """
        self._unwrapped, self._processor, self._data = model, processor, data
        facts = _describe(self.args, self.accelerator, model, data)
        if self.accelerator.is_main_process:
            with user_input():
                facts |= seen_in_pretraining(self.args, data.test or data.validation)
        self.about = facts | about
        identity = self._identity(data, facts["trained_parameters"], processor.size["height"]) | about
        self.progress: dict[str, Any] = {"step": 0, "epoch": 0, "step_in_epoch": 0, "images": 0, "run": identity}
        self._best = BestWeights(model, metric)
        self.model, self._optimizer = self.accelerator.prepare(model, optimizer)
        if self._resume_from:
            if self.folder.is_finished(self._resume_from):
                # The scores alone may be missing: a file may have been mended for them, and any number may compute them.
                del identity["data"], identity["global_batch_size"]
            self.progress = self.folder.load_checkpoint(self._resume_from, identity)
            self._best.read(self._resume_from)
        self.folder.cut_log(self.progress["step"])

    def train(
        self, loader: DataLoader, plan: EpochPlan, schedule: Schedule, train_step: TrainStep, evaluate: Evaluate
    ) -> bool:
        """Train to the end and go back to the best weights.

        Args:
            loader: Endless batches.
            plan: Of the loader.
            schedule: Rate of every update; knows how many there are.
            train_step: Forward and backward of one micro-batch.
            evaluate: Scores of the validation part.

        Returns:
            False after a signal: the run is saved and not finished.
        """
        args = self.args
        with user_input():
            energy = EnergyMeter(self.accelerator.num_processes, args.country_iso_code, self.progress.get("energy"))
        if args.report_to:
            self.accelerator.init_trackers(self._name, {name: str(value) for name, value in vars(args).items()})
        trained, parameters = self.about["trained_parameters"], self.about["parameters"]
        self.accelerator.print(f"{self._data.description}; {trained:,} of {parameters:,} parameters train")
        self.accelerator.print(
            f"steps {self.progress['step']} to {schedule.total_steps}, {plan.global_batch_size} samples each"
        )
        if args.push_to_hub and self.accelerator.is_main_process:
            self._publisher = BackgroundPush(self.folder.path, hub_name(args), args.hub_private_repo, args.hub_token)
        work = FineTuning(
            args=args,
            accelerator=self.accelerator,
            model=self.model,
            optimizer=self._optimizer,
            schedule=schedule,
            steps_per_epoch=plan.steps_per_epoch or 1,
            loader=loader,
            folder=self.folder,
            stop=self._stop,
            energy=energy,
            best=self._best,
        )
        with self._publisher or nullcontext():
            self.progress = finetune(work, self.progress, train_step, evaluate, self._publisher, self._write)
        if self.progress["finished"]:
            self._best.restore()
            # Written before the untouched part is read: a file of it that is broken must not cost the model.
            self.folder.save_result(partial(self._write, progress=self.progress))
        else:
            self.accelerator.print(
                f"stopped at step {self.progress['step']}; go on with --resume_from_checkpoint latest"
            )
        return bool(self.progress["finished"])

    def finish(self, part: str, scores: dict[str, float], told: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Write the result, push it, and say how it went.

        Args:
            part: Name of the part that was scored.
            scores: Of that part.
            told: Names of the scores to print; None: all.

        Returns:
            The facts of the run with `scores`, as data.
        """
        if part == "test":  # those of validation are written already
            self.folder.save_result(partial(self._write, progress=self.progress, test_scores=scores))
        steps, best = self.progress["step"], self.progress["best_step"]
        if self._publisher:
            self._publisher.push_result(self.args.hub_timeout_s, stopped=lambda: self._stop.received)
        words = ", ".join(f"{name} {scores[name]:.4f}" for name in told or scores if name in scores)
        self.accelerator.print(f"done: {steps} steps, best at {best}; {part}: {words}; {self.folder.path}")
        end_training(self.accelerator)
        return {**self.about, "steps": steps, "best_step": best, "scores": scores}

    def _identity(self, data: TaskData, trained_parameters: int, image_size: int) -> dict[str, Any]:
        """What has to be the same for a resumed run to go on as if it had never stopped, as JSON gives it back."""
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        fixed = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
        found = {"data": data.fingerprint, "trained": trained_parameters, "global_batch_size": batch}
        return json.loads(json.dumps({**fixed, **found, "image_size": image_size}))

    def _write(self, path: Path, progress: dict[str, Any], test_scores: dict[str, float] | None = None) -> None:
        """Write model or adapter, processor, code, results and card into an empty folder."""
        about, model = self.about, self._unwrapped
        seconds = progress["energy"]["device_hours"] * 3600 / about["devices"]
        validation = {f"eval_{name}": value for name, value in progress["scores"].items()}
        facts = {**about, "steps": progress["step"], "best_step": progress["best_step"], **validation}
        facts |= {f"test_{name}": value for name, value in (test_scores or {}).items()}
        facts |= {**progress["energy"], "images_per_second": progress["images"] / max(seconds, 1e-9)}
        save_adapter(model, path) if self.args.lora_r else model.save_pretrained(path)
        self._processor.save_pretrained(path)
        complete_code(path)  # peft leaves out the files that load its base
        results = facts | {"arguments": arguments_of(self.args)}
        (path / "all_results.json").write_text(json.dumps(results, indent=2))
        write_card(path, hub_name(self.args), facts)


def _describe(args: argparse.Namespace, accelerator: Accelerator, model: Any, data: TaskData) -> dict[str, Any]:
    """What is known before the first step, for results and card."""
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if on_gpu else platform.processor() or platform.machine()
    trained, parameters = count_parameters(model)
    origin = None if Path(args.model_name_or_path).exists() or args.random_init else args.model_name_or_path
    about = {
        "images": data.description,
        "data_fingerprint": data.fingerprint,
        "dataset_name": None if Path(args.dataset_name or ".").exists() else args.dataset_name,
        "license": args.license,
        "started_from": "a random start" if args.random_init else Path(args.model_name_or_path).name,
        "base_model": origin,
        "trained": f"rank {args.lora_r} additions" if args.lora_r else "the head" if args.freeze_backbone else "all",
        "trained_parameters": trained,
        "parameters": parameters,
        "devices": accelerator.num_processes,
        "hardware": f"{accelerator.num_processes} x {device}",
        "country_iso_code": args.country_iso_code,
        "seed": args.seed,
    }
    return {name: value for name, value in about.items() if value is not None}
