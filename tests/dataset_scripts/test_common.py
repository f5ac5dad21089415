"""What all scripts share and what goes wrong in it; tried on a small pile of one's own."""

import functools
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import re
import shutil
import signal
import stat
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scripts import Script, contents, encoded


@pytest.fixture(scope="session")
def geopile(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("geopile", tmp_path_factory.mktemp("geopile"))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def pile(geopile, tmp_path):
    """Builds a pile of one source; `pile.raw` is the folder of its pile.yaml, `pile.files` the folder of pictures."""

    class Pile:
        raw, files, out = tmp_path, tmp_path / "mine", tmp_path / "out"

        def name_source(self, path: str) -> None:
            (tmp_path / "pile.yaml").write_text(f"sources: [{{name: a, path: {path}, gsd_m: 1, licence: mine}}]")

        def build(self, *flags: str, out: Path | None = None) -> tuple[int, str]:
            return geopile.run("--config", "a", *flags, data_dir=tmp_path, output_dir=out or self.out)

        def ids(self) -> list[str]:
            return sorted(datasets.load_dataset(str(self.out), "a", split="train")["source_id"])

    made = Pile()
    made.name_source("mine")
    made.files.mkdir()
    for number in range(4):
        (made.files / f"{number}.png").write_bytes(png(number))
    return made


def tar_of(folder: Path, target: Path, mode: str = "w") -> Path:
    with tarfile.open(target, mode) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return target


def assert_refused(pile, says: str, *flags: str) -> None:
    code, said = pile.build(*flags)
    assert code == 2 and re.search(says, said) and "Traceback" not in said, said


# -- Archives and folders ---------------------------------------------------------------------------------------------


def read_all(files, names, module, pipe) -> None:
    pipe.send([module.hashlib.sha256(files.read(name)).hexdigest() for name in names])


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_forked_process_opens_archives_anew(geopile, pile, kind):
    """As workers of a DataLoader: with one place in the file for all of them, bytes get mixed up."""
    for number in range(4, 200):
        (pile.files / f"{number}.png").write_bytes(png(number))
    if kind == "tar":
        tar_of(pile.files, pile.raw / "mine.tar")
    else:
        shutil.make_archive(str(pile.raw / "mine"), "zip", pile.files)
    pile.name_source(f"mine.{kind}")
    files = geopile.module.RECIPE.open(str(pile.raw), None)
    names = sorted(files.entries)
    expected = [geopile.module.hashlib.sha256(files.read(name)).hexdigest() for name in names]
    context, pipes = multiprocessing.get_context("fork"), []
    for _ in range(3):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=read_all, args=(files, names, geopile.module, theirs), daemon=True).start()
        pipes.append(ours)
    assert all(pipe.recv() == expected for pipe in pipes)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("damage", ["a flipped bit", "zeros"])
def test_a_damaged_header_is_no_end(pile, mode, damage):
    """tarfile stops there without a word, and the rows behind it would be lost."""
    path = tar_of(pile.files, pile.raw / "mine.tar")
    with tarfile.open(path) as tar:
        header = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[header : header + 512] = bytes(512) if damage == "zeros" else b"?" + content[header + 1 : header + 512]
    path.write_bytes(content)
    if mode == "w:gz":
        path = pile.raw / "mine.tar.gz"
        path.write_bytes(gzip.compress(content))
    pile.name_source(path.name)
    assert_refused(pile, "is truncated, or no zip or tar archive")


