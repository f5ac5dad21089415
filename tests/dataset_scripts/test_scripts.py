"""The same demands on every data set: each folder of dataset_scripts is found and tested here."""

import ast
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from clients import client_environment, finish_client, start_client
from scripts import FOLDER, SCRIPTS, Script, contents, encoded, plain, rewrite


HERE = Path(__file__).parent
BEGIN, END = "# --- common to all dataset scripts: begin ---\n", "# --- common to all dataset scripts: end ---\n"
# Beside the standard library; tqdm, yaml, filelock and huggingface_hub come with datasets.
ALLOWED = {"datasets", "numpy", "PIL", "rasterio", "tqdm", "huggingface_hub", "yaml", "filelock"}
# A Python with datasets 3.6, where the files are loading scripts.
OLD_PYTHON = os.environ.get("GFM_HF_DATASETS_3_PYTHON")


# -- The files --------------------------------------------------------------------------------------------------------


def test_there_are_scripts():
    assert "ucmerced" in SCRIPTS
    for folder in (path for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"):
        if list(folder.glob("*.py")):
            assert folder.name in SCRIPTS and (folder / "dummy.py").is_file(), folder


def test_the_common_part_is_the_same_everywhere():
    parts = {}
    for name in SCRIPTS:
        text = (FOLDER / name / f"{name}.py").read_text()
        assert text.count(BEGIN) == text.count(END) == 1, name
        parts[name] = text[text.index(BEGIN) : text.index(END)]
    first = SCRIPTS[0]
    assert not [name for name in SCRIPTS if parts[name] != parts[first]], f"differ from {first}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone(name):
    text = (FOLDER / name / f"{name}.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert len(node.names) == 1, f"line {node.lineno}: datasets 3.6 reads one module a line"
            found.add(node.names[0].name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a script has no neighbours"
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            lines = node.value.splitlines()
            assert not [x for x in lines if x.startswith(("import ", "from "))], (
                "datasets 3.6 takes that for an import"
            )
    outside = found - ALLOWED - set(sys.stdlib_module_names)
    assert not outside, f"{name} imports {sorted(outside)}"


# -- From the archive to rows -----------------------------------------------------------------------------------------


def test_parquet_holds_what_the_archive_holds(script):
    """Every configuration, loaded plain; the numbers in the card are checked by load_dataset."""
    for config in script.module.RECIPE.configs:
        loaded = datasets.load_dataset(str(script.built), config.name)
        expected = script.rows(config.name)
        assert {split: encoded(part) for split, part in loaded.items()} == expected
        assert loaded[next(iter(expected))].features == script.module.RECIPE.features(config)


@pytest.mark.parametrize("way", [{"streaming": True}, {"num_proc": 2}], ids=["streaming", "num_proc"])
def test_other_ways_to_load(script, way, tmp_path):
    config = script.module.RECIPE.configs[0].name
    cut = tmp_path / "cut"  # in several shards
    assert script.run("--config", config, "--max_shard_mb", a_quarter(script), output_dir=cut)[0] == 0
    loaded = datasets.load_dataset(str(cut), config, cache_dir=str(tmp_path / "cache"), **way)
    assert {split: encoded(part) for split, part in loaded.items()} == script.rows(config)


def test_pictures_decode(script):
    config = script.module.RECIPE.configs[0]
    columns = script.module.RECIPE.features(config)
    for part in datasets.load_dataset(str(script.built), config.name).values():
        row = part[0]
        for name in (name for name, feature in columns.items() if isinstance(feature, datasets.Image)):
            assert row[name].size and row[name].convert("RGB").getextrema()


def test_the_builder_gives_the_same_rows(script, tmp_path):
    config = script.module.RECIPE.configs[0].name
    builder = script.builder(
        config_name=config, data_dir=str(script.raw), cache_dir=str(tmp_path), accept_archive=True
    )
    stream = builder.as_streaming_dataset()
    builder.download_and_prepare()
    expected = script.rows(config)
    assert {split: encoded(part) for split, part in builder.as_dataset().items()} == expected
    assert {split: encoded(part) for split, part in stream.items()} == expected
    info = builder.info
    assert info.citation and info.homepage and info.license and info.description


def test_the_builder_refuses_another_archive(script, tmp_path):
    if not any(archive.sha256 or archive.md5 for archive in script.module.RECIPE.archives):
        pytest.skip("no checksum is published")
    builder = script.builder(
        config_name=script.module.RECIPE.configs[0].name, data_dir=str(script.raw), cache_dir=str(tmp_path)
    )
    with pytest.raises(script.module.InputError, match="published archive has"):
        builder.download_and_prepare()


def test_the_card(script):
    text = (script.built / "README.md").read_text()
    recipe = script.module.RECIPE
    assert "geospatial" in text.partition("\n---\n")[0] and "license:" in text
    assert recipe.citation.strip() in text and recipe.homepage in text
    assert str(script.raw.parent) not in text, "paths of this machine do not belong there"
    assert datasets.get_dataset_config_names(str(script.built)) == sorted(c.name for c in recipe.configs)


def test_the_same_bytes_every_time(script, tmp_path):
    """Again, by another number of processes, and configuration by configuration."""
    assert script.run(output_dir=tmp_path / "again")[0] == 0
    expected = contents(script.built)
    assert contents(tmp_path / "again") == expected
    parallel = script.arguments("--num_proc", "2", output_dir=tmp_path / "parallel")
    subprocess.run([sys.executable, script.path, *parallel], check=True, capture_output=True, timeout=200)
    assert contents(tmp_path / "parallel") == expected
    for config in script.module.RECIPE.configs:
        assert script.run("--config", config.name, output_dir=tmp_path / "in turn")[0] == 0
    assert contents(tmp_path / "in turn") == expected


def test_an_unpacked_set_gives_the_same_rows(script, tmp_path):
    if script.raw.is_dir():
        shutil.copytree(script.raw, tmp_path / "raw", ignore=lambda *_: [path.name for path in script.archives()])
    for archive in script.archives():
        shutil.unpack_archive(archive, tmp_path / "raw")
    code, said = script.run(data_dir=tmp_path / "raw", output_dir=tmp_path / "out")
    assert code == 0, said
    shards = {name: content for name, content in contents(script.built).items() if name.endswith(".parquet")}
    again = contents(tmp_path / "out")
    again.pop("README.md")
    assert again == shards


def test_a_manifest_has_no_pixels(script, tmp_path):
    assert script.run("--manifest_only", output_dir=tmp_path)[0] == 0
    for config in script.module.RECIPE.configs:
        columns = script.module.RECIPE.features(config)
        rows = script.rows(config.name)
        for split, part in datasets.load_dataset(str(tmp_path), config.name).items():
            assert not [c for c in part.features.values() if isinstance(c, (datasets.Image, datasets.Array3D))]
            kept = [name for name in part.column_names if name in columns]
            assert [{k: row[k] for k in kept} for row in encoded(part)] == [
                {k: r[k] for k in kept} for r in rows[split]
            ]
            assert all(len(value) == 64 for value in part["sha256"])


# -- The Hub ----------------------------------------------------------------------------------------------------------


def push(script: Script, hub, home: Path, *flags: str, output_dir: Path) -> subprocess.CompletedProcess:
    """Run the command as a process that knows this Hub."""
    arguments = script.arguments("--push_to_hub", "owner/scenes", *flags, output_dir=output_dir)
    environment = client_environment(hub, home, installed=False)
    command = [sys.executable, str(script.path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_to_the_hub_and_back(script, hub, tmp_path):
    """What may be pushed is, without being written again; clients read it plain and as a stream.

    Of a set that must not be pushed at all, the manifest is.
    """
    configs = script.module.RECIPE.configs
    free = [config for config in configs if not config.no_push]
    output_dir = tmp_path / "built"
    if len(free) == len(configs):
        shutil.copytree(script.built, output_dir)
    else:
        done = push(script, hub, tmp_path / "home", output_dir=output_dir)
        assert done.returncode == 2 and "must not be pushed" in done.stderr and not hub.repos
    config = (free or configs)[0].name
    flags = ["--config", *(c.name for c in free)] if free else ["--manifest_only"]
    flags += ["--private"] if any(c.private_only for c in free) else []
    hub.add_repo("owner/scenes", {f"{config}/train-00000-of-00009.parquet": b"of an older build"}, kind="dataset")
    hub.repo("owner/scenes", kind="dataset").private = "--private" in flags
    done = push(script, hub, tmp_path / "home", *flags, output_dir=output_dir)
    assert done.returncode == 0, done.stderr
    assert len(free) < len(configs) or "0 shards written" in done.stderr
    remote = hub.files("owner/scenes", kind="dataset")
    remote.pop(".gitattributes")
    assert remote == contents(output_dir)
    source = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from datasets import load_dataset
from scripts import encoded
whole = load_dataset("owner/scenes", {config!r})
stream = load_dataset("owner/scenes", {config!r}, streaming=True)
say([{{split: encoded(part) for split, part in found.items()}} for found in (whole, stream)])
"""
    outcome = finish_client(start_client(source, client_environment(hub, tmp_path / "reader"), tmp_path))
    whole, stream = outcome.value
    expected = json.loads(json.dumps(script.rows(config)))
    if not free:
        columns = whole[next(iter(whole))][0].keys() - {"sha256"}
        expected = {
            split: [{name: row[name] for name in row if name in columns} for row in rows]
            for split, rows in expected.items()
        }
        for row in (row for found in (whole, stream) for rows in found.values() for row in rows):
            assert len(row.pop("sha256")) == 64
    assert whole == stream == expected


def test_a_push_that_fails_leaves_the_build(script, hub, tmp_path):
    free = [config.name for config in script.module.RECIPE.configs if not config.no_push]
    flags = ["--private", *(["--config", *free] if free else ["--manifest_only"])]
    hub.fail("POST", "/api/repos/create", status=403, times=None)
    assert script.run(*flags[1:], output_dir=tmp_path / "built")[0] == 0
    before = contents(tmp_path / "built")
    done = push(script, hub, tmp_path / "home", *flags, output_dir=tmp_path / "built")
    assert done.returncode == 1 and "repeat the command" in done.stderr and "Traceback" not in done.stderr
    assert contents(tmp_path / "built") == before


@pytest.mark.parametrize(
    "sentence, private, allowed", [("no_push", True, 2), ("private_only", False, 2), ("private_only", True, None)]
)
def test_a_licence_can_forbid_the_push(script, sentence, private, allowed, tmp_path, monkeypatch):
    """Before anything is written; also for what an earlier call left in the folder."""
    recipe = script.module.RECIPE
    free = dataclasses.replace(recipe.configs[0], no_push="", private_only="")
    configs = [dataclasses.replace(free, **{sentence: "the licence says so; push a manifest."})]
    recipe = dataclasses.replace(recipe, configs=configs)
    pushed = []
    monkeypatch.setattr(script.module, "push", lambda *arguments: pushed.append(arguments))
    flags = ["--push_to_hub", "owner/x", *(["--private"] if private else [])]
    code = script.module.run(recipe, script.arguments(*flags, output_dir=tmp_path / "out"))
    assert (code, bool(pushed), (tmp_path / "out").exists()) == ((2, False, False) if allowed else (0, True, True))


# -- Killed and started again -----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from scripts import load
module = load(Path({script!r}))
point, renames, replace, encode = {point!r}, 0, os.replace, module.ParquetWriter.write
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
def replace_and_die(old, new):
    global renames
    renames += str(new).endswith(".parquet")
    if renames == 3 and point == "before the rename":
        die()
    replace(old, new)
    if renames == 3 and point == "after the rename":
        die()
def write_and_die(self, *arguments, **more):
    encode(self, *arguments, **more)
    if renames == 2 and point == "in a shard":
        die()
os.replace, module.ParquetWriter.write = replace_and_die, write_and_die
module.main({arguments!r})
"""


@pytest.mark.parametrize("point", ["in a shard", "before the rename", "after the rename"])
def test_a_killed_build_goes_on(script, point, tmp_path):
    config = script.module.RECIPE.configs[0].name
    flags = ["--config", config, "--max_shard_mb", a_quarter(script)]
    assert script.run(*flags, output_dir=tmp_path / "whole")[0] == 0
    assert len(contents(tmp_path / "whole")) >= 5, "too few shards to be killed between them"
    out = tmp_path / "killed"
    arguments = script.arguments(*flags, output_dir=out)
    source = KILLED.format(here=str(HERE), script=str(script.path), point=point, arguments=arguments)
    killed = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    shards = {path: path.stat() for path in out.glob(f"{config}/[!u]*.parquet")}
    assert len(shards) == 2 + (point == "after the rename") and not (out / "README.md").exists()
    assert bool(list(out.glob("*/unfinished-*"))) == (point != "after the rename")
    code, said = script.run(*flags, output_dir=out)
    assert code == 0, said
    kept = [path for path, before in shards.items() if path.stat().st_ino == before.st_ino]
    assert len(kept) == 2, "finished shards were written again"
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_build_is_not_mixed_with_another(script, tmp_path):
    assert script.run("--max_shard_mb", "7", output_dir=tmp_path)[0] == 0
    before = contents(tmp_path)
    code, said = script.run("--max_shard_mb", "8", output_dir=tmp_path)
    assert code == 2 and "choose another --output_dir" in said and contents(tmp_path) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert script.run(output_dir=tmp_path / "mine")[0] == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


# -- Refusals ---------------------------------------------------------------------------------------------------------


def refused(script: Script, *flags: str, data_dir: Path, output_dir: Path, accept: bool = True) -> str:
    """The one sentence of a refusal that has written nothing."""
    arguments = script.arguments(*flags, data_dir=data_dir, output_dir=output_dir)
    code, said = script.main(arguments if accept else [a for a in arguments if a != "--accept_archive"])
    sentences = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert code == 2 and len(sentences) == 1 and sentences[0].startswith("error: "), said
    assert not output_dir.exists()
    return sentences[0]


def test_another_archive_is_refused(script, tmp_path):
    known = script.module.RECIPE.archives
    if not any(archive.sha256 or archive.md5 for archive in known):
        pytest.skip("no checksum is published")
    said = refused(script, data_dir=script.raw, output_dir=tmp_path / "out", accept=False)
    assert "the published archive has" in said and "--accept_archive" in said
    assert any((archive.sha256 or archive.md5) in said for archive in known)
    assert "Not as published" in (script.built / "README.md").read_text()


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\r\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is an LFS pointer"),
        (b"", "is truncated"),
    ],
)
def test_what_is_no_archive_is_named(script, content, what, tmp_path):
    raw = script.copy_of_raw(tmp_path)
    script.archives(raw)[0].write_bytes(content)
    assert what in refused(script, data_dir=raw, output_dir=tmp_path / "out")


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_truncated_archive_is_named(script, share, tmp_path):
    raw = script.copy_of_raw(tmp_path)
    archive = script.archives(raw)[0]
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    said = refused(script, data_dir=raw, output_dir=tmp_path / "out")
    assert "is truncated" in said and str(archive) in said


@pytest.mark.parametrize("name", ["../../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:\\evil"])
def test_a_path_out_of_the_archive_is_refused(script, name, tmp_path):
    raw = script.copy_of_raw(tmp_path)
    rewrite(script.archives(raw)[0], lambda entries: [*entries, (name, b"evil")])
    assert "points outside" in refused(script, data_dir=raw, output_dir=tmp_path / "out")
    assert not list(tmp_path.parent.rglob("evil*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(script, tmp_path):
    raw = script.copy_of_raw(tmp_path)
    rewrite(
        script.archives(raw)[0],
        lambda entries: [*entries, [e for e in entries if not script.module.JUNK.search(e[0])][-1]],
    )
    assert "twice" in refused(script, data_dir=raw, output_dir=tmp_path / "out")


def test_what_is_not_there(script, tmp_path):
    assert "does not exist" in refused(script, data_dir=tmp_path / "nowhere", output_dir=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    refused(script, data_dir=tmp_path / "empty", output_dir=tmp_path / "out")


def test_an_unreadable_file_is_named_and_the_rest_is_not_lost(script, tmp_path):
    """Without the flag the build stops there; with it, all other rows are the same and the card tells."""
    recipe, raw = script.module.RECIPE, script.copy_of_raw(tmp_path)
    config = recipe.configs[0]
    split, items = next(iter(recipe.splits(config, recipe.open(str(script.raw), None, accept=True)).items()))
    broken = items[len(items) // 2].names[0]

    def is_broken(name: str) -> bool:  # where rows are folders, all their files; before some names a prefix stands
        return broken.endswith(name) or name.startswith(f"{broken}/")

    for archive in script.archives(raw):
        rewrite(archive, lambda entries: [(n, b"no image" if is_broken(n) else c) for n, c in entries])
    flags = ["--config", config.name, "--max_shard_mb", a_quarter(script)]
    code, said = script.run(*flags, data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and broken in said.splitlines()[-1]
    assert list((tmp_path / "out").glob(f"{config.name}/{split}-00000-*.parquet"))
    assert not list((tmp_path / "out").rglob("unfinished-*")) and not (tmp_path / "out" / "README.md").exists()
    code, said = script.run(*flags, "--skip_unreadable", data_dir=raw, output_dir=tmp_path / "skipped")
    assert code == 0, said
    assert broken in (tmp_path / "skipped" / "README.md").read_text()
    found = encoded(datasets.load_dataset(str(tmp_path / "skipped"), config.name, split=split))
    features = recipe.features(config)
    files = recipe.open(str(script.raw), None, accept=True)
    readable = [item for item in items if broken not in item.names]
    assert found == [plain(features.encode_example(recipe.row(files, item))) for item in readable]


def test_wrong_numbers_are_refused(script, tmp_path):
    assert "--num_proc" in refused(script, "--num_proc", "0", data_dir=script.raw, output_dir=tmp_path / "out")


def a_quarter(script: Script) -> str:
    """--max_shard_mb that cuts the first split into four shards or so."""
    recipe = script.module.RECIPE
    files = recipe.open(str(script.raw), None, accept=True)
    items = next(iter(recipe.splits(recipe.configs[0], files).values()))
    largest = max(map(files.size, items))
    return repr((sum(map(files.size, items)) / 4 + largest) / 1e6)


# -- datasets 3.6 -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not OLD_PYTHON, reason="GFM_HF_DATASETS_3_PYTHON names no Python with datasets 3.6")
def test_as_a_loading_script(script, tmp_path):
    """The old way: the file itself by load_dataset, plain and streaming, and the Parquet that 5.2 wrote."""
    config = script.module.RECIPE.configs[0].name
    source = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / "hub" / "client_path")!r}]
from client_tools import say
from datasets import load_dataset, __version__
from scripts import encoded
assert __version__.startswith("3.6")
more = dict(data_dir={str(script.raw)!r}, trust_remote_code=True, accept_archive=True)
ways = [
    load_dataset({str(script.path)!r}, {config!r}, **more),
    load_dataset({str(script.path)!r}, {config!r}, streaming=True, **more),
    load_dataset({str(script.built)!r}, {config!r}),
]
say([{{split: encoded(part) for split, part in found.items()}} for found in ways])
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([OLD_PYTHON, "-c", source], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    from client_tools import SAID

    (said,) = [line.removeprefix(SAID) for line in done.stdout.splitlines() if line.startswith(SAID)]
    assert json.loads(said) == [json.loads(json.dumps(script.rows(config)))] * 3
