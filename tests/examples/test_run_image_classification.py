"""The classification script as a person runs it: tiny scenes, a tiny pretrained backbone."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import peft
import pytest
import run_image_classification as script
import torch
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
from transformers import AutoImageProcessor, AutoModelForImageClassification

from gfm_hf import GFMConfig, GFMForImageClassification
from gfm_hf.data.mixing import Mixing


TASK = TaskScript(
    script,
    per_device_train_batch_size=8,
    learning_rate=0.5,
    max_train_steps=6,
    logging_steps=1,
    eval_steps=3,
    checkpointing_steps=2,
    dataloader_num_workers=0,
    drop_path_rate=0,
)
argv, run = TASK.argv, TASK.run
COLOURS = {"field": (40, 160, 60), "roof": (170, 60, 50), "water": (30, 60, 150)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes that differ in colour: 20 noisy pictures of each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(20):
            pixels = np.clip(rng.normal(colour, 30, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"))


def test_defaults_are_the_protocol():
    args = script.parse_args(["--model_name_or_path", "x", "--output_dir", "y"])
    rates = ("learning_rate", "warmup_learning_rate", "min_learning_rate", "warmup_ratio")
    assert [getattr(args, name) for name in rates] == [1e-4, 1e-7, 1e-5, 0.2]
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.max_train_steps) == (100, 128, None)
    assert (args.layer_decay, args.weight_decay, args.drop_path_rate, args.max_grad_norm) == (0.9, 0.05, 0.1, 5.0)
    assert (args.mixup_alpha, args.cutmix_alpha, args.label_smoothing, args.crop_scale) == (0.8, 1.0, 0.1, 0.67)
    # After every epoch, to the end, without repetition, and with the rates that the paper writes.
    assert (args.eval_steps, args.early_stopping_patience, args.train_fraction) == (None, None, 1)
    assert not (args.authors_quirks or args.authors_subset or args.freeze_backbone or args.lora_r)


def test_flags_arrive(images, backbone, tmp_path):
    flags = {"model_name_or_path": backbone, "data_dir": images, **SHARED_FLAGS, "crop_scale": 0.9}
    mixing = {"mixup_alpha": 0.3, "cutmix_alpha": 0.6, "label_smoothing": 0.2}
    caught = TASK.prepared(tmp_path / "one", **flags, **mixing, authors_quirks=True)
    check_shared_flags(caught)
    assert caught.loader.dataset.augmentation.scale == (0.9, 1)
    assert caught.loader.collate_fn.mixing == Mixing(**mixing)
    config = caught.model.config
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    quirks, plain = caught.schedule, TASK.prepared(tmp_path / "two", **flags).schedule
    assert quirks.learning_rate(1) == quirks.learning_rate(0) and plain.learning_rate(1) != plain.learning_rate(0)
    assert quirks.learning_rate(0, 0.5) == quirks.learning_rate(0) > plain.learning_rate(0, 0.5)


def test_validation_chooses_and_the_test_part_is_told(images, backbone, tmp_path):
    """A model that says field to everything: always right in one part, never in the other."""
    parts = {"train": ("field", "roof"), "validation": ("field",), "test": ("roof",)}
    for part, names in parts.items():
        for name in names:
            shutil.copytree(images / name, tmp_path / "images" / part / name)
    model = write_constant_model(tmp_path / "model", GFMForImageClassification, backbone, answer=0)
    rates = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0, "max_train_steps": 1}
    found = TASK.call(tmp_path / "run", model_name_or_path=model, data_dir=tmp_path / "images", **rates)
    assert found["scores"]["accuracy"] == 0
    assert results(tmp_path / "run")["eval_accuracy"] == 1 and results(tmp_path / "run")["test_accuracy"] == 0


def test_it_learns_and_leaves_a_loadable_classifier(images, backbone, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, data_dir=images, max_train_steps=30, eval_steps=10) == 0
    found = results(out)
    assert found["test_accuracy"] > 0.8 and found["eval_accuracy"] > 0.8  # a third by chance
    assert "done: 30 steps" in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(out)
    assert type(model) is GFMForImageClassification and set(model.config.label2id) == set(COLOURS)
    processor = AutoImageProcessor.from_pretrained(out)
    names = [name for name in COLOURS for _ in range(3)]
    pictures = [Image.open(images / name / f"{name}{index:02d}.png") for name in COLOURS for index in range(3)]
    with torch.no_grad():
        answers = model(**processor(pictures, return_tensors="pt")).logits.argmax(-1).tolist()
    assert np.mean([model.config.id2label[answer] == name for answer, name in zip(answers, names)]) > 0.7
    for picture in ("confusion.png", "samples.png"):
        assert Image.open(out / "panels" / picture).size[0] > 200
    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "test accuracy" in card
    log = [json.loads(line) for line in (out / "trainer_state.jsonl").read_text().splitlines()]
    assert {"eval_accuracy", "loss"} <= {name for line in log for name in line}


def test_steps_can_be_called_from_python(images, backbone, tmp_path):
    """Settings in, scores out: what a benchmark over models and seeds needs."""
    scores = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        scores.append(TASK.call(tmp_path / name, model_name_or_path=backbone, data_dir=images, seed=seed))
    assert scores[0]["scores"] == scores[1]["scores"] and scores[0]["seed"] == 0 and scores[2]["seed"] == 1
    assert scores[0]["images"].startswith("folder") and scores[0]["steps"] == 6


def test_a_run_does_not_go_on_with_images_of_another_size(images, backbone, tmp_path, capsys):
    flags = {"model_name_or_path": backbone, "data_dir": images, "max_train_steps": 2}
    assert run(tmp_path / "run", **flags) == 0
    assert run(tmp_path / "run", **flags, image_size=64, resume_from_checkpoint="latest") == 2
    assert "image_size 32 (now 64)" in capsys.readouterr().err


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
    assert results(whole)["test_accuracy"] == results(resumed)["test_accuracy"]


def test_the_head_alone_is_trained(images, backbone, tmp_path):
    assert run(tmp_path / "run", model_name_or_path=backbone, data_dir=images, freeze_backbone=True) == 0
    before, after = load_file(backbone / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    encoder = [name for name in before if name.startswith("swin.")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)
    assert results(tmp_path / "run")["trained_parameters"] == 3 * 16 + 3


def test_an_adapter_is_saved_alone_and_merges_to_equal_logits(images, backbone, tmp_path):
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, data_dir=images, lora_r=2) == 0
    assert not (out / "model.safetensors").exists() and (out / "adapter_model.safetensors").exists()
    base = GFMForImageClassification.from_pretrained(backbone, config=GFMConfig.from_pretrained(out)).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    plain = base(pixel_values).logits
    adapted = peft.PeftModel.from_pretrained(base, out).eval()
    logits = adapted(pixel_values=pixel_values).logits
    assert not torch.allclose(logits, plain, atol=1e-4)
    alone = AutoModelForImageClassification.from_pretrained(out).eval()  # the folder brings its base
    assert alone.config.id2label == dict(enumerate(COLOURS))
    torch.testing.assert_close(alone(pixel_values=pixel_values).logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(adapted.merge_and_unload()(pixel_values).logits, logits, rtol=0, atol=1e-5)


def test_several_labels(backbone, tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"image": [], "labels": []}
    for _ in range(40):
        chosen = [index for index in range(3) if rng.random() < 0.5]
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        for index in chosen:
            pixels[8 * index : 8 * index + 8, :, index] += 150
        rows["image"].append(Image.fromarray(pixels))
        rows["labels"].append(chosen)
    names = datasets.ClassLabel(names=list(COLOURS))
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.List(names)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "run"
    assert run(out, model_name_or_path=backbone, parquet=tmp_path / "rows.parquet", max_train_steps=20) == 0
    assert 0 < results(out)["test_micro_map"] <= 1 and (out / "panels" / "precision_recall.png").exists()
    assert GFMConfig.from_pretrained(out).problem_type == "multi_label_classification"


def test_early_stopping(images, backbone, tmp_path):
    still = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0, "weight_decay": 0}
    out = tmp_path / "run"
    flags = {"model_name_or_path": backbone, "data_dir": images, "eval_steps": 1, "early_stopping_patience": 2}
    assert run(out, **flags, **still) == 0
    assert results(out)["steps"] == 3 and results(out)["best_step"] == 1


def test_pixels_without_data_become_the_mean(images, backbone, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    for path in folder.glob("*/*.png"):
        pixels = np.full((40, 36, 3), 200, np.uint8)
        pixels[:20] = 7
        Image.fromarray(pixels).save(path)
    args = script.parse_args(argv(tmp_path, model_name_or_path=backbone, data_dir=folder, nodata=7))
    processor = script.load_processor(args)
    data = script.open_data(args, 3, (0, 1, 2))
    batch = next(iter(script.evaluation_loader(args, data.validation, processor, script.Accelerator(cpu=True))))
    values, levels = batch["pixel_values"], processor.denormalize(batch["pixel_values"]) * 255
    assert values[:, :, :15].abs().max() < 1e-6 and (levels[:, :, 17:] - 200).abs().max() < 1e-3
    # A resize mixes no false values into what was measured.
    assert ((values.abs() < 1e-6) | ((levels - 200).abs() < 1e-3)).all()


def test_a_random_start_takes_the_configuration_alone(images, backbone, tmp_path):
    taught = shutil.copytree(backbone, tmp_path / "taught")
    config = json.loads((taught / "config.json").read_text())
    (taught / "config.json").write_text(json.dumps(config | {"teacher": {"name": "some/teacher"}}))
    words = {"one": {"random_init": True, "seed": 1}, "other": {"random_init": True, "seed": 2}, "taught": {}}
    still = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0, "max_train_steps": 1}
    filters = "swin.embeddings.patch_embeddings.projection.weight"
    weights = {}
    for name, flags in words.items():
        assert run(tmp_path / name, model_name_or_path=taught, data_dir=images, weight_decay=0, **still, **flags) == 0
        weights[name] = load_file(tmp_path / name / "model.safetensors")[filters]
        told = (
            "pretrained"
            in (tmp_path / name / "README.md").read_text().partition("## How to use")[0].partition("# ")[2]
        )
        assert told == (name == "taught")
    assert torch.equal(weights["taught"], load_file(taught / "model.safetensors")[filters])
    assert not torch.equal(weights["one"], weights["taught"]) and not torch.equal(weights["one"], weights["other"])
    assert results(tmp_path / "one")["started_from"] == "a random start"


WRONG = {
    "lora and probe": ({"lora_r": 2, "freeze_backbone": True}, "contradict each other"),
    "other problem": ({"problem_type": "multi_label_classification"}, "the labels make it single_label"),
    "no data": ({"data_dir": "missing"}, "missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case, images, backbone, tmp_path, capsys):
    flags, sentence = WRONG[case]
    assert run(tmp_path / "run", **{"model_name_or_path": backbone, "data_dir": images, **flags}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_two_processes_give_the_metrics_of_one(images, backbone, tmp_path):
    """The same weights (rate 0) scored by one process and by two."""
    still = {
        "learning_rate": 0,
        "warmup_learning_rate": 0,
        "min_learning_rate": 0,
        "weight_decay": 0,
        "max_train_steps": 1,
    }
    flags = {"model_name_or_path": backbone, "data_dir": images, "per_device_eval_batch_size": 5, **still}
    assert run(tmp_path / "one", **flags) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [script.__file__, *argv(tmp_path / "two", **flags)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("test_accuracy", "eval_accuracy", "test_mean_class_accuracy"):
        assert results(tmp_path / "one")[name] == results(tmp_path / "two")[name]
