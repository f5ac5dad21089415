"""Pushing to the Hub beside a training run, which neither waits for the network nor ends with it."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from gfm_hf.training.runs import LOG, UNFINISHED


# The command of `gfm-hf push`, by the interpreter of the run.
PUSH_COMMAND = (sys.executable, "-m", "gfm_hf_cli", "push")
# RunFolder removes what a killed run leaves under these names.
SNAPSHOT = f"{UNFINISHED}push"
OUTPUT = f"{UNFINISHED}push.log"
POLL_S = 0.2
# What a child that was told to stop may take before it is killed.
GRACE_S = 5
LONGEST_REASON = 400


class BackgroundPush:
    """Pushes a run's checkpoints in a process of their own; used by the main process alone.

    As a context it ends the push that is still in flight and removes its snapshot. Whatever goes wrong on the way to
    the Hub costs one warning line on stderr.

    Args:
        folder: The run's output folder; the snapshot lies in it while it is pushed.
        repo_id: `namespace/name` or a bare name.
        private: Whether a new repository is private; None: what the namespace prescribes.
        token: Handed to the child in its environment, where no list of processes shows it.

    Raises:
        ValueError: `repo_id` is no name for a repository.
    """

    def __init__(
        self, folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> None:
        validate_repo_id(repo_id)
        self._folder = Path(folder)
        self._repo_id = repo_id
        self._private = private
        self._token = token
        self._child: subprocess.Popen[bytes] | None = None
        self._what = ""
        self._skipping = False

    def __enter__(self) -> "BackgroundPush":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def offer(self, step: int, write: Callable[[Path], None]) -> bool:
        """Push a snapshot, unless the one before is still on its way: then this one is skipped.

        Args:
            step: Optimizer steps done.
            write: Writes model, processor, code and card into the empty folder it is given.

        Returns:
            Whether a push was started.
        """
        self.poll()
        if self._child is not None:
            if not self._skipping:
                _say(f"the push of {self._what} is still on its way; checkpoints are skipped until it has arrived")
            self._skipping = True
            return False
        # A name of its own: the push of a run that was killed may live on, and must not find other files in its place.
        snapshot = self._folder / SNAPSHOT / f"step-{step}"
        try:
            snapshot.mkdir(parents=True)
            write(snapshot)
            if (self._folder / LOG).exists():
                shutil.copyfile(self._folder / LOG, snapshot / LOG)
            self._start(snapshot, f"step {step}")
        except Exception as error:  # a full disk has many names; the run has its own checkpoint and goes on
            self.close()
            _say(f"warning: step {step} was not pushed ({' '.join(str(error).split())[:LONGEST_REASON]})")
            return False
        return True

    def poll(self) -> bool | None:
        """Report a push that has ended; costs a system call while one has not.

        Returns:
            Whether it arrived; None while it is on its way, or if there is none.
        """
        if self._child is None or self._child.poll() is None:
            return None
        arrived = self._report()
        self._clean_up()
        return arrived

    def push_result(self, timeout_s: float, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Push the finished output folder and wait for it.

        Args:
            timeout_s: Seconds after which the push is given up.
            stopped: Whether the run was told to end; asked while waiting.

        Returns:
            Whether it arrived.
        """
        self.close()
        reason = f"it took more than {timeout_s:g} s"
        try:
            self._start(self._folder, "the result")
            end = time.monotonic() + timeout_s
            while time.monotonic() < end:
                if stopped():
                    reason = "the run was told to stop"
                    break
                if (arrived := self.poll()) is not None:
                    return arrived
                time.sleep(POLL_S)
        except OSError as error:
            reason = str(error)
        finally:
            self.close()
        _say(f"warning: the push of the result was given up ({reason}); {self._advice()}")
        return False

    def close(self) -> None:
        """End the push in flight, if there is one, and remove its snapshot."""
        self.poll()
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._clean_up()

    def _start(self, folder: Path, what: str) -> None:
        words = [*PUSH_COMMAND, str(folder), self._repo_id, *(["--private"] if self._private else [])]
        environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self._token:
            environment["HF_TOKEN"] = self._token
        # A file, not a pipe: nobody reads while the run goes on, and a full pipe would stop the child.
        with (self._folder / OUTPUT).open("wb") as output:
            self._child = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self._what = what

    def _report(self) -> bool:
        """Say in one line how the child ended, by the last line it wrote."""
        assert self._child is not None
        output = self._folder / OUTPUT
        lines = output.read_text(errors="replace").split("\n") if output.exists() else []
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        if self._token:
            last = last.replace(self._token, "***")
        if self._child.returncode == 0:
            _say(f"pushed {self._what} to {last or self._repo_id}")
            return True
        reason = last.removeprefix("error: ") or f"exit code {self._child.returncode}"
        _say(f"warning: {self._what} was not pushed ({reason[:LONGEST_REASON]}); {self._advice()}")
        return False

    def _advice(self) -> str:
        words = ["gfm-hf", "push", str(self._folder), self._repo_id, *(["--private"] if self._private else [])]
        return f"once the run is done, push it with: {shlex.join(words)}"

    def _clean_up(self) -> None:
        self._child = None
        self._skipping = False
        shutil.rmtree(self._folder / SNAPSHOT, ignore_errors=True)
        (self._folder / OUTPUT).unlink(missing_ok=True)


def _say(line: str) -> None:
    """On stderr, around the progress bar."""
    tqdm.write(line, file=sys.stderr)
