from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import start_up  # noqa: E402
from start_up import STOPWATCH, Seconds, report, run_timed  # noqa: E402


def test_stopwatch_counts_the_statements_alone():
    seconds = run_timed(STOPWATCH.format("time.sleep(0.2)"))
    assert 0.2 <= seconds.elapsed < 2 and seconds.cpu < 0.15


def test_a_failing_process_is_named():
    with pytest.raises(RuntimeError, match="no_such_module"):
        run_timed(STOPWATCH.format("import no_such_module"))


def test_report_judges_what_the_package_adds():
    seconds = {
        start_up.CLASSES_ALONE: [Seconds(3, 2)] * 3,
        start_up.PACKAGE: [Seconds(9, 8)] * 3,
        start_up.PACKAGE_AFTERWARDS: [Seconds(0.5, 0.25), Seconds(0.5, 0.25), Seconds(9, 9)],
        start_up.FIRST_UPDATE: [Seconds(7, 5)] * 3,
    }
    assert report(seconds).endswith(": met.") and "| 0.50 | 0.25 |" in report(seconds)
    seconds[start_up.PACKAGE_AFTERWARDS] = [Seconds(0.5, 0.35)] * 3
    assert report(seconds).endswith(": not met.")


def test_the_package_needs_every_class_it_is_measured_against():
    listing = "import sys; print(*sys.modules)"
    loaded = []
    for statements in (start_up.TRANSFORMERS_CLASSES, "import gfm_hf"):
        call = [sys.executable, "-c", f"{statements}\n{listing}"]
        loaded.append(set(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()))
    assert loaded[0] <= loaded[1]


def test_training_script_reaches_its_first_update(tmp_path):
    seconds = run_timed(start_up.UNTIL_FIRST_UPDATE, str(start_up.TRAINING_SCRIPT), *start_up.write_inputs(tmp_path))
    assert 0 < seconds.elapsed
    assert not (tmp_path / "out" / "config.json").exists()
