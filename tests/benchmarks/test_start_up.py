from __future__ import annotations

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


def test_report_judges_the_difference_within_a_round():
    seconds = {
        "transformers classes": [Seconds(3, 2), Seconds(9, 8), Seconds(3, 2)],
        "gfm_hf": [Seconds(3.5, 2.25), Seconds(9.5, 8.25), Seconds(3.5, 2.25)],
        "first update": [Seconds(7, 5)] * 3,
    }
    assert report(seconds).endswith(": met.") and "| 0.50 | 0.25 |" in report(seconds)
    seconds["gfm_hf"] = [Seconds(3.5, 2.5)] * 3
    assert report(seconds).endswith(": not met.")


def test_training_script_reaches_its_first_update(tmp_path):
    seconds = run_timed(start_up.UNTIL_FIRST_UPDATE, str(start_up.TRAINING_SCRIPT), *start_up.write_inputs(tmp_path))
    assert 0 < seconds.elapsed
    assert not (tmp_path / "out" / "config.json").exists()
