"""What a training loop counts: losses, speed, unreadable images."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from gfm_hf.training.runs import InputError


# More unreadable images than this share means that something is wrong with the set, not with some files.
UNREADABLE_LIMIT = 0.01
# A stream does not say how long it is; below this many images one bad one is no share worth speaking of.
STREAM_START = 100


class StepMeter:
    """Losses and speed since the last log line, over all processes.

    Args:
        names: Of the losses that `add` gets.
    """

    def __init__(self, accelerator: Accelerator, names: tuple[str, ...] = ("loss",)) -> None:
        self._accelerator = accelerator
        self._names = names
        self._images_since_taken = 0
        self._restart()

    def _restart(self) -> None:
        self._losses: torch.Tensor | None = None
        self._steps = self._images = 0
        self._waited_s = 0.0
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which the loop waits for data."""
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def add(self, losses: torch.Tensor, images: int, last: bool) -> None:
        """Add one micro-batch.

        Args:
            losses: One number for each name, already weighted by the micro-batch's share; stays on its device.
            images: Readable images in it.
            last: Whether it ends an optimizer step.
        """
        self._losses = losses if self._losses is None else self._losses + losses
        self._images += images
        self._steps += last

    def close(self) -> dict[str, float]:
        """Averages since the last call, equal on every process; starts anew."""
        seconds = time.perf_counter() - self._started
        assert self._losses is not None
        counts = torch.tensor([self._images], device=self._losses.device)
        losses = (self._accelerator.reduce(self._losses, reduction="mean") / self._steps).tolist()
        images = int(self._accelerator.reduce(counts, reduction="sum").item())
        self._images_since_taken += images
        waited = self._waited_s / seconds
        self._restart()
        return dict(zip(self._names, losses)) | {"images_per_second": images / seconds, "data_wait": waited}

    def take_images(self) -> int:
        """Images of all processes in the windows closed since the last call."""
        images, self._images_since_taken = self._images_since_taken, 0
        return images


class UnreadableImages:
    """Names of images that could not be read; stops a run that meets too many.

    Args:
        total: Images of the set, or None for a stream.
        known: Names and reasons from before an interruption.
    """

    def __init__(self, accelerator: Accelerator, total: int | None, known: dict[str, str] | None = None) -> None:
        self._accelerator = accelerator
        self._total = total
        self._seen = 0
        self._reasons = dict(known or {})

    def add(self, batch: dict[str, Any]) -> None:
        """Count one batch.

        Raises:
            InputError: More than 1 % of the images cannot be read.
        """
        self._seen += len(batch["pixel_values"]) + len(batch["unreadable"])
        self._reasons.update(batch["unreadable"])
        total = max(self._seen, STREAM_START) if self._total is None else self._total
        if len(self._reasons) > UNREADABLE_LIMIT * total:
            name, reason = next(iter(self._reasons.items()))
            raise InputError(
                f"{len(self._reasons)} of {total} images cannot be read, more than {UNREADABLE_LIMIT:.0%}; the first "
                f"is {name} ({reason}). Repair or remove them and start again."
            )

    def gather(self) -> dict[str, str]:
        """Names and reasons of all processes."""
        for reasons in gather_object([self._reasons]):
            self._reasons.update(reasons)
        return dict(self._reasons)
