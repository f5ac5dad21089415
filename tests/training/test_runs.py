import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gfm_hf.training import runs
from gfm_hf.training.runs import InputError, RunFolder, StopSignal, command, ignore_signals, user_input


class FakeAccelerator:
    """The part of Accelerate's interface that a run folder uses; its state is one number."""

    def __init__(self, main: bool = True) -> None:
        self.is_main_process, self.num_processes, self.device = main, 1, torch.device("cpu")
        self.state, self.before_saving = 0, lambda: None

    def wait_for_everyone(self) -> None:
        pass

    def save_state(self, folder: str) -> None:
        (Path(folder) / "half").write_text("half")
        self.before_saving()
        (Path(folder) / "state").write_text(str(self.state))

    def load_state(self, folder: str) -> None:
        self.state = int((Path(folder) / "state").read_text())


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the code may catch it."""


RUN = {"images": "digest", "seed": 0}


@pytest.fixture
def accelerator() -> FakeAccelerator:
    return FakeAccelerator()


@pytest.fixture
def folder(tmp_path: Path, accelerator: FakeAccelerator) -> RunFolder:
    return RunFolder(tmp_path / "deep" / "run", accelerator, total_limit=2)


def save(folder: RunFolder, accelerator: FakeAccelerator, *steps: int) -> None:
    for step in steps:
        accelerator.state = step
        folder.save_checkpoint(step, {"step": step, "run": RUN})


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


# -- Checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_are_in_the_order_of_their_steps_and_the_newest_stay(folder, accelerator):
    save(folder, accelerator, 9, 10)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-9", "checkpoint-10"]
    save(folder, accelerator, 100)
    assert names(folder) == ["checkpoint-10", "checkpoint-100"]
    unlimited = RunFolder(folder.path, accelerator, total_limit=None)
    save(unlimited, accelerator, 101, 102)
    assert len(unlimited.checkpoints()) == 4


def test_what_was_saved_comes_back(folder, accelerator):
    save(folder, accelerator, 3, 7)
    accelerator.state = 0
    checkpoint = folder.checkpoint_to_resume("latest")
    assert checkpoint == folder.path / "checkpoint-7"
    assert folder.load_checkpoint(checkpoint, RUN) == {"step": 7, "run": RUN} and accelerator.state == 7
    assert folder.checkpoint_to_resume(str(checkpoint)) == checkpoint
    with pytest.raises(InputError, match="move checkpoint-7 away"):
        folder.checkpoint_to_resume(str(folder.path / "checkpoint-3"))


def test_a_checkpoint_that_is_there_is_not_written_again(folder, accelerator):
    save(folder, accelerator, 5)
    accelerator.before_saving = lambda: pytest.fail("written twice")
    save(folder, accelerator, 5)


def test_killed_while_writing_the_older_ones_are_whole_and_the_half_one_is_no_checkpoint(folder, accelerator):
    save(folder, accelerator, 1, 2)

    def kill():
        # Nothing old may be gone before the new one is whole.
        assert {"checkpoint-1", "checkpoint-2"} < set(names(folder))
        raise Killed

    accelerator.before_saving = kill
    with pytest.raises(Killed):
        save(folder, accelerator, 3)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-1", "checkpoint-2"]
    assert names(folder) == ["checkpoint-1", "checkpoint-2", "unfinished-checkpoint-3"]

    again = RunFolder(folder.path, FakeAccelerator(), total_limit=2)
    assert names(again) == ["checkpoint-1", "checkpoint-2"]
    assert again.checkpoint_to_resume("latest").name == "checkpoint-2"


def test_killed_while_deleting_no_half_deleted_one_looks_whole(folder, accelerator, monkeypatch):
    def kill(path, **kwargs):
        os.unlink(Path(path) / "state")
        raise Killed

    save(folder, accelerator, 1, 2)
    monkeypatch.setattr(runs.shutil, "rmtree", kill)
    with pytest.raises(Killed):
        save(folder, accelerator, 3)
    monkeypatch.undo()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-2", "checkpoint-3"]
    assert names(RunFolder(folder.path, FakeAccelerator())) == ["checkpoint-2", "checkpoint-3"]


def test_only_the_main_process_writes_and_deletes(tmp_path):
    other = FakeAccelerator(main=False)
    (tmp_path / "unfinished-checkpoint-1").mkdir()
    folder = RunFolder(tmp_path, other, total_limit=1)
    folder.log({"step": 1})
    folder.save_result(lambda path: pytest.fail("written by the wrong process"))
    folder.save_picture(Image.new("RGB", (2, 2)), "panels/1.png")
    assert names(folder) == ["unfinished-checkpoint-1"]


# -- Where to go on --------------------------------------------------------------------------------------------------


def test_a_new_run_needs_a_folder_without_one(folder, accelerator):
    assert folder.checkpoint_to_resume(None) is None and folder.checkpoint_to_resume("latest") is None
    folder.log({"step": 1})
    with pytest.raises(InputError, match="--resume_from_checkpoint latest"):
        folder.checkpoint_to_resume(None)
    (folder.path / "trainer_state.jsonl").unlink()
    save(folder, accelerator, 1)
    with pytest.raises(InputError, match="already holds a run"):
        folder.checkpoint_to_resume(None)


@pytest.mark.parametrize("wrong", ["checkpoint-9", "checkpoint-2x", "unfinished-checkpoint-3", "panels"])
def test_what_is_no_checkpoint_is_refused_with_a_list_of_those_there_are(folder, accelerator, wrong):
    save(folder, accelerator, 1, 2)
    if wrong != "checkpoint-9":
        (folder.path / wrong).mkdir()
    with pytest.raises(InputError, match="is no checkpoint folder; .* has checkpoint-1, checkpoint-2"):
        folder.checkpoint_to_resume(str(folder.path / wrong))


@pytest.mark.parametrize("change", [{"seed": 1}, {"images": "other"}, {"new": 3}])
def test_another_run_is_not_resumed(folder, accelerator, change):
    save(folder, accelerator, 2)
    accelerator.state = 0
    name, value = next(iter(change.items()))
    with pytest.raises(InputError, match=rf"{name} {RUN.get(name)} \(now {value}\); resume with the same values"):
        folder.load_checkpoint(folder.path / "checkpoint-2", RUN | change)
    assert accelerator.state == 0


def test_progress_that_cannot_be_read_is_the_users_input(folder, accelerator):
    save(folder, accelerator, 2)
    (folder.path / "checkpoint-2" / "progress.json").write_text("{")
    with pytest.raises(InputError):
        folder.load_checkpoint(folder.path / "checkpoint-2", RUN)


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path, accelerator):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made .* choose another"):
        RunFolder(tmp_path / "file" / "run", accelerator)


# -- Log, result, pictures -------------------------------------------------------------------------------------------


def test_the_log_is_cut_at_the_checkpoint_and_half_a_line_is_dropped(folder, accelerator):
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 0.5})
    with (folder.path / "trainer_state.jsonl").open("a") as file:
        file.write('{"step": 2, "loss"')
    save(folder, accelerator, 2)
    folder.load_checkpoint(folder.path / "checkpoint-2", RUN)
    folder.cut_log(2)
    folder.log({"step": 3, "loss": 0.25})
    lines = [json.loads(line) for line in (folder.path / "trainer_state.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]
    folder.cut_log(0)
    assert (folder.path / "trainer_state.jsonl").read_text() == "" and names(folder)[-1] == "trainer_state.jsonl"


def test_cutting_a_log_that_is_not_there_makes_none(folder):
    folder.cut_log(5)
    assert names(folder) == []


def test_a_result_arrives_whole_or_not_at_all(folder):
    def half(path: Path) -> None:
        (path / "config.json").write_text("new")
        raise RuntimeError("no")

    (folder.path / "config.json").write_text("old")
    with pytest.raises(RuntimeError, match="no"):
        folder.save_result(half)
    assert names(folder) == ["config.json"] and (folder.path / "config.json").read_text() == "old"
    folder.save_result(lambda path: (path / "config.json").write_text("new"))
    assert names(folder) == ["config.json"] and (folder.path / "config.json").read_text() == "new"


def test_pictures_go_below_the_folder(folder):
    for step in (1, 2):
        folder.save_picture(Image.new("RGB", (3, 2), "red"), f"panels/{step}.png")
    assert Image.open(folder.path / "panels" / "2.png").size == (3, 2)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_checkpoint(folder, accelerator, monkeypatch, says_so):
    """Some writers pass the system's error number on; of the others the disk itself tells."""
    save(folder, accelerator, 1, 2)

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device") if says_so else RuntimeError("serialisation failed")

    if not says_so:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    accelerator.before_saving = fail
    with pytest.raises(InputError, match=r"is full; free some space .* \(checkpoint-1, checkpoint-2 is whole\)"):
        save(folder, accelerator, 3)
    assert names(folder) == ["checkpoint-1", "checkpoint-2"]


