"""What holds for a run of every fine-tuning script, shown on classification."""

import json
import shutil

import numpy as np
import peft
import pytest
import run_image_classification as script
import torch
from PIL import Image
from task_scripts import TaskScript, results, write_backbone

from gfm_hf import GFMForImageClassification, GFMImageProcessor
from gfm_hf.training.adapting import merge_adapter


TASK = TaskScript(
    script,
    per_device_train_batch_size=8,
    learning_rate=0.5,
    max_train_steps=2,
    logging_steps=1,
    eval_steps=1,
    checkpointing_steps=1,
    dataloader_num_workers=0,
    drop_path_rate=0,
)
COLOURS = {"field": (40, 160, 60), "roof": (170, 60, 50), "water": (30, 60, 150)}


def write_images(folder, count=8):
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(colour, 30, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def adapter(images, backbone, tmp_path_factory):
    """A run that left an adapter; its flags had a relative path."""
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(backbone.parent)
        assert TASK.run(folder, model_name_or_path=backbone.name, data_dir=images, lora_r=2) == 0
    return folder


def test_an_adapter_finds_its_base_from_anywhere(adapter, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(backbone)
    assert (adapter / "modeling_gfm.py").exists() and (adapter / "loading_gfm.py").exists()
    lost = shutil.copytree(adapter, tmp_path / "lost")
    (lost / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(OSError, match="adapter for /gone/base, which is not on this machine"):
        GFMForImageClassification.from_pretrained(lost)


def test_a_run_starts_from_an_adapter_as_from_the_model_it_makes(adapter, images, tmp_path, capsys):
    merge_adapter(str(adapter), tmp_path / "merged")
    pixel_values = torch.randn(2, 3, 32, 32)
    adapted = GFMForImageClassification.from_pretrained(adapter).eval()
    merged = GFMForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert not [name for name in merged.state_dict() if "lora" in name]
    expected = adapted(pixel_values=pixel_values).logits
    torch.testing.assert_close(merged(pixel_values=pixel_values).logits, expected, rtol=0, atol=1e-5)

    still = {"learning_rate": 0, "warmup_learning_rate": 0, "min_learning_rate": 0, "weight_decay": 0}
    assert TASK.run(tmp_path / "run", model_name_or_path=adapter, data_dir=images, **still) == 0
    # All but the mask token, which no classifier reaches.
    assert results(tmp_path / "run")["trained_parameters"] == results(tmp_path / "run")["parameters"] - 8
    again = GFMForImageClassification.from_pretrained(tmp_path / "run").eval()
    torch.testing.assert_close(again(pixel_values=pixel_values).logits, expected, rtol=0, atol=1e-5)

    assert TASK.run(tmp_path / "twice", model_name_or_path=adapter, data_dir=images, lora_r=2) == 2
    assert "is an adapter" in capsys.readouterr().err.splitlines()[-1]


def test_an_adapter_needs_a_stored_base(backbone, images, tmp_path, capsys):
    assert TASK.run(tmp_path / "run", model_name_or_path=backbone, data_dir=images, lora_r=2, random_init=True) == 2
    assert "--random_init" in capsys.readouterr().err.splitlines()[-1]


def test_queries_keys_and_values_alone_are_adapted(adapter):
    targets = peft.PeftConfig.from_pretrained(adapter).target_modules
    assert set(targets) == {"q_proj", "k_proj", "v_proj"}


def split_folder(images, folder, parts):
    for part, places in parts.items():
        for name in COLOURS:
            (folder / part / name).mkdir(parents=True)
            for index in places:
                shutil.copy(images / name / f"{name}{index:02d}.png", folder / part / name)
    return folder


def test_scores_bear_the_name_of_their_part(images, backbone, tmp_path):
    folder = split_folder(images, tmp_path / "set", {"train": range(4), "val": range(4, 8)})
    assert TASK.run(tmp_path / "run", model_name_or_path=backbone, data_dir=folder) == 0
    found, card = results(tmp_path / "run"), (tmp_path / "run" / "README.md").read_text()
    assert "eval_accuracy" in found and not [name for name in found if name.startswith("test_")]
    assert "split: validation" in card and "split: test" not in card


def test_a_broken_file_of_the_test_part_costs_no_training(images, backbone, tmp_path, capsys):
    folder = split_folder(images, tmp_path / "set", {"train": range(4), "val": (4, 5), "test": (6, 7)})
    broken, out = folder / "test" / "roof" / "roof07.png", tmp_path / "run"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    flags = {"model_name_or_path": backbone, "data_dir": folder}
    assert TASK.run(out, **flags) == 2
    assert "roof07.png" in capsys.readouterr().err.splitlines()[-1]
    assert "eval_accuracy" in results(out) and GFMForImageClassification.from_pretrained(out).config.num_labels == 3
    broken.write_bytes(whole)
    assert TASK.run(out, **flags, resume_from_checkpoint="latest") == 0
    assert "test_accuracy" in results(out) and results(out)["steps"] == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"learning_rate": 0.1}, "learning_rate 0.5 (now 0.1)"),
        ({"per_device_train_batch_size": 4}, "global_batch_size 8 (now 4)"),
        ({"max_train_steps": 3}, "max_train_steps 2 (now 3)"),
        ({"mixup_alpha": 0}, "mixup_alpha 0.8 (now 0.0)"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(images, backbone, tmp_path, capsys, flags, sentence):
    own = {"model_name_or_path": backbone, "data_dir": images}
    assert TASK.run(tmp_path / "run", **own) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    assert TASK.run(tmp_path / "run", **own | flags, resume_from_checkpoint="latest") == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    free = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 7}
    assert TASK.run(tmp_path / "run", **own, **free, resume_from_checkpoint="latest") == 0


def test_the_saved_processor_knows_what_was_not_measured(images, backbone, tmp_path):
    own = shutil.copytree(backbone, tmp_path / "segmenter")
    GFMImageProcessor(size=32, palette=[[0, 0, 0], [255, 0, 0]], num_labels=2).save_pretrained(own)
    assert TASK.run(tmp_path / "run", model_name_or_path=own, data_dir=images, nodata=7) == 0
    processor = GFMImageProcessor.from_pretrained(tmp_path / "run")
    assert processor.nodata == 7 and processor.palette is None and processor.num_labels is None
    pixels = np.full((32, 32, 3), 100, np.uint8)
    pixels[:8] = 7
    # What the checkpoint's own processor knew stays where no flag says another value.
    GFMImageProcessor(size=32, nodata=9).save_pretrained(own)
    args = script.parse_args(TASK.argv(tmp_path, model_name_or_path=own, data_dir=images))
    assert script.load_processor(args).nodata == 9
    values = processor(pixels, return_tensors="pt").pixel_values
    assert values[:, :, :7].abs().max() < 1e-6 < values[:, :, 9:].abs().min()


def test_nan_as_the_missing_value_is_the_same_after_a_pause(images, backbone, tmp_path):
    flags = {"model_name_or_path": backbone, "data_dir": images, "nodata": "nan"}
    assert TASK.run(tmp_path / "run", **flags) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    assert TASK.run(tmp_path / "run", **flags, resume_from_checkpoint="latest") == 0


def test_validation_needs_a_label_to_choose_by(backbone, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [], "labels": [], "split": []}
    for part, labels in (
        ("train", ["a", "b"]),
        ("train", ["b"]),
        ("train", ["a"]),
        ("validation", []),
        ("test", ["a"]),
    ):
        rows["image"].append(Image.new("RGB", (32, 32), (len(rows["image"]) * 40, 90, 60)))
        rows["labels"].append(labels)
        rows["split"].append(part)
    features = {
        "image": datasets.Image(),
        "labels": datasets.List(datasets.Value("string")),
        "split": datasets.Value("string"),
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "rows.parquet")
    flags = {"parquet": tmp_path / "rows.parquet", "cache_dir": tmp_path / "cache"}
    assert TASK.run(tmp_path / "run", model_name_or_path=backbone, **flags) == 2
    assert "no label to choose by" in capsys.readouterr().err.splitlines()[-1]


def test_results_and_card_tell_how_many_test_images_were_pretrained_on(images, backbone, tmp_path, capsys):
    folder = split_folder(images, tmp_path / "set", {"train": range(4), "val": (4, 5), "test": (6, 7)})
    pile = tmp_path / "pile"
    pile.mkdir()
    for name in ("field06", "water07", "roof00"):  # the last one is not of the test part
        picture = Image.open(images / name[:-2] / f"{name}.png")
        picture.transpose(Image.Transpose.ROTATE_90).save(pile / f"{name}.png")
    out, flags = tmp_path / "run", {"model_name_or_path": backbone, "data_dir": folder, "pretraining_data": pile}
    assert TASK.run(out, **flags) == 0
    assert "warning: 2 of 6 samples of the test part" in capsys.readouterr().err
    assert results(out)["samples_seen_in_pretraining"] == 2
    card = (out / "README.md").read_text()
    assert "| samples seen in pretraining | 2 |" in card and "type: samples_seen" not in card
    # It says nothing of what the run computes: a resumed one may look elsewhere, or not at all.
    assert TASK.run(out, **flags | {"pretraining_data": "none"}, resume_from_checkpoint="latest") == 0
    assert "samples_seen_in_pretraining" not in results(out)
    assert TASK.run(tmp_path / "other", **flags | {"pretraining_data": tmp_path / "no" / "such"}) == 2
    assert "cannot be opened" in capsys.readouterr().err.splitlines()[-1]
