"""The pretraining script as a person runs it: tiny scenes, a tiny teacher, real processes where processes matter."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, SwinConfig, SwinModel, ViTConfig, ViTModel


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import run_continual_pretraining as script  # noqa: E402
from procedural_scenes import write_scenes  # noqa: E402

from gfm_hf import GFMConfig, GFMModel  # noqa: E402
from gfm_hf.data.sources import hold_out, open_images  # noqa: E402
from gfm_hf.training import publishing  # noqa: E402


SHAPE = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
# 45 scenes, 4 of them held out: an epoch has five batches of 8 and one of a single image.
PER_CLASS, STEPS_PER_EPOCH = 9, 6
FLAGS = {
    "image_size": 64,
    "window_size": 4,
    "mask_patch_size": 16,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 0.05,  # scaled by 8 / 512
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "teacher_dtype": "float32",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, PER_CLASS, 40)
    return folder


@pytest.fixture(scope="module")
def parquet(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes' files in the order of the folder."""
    datasets = pytest.importorskip("datasets")
    names = sorted(str(path.relative_to(scenes)) for path in scenes.rglob("*.png"))
    rows = [{"bytes": (scenes / name).read_bytes(), "path": name} for name in names]
    path = tmp_path_factory.mktemp("parquet") / "scenes.parquet"
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    table.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    SwinModel(SwinConfig(image_size=64, **SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a student with stochastic depth: it needs the state of the random generators on resuming."""
    folder = tmp_path_factory.mktemp("student")
    GFMConfig(image_size=64, **SHAPE, drop_path_rate=0.3).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_pause_after_streams(monkeypatch):
    """`datasets` waits five seconds after each pass over a shuffled Parquet stream."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


def argv(output: Path, **flags) -> list[str]:
    """Command line of a tiny run; True stands for a flag without value, None leaves a flag out."""
    words = []
    for name, value in {"output_dir": output, **FLAGS, **flags}.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def run(output: Path, **flags) -> int:
    AcceleratorState._reset_state(True)
    return script.main(argv(output, **flags))


def log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "trainer_state.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in log(output) if "loss" in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def resume_elsewhere(source: Path, step: int, output: Path, **flags) -> Path:
    """Go on from one checkpoint of a finished run, in another folder."""
    output.mkdir()
    shutil.copytree(source / f"checkpoint-{step}", output / f"checkpoint-{step}")
    assert run(output, resume_from_checkpoint="latest", **flags) == 0
    return output


# -- Whole runs ------------------------------------------------------------------------------------------------------


def test_folder_run_leaves_a_loadable_model_card_log_and_pictures(scenes, teacher, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, train_dir=scenes, teacher=teacher, num_train_epochs=2, eval_steps=5, hub_token="hf_secret") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("done: 12 steps")

    model, processor = AutoModel.from_pretrained(out), AutoImageProcessor.from_pretrained(out)
    assert type(model) is GFMModel
    pixels = processor(Image.new("RGB", (90, 70)), return_tensors="pt")
    assert model(**pixels).pooler_output.shape == (1, 64)
    assert torch.equal(SwinModel.from_pretrained(out).layernorm.weight, model.layernorm.weight)

    lines = log(out)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["epoch"] for line in lines if "loss" in line] == [0] * 6 + [1] * 6
    assert [line["step"] for line in lines if "eval_loss" in line] == [5, 10, 12]
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_loss"] == lines[-1]["eval_loss"] and results["steps"] == 12 and results["co2_kg"] > 0
    assert results["unreadable"] == {} and results["arguments"]["image_size"] == 64
    assert sorted(path.name for path in (out / "panels").iterdir()) == [f"step-{step:07d}.png" for step in (5, 10, 12)]
    assert "co2_eq_emissions" in (out / "README.md").read_text()
    assert not any("hf_secret" in path.read_text() for path in out.iterdir() if path.suffix in (".json", ".md"))
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-12"] and not list(out.glob("unfinished*"))
    assert json.loads((out / "config.json").read_text())["teacher"]["name"] == teacher.name


def test_training_lowers_the_loss_on_held_out_images(scenes, teacher, tmp_path):
    assert run(tmp_path, train_dir=scenes, teacher=teacher, num_train_epochs=6, eval_steps=1, learning_rate=0.2) == 0
    scores = [line for line in log(tmp_path) if "eval_loss" in line]
    for term in ("eval_reconstruction_loss", "eval_distillation_loss"):
        assert scores[-1][term] < scores[0][term] - 0.02


def test_parquet_and_workers_train_as_the_folder_does(scenes, parquet, teacher, tmp_path):
    sources = {"folder": {"train_dir": scenes}, "table": {"train_parquet": parquet}}
    for name, source in sources.items():
        flags = source | {"cache_dir": tmp_path / "cache", "dataloader_num_workers": 2 if name == "table" else 0}
        assert run(tmp_path / name, teacher=teacher, **flags) == 0
    assert losses(tmp_path / "folder") == losses(tmp_path / "table")
    assert same_weights(tmp_path / "folder", tmp_path / "table")


def test_stream_ends_at_max_train_steps_and_resumes_inside_an_epoch(parquet, teacher, tmp_path):
    flags = {"train_parquet": parquet, "teacher": teacher, "streaming": True, "max_train_steps": 9}
    flags |= {"checkpointing_steps": 2, "checkpoints_total_limit": 9}
    assert run(tmp_path / "whole", **flags) == 0
    assert [line["epoch"] for line in log(tmp_path / "whole") if "loss" in line] == [0] * 6 + [1] * 3
    resumed = resume_elsewhere(tmp_path / "whole", 8, tmp_path / "rest", **flags)
    assert losses(resumed) == losses(tmp_path / "whole")[8:] and same_weights(resumed, tmp_path / "whole")


def test_stream_without_rows(parquet, teacher, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    empty = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path / "cache"))
    empty.select([]).to_parquet(tmp_path / "empty.parquet")
    flags = {"train_parquet": tmp_path / "empty.parquet", "teacher": teacher, "cache_dir": tmp_path / "cache"}
    for streaming in (False, True):
        refused(capsys, tmp_path / "run", streaming=streaming, max_train_steps=2, **flags)


