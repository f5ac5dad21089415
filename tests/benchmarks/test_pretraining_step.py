from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pretraining_step  # noqa: E402
from contestants import VARIANTS  # noqa: E402
from pretraining_step import Seconds, compare, target_rows  # noqa: E402


def steady(**seconds: float) -> dict[str, list[Seconds]]:
    """Three equal rounds; variants that are not named take one second."""
    given = {name.replace("_", " ").replace("  ", ", "): value for name, value in seconds.items()}
    assert given.keys() <= {variant.name for variant in VARIANTS}
    return {v.name: [Seconds(given.get(v.name, 1.0), given.get(v.name, 1.0))] * 3 for v in VARIANTS}


def test_ratios_pair_the_rounds():
    seconds = {
        "slow": [Seconds(4, 4), Seconds(8, 4), Seconds(6, 4)],
        "fast": [Seconds(2, 2), Seconds(2, 1), Seconds(2, 2)],
    }
    assert compare(seconds, "fast", "slow") == (3, 2, 2)


def test_targets_need_the_paired_and_the_minimum_ratio():
    errors = {"loss": 2e-5}
    seconds = steady(authors_fp32=2.0, authors_bf16=1.2)
    rows = {(row["id"], row["what"]): row for row in target_rows("swin_t", seconds, {}, errors)}
    assert rows["S3", "bf16, bf16 teacher"]["met"]
    assert rows["S4", "the same over authors bf16"]["seen"] == pytest.approx(1.2)
    assert not rows["S7", "bf16 over stock modules"]["met"]
    assert not rows["S9", "agreement of loss"]["met"]
    lucky_round = [Seconds(1.9, 1.9), Seconds(2.0, 2.0), Seconds(2.0, 2.0)]
    row = target_rows("swin_t", {**seconds, "authors fp32": lucky_round}, {}, {})[2]
    assert row["id"] == "S3" and row["seen"] == pytest.approx(1.9) and not row["met"]
    slow_kernel = [Seconds(2.0, 1.5)] * 3
    row = target_rows("swin_t", {**seconds, "authors fp32": slow_kernel}, {}, {})[2]
    assert row["met"] and row["user_time"] == pytest.approx(1.5)


def test_memory_is_met_from_below():
    peaks = {variant.name: 100 for variant in VARIANTS} | {"ours fp32": 84, "ours bf16, bf16 teacher": 73}
    rows = [row for row in target_rows("swin_t", steady(), peaks, {}) if row["id"] == "S8"]
    assert [row["met"] for row in rows] == [True, False]


def test_whole_benchmark_on_the_tiny_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretraining_step, "measure_memory", lambda args: {v.name: 10**9 for v in VARIANTS})
    output = tmp_path / "step.json"
    arguments = ["--model", "tiny", "--batch_size", "1", "--rounds", "1", "--memory", "--output", str(output)]
    pretraining_step.main(arguments)
    printed = capsys.readouterr().out
    assert all(f"| {variant.name} |" in printed for variant in VARIANTS)
    results = json.loads(output.read_text())
    assert results["agreement"]["gradient"] < 1e-5
    assert all(len(rounds) == 1 and rounds[0][0] > 0 for rounds in results["cpu_seconds_total_user"].values())


def test_peak_memory_of_one_variant(capsys):
    pretraining_step.main(["--model", "tiny", "--batch_size", "1", "--peak_of", "ours bf16, bf16 teacher"])
    assert int(capsys.readouterr().out) > 10**8
