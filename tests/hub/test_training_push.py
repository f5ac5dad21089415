"""Training with --push_to_hub against a Hub that works, hangs, refuses, and a run that is killed meanwhile."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clients import client_environment
from loopback import LoopbackHub
from PIL import Image


ROOT = Path(__file__).parents[2]
REPO = "owner/student"
# What a loader needs, from the first checkpoint on.
LOADABLE = {"model.safetensors", "config.json", "modeling_gfm.py", "preprocessor_config.json", "README.md"}
# The script, with a fourth step that waits for a file: what happens until then happens beside the training.
SOURCE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import run_continual_pretraining as script
original, calls = script.train_step, []

def train_step(*arguments):
    calls.append(1)
    while len(calls) == 4 and not os.path.exists(sys.argv[2]):
        time.sleep(0.05)
    return original(*arguments)

script.train_step = train_step
sys.exit(script.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> Path:
    """Its configuration shapes the student."""
    return checkpoint


@pytest.fixture
def start(hub: LoopbackHub, scenes: Path, student: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a run in a process of its own; what is left of it is killed in the end."""
    processes = []

    def start(held: bool = False, **flags: object) -> subprocess.Popen:
        if not held:
            go_on(tmp_path)
        words = {"output_dir": tmp_path / "run", "train_dir": scenes, "config_name": student, "hub_model_id": REPO}
        words |= {"image_size": 64, "per_device_train_batch_size": 4, "num_eval_images": 4, "max_train_steps": 6}
        words |= {"dataloader_num_workers": 0, "logging_steps": 1, "checkpointing_steps": 2} | flags
        process = subprocess.Popen(
            [sys.executable, "-c", SOURCE, str(ROOT / "examples"), str(tmp_path / "go"), "--push_to_hub"]
            + [word for name, value in words.items() for word in (f"--{name}", str(value))],
            env=client_environment(hub, tmp_path / "home"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def go_on(folder: Path) -> None:
    """Release a run that was started as held."""
    (folder / "go").touch()


def finish(process: subprocess.Popen, seconds: float = 120) -> tuple[str, str]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err[-3000:]
    return out, err


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Path -> content, as `hub.files` gives it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its exit code does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def titles(hub: LoopbackHub) -> list[str]:
    """Of all commits to main, newest first."""
    repo = hub.repo(REPO)
    return [commit.title for commit in repo.history(repo.find("main"))]


def same_as_local(hub: LoopbackHub, run: Path) -> bool:
    local = {name: content for name, content in read_folder(run).items() if not name.startswith("checkpoint-")}
    return {name: content for name, content in hub.files(REPO).items() if name != ".gitattributes"} == local


def test_checkpoints_arrive_during_the_run_and_the_result_at_its_end(hub, start, tmp_path):
    process = start(held=True)
    wait_for(lambda: ("model", REPO) in hub.repos and len(titles(hub)) == 2)
    wait_for(lambda: not any(map(alive, children(process.pid))))
    go_on(tmp_path)
    _, err = finish(process)
    assert re.search(rf"pushed step 2 to {hub.url}/{REPO}/commit/\w+", err) and "warning" not in err
    assert re.search(rf"pushed the result to {hub.url}/{REPO}/commit/\w+", err)
    repo = hub.repo(REPO)
    newest, *_, first_push, _ = list(repo.history(repo.find("main")))
    assert LOADABLE <= set(first_push.files) and "| steps | 2 |" in first_push.files["README.md"].content.decode()
    assert first_push.files["model.safetensors"].content != newest.files["model.safetensors"].content
    assert (
        same_as_local(hub, tmp_path / "run") and f'from_pretrained("{REPO}"' in hub.files(REPO)["README.md"].decode()
    )
    assert not list((tmp_path / "run").glob("unfinished*"))


def test_a_hub_that_hangs_does_not_hold_up_the_run(hub, start, tmp_path):
    hub.delay(f"/api/models/{REPO}/preupload", 300)
    process = start(held=True, checkpointing_steps=1, hub_timeout_s=5)
    wait_for(lambda: hub.asked("POST", f"/api/models/{REPO}/preupload"))
    started = time.monotonic()
    go_on(tmp_path)
    out, err = finish(process)
    assert time.monotonic() - started < 60
    assert err.count("still on its way") == 1 and "more than 5 s" in err
    assert f"gfm-hf push {tmp_path / 'run'} {REPO}" in err and out.splitlines()[-1].startswith("done: 6 steps")
    assert titles(hub) == ["initial commit"]
    assert LOADABLE <= set(read_folder(tmp_path / "run")) and not list((tmp_path / "run").glob("unfinished*"))


def test_a_hub_that_refuses_costs_a_warning_and_the_advice_works(hub, start, tmp_path):
    out, err = finish(start(hub_token="hf_wrong", max_train_steps=2))
    warning = next(line for line in err.splitlines() if line.startswith("warning: the result was not pushed"))
    assert "hf auth login" in warning and "hf_wrong" not in err
    assert out.splitlines()[-1].startswith("done: 2 steps")
    words = warning.partition("gfm-hf ")[2].split()
    done = subprocess.run(
        [sys.executable, "-m", "gfm_hf_cli", *words],
        env=client_environment(hub, tmp_path / "home"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert same_as_local(hub, tmp_path / "run")


def test_told_to_stop_while_it_pushes_it_ends_both(hub, start, tmp_path):
    hub.delay(f"/api/models/{REPO}/preupload", 300)
    process = start(held=True)
    wait_for(lambda: hub.asked("POST", "/api/repos/create"))
    pushing = children(process.pid)
    assert pushing
    process.send_signal(signal.SIGTERM)
    go_on(tmp_path)
    out, err = finish(process, seconds=30)
    assert "stopped at step 4" in out and "go on with --resume_from_checkpoint latest" in out and "warning" not in err
    assert not any(alive(pid) for pid in pushing) and not list((tmp_path / "run").glob("unfinished*"))
    assert titles(hub) == ["initial commit"]


def test_killed_while_it_pushes_it_goes_on_and_pushes_the_end(hub, start, tmp_path):
    trouble = hub.delay("/info/lfs/objects/batch", 300)
    process = start(held=True)
    wait_for(lambda: hub.asked("POST", "/info/lfs/objects/batch"))
    pushing = children(process.pid)
    process.kill()
    process.wait()
    assert list((tmp_path / "run").glob("unfinished-push"))
    for pid in pushing:  # as the end of a job's control group does
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    hub.faults.remove(trouble)
    _, err = finish(start(resume_from_checkpoint="latest"))
    assert "pushed the result" in err and same_as_local(hub, tmp_path / "run")
    assert not list((tmp_path / "run").glob("unfinished*"))
