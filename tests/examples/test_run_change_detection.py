"""The change script as a person runs it: tiny pairs of scenes, a tiny pretrained backbone."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import run_change_detection as script
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from task_scripts import (
    SHARED_FLAGS,
    TaskScript,
    check_shared_flags,
    results,
    write_backbone,
    write_constant_model,
)
from transformers import AutoImageProcessor

from gfm_hf import GFMForChangeDetection
from gfm_hf.model.losses_gfm import segmentation_loss


TASK = TaskScript(
    script,
    per_device_train_batch_size=4,
    decoder_channels=8,
    learning_rate=0.01,
    warmup_steps=0,
    max_train_steps=4,
    logging_steps=1,
    eval_steps=2,
    checkpointing_steps=2,
    dataloader_num_workers=0,
    drop_path_rate=0,
)
argv, run = TASK.argv, TASK.run
COLUMNS = ("image1", "image2", "mask")


def draw_pair(rng):
    """Noisy fields before, the same with a new roof after, and where it stands."""
    changed = np.zeros((40, 36), dtype=bool)
    top, left = rng.integers(0, 22), rng.integers(0, 18)
    changed[top : top + 18, left : left + 18] = True
    ground = np.array(rng.integers(40, 160, 3))
    before = rng.normal(ground, 10, (40, 36, 3))
    after = np.where(changed[..., None], rng.normal(ground + 80, 10, (40, 36, 3)), rng.normal(before, 5))
    return [np.clip(date, 0, 255).astype(np.uint8) for date in (before, after)] + [changed * np.uint8(255)]


def write_pairs(folder, count=20, seed=0):
    rng = np.random.default_rng(seed)
    for column in COLUMNS:
        (folder / column).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        for column, pixels in zip(COLUMNS, draw_pair(rng)):
            Image.fromarray(pixels).save(folder / column / f"pair{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"), auxiliary_channels=8)


def test_defaults_are_the_protocol():
    words = ["--model_name_or_path", "x", "--output_dir", "y"]
    args = script.parse_args(words)
    names = ("optimizer", "learning_rate", "min_learning_rate", "power", "warmup_steps", "weight_decay")
    assert [getattr(args, name) for name in names] == ["sgd", 0.01, 1e-4, 0.9, 0, 5e-4]
    assert (args.max_train_steps, args.eval_steps, args.layer_decay, args.momentum) == (4_000, 500, 1, 0.9)
    adamw = script.parse_args([*words, "--optimizer", "adamw", "--power", "2", "--num_train_epochs", "3"])
    assert [getattr(adamw, name) for name in names] == ["adamw", 6e-5, 0, 2, 1500, 0.01]
    assert adamw.max_train_steps is None and adamw.num_train_epochs == 3


@pytest.mark.parametrize("fusion", ["difference", "concat"])
def test_it_learns_and_leaves_a_loadable_model(pairs, backbone, tmp_path, capsys, fusion):
    out = tmp_path / "run"
    flags = {"model_name_or_path": backbone, "data_dir": pairs, "change_fusion": fusion, "class_weights": [1, 2]}
    steps = {"max_train_steps": 60, "eval_steps": 20, "learning_rate": 0.05}
    assert run(out, **flags, **steps) == 0
    found = results(out)
    assert found["test_f1"] > 0.6 and found["eval_f1"] > 0.6  # all changed: 0.37
    assert {"test_precision", "test_recall", "test_iou"} <= set(found)
    assert "done: 60 steps" in capsys.readouterr().out

    model = GFMForChangeDetection.from_pretrained(out).eval()
    assert model.config.id2label == {0: "no change", 1: "change"} and model.config.change_fusion == fusion
    processor = AutoImageProcessor.from_pretrained(out)
    before, after, mask = draw_pair(np.random.default_rng(9))
    with torch.no_grad():
        outputs = model(**processor([(before, after)], return_tensors="pt"))
    answer = processor.post_process_change_detection(outputs, target_sizes=[mask.shape])[0]["mask"].numpy()
    overlap = (answer & (mask > 0)).sum() / (answer | (mask > 0)).sum()
    assert overlap > 0.4
    assert processor.read_label_map(mask).max() == 1  # 255 is change here, and the saved processor knows
    assert Image.open(out / "panels" / "samples.png").size[0] > 700
    card = (out / "README.md").read_text()
    assert "GFMForChangeDetection" in card and "test f1" in card


def test_runs_can_be_called_from_python(pairs, backbone, tmp_path):
    """Settings in, scores out: what a benchmark over models and seeds needs."""
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        flags = {"model_name_or_path": backbone, "data_dir": pairs, "seed": seed, "max_train_steps": 8}
        found.append(TASK.call(tmp_path / name, **flags))
    assert found[0]["scores"] == found[1]["scores"] != found[2]["scores"]
    assert found[0]["steps"] == 8 and found[2]["seed"] == 1


FLAGS = {"decoder_channels": 12, "class_weights": [1, 3], "dice_loss_weight": 0.5, "crop_scale": 0.75}


@pytest.mark.parametrize("optimizer, fusion", [("sgd", "concat"), ("adamw", "difference")])
def test_flags_arrive(pairs, backbone, tmp_path, optimizer, fusion):
    flags = {"model_name_or_path": backbone, "data_dir": pairs, **SHARED_FLAGS, **FLAGS, "optimizer": optimizer}
    caught = TASK.prepared(tmp_path, **flags, change_fusion=fusion, momentum=0.7, power=3, min_learning_rate=0.001)
    check_shared_flags(caught)
    assert caught.loader.dataset.augmentation.scale == (0.75, 1)
    assert caught.optimizer.defaults.get("momentum") == (0.7 if optimizer == "sgd" else None)
    schedule = caught.schedule
    assert (schedule.peak, schedule.floor, schedule.power, schedule.total_steps) == (0.01, 0.001, 3, 4)
    model = caught.model.eval()
    assert model.config.decoder_channels == 12 and model.decode_head.main.classifier.in_channels == 12
    # Change weighs three times as much, and half of the Dice term is added.
    pixel_values, labels = torch.randn(2, 2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
    with torch.no_grad():
        found, swapped = model(pixel_values=pixel_values, labels=labels), model(pixel_values=pixel_values.flip(1))
    expected = segmentation_loss(found.logits, labels, 255, [1, 3], 0.5)
    torch.testing.assert_close(found.loss, expected)
    assert abs(expected - segmentation_loss(found.logits, labels)) > 0.01
    # The absolute difference does not know which date came first.
    assert torch.allclose(swapped.logits, found.logits, atol=1e-6) == (fusion == "difference")


def test_validation_chooses_and_the_test_part_is_told(backbone, tmp_path):
    """A model that finds change in every pixel: right in all of one part, in half of the other."""
    for part, changed in (("train", 20), ("validation", 40), ("test", 20)):
        folder = write_pairs(tmp_path / "pairs" / part, count=4)
        mask = np.zeros((40, 36), np.uint8)
        mask[:changed] = 1
        _replace(folder, "mask", mask)
    model = write_constant_model(tmp_path / "model", GFMForChangeDetection, backbone, answer=1, decoder_channels=8)
    still = {"learning_rate": 0, "min_learning_rate": 0, "max_train_steps": 1, "mask_values": "ids"}
    found = TASK.call(tmp_path / "run", model_name_or_path=model, data_dir=tmp_path / "pairs", **still)
    assert (found["scores"]["precision"], found["scores"]["recall"]) == (0.5, 1)
    told = results(tmp_path / "run")
    assert told["eval_f1"] == 1 and told["test_f1"] == pytest.approx(2 / 3)


def test_pixels_without_data_are_ignored_whichever_date_lacks_them(backbone, tmp_path):
    """Plain dates of value 200 that lack some rows each; a resize mixes no false values into the rest."""
    folder = write_pairs(tmp_path / "pairs", count=8)
    for column, rows in (("image1", slice(0, 11)), ("image2", slice(29, 40))):
        pixels = np.full((40, 36, 3), 200, np.uint8)
        pixels[rows] = 7
        _replace(folder, column, pixels)
    labels, values = {}, {}
    for nodata in (None, 7):
        args = script.parse_args(argv(tmp_path, model_name_or_path=backbone, data_dir=folder, nodata=nodata))
        processor = script.load_mask_processor(args)
        data = script.open_data(args, processor, 3, (0, 1, 2))
        batch = next(iter(script.evaluation_loader(args, data.validation, processor, Accelerator(cpu=True))))
        labels[nodata], values[nodata] = batch["labels"], processor.denormalize(batch["pixel_values"])
    # 40 x 36 px became 32 x 32.
    assert (labels[7][:, :8] == 255).all() and (labels[7][:, 24:] == 255).all() and (labels[None] != 255).all()
    assert torch.equal(labels[7][:, 10:22], labels[None][:, 10:22])
    known = (labels[7] != 255)[:, None, None].expand_as(values[7])
    torch.testing.assert_close(values[7][known], torch.full_like(values[7][known], 200 / 255))


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_accumulation_steps": 2},
        {"freeze_backbone": True, "optimizer": "adamw", "drop_path_rate": 0.2},
        {"lora_r": 2},
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(pairs, backbone, tmp_path, how):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = {"model_name_or_path": backbone, "data_dir": pairs, "checkpoints_total_limit": 9, **how}
    assert run(whole, **flags) == 0
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    assert run(resumed, **flags, resume_from_checkpoint="latest") == 0
    weights = "adapter_model.safetensors" if "lora_r" in how else "model.safetensors"
    first, second = (load_file(folder / weights) for folder in (whole, resumed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert results(whole)["test_f1"] == results(resumed)["test_f1"]
    if "lora_r" in how:
        return
    before = load_file(backbone / "model.safetensors")
    encoder = [name for name in before if name.startswith("swin.encoder")]
    assert encoder
    assert all(torch.equal(before[name], first[name]) for name in encoder) == bool(how.get("freeze_backbone"))


def test_soft_masks_are_cut_at_the_threshold(pairs, backbone, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(pairs, folder)
    for path in (folder / "mask").iterdir():
        levels = np.where(np.asarray(Image.open(path)) > 0, 90, 30).astype(np.uint8)
        Image.fromarray(levels).save(path)
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, data_dir=folder, mask_threshold=60, max_train_steps=2) == 0
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor.read_label_map(np.array([[59, 60]])).tolist() == [[0, 1]]


def _replace(folder, column, pixels):
    for path in (folder / column).iterdir():
        Image.fromarray(pixels).save(path)


def _empty_part(folder):
    for column in COLUMNS:
        (folder / "test" / column).mkdir(parents=True)
        (folder / "train").mkdir(exist_ok=True)
        (folder / column).rename(folder / "train" / column)


MASK, IMAGE = np.zeros((40, 36), np.uint8), np.zeros((20, 20, 3), np.uint8)
NO_CHANGE = {"mask_values": "binary"}
WRONG = {
    "mask of another size": (("mask", MASK[:20] + 255), NO_CHANGE, ("pair", "20 x 36 px but its image 40 x 36 px")),
    "dates of unequal size": (("image2", IMAGE), {}, ("pair", "40 x 36 px before and 20 x 20 px after")),
    "label of no class": (("mask", MASK + 7), {"mask_values": "ids"}, ("pair", "holds the id 7", "2 classes")),
    "one class": (("mask", MASK), {}, ("the masks hold 1 class",)),
    "no change to choose by": (("mask", MASK), NO_CHANGE, ("validation part has no changed pixel",)),
    "empty part": (None, {}, ("test",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case, backbone, tmp_path, capsys):
    spoilt, flags, sentences = WRONG[case]
    folder = write_pairs(tmp_path / "pairs", count=8)
    _replace(folder, *spoilt) if spoilt else _empty_part(folder)
    assert run(tmp_path / "run", **{"model_name_or_path": backbone, "data_dir": folder, **flags}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and all(sentence in error for sentence in sentences), error


def test_two_processes_give_the_metrics_of_one(pairs, backbone, tmp_path):
    """The weights of a finished run, scored anew by two processes: three batches, so one of them gets a filler."""
    one, two = tmp_path / "one", tmp_path / "two"
    flags = {"model_name_or_path": backbone, "data_dir": pairs, "test_fraction": 0.25, "per_device_eval_batch_size": 2}
    assert run(one, **flags) == 0
    two.mkdir()
    shutil.copytree(one / "checkpoint-4", two / "checkpoint-4")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [script.__file__]
    command += argv(two, **flags, resume_from_checkpoint="latest")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert results(two)["devices"] == 2
    for name in ("test_precision", "test_recall", "test_f1", "test_iou"):
        assert results(one)[name] == results(two)[name]