def test_a_damaged_xz_is_named(pile):
    tar_of(pile.files, pile.raw / "mine.tar")
    content = bytearray(lzma.compress((pile.raw / "mine.tar").read_bytes()))
    content[len(content) // 2] ^= 0xFF
    (pile.raw / "mine.tar.xz").write_bytes(content)
    pile.name_source("mine.tar.xz")
    assert_refused(pile, "mine.tar.xz .* is truncated")


def test_a_tar_with_a_zip_at_its_end_is_a_tar(pile):
    with zipfile.ZipFile(pile.files / "z.zip", "w") as archive:
        archive.writestr("inside.png", png(9))
    tar_of(pile.files, pile.raw / "mine.tar")
    pile.name_source("mine.tar")
    assert pile.build()[0] == 0 and pile.ids() == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_in_a_tar_are_refused_not_lost(pile, link):
    link(pile.files / "0.png", pile.files / "l.png")
    tar_of(pile.files, pile.raw / "mine.tar")
    pile.name_source("mine.tar")
    assert_refused(pile, r"holds l\.png, which is a link")


def test_links_in_a_folder_are_followed_once(pile):
    (pile.raw / "elsewhere").mkdir()
    (pile.raw / "elsewhere" / "b.png").write_bytes(png(7))
    (pile.files / "there").symlink_to(pile.raw / "elsewhere")
    (pile.files / "loop").symlink_to(pile.files)
    assert pile.build()[0] == 0 and pile.ids() == ["0.png", "1.png", "2.png", "3.png", "there/b.png"]


def test_what_file_browsers_leave_behind_is_no_picture(pile):
    for name in ("._0.png", "__MACOSX/1.png", ".DS_Store"):
        (pile.files / name).parent.mkdir(exist_ok=True)
        (pile.files / name).write_bytes(b"no picture")
    assert pile.build()[0] == 0 and len(pile.ids()) == 4


def test_a_name_that_is_no_utf_8_is_refused(pile):
    (Path(os.fsdecode(bytes(pile.files) + b"/\xff.png"))).write_bytes(png(1))
    assert_refused(pile, "is no UTF-8")


def test_another_name_does_not_escape_the_checksum(geopile, tmp_path):
    shutil.copy(geopile.raw / "NWPU-RESISC45.zip", tmp_path / "NWPU-RESISC45 (1).zip")
    arguments = ["--data_dir", str(tmp_path), "--config", "resisc45", "--output_dir", str(tmp_path / "out")]
    code, said = geopile.main(arguments)
    assert code == 2 and "the published archive has 75206b2e16" in said


# -- Restart ----------------------------------------------------------------------------------------------------------


def test_an_edited_file_of_the_same_size_is_noticed(pile):
    assert pile.build()[0] == 0
    content = (pile.files / "0.png").read_bytes()
    (pile.files / "0.png").write_bytes(content)
    assert_refused(pile, "holds shards of other files")


def test_a_build_inside_its_data_folder_goes_on(pile):
    out = pile.files / "built"
    assert pile.build(out=out)[0] == 0
    code, said = pile.build(out=out)
    assert code == 0 and "4 rows stored, 0 shards written" in said, said


@pytest.mark.parametrize("loss", ["shorter", "gone"])
def test_a_shard_that_was_lost_is_written_again(pile, loss):
    assert pile.build("--max_shard_mb", "0.0001")[0] == 0
    before = contents(pile.out)
    shard = pile.out / "a" / "train-00001-of-00004.parquet"
    shard.unlink() if loss == "gone" else shard.write_bytes(shard.read_bytes()[:-1])
    code, said = pile.build("--max_shard_mb", "0.0001")
    assert code == 0 and "1 shards written" in said and contents(pile.out) == before


def test_another_version_starts_anew(geopile, pile, monkeypatch):
    assert pile.build()[0] == 0
    monkeypatch.setattr(datasets, "__version__", "9.9")
    assert_refused(pile, "other files, flags or versions")


def test_a_build_that_stopped_goes_on_without_the_broken_file(pile):
    """The message names the flag; what was written stays, as it left nothing out; without the flag it is made anew."""
    last = max((path.name for path in pile.files.iterdir()), key=lambda n: hashlib.md5(f"a/{n}".encode()).digest())
    (pile.files / last).write_bytes(b"no picture")
    flags = ["--max_shard_mb", "0.0001"]
    code, said = pile.build(*flags)
    assert code == 2 and last in said and "repeat with --skip_unreadable" in said
    before = {path: path.stat().st_ino for path in pile.out.glob("a/*.parquet")}
    code, said = pile.build(*flags, "--skip_unreadable")
    assert code == 0 and "3 rows stored" in said and "1 files could not be read and are left out" in said, said
    assert before and all(path.stat().st_ino == number for path, number in before.items())
    assert len(pile.ids()) == 3
    code, said = pile.build(*flags)
    assert code == 2 and last in said


@pytest.mark.parametrize("state", ["", "{", "{}", "[]"])
def test_a_damaged_state_is_named(pile, state):
    assert pile.build()[0] == 0
    (pile.out / ".build.json").write_text(state)
    assert_refused(pile, r"\.build\.json is damaged; delete")


def test_two_builds_do_not_meet(geopile, pile):
    assert pile.build()[0] == 0
    with geopile.module.FileLock(pile.out / ".build.lock"):
        assert_refused(pile, "another build writes into")


def test_a_split_without_readable_rows_is_no_set(pile):
    for path in pile.files.iterdir():
        path.write_bytes(b"no picture")
    assert_refused(pile, "of a/train no row can be read", "--skip_unreadable")
    assert not (pile.out / "README.md").exists()


def test_a_killed_worker_is_named(geopile, pile, monkeypatch):
    """By the system, when memory is short."""
    module = geopile.module
    spawn, run = module.multiprocessing.get_context, module._write_shard
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: spawn("fork"))

    def killed(job):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return run(job)

    monkeypatch.setattr(module, "_write_shard", functools.wraps(run)(killed))
    assert_refused(pile, "a process was killed, probably for memory", "--num_proc", "2", "--max_shard_mb", "0.0001")


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_the_size_of_a_shard_has_to_be_a_number(pile, size):
    assert_refused(pile, "have to be positive", "--max_shard_mb", size)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(pile):
    pile.out.mkdir()
    pile.out.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert_refused(pile, "Permission denied")


