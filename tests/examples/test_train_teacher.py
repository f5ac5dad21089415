from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, SwinModel


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import train_teacher  # noqa: E402

from gfm_hf.data.labelled import LabelledImages  # noqa: E402


TINY = "--image_size 32 --window_size 2 --embed_dim 8 --depths 1 1 1 --num_heads 1 2 4 --drop_path_rate 0".split()


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """Two classes that differ in direction only, 20 pictures each."""
    rng = np.random.default_rng(0)
    for name, axis in (("across", 0), ("down", 1)):
        (tmp_path / name).mkdir()
        for i in range(20):
            wave = 127 + 90 * np.sin(np.arange(32) * rng.uniform(0.7, 1.2) + rng.uniform(0, 6))
            picture = np.broadcast_to(np.expand_dims(wave, axis), (32, 32))
            Image.fromarray(np.uint8(picture)).convert("RGB").save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_teacher_learns_and_loads_as_a_stock_swin(stripes: Path, tmp_path: Path) -> None:
    out = tmp_path.parent / f"{tmp_path.name}_teacher"
    arguments = ["--train_dir", str(stripes), "--output_dir", str(out), *TINY, "--learning_rate", "4e-3"]
    score = train_teacher.main([*arguments, "--num_train_epochs", "20", "--per_device_train_batch_size", "12"])
    assert score == 1.0
    assert type(AutoModel.from_pretrained(out)) is SwinModel
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor.size == {"height": 32, "width": 32}
    pixels = processor(Image.new("RGB", (50, 40), (255, 255, 255)), return_tensors="pt")["pixel_values"]
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert torch.allclose(pixels, train_teacher.to_pixel_values(white), atol=1e-5)
    results = json.loads((out / "all_results.json").read_text())
    assert results["accuracy"] == 1.0 and len(results["history"]) == 20
    assert results["loss"] < results["history"][0]["loss"] - 0.2  # smoothing keeps the loss above 0.2
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "across", "1": "down"}


def test_seconds_end_the_run(stripes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--train_dir", str(stripes), "--output_dir", str(out), *TINY, "--mixed_precision", "bf16"]
    train_teacher.main([*arguments, "--num_train_epochs", "100000", "--max_seconds", "1"])
    assert json.loads((out / "all_results.json").read_text())["seconds"] < 30


def test_random_crops_stay_inside_flip_half_and_repeat_with_the_seed() -> None:
    ramp = torch.arange(32.0).expand(200, 3, 32, 32)
    crops = train_teacher.random_crops(ramp, torch.Generator().manual_seed(0))
    assert crops.shape == ramp.shape and crops.min() >= 0 and crops.max() <= 31
    slope = crops[:, 0, 16, 20] - crops[:, 0, 16, 12]
    assert 70 < (slope < 0).sum() < 130
    # Eight columns of the result show 8 * width columns of the picture; width**2 lies in 0.35 * 3/4 .. 1.
    assert (slope.abs() / 8).min() > 0.5 and (slope.abs() / 8).max() <= 1.001
    assert torch.equal(crops, train_teacher.random_crops(ramp, torch.Generator().manual_seed(0)))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factor = train_teacher.learning_rate_factor
    assert factor(0.0) == 0 and factor(train_teacher.WARMUP) == 1 and factor(1.0) == pytest.approx(0)
    assert factor(0.02) < factor(0.04) and factor(0.3) > factor(0.6) > factor(0.9)


def test_norms_biases_and_position_tables_are_not_decayed() -> None:
    args = train_teacher.parse_args(["--output_dir", "x", *TINY])
    model = train_teacher.build_model(args, ["a", "b"])
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = (
        [names[id(p)] for p in g["params"]] for g in train_teacher.build_optimizer(model, args).param_groups
    )
    assert len(decayed) + len(plain) == len(names)
    assert any("relative_position_bias_table" in n for n in plain)
    assert not any(n.endswith("bias") or "norm" in n or "table" in n for n in decayed)


def test_split_column_needs_train_and_val() -> None:
    data = LabelledImages(
        (b"0", b"1", b"2", b"3"), np.array([0, 1, 0, 1]), ("a", "b"), np.array(["train", "train", "val", "val"])
    )
    first, second = train_teacher.split_parts(data, 0)
    assert first.files == (b"0", b"1") and second.files == (b"2", b"3")
    wrong = LabelledImages(data.files, data.labels, data.class_names, np.array(["train"] * 4))
    with pytest.raises(ValueError, match="train and val"):
        train_teacher.split_parts(wrong, 0)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--image_size", "64", "--window_size", "4"], "multiple of 128"),
        (["--depths", "2", "2"], "one head count a stage"),
        (["--embed_dim", "50"], "does not divide"),
    ],
)
def test_shapes_that_swin_cannot_run_are_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train_teacher.parse_args(["--output_dir", "x", *flags])
    assert stop.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())