def test_without_teacher_it_is_masked_image_modelling_alone(scenes, student, tmp_path):
    assert run(tmp_path / "run", train_dir=scenes, config_name=student, max_train_steps=2) == 0
    assert all(line["distillation_loss"] == 0 and line["loss"] == line["reconstruction_loss"]
               for line in log(tmp_path / "run") if "loss" in line)  # fmt: skip
    assert not any(name.startswith("projector") for name in weights(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["teacher"] is None


def test_student_can_start_from_the_teacher(scenes, teacher, tmp_path):
    still = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0}
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 1, **still}
    stored = SwinModel.from_pretrained(teacher).state_dict()
    for start, expected in (("teacher", len(stored)), ("random", 0)):
        assert run(tmp_path / start, student_init=start, **flags) == 0
        trained = SwinModel.from_pretrained(tmp_path / start).state_dict()
        # Norms and biases start alike everywhere.
        matrices = [name for name in stored if stored[name].ndim > 1]
        assert sum(torch.equal(trained[name], stored[name]) for name in matrices) == min(expected, len(matrices))


def test_a_checkpoint_is_pretrained_further(scenes, teacher, tmp_path, capsys):
    """All its weights, decoder and projector too; at rate zero they come out as they went in."""
    assert run(tmp_path / "first", train_dir=scenes, teacher=teacher, max_train_steps=2) == 0
    still = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0, "weight_decay": 0}
    further = {"train_dir": scenes, "teacher": teacher, "model_name_or_path": tmp_path / "first", "max_train_steps": 1}
    assert run(tmp_path / "second", **further, **still) == 0
    assert same_weights(tmp_path / "first", tmp_path / "second")
    assert run(tmp_path / "third", **further) == 0 and not same_weights(tmp_path / "first", tmp_path / "third")
    wrong = refused(capsys, tmp_path / "x", train_dir=scenes, teacher=teacher, model_name_or_path="a", config_name="b")
    assert "--model_name_or_path brings configuration and weights" in wrong
    (tmp_path / "weights.pth").write_bytes(b"x")
    wrong = refused(capsys, tmp_path / "z", **{**further, "model_name_or_path": tmp_path / "weights.pth"})
    assert "gfm-hf convert" in wrong
    small = SwinModel(SwinConfig(image_size=64, **{**SHAPE, "embed_dim": 4}))
    small.save_pretrained(tmp_path / "small")
    wrong = refused(capsys, tmp_path / "y", **{**further, "teacher": tmp_path / "small"})
    assert "distilled from a teacher with other features" in wrong


def test_configuration_keeps_what_flags_do_not_name(scenes, teacher, tmp_path):
    GFMConfig(image_size=64, **SHAPE, band_names=("blue", "green", "red"), mask_ratio=0.3).save_pretrained(
        tmp_path / "config"
    )
    flags = {"train_dir": scenes, "teacher": teacher, "config_name": tmp_path / "config", "max_train_steps": 1}
    assert run(tmp_path / "run", distillation_weight=0.5, **flags) == 0
    config = GFMConfig.from_pretrained(tmp_path / "run")
    assert list(config.band_names) == ["blue", "green", "red"] and list(config.rgb_channels) == [2, 1, 0]
    assert config.mask_ratio == 0.3 and config.distillation_weight == 0.5