# -- The Hub and the card ---------------------------------------------------------------------------------------------


def test_no_path_of_this_machine_is_on_the_card(pile):
    (pile.files / "0.png").write_bytes(b"no picture")
    with zipfile.ZipFile(pile.raw / "mine.zip", "w") as archive:
        for path in sorted(pile.files.iterdir()):
            archive.write(path, path.name)
    content = bytearray((pile.raw / "mine.zip").read_bytes())
    start = content.index(png(1))
    content[start + 20] ^= 1  # of a member: its checksum tells
    (pile.raw / "mine.zip").write_bytes(content)
    pile.name_source("mine.zip")
    assert pile.build("--skip_unreadable")[0] == 0
    card = (pile.out / "README.md").read_text()
    assert "a/0.png is no readable image" in card and "a/1.png in mine.zip cannot be read" in card
    assert str(pile.raw) not in card and " at 0x" not in card


@pytest.mark.parametrize("earlier", [True, False])
def test_what_an_earlier_call_built_is_not_pushed_along(geopile, tmp_path, monkeypatch, earlier):
    """RESISC45 must stay at home, also where only PatternNet was asked for this time."""
    pushed = []
    monkeypatch.setattr(geopile.module, "push", lambda *arguments: pushed.append(arguments))
    if earlier:
        assert geopile.run("--config", "resisc45", output_dir=tmp_path / "out")[0] == 0
    flags = ["--config", "patternnet", "--push_to_hub", "owner/x"]
    code, said = geopile.run(*flags, output_dir=tmp_path / "out")
    assert (code, bool(pushed)) == ((2, False) if earlier else (0, True))
    assert not earlier or "resisc45 must not be pushed" in said


def test_pixels_do_not_stay_beside_a_manifest(geopile, tmp_path, monkeypatch):
    """One push replaces the other; its delete patterns hold every configuration."""
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, *_, **__): ...

        def dataset_info(self, _):
            return type("Info", (), {"private": False})

        def upload_folder(self, **arguments):
            calls.append(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    flags = ["--config", "patternnet", "--manifest_only", "--push_to_hub", "owner/x"]
    assert geopile.run(*flags, output_dir=tmp_path / "out")[0] == 0
    (call,) = calls
    assert call["delete_patterns"] == ["*/*.parquet"] and call["allow_patterns"] == [
        "README.md",
        "patternnet/*.parquet",
    ]
    code, said = geopile.run(*flags, "--private", output_dir=tmp_path / "out")
    assert code == 2 and "exists and is public" in said and len(calls) == 1


def test_state_and_card_agree(pile):
    """The card counts what was written, not what was planned; load_dataset finds that."""
    (pile.files / "0.png").write_bytes(b"no picture")
    assert pile.build("--skip_unreadable")[0] == 0
    state = json.loads((pile.out / ".build.json").read_text())
    info = datasets.load_dataset_builder(str(pile.out), "a").info
    rows = encoded(datasets.load_dataset(str(pile.out), "a", split="train"))
    assert info.splits["train"].num_examples == 3
    assert len(rows) == sum(shard["rows"] for part in state["parts"].values() for shard in part["shards"]) == 3
