import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gfm_hf.training.meters import StepMeter, UnreadableImages
from gfm_hf.training.runs import InputError


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(True)


@pytest.fixture
def clock(monkeypatch):
    """A list whose only entry is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_losses_are_averaged_over_steps_and_speed_over_time(accelerator, clock):
    meter = StepMeter(accelerator, ("loss", "reconstruction_loss", "distillation_loss"))
    # Two steps of two micro-batches, whose losses come already weighted by their share of the step.
    for number, last in enumerate([False, True, False, True]):
        with meter.waiting():
            clock[0] += 0.5
        clock[0] += 0.75
        meter.add(torch.tensor([3.0, 2.0, 1.0]) * (number + 1) / 2, images=4, last=last)
    with meter.paused():
        clock[0] += 100
    averages = meter.close()
    assert averages["loss"] == 7.5 and averages["reconstruction_loss"] == 5 and averages["distillation_loss"] == 2.5
    assert averages["images_per_second"] == 16 / 5 and averages["data_wait"] == 2 / 5


def test_each_window_starts_anew_and_images_are_taken_once(accelerator, clock):
    meter = StepMeter(accelerator, ("loss", "reconstruction_loss", "distillation_loss"))
    for loss, images in ((1.0, 3), (5.0, 4)):
        clock[0] += 1
        meter.add(torch.full((3,), loss), images, last=True)
        assert meter.close()["loss"] == loss
    assert meter.take_images() == 7 and meter.take_images() == 0


def batch(readable: int, *unreadable: str) -> dict:
    return {"pixel_values": torch.zeros(readable, 1), "unreadable": [(name, "broken") for name in unreadable]}


def test_one_in_a_hundred_may_be_unreadable_and_counts_once(accelerator):
    images = UnreadableImages(accelerator, total=200)
    for _ in range(3):  # the same two in every epoch
        images.add(batch(7, "a"))
        images.add(batch(7, "b"))
    assert images.gather() == {"a": "broken", "b": "broken"}
    with pytest.raises(InputError, match=r"3 of 200 images cannot be read, more than 1%; the first is a \(broken\)"):
        images.add(batch(7, "c"))


def test_known_ones_count_after_an_interruption(accelerator):
    images = UnreadableImages(accelerator, total=100, known={"a": "broken"})
    images.add(batch(7, "a"))
    with pytest.raises(InputError, match="2 of 100"):
        images.add(batch(7, "b"))


def test_a_stream_is_judged_by_what_was_seen(accelerator):
    images = UnreadableImages(accelerator, total=None)
    images.add(batch(7, "a"))  # one of the first hundred
    with pytest.raises(InputError, match="2 of 100"):
        images.add(batch(7, "b"))
    images = UnreadableImages(accelerator, total=None)
    images.add(batch(298, "a", "b"))
    assert len(images.gather()) == 2