def test_accumulated_micro_batches_train_as_the_whole_batch(scenes, teacher, tmp_path):
    flags = {"train_dir": scenes, "teacher": teacher, "num_train_epochs": 2}
    assert run(tmp_path / "whole", **flags) == 0
    assert run(tmp_path / "halves", per_device_train_batch_size=4, gradient_accumulation_steps=2, **flags) == 0
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert len(losses(tmp_path / "halves")) == 2 * STEPS_PER_EPOCH


def test_bf16_stays_near_float32(scenes, teacher, tmp_path):
    flags = {"train_dir": scenes, "teacher": teacher}
    assert run(tmp_path / "full", **flags) == 0
    assert run(tmp_path / "half", mixed_precision="bf16", teacher_dtype="bfloat16", **flags) == 0
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), abs=0.02)
    assert losses(tmp_path / "half") != losses(tmp_path / "full")
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "half").values())


def test_other_flags_of_the_student_run(scenes, teacher, tmp_path):
    plain = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 3}
    other = {"gradient_checkpointing": True, "attn_implementation": "eager", "authors_quirks": True, "drop_last": True}
    assert run(tmp_path / "plain", **plain) == 0 and run(tmp_path / "other", **plain, **other) == 0
    assert losses(tmp_path / "other")[:2] == pytest.approx(losses(tmp_path / "plain")[:2], abs=1e-4)
    rates = [line["learning_rate"] for line in log(tmp_path / "other") if "loss" in line]
    assert rates[0] == rates[1]


# -- More bands than three -------------------------------------------------------------------------------------------


def write_geotiffs(folder: Path, count: int, bands: int, dtype: str, fill=None) -> Path:
    rasterio = pytest.importorskip("rasterio")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        values = rng.uniform(200, 3000, (bands, 48, 48)) if fill is None else np.full((bands, 48, 48), fill)
        with rasterio.open(
            folder / f"{number}.tif", "w", driver="GTiff", width=48, height=48, count=bands, dtype=dtype
        ) as file:
            file.write(values.astype(dtype))
    return folder


BANDS = {"band_names": ["B02", "B03", "B04", "B08"], "image_mean": [0.1] * 4, "image_std": [0.05] * 4}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_four_band_reflectance(teacher, tmp_path):
    folder = write_geotiffs(tmp_path / "tiles", 12, 4, "uint16")
    flags = {"train_dir": folder, "teacher": teacher, "rescale_factor": 1e-4, "gsd": 10}
    assert run(tmp_path / "run", **flags, **BANDS) == 0
    config = GFMConfig.from_pretrained(tmp_path / "run")
    assert config.num_channels == 4 and list(config.rgb_channels) == [2, 1, 0] and config.gsd == 10
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert processor.rescale_factor == 1e-4 and list(processor.image_mean) == [0.1] * 4
    assert AutoModel.from_pretrained(tmp_path / "run")(torch.zeros(1, 4, 64, 64)).pooler_output.shape == (1, 64)
    picture = Image.open(next((tmp_path / "run" / "panels").iterdir()))
    assert picture.size[0] > 3 * 128
    assert run(tmp_path / "mim", train_dir=folder, config_name=tmp_path / "run", rescale_factor=1e-4, **BANDS) == 0


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_teacher_needs_to_know_which_bands_are_red_green_and_blue(teacher, tmp_path, capsys):
    folder = write_geotiffs(tmp_path / "tiles", 12, 4, "uint16")
    bands = {"image_mean": [0.1] * 4, "image_std": [0.05] * 4, "rescale_factor": 1e-4}
    sentence = refused(capsys, tmp_path / "run", train_dir=folder, teacher=teacher, **bands)
    assert "rgb_channels" in sentence
    assert run(tmp_path / "run", train_dir=folder, teacher=teacher, rgb_channels=[2, 1, 0], **bands) == 0


# -- Wrong input -----------------------------------------------------------------------------------------------------


def refused(capsys, output: Path, left=(), **flags) -> str:
    """Run with something wrong: exit code 2, one sentence, nothing half-written; returns the sentence."""
    capsys.readouterr()
    assert run(output, **flags) == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in text
    found = {path.name for path in output.iterdir()} if output.exists() else set()
    assert found <= set(left), found - set(left)
    return lines[0]


