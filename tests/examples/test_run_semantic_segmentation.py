"""The segmentation script as a person runs it: tiny scenes, a tiny pretrained backbone."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import run_semantic_segmentation as script
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
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from gfm_hf import GFMConfig, GFMForSemanticSegmentation
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
COLOURS = np.array([(40, 160, 60), (170, 60, 50), (30, 60, 150)])
NAMES = ["field", "roof", "water"]


def draw_scene(rng):
    """A noisy picture of fields with a roof and a lake, and its ids."""
    ids = np.zeros((40, 36), dtype=np.uint8)
    for label in (1, 2):
        top, left = rng.integers(0, 24), rng.integers(0, 20)
        ids[top : top + 16, left : left + 16] = label
    pixels = np.clip(rng.normal(COLOURS[ids], 20), 0, 255).astype(np.uint8)
    return pixels, ids


def write_scenes(folder, count=20, seed=0):
    rng = np.random.default_rng(seed)
    for column in ("image", "mask"):
        (folder / column).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels, ids = draw_scene(rng)
        ids[:4] = 255  # ignored
        Image.fromarray(pixels).save(folder / "image" / f"scene{index:02d}.png")
        Image.fromarray(ids).save(folder / "mask" / f"scene{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"), auxiliary_channels=8)


def test_defaults_are_the_protocol():
    words = ["--model_name_or_path", "x", "--output_dir", "y"]
    args = script.parse_args(words)
    names = ("optimizer", "learning_rate", "min_learning_rate", "power", "warmup_steps", "weight_decay")
    assert [getattr(args, name) for name in names] == ["adamw", 6e-5, 0, 1, 1500, 0.01]
    assert (args.max_train_steps, args.eval_steps, args.layer_decay, args.drop_path_rate) == (40_000, 500, 1, 0.3)
    sgd = script.parse_args([*words, "--optimizer", "sgd", "--power", "2", "--num_train_epochs", "3"])
    assert [getattr(sgd, name) for name in names] == ["sgd", 0.01, 1e-4, 2, 0, 5e-4]
    assert sgd.max_train_steps is None and sgd.num_train_epochs == 3


def test_it_learns_and_leaves_a_loadable_model(scenes, backbone, tmp_path, capsys):
    out = tmp_path / "run"
    flags = {"model_name_or_path": backbone, "data_dir": scenes, "label_names": NAMES, "dice_loss_weight": 0.5}
    assert run(out, **flags, max_train_steps=40, eval_steps=20) == 0
    found = results(out)
    # All field: at most a third of the classes with an IoU of 0.75.
    assert found["test_mean_iou"] > 0.6 and found["eval_mean_iou"] > 0.6
    assert all(found[f"test_iou_{name}"] > 0.4 for name in NAMES)
    told = capsys.readouterr().out
    assert "done: 40 steps" in told and "iou_roof" not in told

    model = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert type(model) is GFMForSemanticSegmentation and model.config.id2label == dict(enumerate(NAMES))
    assert model.config.dice_loss_weight == 0.5 and model.config.decoder_channels == 8
    processor = AutoImageProcessor.from_pretrained(out)
    pixels, ids = draw_scene(np.random.default_rng(9))
    with torch.no_grad():
        outputs = model(**processor(pixels, return_tensors="pt"))
    answer = processor.post_process_semantic_segmentation(outputs, target_sizes=[ids.shape])[0].numpy()
    assert (answer == ids).mean() > 0.75
    assert Image.open(out / "panels" / "samples.png").size[0] > 500
    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "test mean iou" in card


def test_runs_can_be_called_from_python(scenes, backbone, tmp_path):
    """Settings in, scores out: what a benchmark over models and seeds needs."""
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        flags = {"model_name_or_path": backbone, "data_dir": scenes, "seed": seed, "max_train_steps": 8}
        found.append(TASK.call(tmp_path / name, **flags))
    assert found[0]["scores"] == found[1]["scores"] != found[2]["scores"]
    assert found[0]["steps"] == 8 and found[2]["seed"] == 1


FLAGS = {"decoder_channels": 12, "class_weights": [1, 0, 3], "dice_loss_weight": 0.5, "crop_scale": 0.75}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_flags_arrive(scenes, backbone, tmp_path, optimizer):
    flags = {"model_name_or_path": backbone, "data_dir": scenes, **SHARED_FLAGS, **FLAGS, "optimizer": optimizer}
    caught = TASK.prepared(tmp_path, **flags, momentum=0.7, power=3, min_learning_rate=0.001)
    check_shared_flags(caught)
    assert caught.loader.dataset.augmentation.scale == (0.75, 1)
    assert caught.optimizer.defaults.get("momentum") == (0.7 if optimizer == "sgd" else None)
    schedule = caught.schedule
    assert (schedule.peak, schedule.floor, schedule.power, schedule.total_steps) == (0.01, 0.001, 3, 4)
    model = caught.model.eval()
    assert model.config.decoder_channels == 12 and model.decode_head.main.classifier.in_channels == 12
    # Class 1 has no weight, class 2 has three times that of class 0, and half of the Dice term is added.
    pixel_values, labels = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    with torch.no_grad():
        found = model(pixel_values=pixel_values, labels=labels)
    expected = segmentation_loss(found.logits, labels, 255, [1, 0, 3], 0.5)
    torch.testing.assert_close(found.loss, expected)
    assert abs(expected - segmentation_loss(found.logits, labels)) > 0.01


def test_validation_chooses_and_the_test_part_is_told(scenes, backbone, tmp_path):
    """A model that says class 0 to every pixel: always right in one part, never in the other."""
    for part, label in (("train", None), ("validation", 0), ("test", 1)):
        folder = write_scenes(tmp_path / "scenes" / part, count=4)
        for path in (folder / "mask").iterdir():
            ids = np.asarray(Image.open(path)) % 2 if label is None else np.full((40, 36), label)
            Image.fromarray(ids.astype(np.uint8)).save(path)
    model = write_constant_model(
        tmp_path / "model", GFMForSemanticSegmentation, backbone, answer=0, decoder_channels=8
    )
    still = {"learning_rate": 0, "min_learning_rate": 0, "max_train_steps": 1, "mask_values": "ids", "num_labels": 2}
    found = TASK.call(tmp_path / "run", model_name_or_path=model, data_dir=tmp_path / "scenes", **still)
    assert found["scores"]["overall_accuracy"] == 0
    told = results(tmp_path / "run")
    assert (told["eval_mean_iou"], told["eval_iou_0"]) == (1, 1) and told["test_mean_iou"] == 0


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_accumulation_steps": 2},
        {"freeze_backbone": True, "optimizer": "sgd", "drop_path_rate": 0.2},
        {"lora_r": 2},
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(scenes, backbone, tmp_path, how):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = {"model_name_or_path": backbone, "data_dir": scenes, "checkpoints_total_limit": 9, **how}
    assert run(whole, **flags) == 0
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    assert run(resumed, **flags, resume_from_checkpoint="latest") == 0
    weights = "adapter_model.safetensors" if "lora_r" in how else "model.safetensors"
    first, second = (load_file(folder / weights) for folder in (whole, resumed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert results(whole)["test_mean_iou"] == results(resumed)["test_mean_iou"]
    if "lora_r" in how:
        return
    before = load_file(backbone / "model.safetensors")
    encoder = [name for name in before if name.startswith("swin.encoder")]
    assert encoder
    assert all(torch.equal(before[name], first[name]) for name in encoder) == bool(how.get("freeze_backbone"))


def test_a_palette_says_what_colours_mean_and_the_saved_processor_knows(scenes, backbone, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes / "image", folder / "image")
    (folder / "mask").mkdir()
    palette = np.array([(0, 255, 0), (255, 0, 0), (0, 0, 255)], dtype=np.uint8)
    for path in (scenes / "mask").iterdir():
        ids = np.asarray(Image.open(path))
        Image.fromarray(palette[np.where(ids == 255, 0, ids)]).save(folder / "mask" / path.name)
    out, words = tmp_path / "run", ["00ff00", "#ff0000", "0000FF"]
    assert run(out, model_name_or_path=backbone, data_dir=folder, palette=words, max_train_steps=2) == 0
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor.num_labels == 3
    assert processor.read_label_map(palette[[[0, 2], [1, 1]]]).tolist() == [[0, 2], [1, 1]]
    assert GFMConfig.from_pretrained(out).num_labels == 3


def test_a_run_does_not_go_on_with_masks_read_another_way(scenes, backbone, tmp_path, capsys):
    out, flags = tmp_path / "run", {"model_name_or_path": backbone, "data_dir": scenes, "max_train_steps": 2}
    assert run(out, **flags, num_labels=3, mask_values="ids") == 0
    reduced = {"do_reduce_labels": True, "num_labels": 3}
    assert run(out, **flags, **reduced, resume_from_checkpoint="latest") == 2
    assert "do_reduce_labels False (now True)" in capsys.readouterr().err


def test_pixels_without_data_are_ignored(backbone, tmp_path):
    folder = write_scenes(tmp_path / "scenes", count=8)
    for path in (folder / "image").iterdir():
        pixels = np.full((40, 36, 3), 200, np.uint8)
        pixels[20:30, 10:20] = 0
        Image.fromarray(pixels).save(path)
    args = script.parse_args(argv(tmp_path, model_name_or_path=backbone, data_dir=folder, nodata=0))
    processor = script.load_mask_processor(args)
    data = script.open_data(args, processor, 3, (0, 1, 2))
    batch = next(iter(script.evaluation_loader(args, data.validation, processor, Accelerator(cpu=True))))
    assert batch["pixel_values"].isfinite().all()
    assert (batch["labels"][:, 17:23, 10:17] == 255).all()  # 40 x 36 px became 32 x 32
    assert (batch["labels"][:, 6:14] != 255).all()
    # A resize mixes no false values into what is labelled.
    known = processor.denormalize(batch["pixel_values"]).movedim(1, -1)[batch["labels"] != 255]
    torch.testing.assert_close(known, torch.full_like(known, 200 / 255))


class _Pixelwise(torch.nn.Module):
    """A model without batch statistics, so that gradients of micro-batches add up."""

    def __init__(self):
        super().__init__()
        self.classify = torch.nn.Conv2d(3, 3, 1)

    def forward(self, pixel_values, labels):
        return SimpleNamespace(loss=segmentation_loss(self.classify(pixel_values), labels))


def test_ignored_pixels_weigh_nothing_however_a_batch_is_cut():
    accelerator = Accelerator(cpu=True)
    pixels, labels = torch.randn(6, 3, 8, 8), torch.randint(0, 3, (6, 8, 8))
    labels[0], labels[1, :, :5], labels[4, :2] = 255, 255, 255

    def gradient(cuts):
        torch.manual_seed(0)
        model, losses = _Pixelwise(), []
        for part in torch.arange(6).tensor_split(cuts):
            weight = torch.tensor(len(part) * (len(cuts) + 1) / 6)  # as an EpochPlan gives it
            batch = {"pixel_values": pixels[part], "labels": labels[part], "loss_weight": weight}
            batch["num_targets"] = int((labels[part] != 255).sum())
            losses.append(script.train_step(model, batch, accelerator, len(cuts) + 1))
        return sum(losses), model.classify.weight.grad

    (loss, whole), (cut_loss, cut) = gradient([]), gradient([1, 3])
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(cut_loss, loss, rtol=0, atol=1e-6)
    assert whole.abs().max() > 1e-3


def _other_size(folder):
    for path in sorted((folder / "mask").iterdir())[::2]:
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)


def _one_class(folder):
    for path in (folder / "mask").iterdir():
        Image.fromarray(np.zeros((40, 36), np.uint8)).save(path)


def _empty_part(folder):
    for column in ("image", "mask"):
        (folder / "train" / column).mkdir(parents=True)
        (folder / "test" / column).mkdir(parents=True)
        for path in (folder / column).iterdir():
            path.rename(folder / "train" / column / path.name)
        (folder / column).rmdir()


def _all_ignored(folder):
    for path in (folder / "mask").iterdir():
        Image.fromarray(np.full((40, 36), 255, np.uint8)).save(path)


def _holes(folder):
    """Pixels that are no number in every other image, where nothing is said of missing measurements."""
    for path in sorted((folder / "image").iterdir())[::2]:
        pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
        pixels[10:12] = np.nan
        path.unlink()
        profile = {"driver": "GTiff", "height": 40, "width": 36, "count": 3, "dtype": "float32"}
        with rasterio.open(path.with_suffix(".tif"), "w", **profile) as raster:
            raster.write(pixels.transpose(2, 0, 1))


def _nothing_measured(folder):
    for path in (folder / "image").iterdir():
        Image.new("RGB", (36, 40)).save(path)


WRONG = {
    "pixels that are no number": (_holes, {}, ("scene", ".tif", "nodata")),
    "nothing measured": (_nothing_measured, {"nodata": 0}, ("validation", "no labelled pixel")),
    "mask of another size": (_other_size, {}, ("mask", "scene", "20 x 20 px but its image 40 x 36 px")),
    "label of no class": (None, {"num_labels": 2, "mask_values": "ids"}, ("scene", "holds the id 2", "2 classes")),
    "one class": (_one_class, {}, ("the masks hold 1 class",)),
    "empty part": (_empty_part, {}, ("test",)),
    "colours of no class": (None, {"palette": ["000000", "ff0000"]}, ("scene", "0 to 1")),
    "nothing labelled": (_all_ignored, {"num_labels": 2, "mask_values": "ids"}, ("validation", "no labelled pixel")),
    "weights of other classes": (None, {"class_weights": [1, 2]}, ("--class_weights has 2", "3 classes")),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case, backbone, tmp_path, capsys):
    spoil, flags, sentences = WRONG[case]
    folder = write_scenes(tmp_path / "scenes", count=8)
    if spoil:
        spoil(folder)
    assert run(tmp_path / "run", **{"model_name_or_path": backbone, "data_dir": folder, **flags}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and all(sentence in error for sentence in sentences), error


def test_two_processes_give_the_metrics_of_one(scenes, backbone, tmp_path):
    """The weights of a finished run, scored anew by two processes: three batches, so one of them gets a filler."""
    one, two = tmp_path / "one", tmp_path / "two"
    flags = {
        "model_name_or_path": backbone,
        "data_dir": scenes,
        "test_fraction": 0.25,
        "per_device_eval_batch_size": 2,
    }
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
    for name in ("test_mean_iou", "test_mean_accuracy", "test_overall_accuracy", "test_iou_0"):
        assert results(one)[name] == results(two)[name]
