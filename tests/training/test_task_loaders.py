"""Flags of batches and views -> what the loaders of a run give."""

import argparse

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from gfm_hf import GFMImageProcessor
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.mixing import Mixing
from gfm_hf.data.tasks import open_task
from gfm_hf.training.task_arguments import add_data_arguments, add_finetuning_arguments
from gfm_hf.training.task_loaders import evaluation_loader, shown_samples, training_loader


START = {"epoch": 0, "step_in_epoch": 0}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("field", "roof"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    return open_task("classification", data_dir=tmp_path)


def flags(*words):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    add_finetuning_arguments(parser, batch_size=4, epochs=1, patience=None)
    return parser.parse_args(["--output_dir", "x", "--dataloader_num_workers", "0", *map(str, words)])


def test_evaluation_reads_the_part_it_is_given_whole_and_in_order(data):
    processor = GFMImageProcessor(size=16)
    for words, sizes in (((), [4]), (("--per_device_eval_batch_size", 3), [3, 1])):
        for split in (data.validation, data.test):
            batches = list(evaluation_loader(flags(*words), split, processor, Accelerator(cpu=True)))
            assert [len(batch["names"]) for batch in batches] == sizes
            assert [name for batch in batches for name in batch["names"]] == [split[i].name for i in range(4)]
            whole = processor(list(split[0].images), return_tensors="pt").pixel_values
            assert (batches[0]["pixel_values"][0] == whole[0]).all()


def training(data, *words, scale=(1.0, 1.0), mixing=None, start=START):
    """The first three batches and their plan."""
    augmentation = Augmentation(8, scale=scale)
    loader, plan = training_loader(
        flags(*words), data.train, augmentation, GFMImageProcessor(size=8), Accelerator(cpu=True), start, mixing
    )
    return [batch for _, batch in zip(range(3), loader)], plan, loader


def test_training_takes_the_batches_views_and_seed_of_the_run(data):
    batches, plan, loader = training(data, "--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2)
    assert [len(batch["names"]) for batch in batches] == [3, 3, 3] and plan.global_batch_size == 6
    assert batches[0]["pixel_values"].shape == (3, 3, 8, 8) and loader.dataset.augmentation.scale == (1.0, 1.0)
    again, other = training(data)[0], training(data, "--seed", 1)[0]
    assert [batch["names"] for batch in training(data)[0]] == [batch["names"] for batch in again]
    assert [batch["names"] for batch in other] != [batch["names"] for batch in again]
    later = training(data, start={"epoch": 0, "step_in_epoch": 1})[0]
    assert [batch["names"] for batch in later[:2]] == [batch["names"] for batch in again[1:]]


def test_training_alone_is_mixed_and_cropped(data):
    plain, smooth = training(data)[0][0], training(data, mixing=Mixing(0, 0, label_smoothing=0.2))[0][0]
    assert plain["labels"].ndim == 1 and plain["labels"].dtype.is_floating_point is False
    assert sorted(set(smooth["labels"].flatten().tolist())) == pytest.approx([0.1, 0.9])
    small = training(data, scale=(0.1, 0.2))[0][0]
    assert small["names"] == plain["names"] and (small["pixel_values"] != plain["pixel_values"]).any()


def test_samples_are_shown_as_evaluation_sees_them(data):
    processor = GFMImageProcessor(size=16)
    shown, batch = shown_samples(data.test, processor, count=3)
    assert [sample["index"] for sample in shown] == [0, 1, 3] == batch["index"].tolist()
    (whole,) = evaluation_loader(flags(), data.test, processor, Accelerator(cpu=True))
    assert (whole["pixel_values"][[0, 1, 3]] == batch["pixel_values"]).all()