def noise(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def training_and_held_out_names(folder: Path) -> tuple[list[str], list[str]]:
    table, held_out = hold_out(open_images(train_dir=folder), 64, 0)
    return [table[i].name for i in range(len(table))], [record.name for record in held_out]


def test_folders_without_images(teacher, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    for folder, hint in (("empty", "check the path"), ("text", "convert them"), ("missing", "does not exist")):
        assert hint in refused(capsys, tmp_path / "run", train_dir=tmp_path / folder, teacher=teacher)


def test_images_that_are_all_corrupt(teacher, tmp_path, capsys):
    folder = noise(tmp_path / "images", 20)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert "held out for evaluation can be read" in refused(
        capsys, tmp_path / "run", train_dir=folder, teacher=teacher
    )


@pytest.mark.parametrize("part", [0, 1])
def test_one_corrupt_image_in_a_hundred_is_skipped_and_named(teacher, tmp_path, capsys, part):
    """Wherever it is: among the images of the training, or among those held out."""
    folder = noise(tmp_path / "images", 120)
    name = training_and_held_out_names(folder)[part][3]
    (folder / name).write_bytes(b"")
    assert run(tmp_path / "run", train_dir=folder, teacher=teacher) == 0
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert skipped == [f"skipped {name}: zero bytes"]
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["unreadable"] == {name: "zero bytes"}


@pytest.mark.parametrize("workers", [0, 1])
def test_more_corrupt_images_end_the_run(teacher, tmp_path, capsys, workers):
    folder = noise(tmp_path / "images", 120)
    for name in training_and_held_out_names(folder)[0][30:32]:
        (folder / name).write_bytes(b"")
    flags = {"train_dir": folder, "teacher": teacher, "dataloader_num_workers": workers}
    sentence = refused(capsys, tmp_path / "run", ["trainer_state.jsonl"], **flags)
    assert "2 of 108 images cannot be read, more than 1%" in sentence and "start again" in sentence


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("bands", "dtype", "fill", "sentence"),
    [(4, "uint16", None, "has 4 bands but the model has 3"), (3, "float32", np.nan, "nodata")],
)
def test_rasters_that_do_not_fit(teacher, tmp_path, capsys, bands, dtype, fill, sentence):
    folder = write_geotiffs(tmp_path / "tiles", 12, bands, dtype, fill)
    assert sentence in refused(capsys, tmp_path / "run", train_dir=folder, teacher=teacher)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_wrong_bands_in_a_worker_are_one_sentence_too(teacher, tmp_path, capsys):
    folder = noise(tmp_path / "images", 40)
    odd = write_geotiffs(tmp_path / "tiles", 1, 4, "uint16") / "0.tif"
    training, _ = training_and_held_out_names(folder)
    shutil.copy(odd, folder / training[5].replace(".png", ".tif"))
    (folder / training[5]).unlink()
    flags = {"train_dir": folder, "teacher": teacher, "dataloader_num_workers": 1}
    sentence = refused(capsys, tmp_path / "run", ["trainer_state.jsonl"], **flags)
    assert sentence.startswith(f"error: image {training[5].replace('.png', '.tif')} has 4 bands")


WRONG = {
    "stage that no model of this depth has": ({"distillation_stages": [5]}, "stages 1 to 4"),
    "window": ({"image_size": 96, "mask_patch_size": 32}, "use --window_size 6"),
    "size that is halved to a fraction": ({"image_size": 112, "window_size": 7}, "--image_size 112 .*(96|128)"),
    "mask cells": ({"mask_patch_size": 24}, "48 or 72"),
    "mask ratio": ({"mask_ratio": 1.5}, "0.6"),
    "teacher's folder": ({"teacher": "./no/such/folder"}, "--teacher ./no/such/folder .*check the path"),
    "configuration's folder": ({"config_name": "./no/such/folder"}, "--config_name .*check the path"),
    "two sources": ({"train_parquet": "x.parquet"}, "exactly one of"),
    "no source": ({"train_dir": None}, "exactly one of"),
    "mean without deviation": ({"image_mean": [0.1, 0.2, 0.3]}, "--image_std"),
    "deviation of other length": ({"image_mean": [0.1] * 3, "image_std": [0.1] * 2}, "--image_std"),
    "bands": ({"rgb_channels": [0, 1, 5]}, "below num_channels 3"),
    "seed": ({"seed": -1}, "[Ss]eed"),
    "tracker": ({"report_to": "nonsense"}, "tensorboard"),
    "checkpoint": ({"resume_from_checkpoint": "elsewhere"}, "no checkpoint folder"),
    "start without teacher": ({"teacher": None, "student_init": "teacher"}, "needs a --teacher"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags(case, scenes, teacher, tmp_path, capsys):
    flags, pattern = WRONG[case]
    sentence = refused(capsys, tmp_path / "run", **{"train_dir": scenes, "teacher": teacher, **flags})
    assert re.search(pattern, sentence), sentence


@pytest.mark.parametrize(
    "words",
    [
        ["--no_such_flag", "1"],
        ["--max_train_steps", "0"],
        ["--logging_steps", "0"],
        ["--checkpointing_steps", "0"],
        ["--eval_steps", "-1"],
        ["--per_device_train_batch_size", "0"],
        ["--mixed_precision", "int3"],
    ],
)
def test_command_line_that_cannot_be_read(words, scenes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(argv(tmp_path / "run", train_dir=scenes) + words)
    assert stop.value.code == 2 and words[0] in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_teachers_that_do_not_fit(scenes, student, tmp_path, capsys):
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**shape, num_hidden_layers=2, layer_norm_eps=1e-5)).save_pretrained(tmp_path / "vit")
    flags = {"train_dir": scenes, "teacher": tmp_path / "vit"}
    assert "--config_name" in refused(capsys, tmp_path / "run", **flags)
    assert "stages 1 to 2 but stage 3" in refused(capsys, tmp_path / "run", config_name=student, **flags)
    flags |= {"config_name": student, "distillation_stages": [2]}
    assert "needs a Swin" in refused(capsys, tmp_path / "run", student_init="teacher", **flags)
    assert run(tmp_path / "run", max_train_steps=1, **flags) == 0


def test_loss_that_is_no_number_ends_the_run(scenes, teacher, tmp_path, capsys):
    flags = {"train_dir": scenes, "teacher": teacher, "learning_rate": 1e30, "warmup_ratio": 0}
    sentence = refused(capsys, tmp_path / "run", ["trainer_state.jsonl"], **flags)
    assert "The loss is nan at step" in sentence and "lower --learning_rate" in sentence


def test_a_run_is_not_overwritten_and_only_its_own_settings_resume_it(scenes, teacher, tmp_path, capsys):
    flags = {"train_dir": scenes, "teacher": teacher, "checkpointing_steps": 2}
    assert run(tmp_path, **flags) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    everything = [path.name for path in tmp_path.iterdir()]
    assert "--resume_from_checkpoint latest" in refused(capsys, tmp_path, everything, **flags)
    for change in ({"per_device_train_batch_size": 4}, {"seed": 1}, {"max_train_steps": 3}, {"num_eval_images": 2}):
        sentence = refused(capsys, tmp_path, everything, resume_from_checkpoint="latest", **(flags | change))
        assert "resume with the same values" in sentence
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert run(tmp_path, resume_from_checkpoint="latest", **flags) == 0  # a finished run just ends again


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 9 MB, of which a checkpoint takes 3.6."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=9m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_keeps_what_is_whole(small_disk, scenes, teacher, tmp_path, capsys):
    flags = {"train_dir": scenes, "teacher": teacher, "num_train_epochs": 2, "checkpointing_steps": 2}
    whole = ["checkpoint-2", "checkpoint-4"]
    sentence = refused(capsys, small_disk / "run", [*whole, "trainer_state.jsonl"], **flags)
    assert "is full" in sentence and "checkpoint-2, checkpoint-4 is whole" in sentence
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert run(small_disk / "run", resume_from_checkpoint="latest", **flags) == 0
    assert run(tmp_path / "whole", **flags) == 0
    assert same_weights(small_disk / "run", tmp_path / "whole")


# -- Cards and pushing -----------------------------------------------------------------------------------------------

# In place of `gfm-hf push`: appends what it was given to a log, then does as told.
PUSH = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[3])
seen = {"folder": str(folder), "repo": sys.argv[4:], "token": os.environ.get("HF_TOKEN")}
seen["files"] = sorted(path.name for path in folder.iterdir())
seen["steps"] = json.loads((folder / "all_results.json").read_text())["steps"]
with open(sys.argv[1], "a") as log:
    log.write(json.dumps(seen) + "\\n")
time.sleep(60 if sys.argv[2] == "sleep" and folder.parent.name == "unfinished-push" else 0)
if sys.argv[2] == "fail":
    sys.exit("error: no network")
print("https://hub/commit/1")
"""


@pytest.fixture
def pushes(tmp_path, monkeypatch):
    """Choose how pushes go; gives those that were begun."""

    def choose(what="succeed"):
        monkeypatch.setattr(
            publishing, "PUSH_COMMAND", (sys.executable, "-S", "-c", PUSH, str(tmp_path / "log"), what)
        )
        return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    return choose


def test_checkpoints_and_result_are_pushed(pushes, scenes, teacher, tmp_path, capfd, monkeypatch):
    begun = pushes()
    # Each push may take its time here, so that none is skipped.
    offer = publishing.BackgroundPush.offer

    def offer_and_wait(self, *args):
        assert offer(self, *args)
        self._child.wait()

    monkeypatch.setattr(publishing.BackgroundPush, "offer", offer_and_wait)
    out = tmp_path / "my-model"
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 5, "checkpointing_steps": 2}
    assert run(out, push_to_hub=True, hub_private_repo=True, hub_token="hf_secret", **flags) == 0
    assert [push["steps"] for push in begun()] == [2, 4, 5]
    snapshots = [str(out / "unfinished-push" / f"step-{step}") for step in (2, 4)]
    assert [push["folder"] for push in begun()] == [*snapshots, str(out)]
    files = {"model.safetensors", "config.json", "modeling_gfm.py", "README.md", "preprocessor_config.json"}
    for push in begun():
        assert push["repo"] == ["my-model", "--private"] and push["token"] == "hf_secret"
        assert files | {"all_results.json", "trainer_state.jsonl"} <= set(push["files"])
    err = capfd.readouterr().err
    for what in ("step 2", "step 4", "the result"):
        assert f"pushed {what} to https://hub/commit/1" in err
    assert not list(out.glob("unfinished*"))
    assert "hf_secret" not in "".join(path.read_text() for path in out.glob("*.json*"))


def test_slow_push_is_given_up_for_the_result(pushes, scenes, teacher, tmp_path, capfd):
    begun = pushes("sleep")
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 5, "checkpointing_steps": 1}
    started = time.monotonic()
    assert run(tmp_path / "run", push_to_hub=True, hub_model_id="someone/model", **flags) == 0
    assert time.monotonic() - started < 40
    assert [push["steps"] for push in begun()][-1] == 5
    err = capfd.readouterr().err
    assert err.count("step 1 is still on its way") == 1 and "pushed the result" in err
    assert not list((tmp_path / "run").glob("unfinished*"))


def test_failed_push_costs_a_warning_not_the_run(pushes, scenes, teacher, tmp_path, capfd):
    pushes("fail")
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 1}
    assert run(tmp_path / "run", push_to_hub=True, hub_model_id="someone/model", **flags) == 0
    out, err = capfd.readouterr()
    advice = f"gfm-hf push {tmp_path / 'run'} someone/model"
    assert "warning: the result was not pushed (no network)" in err and advice in err
    assert out.splitlines()[-1].startswith("done: 1 steps")
    assert type(AutoModel.from_pretrained(tmp_path / "run")) is GFMModel
    assert "# model" in (tmp_path / "run" / "README.md").read_text()


def test_names_the_hub_would_not_take_are_refused_before_the_first_step(scenes, teacher, tmp_path, capsys):
    flags = {"train_dir": scenes, "teacher": teacher, "push_to_hub": True}
    assert run(tmp_path / "a run", **flags) == 2
    assert "'a run'" in capsys.readouterr().err and not (tmp_path / "a run").exists()
    assert run(tmp_path / "run", hub_model_id="a/b/c", **flags) == 2
    assert "give --hub_model_id namespace/name" in capsys.readouterr().err


def test_the_card_keeps_what_a_person_wrote(scenes, teacher, tmp_path, capsys):
    out = tmp_path / "run"
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 2, "resume_from_checkpoint": "latest"}
    out.mkdir()
    (out / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    assert run(out, student_init="teacher", **flags) == 0
    card = ModelCard.load(out / "README.md")
    assert card.text.startswith("Mine.\n") and card.data.license == "mit" and "| steps | 2 |" in card.text
    assert "base_model" not in card.data.to_dict()  # a teacher from a folder
    assert [result.metric_type for result in card.data.eval_results] == [
        "loss",
        "reconstruction_loss",
        "distillation_loss",
    ]
    (out / "README.md").write_text("---\nlicense: [\n---\nMine.\n")
    assert run(out, student_init="teacher", **flags) == 0
    assert (out / "README.md").read_text() == "---\nlicense: [\n---\nMine.\n"
    assert "warning: README.md stays as it is: the metadata" in capsys.readouterr().err


# -- Interruptions ---------------------------------------------------------------------------------------------------


def test_random_generators_are_restored(scenes, teacher, student, tmp_path):
    flags = {"train_dir": scenes, "teacher": teacher, "config_name": student, "num_train_epochs": 2}
    flags |= {"checkpointing_steps": 4, "checkpoints_total_limit": 9}
    assert run(tmp_path / "whole", **flags) == 0
    for step in (4, 8):
        resumed = resume_elsewhere(tmp_path / "whole", step, tmp_path / f"from-{step}", **flags)
        assert losses(resumed) == losses(tmp_path / "whole")[step:]
        assert same_weights(resumed, tmp_path / "whole")


def test_killed_before_the_first_checkpoint_it_starts_over(scenes, teacher, tmp_path):
    flags = {"train_dir": scenes, "teacher": teacher, "max_train_steps": 3, "resume_from_checkpoint": "latest"}
    (tmp_path / "trainer_state.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')
    assert run(tmp_path, **flags) == 0
    assert [line["step"] for line in log(tmp_path) if "loss" in line] == [1, 2, 3] and losses(tmp_path)[0] < 9


LAUNCHER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import run_continual_pretraining as script
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        if request["broken"]:
            script.train_step = None
        sys.exit(script.main(request["argv"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Launcher:
    """Starts the script in new processes without paying for the imports each time: they are forks of one process."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(EXAMPLES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, output: Path, broken: bool = False, **flags) -> int:
        """Start a run; returns its process id. What it prints goes beside the output folder.

        Args:
            broken: Whether the training step is to fail as no user's input can make it fail.
        """
        streams = {name: str(output.with_suffix(f".{name}")) for name in ("stdout", "stderr")}
        self._server.stdin.write(json.dumps({"argv": argv(output, **flags), "broken": broken, **streams}) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Exit code of the run that was started last; minus the signal that killed it."""
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


def newest(output: Path, pattern: str) -> int:
    """Largest step of the folders of that name, -1 without any."""
    return max((int(path.name.rpartition("-")[2]) for path in output.glob(pattern)), default=-1)


def wait_until(condition, pid: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        os.kill(pid, 0)  # raises if the process is gone
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill_repeatedly(launcher: Launcher, output: Path, kills: int, steps: int, rng: np.random.Generator, **flags):
    """Kill the run at growing steps, every other time while a checkpoint is being written; then let it finish.

    Returns:
        How many kills met a half-written checkpoint.
    """
    halfway = 0
    for kill in range(kills):
        target = 1 + kill * (steps - 2) // kills
        pattern = "unfinished-checkpoint-*" if kill % 2 == 0 else "checkpoint-*"
        pid = launcher.start(output, resume_from_checkpoint="latest", **flags)
        wait_until(lambda pattern=pattern, target=target: newest(output, pattern) >= target, pid)
        time.sleep(rng.uniform(0, 0.004 if kill % 2 == 0 else 0.04))
        os.kill(pid, signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL
        halfway += newest(output, "unfinished-checkpoint-*") > newest(output, "checkpoint-*")
        for checkpoint in output.glob("checkpoint-*"):
            assert json.loads((checkpoint / "progress.json").read_text())["step"] == int(checkpoint.name[11:])
            assert load_file(checkpoint / "model.safetensors") and (checkpoint / "random_states_0.pkl").stat().st_size
        assert not (output / "model.safetensors").exists()
    launcher.start(output, resume_from_checkpoint="latest", **flags)
    assert launcher.wait() == 0, output.with_suffix(".stderr").read_text()[-2000:]
    return halfway


@pytest.mark.parametrize(
    ("kills", "workers", "epochs"),
    [(6, 0, 3), pytest.param(10, 2, 4, marks=pytest.mark.slow), pytest.param(30, 0, 6, marks=pytest.mark.slow)],
)
def test_killed_runs_end_with_the_same_weights(launcher, scenes, teacher, student, tmp_path, kills, workers, epochs):
    steps = epochs * STEPS_PER_EPOCH
    flags = {"train_dir": scenes, "teacher": teacher, "config_name": student, "num_train_epochs": epochs}
    flags |= {"checkpointing_steps": 1, "dataloader_num_workers": workers}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launcher.start(whole, **flags)
    assert launcher.wait() == 0, whole.with_suffix(".stderr").read_text()[-2000:]
    halfway = kill_repeatedly(launcher, killed, kills, steps, np.random.default_rng(0), **flags)
    assert halfway > 0

    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(killed) == losses(whole) and len(losses(whole)) == steps
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (killed, whole)]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_says_how_to_go_on(launcher, scenes, teacher, tmp_path, number):
    flags = {"train_dir": scenes, "teacher": teacher, "num_train_epochs": 40, "dataloader_num_workers": 1}
    out = tmp_path / "run"
    pid = launcher.start(out, **flags)
    wait_until(lambda: (out / "trainer_state.jsonl").exists() and len(log_lines(out)) >= 3, pid)
    os.killpg(pid, number)  # data workers get it too, as from a terminal or a batch system
    assert launcher.wait() == 0
    last = log(out)[-1]["step"]
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{last}"] and last < 40 * STEPS_PER_EPOCH
    assert (
        f"stopped at step {last}; go on with --resume_from_checkpoint latest" in out.with_suffix(".stdout").read_text()
    )
    assert "error" not in out.with_suffix(".stderr").read_text().lower() and not (out / "model.safetensors").exists()


def test_any_other_error_is_code_1_and_ends_the_workers_too(launcher, scenes, teacher, tmp_path):
    launcher.start(tmp_path / "run", broken=True, train_dir=scenes, teacher=teacher, dataloader_num_workers=2)
    assert launcher.wait() == 1
    text = (tmp_path / "run.stderr").read_text()
    assert "Traceback" in text and "NoneType" in text and not list((tmp_path / "run").iterdir())


def log_lines(output: Path) -> list[str]:
    return (output / "trainer_state.jsonl").read_text().splitlines()


# -- Several processes -----------------------------------------------------------------------------------------------


RECORDER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import datasets
import run_continual_pretraining as script

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.01
folder, rank = Path(sys.argv[2]), os.environ["RANK"]

class Recorder(script.PretrainingCollator):
    def __call__(self, samples):
        batch = super().__call__(samples)
        if self.samples.train:
            with (folder / f"record-{rank}").open("a") as file:
                file.writelines(f"{batch['epoch']} {sample['name']}\\n" for sample in samples if "name" in sample)
        return batch

script.PretrainingCollator = Recorder
(folder / f"pid-{rank}").write_text(str(os.getpid()))
sys.exit(script.main(sys.argv[3:]))
"""


def start_two_processes(folder: Path, output: Path, **flags) -> subprocess.Popen:
    """Start a run on two CPU processes, as the documentation says; `folder` gets the names of the images it saw."""
    folder.mkdir()
    (folder / "recorder.py").write_text(RECORDER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(folder / "recorder.py"), str(EXAMPLES), str(folder), *argv(output, **flags)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def recorded(folder: Path) -> list[tuple[int, str]]:
    """(epoch, name) of every image that one of the two processes has trained on."""
    lines = [line for rank in (0, 1) for line in (folder / f"record-{rank}").read_text().splitlines()]
    return [(int(epoch), name) for epoch, _, name in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(scenes, parquet, teacher, tmp_path, streaming):
    """Three epochs and two steps of an odd number of images: neither process waits, repeats or leaves out."""
    source = {"train_parquet": parquet, "streaming": True} if streaming else {"train_dir": scenes}
    flags = source | {"teacher": teacher, "max_train_steps": 3 * STEPS_PER_EPOCH + 2}
    process = start_two_processes(tmp_path / "record", tmp_path / "two", **flags, per_device_train_batch_size=4)
    assert run(tmp_path / "one", **flags) == 0
    assert process.wait(timeout=240) == 0, (tmp_path / "record" / "output").read_text()[-3000:]
    assert len(losses(tmp_path / "two")) == 20
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)

    names = sorted(str(path.relative_to(scenes)) for path in scenes.rglob("*.png"))
    expected = names if streaming else sorted(training_and_held_out_names(scenes)[0])
    for epoch in range(3):
        assert sorted(name for at, name in recorded(tmp_path / "record") if at == epoch) == expected
    assert type(AutoModel.from_pretrained(tmp_path / "two")) is GFMModel


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(scenes, teacher, tmp_path):
    flags = {"train_dir": scenes, "teacher": teacher, "num_train_epochs": 30, "per_device_train_batch_size": 4}
    out = tmp_path / "run"
    process = start_two_processes(tmp_path / "record", out, **flags)
    wait_until(lambda: (out / "trainer_state.jsonl").exists() and len(log_lines(out)) >= 3, process.pid, 120)
    os.kill(int((tmp_path / "record" / "pid-1").read_text()), signal.SIGTERM)  # one of them is enough
    assert process.wait(timeout=120) == 0
    last = log(out)[-1]["step"]
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{last}"] and last < 30 * STEPS_PER_EPOCH
    assert f"stopped at step {last}" in (tmp_path / "record" / "output").read_text()

    again = start_two_processes(tmp_path / "again", out, resume_from_checkpoint="latest", **flags)
    assert again.wait(timeout=240) == 0
    assert run(tmp_path / "one", **(flags | {"per_device_train_batch_size": 8})) == 0
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
