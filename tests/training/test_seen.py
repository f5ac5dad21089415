"""What a run says of benchmark images that its backbone was pretrained on."""

import argparse
import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.sources import open_images
from gfm_hf.data.tasks import open_task
from gfm_hf.training import seen
from gfm_hf.training.seen import seen_in_pretraining
from gfm_hf.training.task_arguments import add_data_arguments, add_model_arguments


def scene(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def benchmark(tmp_path):
    for part, first in (("train", 0), ("validation", 20), ("test", 40)):
        for i in range(first, first + 8):
            (tmp_path / "benchmark" / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            scene(i).save(tmp_path / "benchmark" / part / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "benchmark"


@pytest.fixture
def pretraining(tmp_path):
    """Five pictures of the test part, three of training, eleven others."""
    (tmp_path / "my pile").mkdir()
    for i in (40, 41, 42, 43, 44, 0, 1, 2, *range(100, 111)):
        scene(i).rotate(90).save(tmp_path / "my pile" / f"{i}.png")
    return tmp_path / "my pile"


@pytest.fixture
def checkpoint(tmp_path, pretraining):
    """A folder with the record of a pretraining run."""
    (tmp_path / "checkpoint").mkdir()
    arguments = {"train_dir": str(pretraining), "train_parquet": None, "dataset_name": None, "split": "train"}
    fingerprint = open_images(train_dir=pretraining).fingerprint
    facts = {"data_fingerprint": fingerprint, "arguments": arguments | {"image_column_name": "image", "steps": 3}}
    (tmp_path / "checkpoint" / "all_results.json").write_text(json.dumps(facts))
    return tmp_path / "checkpoint"


def record(checkpoint, **arguments):
    source = {name: value for name, value in arguments.items() if name != "streaming"}
    fingerprint = "" if arguments.get("streaming") else open_images(**source).fingerprint
    facts = {
        "data_fingerprint": fingerprint,
        "arguments": arguments | {"split": "train", "image_column_name": "image"},
    }
    (checkpoint / "all_results.json").write_text(json.dumps(facts))


def look(benchmark, checkpoint="some/model", *words):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    add_model_arguments(parser)
    flags = ["--data_dir", str(benchmark), "--model_name_or_path", str(checkpoint), *map(str, words)]
    return seen_in_pretraining(parser.parse_args(flags), open_task("classification", data_dir=benchmark).test)


def test_without_a_word_on_pretraining_nothing_is_said(benchmark, tmp_path, capsys):
    assert look(benchmark) == {} == look(benchmark, tmp_path)
    assert not capsys.readouterr().err


def test_seen_images_are_counted_and_three_are_named(benchmark, pretraining, capsys):
    facts = look(benchmark, "some/model", "--pretraining_data", pretraining)
    assert facts == {"samples_seen_in_pretraining": 5}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "5 of 8 samples of the test part" in line and "a/40.png, a/42.png, a/44.png and 2 more" in line
    assert f"overlap.py '{pretraining}' {benchmark} --output_dir overlap" in line


def test_none_seen_is_a_fact_without_a_warning(benchmark, pretraining, capsys):
    for name in (40, 41, 42, 43, 44):
        (pretraining / f"{name}.png").unlink()
    assert look(benchmark, "some/model", "--pretraining_data", pretraining) == {"samples_seen_in_pretraining": 0}
    assert "warning" not in capsys.readouterr().err


def test_a_checkpoint_knows_its_images(benchmark, checkpoint, pretraining, monkeypatch, capsys):
    assert look(benchmark, checkpoint) == {"samples_seen_in_pretraining": 5}
    assert str(pretraining) in capsys.readouterr().err
    assert look(benchmark, checkpoint, "--pretraining_data", "none") == {}
    monkeypatch.setattr(seen, "QUICK_IMAGES", 18)
    assert look(benchmark, checkpoint) == {}  # too many to be decoded unasked
    assert look(benchmark, checkpoint, "--pretraining_data", pretraining) == {"samples_seen_in_pretraining": 5}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_this_machine_is_known_too(benchmark, checkpoint, pretraining, tmp_path, streaming):
    rows = {"image": [str(path) for path in sorted(pretraining.iterdir())]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "pile").mkdir()
    table.to_parquet(tmp_path / "pile" / "train.parquet")
    record(checkpoint, dataset_name=str(tmp_path / "pile"), streaming=streaming)
    assert look(benchmark, checkpoint) == {"samples_seen_in_pretraining": 5}


def test_what_was_not_compared_is_said(benchmark, checkpoint, capsys):
    """A data set of the Hub is not fetched without being asked for."""
    record(checkpoint, dataset_name="someone/pile", streaming=True)
    assert look(benchmark, checkpoint) == {}
    assert (
        "was not compared with the pretraining data someone/pile; pass --pretraining_data" in capsys.readouterr().err
    )


def test_a_record_of_images_that_have_changed_or_gone_counts_for_nothing(benchmark, checkpoint, pretraining):
    scene(999).save(pretraining / "new.png")
    assert look(benchmark, checkpoint) == {}
    shutil.rmtree(pretraining)
    assert look(benchmark, checkpoint) == {}
    for text in ("{", '{"arguments": null}', '{"arguments": {"train_dir": 3}}', "[]"):
        (checkpoint / "all_results.json").write_text(text)
        assert look(benchmark, checkpoint) == {}


def test_a_wrong_name_is_refused(benchmark, tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        look(benchmark, "some/model", "--pretraining_data", tmp_path / "no" / "such" / "folder")
