from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SwinConfig, SwinModel, ViTImageProcessorPil


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import probe_checkpoints  # noqa: E402
from procedural_scenes import write_scenes  # noqa: E402

from gfm_hf.data.labelled import LabelledImages, open_labelled_images  # noqa: E402


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 10, 32)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2)).save_pretrained(
        folder
    )
    ViTImageProcessorPil(size={"height": 99, "width": 99}).save_pretrained(folder)
    return folder


def test_table_and_file_hold_every_model(
    scenes: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, output = [f"random:{checkpoint}", str(checkpoint)], tmp_path / "deep" / "probe.json"
    arguments = ["--models", *names, "--data_dir", str(scenes), "--seeds", "0", "1", "--output", str(output)]
    results = probe_checkpoints.main(arguments)
    assert list(results) == names == list(json.loads(output.read_text()))
    one = json.loads(output.read_text())[names[1]]
    assert one["train_images"] == 40 and one["test_images"] == 10 and one["features"] == 16 and one["image_size"] == 32
    assert [run["seed"] for run in one["runs"]] == [0, 1]
    assert one["linear"]["mean"] == pytest.approx(np.mean([run["linear"] for run in one["runs"]]))
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| model |") and names[0] in table[2] and "±" in table[3]
    assert "test_features" not in one


def test_random_has_the_shape_but_not_the_weights(checkpoint: Path) -> None:
    trained, _ = probe_checkpoints.load_model(str(checkpoint))
    (fresh, processor), (again, _) = (probe_checkpoints.load_model(f"random:{checkpoint}") for _ in range(2))
    weights = [m.embeddings.patch_embeddings.projection.weight for m in (trained, fresh, again)]
    assert weights[0].shape == weights[1].shape and not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert processor.size["height"] == 99


def test_pictures_are_cut_to_the_models_size_not_the_processors(scenes: Path, checkpoint: Path) -> None:
    _, processor = probe_checkpoints.load_model(str(checkpoint))
    data = open_labelled_images(scenes)
    batches = list(probe_checkpoints.pixel_batches(data, processor, 24, 32))
    assert [tuple(batch.shape) for batch in batches] == [(32, 3, 24, 24), (18, 3, 24, 24)]


def test_stage_changes_the_features(scenes: Path, checkpoint: Path) -> None:
    model, processor = probe_checkpoints.load_model(str(checkpoint))
    train, test = probe_checkpoints.train_and_test(open_labelled_images(scenes))
    last = probe_checkpoints.probe_model(model, processor, train, test, seeds=[0])
    first = probe_checkpoints.probe_model(model, processor, train, test, stage=0, image_size=16, seeds=[0])
    assert last["test_features"].shape == (10, 16) and first["test_features"].shape == (10, 8)
    assert first["image_size"] == 16


def test_parts_come_from_the_column_or_a_second_source() -> None:
    splits = np.array(["train", "val", "test", "train"])
    data = LabelledImages((b"0", b"1", b"2", b"3"), np.array([0, 1, 0, 1]), ("a", "b"), splits)
    train, test = probe_checkpoints.train_and_test(data)
    assert train.files == (b"0", b"3") and test.files == (b"2",)
    assert probe_checkpoints.train_and_test(data, test) == (data, test)
    with pytest.raises(ValueError, match="must agree"):
        probe_checkpoints.train_and_test(data, LabelledImages((b"",), np.array([0]), ("c", "d")))
    with pytest.raises(ValueError, match="train and test"):
        probe_checkpoints.train_and_test(data.subset(splits == "train"))


def test_unknown_checkpoint_and_clashing_flags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No checkpoint can be read"):
        probe_checkpoints.load_model(str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        probe_checkpoints.parse_args(["--models", "x", "--data_dir", "d", "--test_parquet", "t"])
    assert stop.value.code == 2
