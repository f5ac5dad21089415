"""Pushing beside a run, with children that record, fail, sleep or refuse to die in place of `gfm-hf push`."""

import json
import os
import signal
import sys
import time

import pytest

from gfm_hf.training import publishing
from gfm_hf.training.publishing import BackgroundPush


# Writes its arguments and its token to SEEN, then does as told.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
arguments = sys.argv[3:]
seen = {"arguments": arguments, "token": os.environ.get("HF_TOKEN"), "pid": os.getpid()}
seen["files"] = sorted(path.name for path in Path(arguments[0]).iterdir())
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1] + ".new").write_text(json.dumps(seen))
os.replace(sys.argv[1] + ".new", sys.argv[1])
if sys.argv[2] in ("sleep", "stubborn"):
    time.sleep(60)
if sys.argv[2] == "fail":
    print("a line before")
    sys.exit(f"error: Pushing failed: token {os.environ.get('HF_TOKEN')} is bad.")
if sys.argv[2] == "silent":
    sys.exit(3)
print("https://hub/commit/1")
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Choose how the next children behave; returns what the last one saw."""

    class Child:
        seen_at = tmp_path / "seen.json"

        def does(self, what):
            command = (sys.executable, "-S", "-c", CHILD, str(self.seen_at), what)
            monkeypatch.setattr(publishing, "PUSH_COMMAND", command)

        def seen(self):
            wait_for(self.seen_at.exists)
            return json.loads(self.seen_at.read_text())

    child = Child()
    child.does("succeed")
    return child


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "trainer_state.jsonl").write_text("{}\n")
    return tmp_path / "my run"


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def arrive(push):
    """Poll until the push in flight has ended."""

    def ended():
        push.poll()
        return push._child is None

    wait_for(ended)


def write(path):
    (path / "config.json").write_text("{}")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_snapshot_is_pushed_and_removed(child, folder, capfd):
    with BackgroundPush(folder, "me/model", private=True, token="hf_secret") as push:
        assert push.offer(5, write)
        arrive(push)
    seen = child.seen()
    assert seen["arguments"] == [str(folder / "unfinished-push" / "step-5"), "me/model", "--private"]
    assert seen["token"] == "hf_secret" and seen["files"] == ["config.json", "trainer_state.jsonl"]
    assert capfd.readouterr().err == "pushed step 5 to https://hub/commit/1\n"
    assert [path.name for path in folder.iterdir()] == ["trainer_state.jsonl"]


def test_the_real_command_is_the_command_line_tool():
    assert publishing.PUSH_COMMAND == (sys.executable, "-m", "gfm_hf_cli", "push")


def test_without_a_token_the_users_own_stays(child, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    with BackgroundPush(folder, "me/model") as push:
        push.offer(5, write)
        arrive(push)
    assert child.seen()["token"] == "hf_own" and child.seen()["arguments"][2:] == []


def test_the_run_never_waits_and_skips_while_one_is_on_its_way(child, folder, capfd):
    child.does("sleep")
    with BackgroundPush(folder, "me/model") as push:
        started = time.monotonic()
        assert push.offer(5, write)
        pid = child.seen()["pid"]
        written = []
        assert not push.offer(10, written.append) and not push.offer(15, written.append)
        for _ in range(1000):
            push.poll()
        assert time.monotonic() - started < 10 and written == []
        assert capfd.readouterr().err.count("\n") == 1  # said once
        os.kill(pid, signal.SIGKILL)
        arrive(push)
        child.does("succeed")
        assert push.offer(20, write)
        arrive(push)
        err = capfd.readouterr().err
        assert "step 5 was not pushed (exit code -9)" in err and "pushed step 20" in err
        child.does("sleep")
        push.offer(25, write)
        push.offer(30, write)
        assert "push of step 25 is still on its way" in capfd.readouterr().err  # a new one: said again


def test_a_failed_push_is_one_line_that_says_how_to_go_on(child, folder, capfd):
    child.does("fail")
    with BackgroundPush(folder, "me/model", token="hf_secret") as push:
        push.offer(5, write)
        arrive(push)
    err = capfd.readouterr().err
    assert err == (
        "warning: step 5 was not pushed (Pushing failed: token *** is bad.); once the run is done, push it with: "
        f"gfm-hf push '{folder}' me/model\n"
    )
    assert not (folder / "unfinished-push").exists()


def test_a_snapshot_that_cannot_be_written_costs_nothing_else(child, folder, capfd):
    def full(path):
        (path / "half").touch()
        raise RuntimeError("No space\nleft")

    with BackgroundPush(folder, "me/model") as push:
        assert not push.offer(5, full)
        assert "warning: step 5 was not pushed (No space left)" in capfd.readouterr().err
        assert not (folder / "unfinished-push").exists()
        assert push.offer(10, write)


@pytest.mark.parametrize("behaviour", ["sleep", "stubborn"])
def test_leaving_ends_the_child_and_leaves_nothing(child, folder, behaviour, monkeypatch):
    monkeypatch.setattr(publishing, "GRACE_S", 0.3 if behaviour == "stubborn" else 30)
    child.does(behaviour)
    with pytest.raises(KeyError), BackgroundPush(folder, "me/model") as push:
        push.offer(5, write)
        pid = child.seen()["pid"]
        left = time.monotonic()
        raise KeyError("the run broke")
    assert not alive(pid) and time.monotonic() - left < 10
    assert [path.name for path in folder.iterdir()] == ["trainer_state.jsonl"]


def test_the_result_is_pushed_from_the_folder_itself(child, folder, capfd):
    (folder / "config.json").touch()
    with BackgroundPush(folder, "me/model") as push:
        pass
    assert push.push_result(20)
    assert child.seen()["arguments"] == [str(folder), "me/model"] and "config.json" in child.seen()["files"]
    assert capfd.readouterr().err == "pushed the result to https://hub/commit/1\n"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "trainer_state.jsonl"]


@pytest.mark.parametrize(("behaviour", "reason"), [("fail", "is bad."), ("silent", "(exit code 3)")])
def test_a_result_that_does_not_arrive_is_said(child, folder, capfd, behaviour, reason):
    child.does(behaviour)
    assert not BackgroundPush(folder, "me/model").push_result(20)
    err = capfd.readouterr().err
    assert err.startswith("warning: the result was not pushed") and reason in err and err.count("\n") == 1


@pytest.mark.parametrize("stops", [False, True])
def test_the_last_push_ends_in_time_or_when_told(child, folder, capfd, stops):
    child.does("sleep")
    push = BackgroundPush(folder, "me/model")
    started = time.monotonic()
    assert not push.push_result(60 if stops else 1, stopped=lambda: stops and child.seen_at.exists())
    assert time.monotonic() - started < 20
    err = capfd.readouterr().err
    assert ("told to stop" if stops else "more than 1 s") in err and f"gfm-hf push '{folder}' me/model" in err
    assert not child.seen_at.exists() or not alive(child.seen()["pid"])
    assert [path.name for path in folder.iterdir()] == ["trainer_state.jsonl"]


def test_a_push_that_cannot_start_costs_a_line(folder, capfd, monkeypatch):
    monkeypatch.setattr(publishing, "PUSH_COMMAND", ("/nowhere/python",))
    push = BackgroundPush(folder, "me/model", private=True)
    assert not push.offer(5, write) and not push.push_result(5)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].endswith("me/model --private")


def test_a_name_that_is_none_is_refused_at_once(folder):
    with pytest.raises(ValueError, match="Repo id"):
        BackgroundPush(folder, "a b")