def test_another_failure_to_write_is_passed_on(folder, accelerator):
    def fail():
        raise RuntimeError("a bug")

    accelerator.before_saving = fail
    with pytest.raises(RuntimeError, match="a bug"):
        save(folder, accelerator, 1)
    assert names(folder) == []


# -- Signals and exit codes ------------------------------------------------------------------------------------------


@pytest.fixture
def own_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_a_second_ctrl_c_ends_at_once(own_handlers, accelerator, number):
    stop = StopSignal()
    assert not stop.agreed(accelerator)
    signal.raise_signal(number)
    assert stop.received and stop.agreed(accelerator)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("others", "expected"), [(0.0, False), (1.0, True)])
def test_processes_agree_to_stop_when_any_of_them_was_told(own_handlers, accelerator, others, expected):
    accelerator.num_processes = 2
    accelerator.reduce = lambda tensor, reduction: tensor + others
    stop = StopSignal()
    assert stop.agreed(accelerator) is expected
    stop.received = True
    assert stop.agreed(accelerator) is True


def test_workers_leave_stopping_to_the_training_process(own_handlers):
    ignore_signals(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)  # would end this process
        assert signal.getsignal(number) == signal.SIG_IGN


def test_exit_codes(capsys):
    def main(error=None):
        if error:
            raise error

    run = command(main)
    assert run() == 0 and run(InputError("no images; add some.")) == 2
    assert capsys.readouterr().err == "error: no images; add some.\n"
    with pytest.raises(RuntimeError):
        run(RuntimeError("a bug"))
    assert run.__name__ == "main"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file", "x.png"), "[Errno 2] No such file: 'x.png'"),
        (
            ValueError(
                'Caught ValueError in DataLoader worker process 0.\nTraceback:\n  File "x"\nValueError: 4 bands'
            ),
            "4 bands",
        ),
        (OSError(), "OSError"),
        (InputError("as it is"), "as it is"),
    ],
)
def test_wrong_input_becomes_one_sentence(error, sentence):
    with pytest.raises(InputError) as caught, user_input():
        raise error
    assert str(caught.value) == sentence


def test_other_errors_are_not_blamed_on_the_user():
    with pytest.raises(KeyError), user_input():
        raise KeyError("a bug")


ROUNDS = """
import sys
import torch
from torch import distributed as dist
from gfm_hf.training.runs import end_training

class Accelerator:
    end_training = staticmethod(dist.destroy_process_group)

for step in range(25):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/{step}", rank=int(sys.argv[2]), world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    dist.all_gather_object([None, None], step)
    dist.barrier()
    end_training(Accelerator)
    del model
"""


def test_processes_end_together(tmp_path):
    """The wrapped model is freed after the group; without a second reference one of a few such ends hangs for ever."""
    command = [sys.executable, "-c", ROUNDS, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=90) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
