"""Hostile and broken weight files: each is refused in one good sentence, quickly, and nothing in it runs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
MAKER = Path(__file__).with_name("hostile.py")
MEMORY = 300 * 10**6  # bytes; an idle process has them already
SECONDS = 20
SENTENCE = 1_000  # characters


def _maker():
    spec = importlib.util.spec_from_file_location("hostile", MAKER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CASES = _maker().CASES
REFUSED = [name for name, case in CASES.items() if case.phrase is not None]
HARMLESS = [name for name, case in CASES.items() if case.phrase is None]
CODE = [name for name, case in CASES.items() if case.payload]


@pytest.fixture(scope="session")
def outcome(tmp_path_factory):
    """What happened to all files, made and tried once; workers of a parallel run share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "hostile"
    report = folder / "report.json"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 280
        while not report.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    else:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(MAKER), str(folder / "work")]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert ran.returncode == 0, ran.stderr[-3000:]
        (folder / "unfinished").write_text(ran.stdout)
        (folder / "unfinished").rename(report)
    return json.loads(report.read_text())


def _within_bounds(result):
    """Time, memory and what else happened during both commands."""
    assert not result["killed"], f"took too much {result['killed']}"
    assert result["seconds"] < SECONDS
    assert result["peak"] < MEMORY
    assert not result["ran"], "code in the file ran"
    assert not any(run["tampered"] for run in result["runs"]), "the file changed the reader"


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(outcome, name):
    result = outcome["results"][name]
    run = result["convert"]
    _within_bounds(result)
    assert run["code"] == 2, run["stderr"]
    sentences = run["stderr"].splitlines()
    assert len(sentences) == 1 and sentences[0].startswith("error: "), run["stderr"]
    assert name in sentences[0]
    assert re.search(CASES[name].phrase, sentences[0]), sentences[0]
    assert 60 < len(sentences[0].replace(str(ROOT), "")) < SENTENCE
    assert sentences[0].isprintable(), "control characters reach the terminal"
    assert result["left"] == []


@pytest.mark.parametrize("name", HARMLESS)
def test_is_converted_where_it_does_no_harm(outcome, name):
    result = outcome["results"][name]
    run = result["convert"]
    _within_bounds(result)
    assert run["code"] == 0, run["stderr"]
    assert result["left"] == [name.replace(".", "-")]


@pytest.mark.parametrize("name", CASES)
def test_is_described_or_refused(outcome, name):
    run = outcome["results"][name]["info"]
    assert run["code"] in (0, 2), run["stderr"]
    if run["code"] == 2:
        assert run["stderr"].startswith("error: ") and run["stderr"].count("\n") == 1


@pytest.mark.parametrize("name", CODE)
def test_payload_would_run_elsewhere(outcome, name):
    """Otherwise the absence of its marker would prove nothing."""
    assert outcome["sings"][name]


def test_summary(outcome):
    """How many, and the worst; shown with -s."""
    results = outcome["results"]
    largest, slowest = (max(results, key=lambda name: results[name][field]) for field in ("peak", "seconds"))
    sys.stdout.write(
        f"\n{len(REFUSED)} hostile files and {len(HARMLESS)} harmless ones; most memory "
        f"{results[largest]['peak'] / 1e6:.0f} MB ({largest}), most time {results[slowest]['seconds']:.1f} s ({slowest})\n"
    )
    assert len(REFUSED) >= 40 and set(results) == set(CASES)
