"""What is special of UC Merced: lists, draws, class folders, and real files where they are at hand."""

import functools
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from clients import client_environment
from PIL import Image
from scripts import Script, contents, encoded, rewrite


REAL = Path(__file__).parents[3] / "shared" / "imagery" / "ucmerced"


@pytest.fixture(scope="session")
def ucmerced(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("ucmerced", tmp_path_factory.mktemp("ucmerced"))


def md5(values) -> str:
    return hashlib.md5("\n".join(map(str, values)).encode()).hexdigest()


# -- Lists and draws --------------------------------------------------------------------------------------------------


def test_the_published_lists(ucmerced):
    """Sizes in names and bytes, MD5: those of the files that Neumann et al. published."""
    published = {
        "train": (1260, 21_736, "f2fb12eb2210cfb53f93f063a35ff374"),
        "validation": (420, 7_201, "11ecabfc52782e5ea6a9c7c0d263aca0"),
        "test": (420, 7_260, "046aff88472d8fc07c4678d03749e28d"),
    }
    lists = ucmerced.module.in_domain_splits()
    assert {k: (len(v), len("\n".join(v)), md5(v)) for k, v in lists.items()} == published
    assert sorted(sum(lists.values(), [])) == sorted(ucmerced.module.NAMES)


@pytest.mark.parametrize(
    "config, first, drawn, distinct, md5_sorted, md5_drawn",
    [
        ("1", [112, 975, 824], 12, 12, "75ef11af53b0d0327c821d4db002502a", "1cdf6c776ffb5f0854a7db5d89db549a"),
        ("10", [112, 975, 824], 126, 118, "f08f1e9a4564d15e535ba526db2c72f3", "12cf4611eec0b1f95b92c308a3b9c3b7"),
    ],
)
def test_the_authors_draws(ucmerced, config, first, drawn, distinct, md5_sorted, md5_drawn):
    """Recorded numbers of the authors' code: positions among the sorted training names."""
    names = sorted(ucmerced.module.in_domain_splits()["train"])
    draw = ucmerced.module.authors_draw(*ucmerced.module.AUTHORS_DRAWS[f"authors_{config}_percent"])
    positions = [names.index(name) for name in draw]
    assert (positions[:3], len(draw), len(set(draw))) == (first, drawn, distinct)
    assert (md5(sorted(positions)), md5(positions)) == (md5_sorted, md5_drawn)
    rows = datasets.load_dataset(str(ucmerced.built), f"authors_{config}_percent")
    assert rows["train"]["name"][:] == draw


def test_the_clean_draws(ucmerced):
    draws = [ucmerced.module.clean_draw(*ucmerced.module.CLEAN_DRAWS[f"clean_{p}_percent"]) for p in (1, 10)]
    small, large = draws
    train = ucmerced.module.in_domain_splits()["train"]
    assert (len(small), len(set(small)), len(large), len(set(large))) == (12, 12, 126, 126)
    assert small == large[:12] and set(large) <= set(train)
    assert datasets.load_dataset(str(ucmerced.built), "clean_10_percent")["train"]["name"][:] == large
    assert len({name[:-6] for name in small}) == 7  # what the card says


def test_a_list_that_comes_out_otherwise_stops(ucmerced, monkeypatch):
    monkeypatch.setitem(ucmerced.module.SPLIT_MD5, "validation", "0" * 32)
    with pytest.raises(RuntimeError, match="the list of validation"):
        ucmerced.module.in_domain_splits()


def test_rows(ucmerced):
    """The order of the lists, the class of the name, the bytes of the archive; shared parts stored once."""
    loaded = datasets.load_dataset(str(ucmerced.built), "in_domain")
    with zipfile.ZipFile(ucmerced.raw) as archive:
        files = {Path(name).name: archive.read(name) for name in archive.namelist()}
    for split, names in ucmerced.module.in_domain_splits().items():
        assert loaded[split]["name"][:] == names
        label = loaded[split].features["label"]
        assert [label.int2str(i) for i in loaded[split]["label"]] == [name[:-6] for name in names]
        raw = loaded[split].cast_column("image", datasets.Image(decode=False))
        assert [image["bytes"] for image in raw["image"]] == [files[name] for name in names]
    sizes = {row["name"]: row["image"].size for part in loaded.values() for row in part}
    assert {name: size for name, size in sizes.items() if size != (8, 8)} == {
        "agricultural04.tif": (8, 6),
        "runway61.tif": (8, 9),
    }
    assert len(contents(ucmerced.built)) == 1 + 3 + 4


def test_the_script_is_a_program(ucmerced, tmp_path):
    command = [sys.executable, str(ucmerced.path), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    flags = ("data_dir", "output_dir", "config", "num_proc", "exact", "manifest_only", "push_to_hub", "download")
    assert not [flag for flag in flags if f"--{flag}" not in said]


def test_download(ucmerced, hub, tmp_path):
    """From the repository that holds the published archive; the checksum is that archive's."""
    hub.add_repo("torchgeo/ucmerced", {"UCMerced_LandUse.zip": ucmerced.raw.read_bytes()}, kind="dataset")
    command = [sys.executable, str(ucmerced.path), "--download", "--config", "in_domain", "--output_dir"]
    environment = client_environment(hub, tmp_path / "home")
    run = {"env": environment, "capture_output": True, "text": True, "timeout": 100}
    refused = subprocess.run([*command, str(tmp_path / "out")], **run)
    assert refused.returncode == 2 and "published archive has 06c539ef28" in refused.stderr, refused.stderr
    done = subprocess.run([*command, str(tmp_path / "out"), "--accept_archive", "--exact"], **run)
    assert done.returncode == 0, done.stderr
    shards = {k: v for k, v in contents(ucmerced.built).items() if k.startswith("in_domain/")}
    assert shards.items() <= contents(tmp_path / "out").items()


def with_other_end(name, end, entries):
    return [(path, content[:-3] + end if name in path else content) for path, content in entries]


def test_an_earlier_build_does_not_answer_from_the_cache(ucmerced, tmp_path):
    """Same folder name, same names and sizes of all files, other pixels in one picture."""
    name, rows = "beach07.tif", []
    for number, end in enumerate((b"abc", b"xyz")):
        (tmp_path / f"{number}").mkdir()
        raw = changed(ucmerced, tmp_path / f"{number}", functools.partial(with_other_end, name, end))
        out = tmp_path / f"{number}" / "out"
        assert ucmerced.run("--config", "in_domain", data_dir=raw, output_dir=out)[0] == 0
        loaded = datasets.load_dataset(str(out), "in_domain")
        rows += [row for part in loaded.values() for row in encoded(part) if row["name"] == name]
    assert rows[0]["image"] != rows[1]["image"]


# -- Refusals ---------------------------------------------------------------------------------------------------------

HEAD = "UCMerced_LandUse/Images/"


def changed(ucmerced: Script, folder: Path, change) -> Path:
    raw = ucmerced.copy_of_raw(folder)
    rewrite(raw, change)
    return raw


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda e: [(n, c) for n, c in e if "/harbor/" not in n], r"folder of harbor is missing"),
        (lambda e: [*e, ("copy/beach/beach07.tif", e[-1][1])], r"beach07\.tif is there twice, as .* and copy/beach"),
        (lambda e: [*e, (f"{HEAD}beach/river07.tif", e[-1][1])], r"beach/river07\.tif lies in the folder of another"),
    ],
    ids=["class folder", "twice", "wrong folder"],
)
def test_refused_whatever_is_accepted(ucmerced, change, says, tmp_path):
    raw = changed(ucmerced, tmp_path, change)
    code, said = ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(says, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda e: [(n, c) for n, c in e if not n.endswith("beach07.tif")], 99),
        (lambda e: [*e, (f"{HEAD}beach/beachxx.tif", e[-1][1])], 101),
    ],
    ids=["one too few", "one too many"],
)
def test_a_wrong_count(ucmerced, change, found, tmp_path):
    """Refused for a folder, too, unless another archive is accepted; --exact never accepts it."""
    raw = changed(ucmerced, tmp_path, change)
    with zipfile.ZipFile(raw) as archive:
        archive.extractall(tmp_path / "unpacked")
    sentence = f"images of beach: found {found}, expected 100"
    code, said = ucmerced.main(["--data_dir", str(tmp_path / "unpacked"), "--output_dir", str(tmp_path / "out")])
    assert code == 2 and sentence in said
    code, said = ucmerced.run("--exact", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and sentence in said and not (tmp_path / "out").exists()
    code, said = ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 0 and sentence in (tmp_path / "out" / "README.md").read_text()
    names = {row["name"] for part in datasets.load_dataset(str(tmp_path / "out")).values() for row in encoded(part)}
    assert names == set(ucmerced.module.NAMES) - ({"beach07.tif"} if found == 99 else set())


def test_a_picture_of_another_kind_is_named(ucmerced, tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="TIFF")
    raw = changed(ucmerced, tmp_path, lambda e: [(n, buffer.getvalue() if "beach07" in n else c) for n, c in e])
    code, said = ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "beach07.tif has the mode L, expected RGB" in said


def test_flipped_bits_in_the_archive_are_named(ucmerced, tmp_path):
    """The checksum of the member tells, although the picture would still decode."""
    raw = ucmerced.copy_of_raw(tmp_path)
    content = bytearray(raw.read_bytes())
    with zipfile.ZipFile(raw) as archive:
        entry = archive.getinfo(f"{HEAD}beach/beach07.tif")
    start = entry.header_offset + 30 + len(entry.filename)
    content[start + entry.file_size // 2] ^= 1
    raw.write_bytes(content)
    code, said = ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "beach07.tif" in said and "CRC" in said


def test_a_picture_cut_short_is_named(ucmerced, tmp_path):
    """Its header is whole: only decoding tells."""
    raw = changed(ucmerced, tmp_path, lambda e: [(n, c[:-40] if "beach07" in n else c) for n, c in e])
    code, said = ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "beach07.tif is no readable image" in said


def test_a_file_that_shrank_since_it_was_listed_is_named(ucmerced, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12345678")
    files = ucmerced.module.Files([(tmp_path, None)], accept=False, exact=False)
    assert files.read("a.bin") == b"12345678"
    (tmp_path / "a.bin").write_bytes(b"1234")
    with pytest.raises(ucmerced.module.UnreadableError, match="4 of 8 bytes"):
        files.read("a.bin")


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tar_archives(ucmerced, kind, tmp_path):
    """Other sets come as tar: the same rows, read in any order; a truncated one is named."""
    packed = tmp_path / f"set.{kind}"
    with zipfile.ZipFile(ucmerced.raw) as old, tarfile.open(packed, "w:gz" if kind == "tar.gz" else "w") as new:
        for name in old.namelist():
            info = tarfile.TarInfo(name)
            info.size = old.getinfo(name).file_size
            new.addfile(info, io.BytesIO(old.read(name)))
    config = ["--config", "clean_10_percent"]
    assert ucmerced.run(*config, data_dir=packed, output_dir=tmp_path / "out")[0] == 0
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: encoded(part) for split, part in loaded.items()} == ucmerced.rows("clean_10_percent")
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    code, said = ucmerced.run(data_dir=packed, output_dir=tmp_path / "broken")
    assert code == 2 and "is truncated" in said and not (tmp_path / "broken").exists()


# -- Processes --------------------------------------------------------------------------------------------------------


def test_workers_of_a_killed_build_end(ucmerced, tmp_path):
    flags = ["--num_proc", "2", "--max_shard_mb", "0.004"]
    command = [sys.executable, str(ucmerced.path), *ucmerced.arguments(*flags, output_dir=tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/*/[!u]*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2 and process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    alive = children
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = [pid for pid in children if _runs(pid)]
    assert not alive
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert {s: encoded(p) for s, p in datasets.load_dataset(str(tmp_path / "out")).items()} == ucmerced.rows(
        "in_domain"
    )


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- Real files -------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/imagery/ucmerced")


@real
def test_real_pictures_in_the_layout_of_the_archive(ucmerced, tmp_path):
    """42 real pictures with their real names and odd sizes; what is missing is said."""
    raw = REAL / "UCMerced_LandUse_mini.zip"
    code, said = ucmerced.run("--exact", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "images of agricultural: found 2, expected 100" in said
    assert ucmerced.run(data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    loaded = datasets.load_dataset(str(tmp_path / "out"), "in_domain")
    with zipfile.ZipFile(raw) as archive:
        files = {Path(name).name: archive.read(name) for name in archive.namelist()}
    lists = ucmerced.module.in_domain_splits()
    odd = 0
    for split, part in loaded.items():
        assert part["name"][:] == [name for name in lists[split] if name in files]
        for row in part:
            assert np.array_equal(row["image"], Image.open(io.BytesIO(files[row["name"]])))
            odd += row["image"].size != (256, 256)
    assert (sum(map(len, loaded.values())), odd) == (42, 15)


@real
def test_the_whole_set_by_its_names(ucmerced, tmp_path):
    """All 2,100 pictures, reduced and as TIFF in an archive of the published layout: counts and lists are exact."""
    table = datasets.load_dataset("parquet", data_files=str(REAL / "ucmerced_128.parquet"), split="train")
    classes, label_of = table.features["label"].names, {}
    with zipfile.ZipFile(tmp_path / "UCMerced_LandUse.zip", "w") as archive:
        for row in table:
            buffer = io.BytesIO()
            row["image"].save(buffer, format="TIFF", compression="jpeg", quality=80)
            archive.writestr(f"{HEAD}{classes[row['label']]}/{row['name']}", buffer.getvalue())
            label_of[row["name"]] = row["label"]
    out = tmp_path / "out"
    code, said = ucmerced.run("--exact", "--config", "in_domain", data_dir=tmp_path, output_dir=out)
    assert code == 0, said
    loaded = datasets.load_dataset(str(out), "in_domain")
    lists = ucmerced.module.in_domain_splits()
    assert {split: part["name"][:] for split, part in loaded.items()} == lists
    for part in loaded.values():
        assert part["label"][:] == [label_of[name] for name in part["name"]]
    place = {name: (split, i) for split, names in lists.items() for i, name in enumerate(names)}
    pair = [place[f"airplane0{number}.tif"] for number in (1, 2)]
    assert [split for split, _ in pair] == ["test", "validation"]  # what the card says of the repeated picture
    assert np.array_equal(*(np.asarray(loaded[split][i]["image"]) for split, i in pair))
    assert os.path.getsize(out / "README.md") > 1000
