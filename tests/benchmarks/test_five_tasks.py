"""The table of the five tasks: its arithmetic by hand, and a whole small one."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from transformers import SwinConfig, SwinModel, ViTImageProcessorPil


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import five_tasks  # noqa: E402
from five_tasks import TASKS  # noqa: E402
from task_sets import png  # noqa: E402

from gfm_hf import GFMConfig, GFMImageProcessor, GFMModel  # noqa: E402
from gfm_hf.metrics import change_detection  # noqa: E402


SHAPE = {"image_size": 16, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
SMALL = {"image_size": 16, "max_train_steps": 4, "eval_steps": 4, "per_device_train_batch_size": 4}


@pytest.fixture(autouse=True)
def own_process():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    AcceleratorState._reset_state(True)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def masks(*rows):
    return [{"mask": png(np.array(row, dtype=np.uint8))} for row in rows]


def line(task="roads", model="gfm", seed=0, score=0.5, **more):
    return {"task": task, "model": model, "seed": seed, "score": score, "trivial": 0.25, **more}


def by_key(*lines):
    return {(one["task"], one["model"], one["seed"]): one for one in lines}


def test_the_commonest_class_of_training_is_what_counts():
    train, test = [{"label": 1}] * 3 + [{"label": 0}] * 2, [{"label": 0}] * 3 + [{"label": 1}]
    assert five_tasks.majority_share(train, test) == 0.25


def test_prevalence_ranks_classes_by_training():
    train = [{"labels": ["a"]}, {"labels": ["a", "b"]}]
    test = [{"labels": ["b"]}, {"labels": ["a", "b"]}]
    # Scores a 1, b 0.5: first both a's (1 of 2 right), then both b's (3 of 4 right).
    assert five_tasks.prevalence_map(train, test) == pytest.approx(1 / 3 * 1 / 2 + 2 / 3 * 3 / 4)


def test_everything_changed():
    assert five_tasks.all_change_f1([], masks([[255, 0], [0, 0]], [[0, 200], [0, 0]])) == pytest.approx(0.4)


def test_majority_class_everywhere_and_ignored_pixels_nowhere():
    train, test = masks([[1, 1, 2, 255]]), masks([[1, 0, 2, 255]])
    assert five_tasks.majority_iou(train, test) == pytest.approx((1 / 3) / 3)


def test_table_has_mean_and_sample_deviation_and_says_what_is_missing():
    results = by_key(line(score=0.5), line(seed=1, score=0.6), line(model="random", score=0.4))
    scores = {"ssim": 0.61, "bicubic_ssim": 0.57}
    results |= by_key(*(line("sr_ucmerced", seed=seed, score=23.5678, scores=scores) for seed in (0, 1)))
    rows = five_tasks.table(results).splitlines()
    assert rows[0] == "| task | trivial | gfm | random |"
    assert rows[2] == f"| {TASKS['roads'].title} | 25.0 | 55.0 ± 7.1 | 40.0 (1) |"
    assert rows[3] == f"| {TASKS['sr_ucmerced'].title} | 0.25 | 23.57 ± 0.00 | - |"
    assert rows[4] == "| - SSIM | 0.5700 | 0.6100 | - |"
    assert five_tasks.table({}).startswith("| task | trivial |")


def test_interval_draws_pairs_not_runs():
    alike = {name: [5, 2, 3, 90] for name in "abcd"}
    low, high = five_tasks.interval([line(pairs=alike), line(seed=1, pairs=alike)])
    assert low == high == pytest.approx(10 / 15)
    # One seed is good on half of the pairs, the other one on the other half: whatever is drawn, the mean is 1 / 2.
    runs = [{n: [10, 0, 0, 0] if n in good else [0, 0, 10, 0] for n in "abcd"} for good in ("ab", "cd")]
    low, high = five_tasks.interval([line(pairs=runs[0]), line(seed=1, pairs=runs[1])])
    assert 0.3 < low <= high < 0.7
    low, high = five_tasks.interval([line(pairs=runs[0])])
    assert low < 0.2 and high > 0.9
    text = five_tasks.table(by_key(line("change_real", pairs=alike)))
    assert "over 4 test pairs | | 66.7 to 66.7 |" in text


def test_half_a_line_is_no_result_and_the_later_one_counts(tmp_path):
    for score in (0.1, 0.2):
        five_tasks.append(tmp_path, line(score=score))
    with (tmp_path / five_tasks.RESULTS).open("a") as file:
        file.write(json.dumps(line(seed=1))[:-1])
    assert five_tasks.read_results(tmp_path) == by_key(line(score=0.2))


@pytest.mark.parametrize("key", TASKS)
def test_scripts_know_the_flags_of_every_task(key):
    flags = five_tasks.flags_of(TASKS[key], "random")
    own = {"model_name_or_path": "m", "parquet": "p", "output_dir": "o"}
    args = importlib.import_module(TASKS[key].script).parse_args(five_tasks.command_line(own | flags))
    assert args.random_init and args.mixed_precision == "bf16" and args.image_size == flags["image_size"]
    assert {**five_tasks.flags_of(TASKS[key], "gfm"), "random_init": True} == flags


def test_a_start_for_other_bands_keeps_the_filters_of_red_green_and_blue(tmp_path):
    model = SwinModel(SwinConfig(**SHAPE, patch_size=4, num_channels=3))
    model.save_pretrained(tmp_path / "swin")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "swin")
    facts = {
        "rescale_factor": 1e-4,
        "image_mean": [0.1] * 12,
        "image_std": [0.2] * 12,
        "band_names": list("ABCDEFGHIJKL"),
    }
    (tmp_path / "sentinel2_multilabel.json").write_text(json.dumps(facts))
    folder = five_tasks.start_for(TASKS["sentinel2"], "teacher", tmp_path / "swin", tmp_path, tmp_path)
    filters = GFMModel.from_pretrained(folder).state_dict()
    stored = model.embeddings.patch_embeddings.projection.weight
    (found,) = (value for value in filters.values() if value.ndim == 4)
    assert found.shape[1] == 12 and found[:, [3, 2, 1]].equal(stored)
    assert GFMImageProcessor.from_pretrained(folder).image_mean == tuple(facts["image_mean"])
    assert (
        five_tasks.start_for(TASKS["ucmerced"], "teacher", tmp_path / "swin", tmp_path, tmp_path) == tmp_path / "swin"
    )


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A tiny set of real change and a tiny model, as words of the command."""
    rng, rows = np.random.default_rng(0), []
    for part, count in (("train", 8), ("validation", 4), ("test", 4)):
        for index in range(count):
            mask = (rng.random((16, 16)) < 0.4).astype(np.uint8)
            before = rng.integers(0, 100, (16, 16, 3)).astype(np.uint8)
            cells = {"image1": before, "image2": before + 150 * mask[..., None], "mask": mask * 255}
            name = f"{part}/{index // 2}/{index % 2}"
            rows.append({key: png(value) for key, value in cells.items()} | {"split": part, "name": name})
    image, text = datasets.Image(), datasets.Value("string")
    features = datasets.Features({"image1": image, "image2": image, "mask": image, "split": text, "name": text})
    columns = {name: [row[name] for row in rows] for name in features}
    (tmp_path / "sets").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "sets" / "change_quarters.parquet")
    GFMModel(GFMConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    GFMImageProcessor(size=16).save_pretrained(tmp_path / "model")
    flags = {**TASKS["change_real"].flags, **SMALL, "decoder_channels": 8}
    monkeypatch.setitem(TASKS, "change_real", replace(TASKS["change_real"], flags=flags))
    words = ["--sets", str(tmp_path / "sets"), "--output_dir", str(tmp_path / "runs"), "--tasks", "change_real"]
    model = tmp_path / "model"
    return [*words, "--models", f"gfm={model}", f"random={model}", "--seeds", "0", "1"]


def test_a_small_table_from_end_to_end(arguments, tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    half = runs / "change_real-gfm-0"
    (half / "checkpoint-2").mkdir(parents=True)
    assert five_tasks.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| task | trivial | gfm | random |" in printed and "interval over 2 test pairs" in printed
    results = five_tasks.read_results(runs)
    assert list(results) == [("change_real", model, seed) for model in ("gfm", "random") for seed in (0, 1)]
    assert len({one["score"] for one in results.values()}) > 1
    for one in results.values():
        assert one["steps"] == 4 and one["score"] == one["scores"]["f1"]
        assert one["started_from"] == ("a random start" if one["model"] == "random" else "model")
        total = np.sum(list(one["pairs"].values()), axis=0)
        assert total.sum() == 4 * 16 * 16
        assert change_detection.compute(total)["f1"] == pytest.approx(one["score"], abs=0.02)
    assert (half / "panels" / "samples.png").exists() and not list(runs.glob("*/checkpoint-*"))

    # What is there is not repeated; what has other flags, or is missing, is.
    monkeypatch.setattr(five_tasks, "fine_tune", lambda *args: pytest.fail("a finished run was repeated"))
    assert five_tasks.main(arguments) == 0
    asked = []

    def recorded(key, name, folder, seed, args):
        asked.append((name, seed))
        return line(key, name, seed, pairs={"test/0": [1, 1, 1, 1], "test/1": [1, 1, 1, 1]})

    monkeypatch.setattr(five_tasks, "fine_tune", recorded)
    lines = (runs / five_tasks.RESULTS).read_text().splitlines(keepends=True)
    (runs / five_tasks.RESULTS).write_text(
        "".join(lines[:3]).replace('"decoder_channels": 8', '"decoder_channels": 9', 1)
    )
    assert five_tasks.main(arguments) == 0
    assert asked == [("gfm", 0), ("random", 1)]
    asked.clear()
    (runs / five_tasks.RESULTS).write_text("".join(lines))
    GFMModel(GFMConfig(**SHAPE)).save_pretrained(tmp_path / "model")  # other weights under the same name
    assert five_tasks.main(arguments) == 0
    assert asked == [("gfm", 0), ("gfm", 1), ("random", 0), ("random", 1)]


def test_adapters_have_no_random_start(arguments, monkeypatch):
    asked = []

    def recorded(key, name, folder, seed, args):
        asked.append((key, name))
        return line(key, name, seed, pairs={"test/0": [1, 1, 1, 1]})

    monkeypatch.setattr(five_tasks, "fine_tune", recorded)
    monkeypatch.setattr(five_tasks, "digest_of", lambda *paths: "")
    arguments[arguments.index("change_real")] = "ucmerced_lora"
    assert five_tasks.main([*arguments, "--seeds", "0", "--tasks", "ucmerced_lora", "change_real"]) == 0
    assert asked == [("ucmerced_lora", "gfm"), ("change_real", "gfm"), ("change_real", "random")]


def test_a_signal_ends_the_table_and_the_run_is_not_counted(arguments, tmp_path, monkeypatch, capsys):
    script = importlib.import_module("run_change_detection")
    step = script.train_step

    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(script, "train_step", interrupted)
    assert five_tasks.main(arguments) == 0
    assert "stopped in change_real, gfm, seed 0" in capsys.readouterr().out
    assert five_tasks.read_results(tmp_path / "runs") == {}
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "model")
    assert five_tasks.main(arguments) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_report_needs_nothing_but_the_runs(tmp_path, capsys):
    five_tasks.append(tmp_path, line())
    assert five_tasks.main(["--output_dir", str(tmp_path), "--report"]) == 0
    assert "| 25.0 | 50.0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        five_tasks.main(["--output_dir", str(tmp_path)])
