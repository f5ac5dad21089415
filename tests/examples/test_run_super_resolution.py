"""The super-resolution script as a person runs it: tiny sharp-edged pictures, a tiny pretrained backbone."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import run_super_resolution as script
import torch
from PIL import Image
from safetensors.torch import load_file
from task_scripts import SHARED_FLAGS, TaskScript, check_shared_flags, results, write_backbone
from transformers import AutoImageProcessor

from gfm_hf import GFMConfig, GFMForImageSuperResolution, GFMImageProcessor
from gfm_hf.metrics import psnr_ssim


TASK = TaskScript(
    script,
    scale=2,
    per_device_train_batch_size=8,
    learning_rate=0.2,
    max_train_steps=6,
    logging_steps=1,
    eval_steps=3,
    checkpointing_steps=2,
    dataloader_num_workers=0,
    drop_path_rate=0,
)
argv, run = TASK.argv, TASK.run
STILL = {
    "learning_rate": 0,
    "warmup_learning_rate": 0,
    "min_learning_rate": 0,
    "weight_decay": 0,
    "max_train_steps": 1,
}
SCORES = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "psnr_gain", "ssim_gain")


def roofs(rng, height=40, width=36):
    """Rectangles of plain colours with edges on even pixels: interpolation blurs them, a model can learn not to."""
    cells = np.full((height // 2, width // 2, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, height // 2 - 3), rng.integers(0, width // 2 - 3)
        cells[top : top + rng.integers(3, 10), left : left + rng.integers(3, 10)] = rng.integers(0, 256, 3)
    return cells.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 pictures without targets, which are lowered."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "image").mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        Image.fromarray(roofs(rng)).save(folder / "image" / f"{index:02d}.png")
    return folder


@pytest.fixture
def pairs(tmp_path):
    """12 pairs, the targets three times as large; to be spoilt by a test."""
    rng = np.random.default_rng(0)
    for index in range(12):
        high = Image.fromarray(roofs(rng, 60, 60))
        for name, picture in (("image", high.resize((20, 20), Image.Resampling.BICUBIC)), ("target", high)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "pairs" / name / f"{index:02d}.png")
    return tmp_path / "pairs"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"), image_size=16)


def test_defaults_are_the_protocol():
    args = script.parse_args(["--model_name_or_path", "x", "--output_dir", "y"])
    rates = ("learning_rate", "warmup_learning_rate", "min_learning_rate", "warmup_ratio")
    assert [getattr(args, name) for name in rates] == [1.25e-5, 2.5e-7, 2.5e-7, 0.2]
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.max_train_steps) == (100, 64, None)
    assert (args.layer_decay, args.weight_decay, args.drop_path_rate, args.max_grad_norm) == (0.9, 0.05, 0.1, 5.0)
    assert (args.eval_steps, args.early_stopping_patience, args.train_fraction) == (None, None, 1)
    assert not (args.authors_quirks or args.no_flips or args.no_residual or args.freeze_backbone or args.lora_r)


def test_flags_arrive(images, backbone, tmp_path):
    flags = {"model_name_or_path": backbone, "data_dir": images, **SHARED_FLAGS}
    caught = TASK.prepared(tmp_path / "one", **flags, authors_quirks=True, no_residual=True, no_flips=True)
    check_shared_flags(caught)
    assert caught.model.config.upscale == 2 and caught.model.config.upscale_residual is False
    windows = caught.loader.dataset.augmentation
    assert (windows.horizontal_flip, windows.vertical_flip) == (False, False)
    quirks, plain = caught.schedule, TASK.prepared(tmp_path / "two", **flags).schedule
    assert quirks.learning_rate(1) == quirks.learning_rate(0) and plain.learning_rate(1) != plain.learning_rate(0)
    assert quirks.learning_rate(0, 0.5) == quirks.learning_rate(0) > plain.learning_rate(0, 0.5)


def test_validation_chooses_and_the_test_part_is_told(backbone, tmp_path):
    """An untrained model interpolates: exact on the plain colours of one part, bad on the noise of the other."""
    rng = np.random.default_rng(0)
    for part, spread in (("train", 20), ("validation", 0), ("test", 60)):
        (tmp_path / "images" / part / "image").mkdir(parents=True)
        for index in range(4):
            pixels = rng.normal(128, spread, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / "image" / f"{index}.png")
    found = TASK.call(tmp_path / "run", model_name_or_path=backbone, data_dir=tmp_path / "images", **STILL)
    told = results(tmp_path / "run")
    assert found["scores"]["psnr"] == told["test_psnr"] < 30 < 60 < told["eval_psnr"]


def test_it_beats_interpolation_and_leaves_a_loadable_model(images, backbone, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, data_dir=images, max_train_steps=60, eval_steps=20) == 0
    found = results(out)
    assert found["test_psnr_gain"] > 2.0 and found["eval_psnr_gain"] > 2.0  # dB above bicubic
    assert found["test_ssim_gain"] > 0.02
    assert found["test_psnr_gain"] == pytest.approx(found["test_psnr"] - found["test_bicubic_psnr"])
    assert found["scale"] == 2 and found["data_range"] == 1.0 and found["window_px"] == 16
    assert "done: 60 steps" in capsys.readouterr().out
    assert Image.open(out / "panels" / "samples.png").size[0] > 1000
    assert "pipeline_tag: image-to-image" in (out / "README.md").read_text()
    log = [json.loads(line) for line in (out / "trainer_state.jsonl").read_text().splitlines()]
    assert {"eval_psnr", "eval_bicubic_ssim", "loss"} <= {name for line in log for name in line}

    # The saved folder does by itself what the scores say, on whole pictures never seen as such.
    model = GFMForImageSuperResolution.from_pretrained(out).eval()
    processor = AutoImageProcessor.from_pretrained(out)
    truth = roofs(np.random.default_rng(99))
    low = torch.from_numpy(truth).permute(2, 0, 1)[None].float()
    low = torch.nn.functional.interpolate(low, scale_factor=0.5, mode="bicubic", antialias=True).round().clamp(0, 255)
    inputs = processor(low[0].byte().numpy(), do_resize=False, return_tensors="pt", input_data_format="channels_first")
    with torch.no_grad():
        larger = processor.post_process_super_resolution(model(**inputs))[0]
    plain = script.bicubic(low, 2)[0].clamp(0, 255).permute(1, 2, 0).numpy()
    reference = truth.transpose(2, 0, 1)
    psnrs = [psnr_ssim.psnr(image.transpose(2, 0, 1), reference, 255) for image in (larger, plain)]
    assert larger.shape == truth.shape and psnrs[0] > psnrs[1] + 2


def test_an_untrained_model_gains_nothing_and_scores_are_those_of_the_pictures(images, backbone, tmp_path):
    """All the residual is zero at first, and so has to be the gain; the scores themselves are counted by hand."""
    args = script.parse_args(argv(tmp_path / "run", model_name_or_path=backbone, data_dir=images, **STILL))
    found = script.run(args)
    assert found["scores"]["psnr_gain"] == pytest.approx(0, abs=1e-4)
    assert found["scores"]["ssim_gain"] == pytest.approx(0, abs=1e-6)
    test = script.open_data(args, 3, (0, 1, 2)).test
    by_hand = []
    for index in range(len(test)):
        low, target = (pixels.transpose(2, 0, 1) for pixels in (test[index].images[0], test[index].target))
        top, left = (low.shape[1] - 16) // 2, (low.shape[2] - 16) // 2
        low = torch.from_numpy(low[:, top : top + 16, left : left + 16].copy())[None].float()
        plain = torch.nn.functional.interpolate(low, scale_factor=2, mode="bicubic")[0].clamp(0, 255).numpy()
        by_hand.append(psnr_ssim.psnr(plain, target[:, 2 * top : 2 * top + 32, 2 * left : 2 * left + 32], 255))
    assert found["scores"]["bicubic_psnr"] == pytest.approx(np.mean(by_hand), abs=1e-3)


def test_steps_can_be_called_from_python(images, backbone, tmp_path):
    """Settings in, scores out: what a benchmark over models and seeds needs."""
    scores = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        flags = {"model_name_or_path": backbone, "data_dir": images, "seed": seed}
        scores.append(TASK.call(tmp_path / name, **flags))
    assert scores[0]["scores"] == scores[1]["scores"] != scores[2]["scores"]
    assert tuple(scores[0]["scores"]) == SCORES and scores[2]["seed"] == 1 and scores[0]["steps"] == 6


def test_pairs_say_their_scale(pairs, backbone, tmp_path):
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, data_dir=pairs, scale=None, no_residual=True, no_flips=True) == 0
    config = GFMConfig.from_pretrained(out)
    assert config.upscale == 3 and config.upscale_residual is False


@pytest.mark.parametrize("flips", [True, False])
def test_windows_are_flipped_unless_told_otherwise(flips, images, backbone, tmp_path):
    flags = argv(
        tmp_path, model_name_or_path=backbone, data_dir=images, per_device_train_batch_size=2, no_flips=not flips
    )
    args = script.parse_args(flags)
    data = script.open_data(args, 3, None)
    processor, start = GFMImageProcessor(size=16), {"epoch": 0, "step_in_epoch": 0}
    windows = script.random_windows(args, processor)
    loader, _ = script.training_loader(args, data.train, windows, processor, script.Accelerator(cpu=True), start)
    upright = 0
    for batch, _ in zip(loader, range(5)):
        for window, index in zip(batch["pixel_values"], batch["index"]):
            low = processor(data.train[int(index)].images[0], do_resize=False, return_tensors="pt")
            places = low.pixel_values[0].unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
            upright += int((places == window).flatten(2).all(-1).any())
    assert upright < 8 if flips else upright == 10


@pytest.mark.parametrize("how", [{}, {"lora_r": 2}, {"freeze_backbone": True}])
def test_a_resumed_run_ends_with_the_same_weights(images, backbone, tmp_path, how):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = {"model_name_or_path": backbone, "data_dir": images, "checkpoints_total_limit": 9, **how}
    assert run(whole, **flags) == 0
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    assert run(resumed, **flags, resume_from_checkpoint="latest") == 0
    weights = "adapter_model.safetensors" if "lora_r" in how else "model.safetensors"
    first, second = load_file(whole / weights), load_file(resumed / weights)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for name in SCORES:
        assert results(whole)[f"test_{name}"] == results(resumed)[f"test_{name}"]
    if "freeze_backbone" in how:
        before = load_file(backbone / "model.safetensors")
        encoder = [name for name in before if name.startswith("swin.")]
        assert encoder and all(torch.equal(before[name], first[name]) for name in encoder)


def test_early_stopping(images, backbone, tmp_path):
    flags = {"model_name_or_path": backbone, "data_dir": images, "eval_steps": 1, "early_stopping_patience": 2}
    assert run(tmp_path / "run", **flags, **STILL | {"max_train_steps": 6}) == 0
    assert results(tmp_path / "run")["steps"] == 3 and results(tmp_path / "run")["best_step"] == 1


def test_an_image_that_is_met_exactly_counts_with_a_number():
    rows = np.array([[np.inf, 1.0, np.inf, 1.0], [20.0, 0.5, 30.0, 0.7]])
    scores = script.score(rows)
    assert scores["psnr"] == 60 and scores["psnr_gain"] == -5 and scores["ssim_gain"] == pytest.approx(-0.1)


WRONG = {
    "no scale": ({"scale": None}, "pass --scale"),
    "images smaller than the window": ({"image_size": 32}, "holds no window of 32 px; use a smaller image_size"),
    "targets smaller than the metric's window": ({"image_size": 4}, "smaller than SSIM's window of 11 px"),
    "range the wrong way round": ({"value_range": (1, 0)}, "has to be the smaller one"),
    "lora and probe": ({"lora_r": 2, "freeze_backbone": True}, "contradict each other"),
    "no data": ({"data_dir": "missing"}, "missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case, images, backbone, tmp_path, capsys):
    flags, sentence = WRONG[case]
    assert run(tmp_path / "run", **{"model_name_or_path": backbone, "data_dir": images, **flags}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_target_of_the_wrong_size_is_named_in_whatever_part_it_is(part, pairs, backbone, tmp_path, capsys):
    split = dict.fromkeys(range(12), "train") | {4: "validation", 5: "validation", 6: "test", 7: "test"}
    wrong = {"train": 3, "validation": 5, "test": 7}[part]
    Image.new("RGB", (40, 40)).save(pairs / "target" / f"{wrong:02d}.png")
    for name in ("image", "target"):
        for index, chosen in split.items():
            (pairs / "split" / chosen / name).mkdir(parents=True, exist_ok=True)
            shutil.move(pairs / name / f"{index:02d}.png", pairs / "split" / chosen / name)
    flags = {"model_name_or_path": backbone, "data_dir": pairs / "split", "scale": 3}
    assert run(tmp_path / "run", **flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and f"{wrong:02d}.png is 40 x 40 px but 3 times its image is 60 x 60" in error


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_an_empty_part(part, images, backbone, tmp_path, capsys):
    for name in ("train", "validation", "test"):
        (tmp_path / "set" / name / "image").mkdir(parents=True)
        if name != part:
            shutil.copy(images / "image" / "00.png", tmp_path / "set" / name / "image")
    assert run(tmp_path / "run", model_name_or_path=backbone, data_dir=tmp_path / "set") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and part in error


def test_another_window_is_another_run(images, backbone, tmp_path, capsys):
    flags = {"model_name_or_path": backbone, "data_dir": images}
    assert run(tmp_path / "run", **flags) == 0
    assert run(tmp_path / "run", **flags, image_size=12, resume_from_checkpoint="latest") == 2
    assert "window_px 16 (now 12)" in capsys.readouterr().err.splitlines()[-1]


def test_values_without_a_known_range(images, backbone, tmp_path, capsys):
    own = shutil.copytree(backbone, tmp_path / "backbone")
    GFMImageProcessor(size=16, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3).save_pretrained(own)
    flags = {"model_name_or_path": own, "data_dir": images, **STILL}
    assert run(tmp_path / "run", **flags) == 2
    assert "pass --value_range" in capsys.readouterr().err.splitlines()[-1]
    assert run(tmp_path / "run", **flags, value_range=(0, 255)) == 0
    assert run(tmp_path / "eight_bit", **flags | {"model_name_or_path": backbone}) == 0
    ours, eight_bit = (results(tmp_path / name) for name in ("run", "eight_bit"))
    assert ours["data_range"] == 255
    assert ours["test_bicubic_psnr"] == pytest.approx(eight_bit["test_bicubic_psnr"], abs=1e-4)


def test_two_processes_give_the_metrics_of_one(images, backbone, tmp_path):
    """The same weights (rate 0) scored by one process and by two; three batches, so that one gets a filler."""
    flags = {"model_name_or_path": backbone, "data_dir": images, "per_device_eval_batch_size": 2, "no_residual": True}
    assert run(tmp_path / "one", **flags, **STILL) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [script.__file__, *argv(tmp_path / "two", **flags, **STILL)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in SCORES:
        for part in ("test", "eval"):
            assert results(tmp_path / "one")[f"{part}_{name}"] == results(tmp_path / "two")[f"{part}_{name}"]
