"""A run's output folder: whole checkpoints, logs, results, and an orderly end."""

import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "unfinished-"
LOG = "trainer_state.jsonl"
PROGRESS = "progress.json"
BEST = "best.safetensors"
# A writer that fails with less than this left has most likely run out of space.
FULL_BELOW_BYTES = 2**20


class InputError(ValueError):
    """What the user asked for cannot be done; the message says what to do next."""


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Turn a script's main into one that ends with an exit code.

    0: done. 2: the user's input is at fault; one sentence on stderr. Anything else leaves as an exception, code 1.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 2
        return 0

    return run


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Context in which a ValueError or OSError means that the user's input is at fault."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        # A data worker wraps the error into its whole traceback; the sentence is the last line.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = lines[-1].removeprefix("ValueError: ") if lines[0].startswith("Caught ") else " ".join(lines)
        raise InputError(" ".join(message.split())) from error


class StopSignal:
    """Remembers SIGTERM and the first Ctrl-C, so that the loop can finish its step and save."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was told to stop; every process gets the same answer."""
        if accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor(float(self.received), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


def end_training(accelerator: Accelerator) -> None:
    """Close trackers and the process group, after the last step.

    torch's reducer, which a wrapped model holds, frees its process group without letting go of Python's lock. If it
    holds the last reference while the group's thread waits for that lock, the process never ends. So another reference
    stays, for ever: were the group freed when the interpreter ends, its thread would ask for a lock that is given to
    nobody any more, and the process would be aborted.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(torch.distributed.group.WORLD))
    accelerator.end_training()


def ignore_signals(worker: int) -> None:
    """`worker_init_fn` of a data loader: an orderly stop is the training process's business."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def running(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """Iterate over a loader and end its workers, whatever happens.

    They ignore SIGTERM, with which an ending process would stop them: left alone, an error would hang for ever.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            cast(Any, batches)._shutdown_workers()


class RunFolder:
    """The output folder of one run.

    A checkpoint is written under a temporary name and renamed when it is whole; older ones are deleted after that. A
    process killed at any moment leaves nothing that looks like a checkpoint and is not.
    """

    def __init__(self, path: str | Path, accelerator: Accelerator, total_limit: int | None = None) -> None:
        self.path = Path(path)
        self._accelerator = accelerator
        self._total_limit = total_limit
        if accelerator.is_main_process:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"--output_dir {self.path} cannot be made ({error.strerror}); choose another."
                ) from error
            for leftover in self.path.glob(f"{UNFINISHED}*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        accelerator.wait_for_everyone()

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [path for path in self.path.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
        return sorted(found, key=_step_of)

    def checkpoint_to_resume(self, resume_from: str | None) -> Path | None:
        """Where to go on: a folder, the newest checkpoint for "latest", or None for a new run.

        Raises:
            InputError: The checkpoint does not exist, or the folder already holds a run that would be lost.
        """
        checkpoints = self.checkpoints()
        if resume_from is None:
            if checkpoints or (self.path / LOG).exists():
                raise InputError(
                    f"{self.path} already holds a run; pass --resume_from_checkpoint latest to go on with it, or "
                    "another --output_dir."
                )
            return None
        if resume_from == "latest":
            return checkpoints[-1] if checkpoints else None
        if not CHECKPOINT.fullmatch(Path(resume_from).name) or not Path(resume_from).is_dir():
            raise InputError(
                f"--resume_from_checkpoint {resume_from} is no checkpoint folder; {self.path} has "
                f"{', '.join(path.name for path in checkpoints) or 'none'}."
            )
        newer = [path.name for path in checkpoints if _step_of(path) > _step_of(Path(resume_from))]
        if newer:
            raise InputError(
                f"{self.path} holds newer checkpoints than {Path(resume_from).name}, which the resumed run would mix "
                f"with its own; move {', '.join(newer)} away, or resume from latest."
            )
        return Path(resume_from)

    def save_checkpoint(
        self, step: int, progress: dict[str, Any], best: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Write `checkpoint-STEP`: all that `accelerator.save_state` knows, and the loop's own progress.

        Args:
            step: Optimizer steps done.
            progress: What the loop needs to go on, as JSON.
            best: Weights of the best evaluation so far, where the loop keeps them.
        """
        final = self.path / f"checkpoint-{step}"
        if final.exists():
            return
        temporary = self.path / f"{UNFINISHED}{final.name}"
        if self._accelerator.is_main_process:
            temporary.mkdir()
        self._accelerator.wait_for_everyone()
        with self._disk(temporary):
            self._accelerator.save_state(str(temporary))
            if self._accelerator.is_main_process:
                (temporary / PROGRESS).write_text(json.dumps(progress, indent=2))
                if best is not None:
                    save_file(best, temporary / BEST)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            temporary.rename(final)
            self._drop_old_checkpoints()
        self._accelerator.wait_for_everyone()

    def load_checkpoint(self, checkpoint: Path, run: dict[str, Any]) -> dict[str, Any]:
        """Restore what `save_checkpoint` wrote; returns the progress.

        Args:
            checkpoint: A folder from `checkpoint_to_resume`.
            run: What has to be the same for the run to go on as if it had never stopped; compared with the stored
                `progress["run"]`.

        Raises:
            InputError: The run was started with other images, batch size, seed or length.
        """
        with user_input():
            progress = json.loads((checkpoint / PROGRESS).read_text())
        # As text, in which even NaN equals itself.
        changed = [n for n, value in run.items() if json.dumps(progress["run"].get(n)) != json.dumps(value)]
        if changed:
            before = ", ".join(f"{name} {progress['run'].get(name)} (now {run[name]})" for name in changed)
            raise InputError(
                f"{checkpoint.name} belongs to a run with {before}; resume with the same values, or start a new run in "
                "another --output_dir."
            )
        try:
            self._accelerator.load_state(str(checkpoint))
        except RuntimeError as error:
            raise InputError(
                f"{checkpoint} holds another model than the one asked for; resume with the flags of its run, or start a "
                "new run in another --output_dir."
            ) from error
        return progress

    @staticmethod
    def is_finished(checkpoint: Path) -> bool:
        """Whether a checkpoint is that of the last step."""
        with user_input():
            return bool(json.loads((checkpoint / PROGRESS).read_text()).get("finished"))

    def save_result(self, write: Callable[[Path], None]) -> None:
        """Let the main process write the final files into a temporary folder, then move them into place."""
        if self._accelerator.is_main_process:
            temporary = self.path / f"{UNFINISHED}result"
            with self._disk(temporary):
                temporary.mkdir()
                write(temporary)
                for item in sorted(temporary.iterdir()):
                    os.replace(item, self.path / item.name)
                temporary.rmdir()
        self._accelerator.wait_for_everyone()

    def save_picture(self, picture: Image.Image, name: str) -> None:
        """Write a PNG below the folder; main process only."""
        if self._accelerator.is_main_process:
            path = self.path / name
            with self._disk():
                path.parent.mkdir(exist_ok=True)
                picture.save(path)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log; main process only."""
        if self._accelerator.is_main_process:
            with self._disk(), (self.path / LOG).open("a") as file:
                file.write(json.dumps(record) + "\n")

    def cut_log(self, step: int) -> None:
        """Forget what was logged after `step`, the checkpoint's: the resumed run logs it again."""
        log = self.path / LOG
        if self._accelerator.is_main_process and log.exists():
            # A killed process may leave half a line.
            lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            temporary = log.with_name(f"{UNFINISHED}{LOG}")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, log)

    def _drop_old_checkpoints(self) -> None:
        if self._total_limit is None:
            return
        for old in self.checkpoints()[: -self._total_limit]:
            # Renamed first: a half-deleted checkpoint must not look like a whole one.
            doomed = old.with_name(UNFINISHED + old.name)
            old.rename(doomed)
            shutil.rmtree(doomed)

    @contextlib.contextmanager
    def _disk(self, temporary: Path | None = None) -> Iterator[None]:
        """Context of a write: on failure nothing half-written stays, and a full disk is said to be full."""
        try:
            yield
        except Exception as error:
            # Writers report a full disk as errors of many types, but the disk itself tells.
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            full = full or shutil.disk_usage(self.path).free < FULL_BELOW_BYTES
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if not full:
                raise
            left = ", ".join(path.name for path in self.checkpoints()) or "no checkpoint"
            raise InputError(
                f"the disk of --output_dir {self.path} is full; free some space and pass --resume_from_checkpoint "
                f"latest ({left} is whole)."
            ) from error


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
