"""The report on near-duplicates: hashes, search, similarity, sets, the command."""

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scripts import FOLDER, load


overlap = load(FOLDER / "overlap.py")
IMAGERY = Path(__file__).parents[3] / "shared" / "imagery"
TURNS = [None, *Image.Transpose]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# -- Pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    """Sixty procedural scenes of all classes, 96 px."""
    spec = importlib.util.spec_from_file_location("scenes_to_compare", FOLDER.parent / "examples/procedural_scenes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for it
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    return [Image.fromarray(module.draw_scene(module.CLASSES[i % 5], rng, 96)) for i in range(60)]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image, rng):
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=int(rng.integers(50, 91))))).convert("RGB")


def brighter(image, rng):
    pixels = (np.asarray(image, float) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-40, 40)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def resized(image, rng):
    width, height = (round(side * rng.uniform(0.75, 1.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def blurred(image, rng):
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def turned(image, rng):
    turn = TURNS[rng.integers(len(TURNS))]
    return image if turn is None else image.transpose(turn)


CHANGES = (turned, jpeg, brighter, resized, blurred)
CHAINS = [(one,) for one in CHANGES] + [(one, other) for one in CHANGES for other in CHANGES if one is not other]


def save(folder, pictures):
    """Write name -> picture or bytes."""
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture if isinstance(picture, bytes) else encoded(picture))
    return folder


def save_table(path, pictures, **columns):
    features = {name: datasets.Value("string") for name in columns}
    images = [{"bytes": encoded(p) if isinstance(p, Image.Image) else p, "path": f"{i}.png"} for i, p in enumerate(pictures)]  # fmt: skip
    table = datasets.Dataset.from_dict(
        {"image": images, **columns}, features=datasets.Features({"image": datasets.Image(), **features})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def report(folder):
    with (folder / "overlap.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "overlap.json").read_text())


def duplicates(folder):
    return {(row["a"], row["b"]) for row in report(folder)[0] if row["duplicate"] == "yes"}


def run(*words):
    return overlap.main([*map(str, words)])


# -- Hashes and similarity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (70, 41), (9, 8), (3, 2), (400, 300)])
def test_hashes_of_all_orientations_are_those_of_the_turned_picture(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    views, deviation = overlap.hashes_of(Image.fromarray(pixels))
    for k in range(8):
        turned_picture = Image.fromarray(np.ascontiguousarray(overlap.turned(pixels, k)))
        assert views[k] == overlap.dhash(turned_picture)
        assert (overlap.turned(overlap.turned(pixels, k), overlap.inverse(k)) == pixels).all()
    assert len({overlap.turned(pixels, k).tobytes() for k in range(8)}) == 8
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    assert deviation == pytest.approx(grey.std())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_search_misses_nothing_and_invents_nothing(threads):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 83, dtype=np.uint64)
    views = rng.integers(0, 2**64, (1025, 8), dtype=np.uint64)  # two blocks and one row more
    for place in (0, 511, 512, 1023, 1024):
        hash_, view = rng.integers(83), rng.integers(8)
        views[place, view] = hashes[hash_] ^ np.uint64(0b1011 << int(rng.integers(60)))
    distance = np.bitwise_count(hashes[:, None, None] ^ views)
    for most in (2, 3, 16):
        found = overlap.near(hashes, views, most, threads=threads)
        assert sorted(found.tolist()) == np.argwhere(distance <= most).tolist() and (most < 3 or len(found) >= 5)
    own = overlap.near(views[:, 0], views, 18, within=True, threads=threads)
    close = np.argwhere(np.bitwise_count(views[:, 0][:, None, None] ^ views) <= 18)
    assert len(own) > 20 and sorted(own.tolist()) == [row for row in close.tolist() if row[0] < row[1]]


def test_what_is_flat_or_unreadable_takes_no_part_in_the_search():
    hashed = overlap.Hashed(np.zeros((5, 8), np.uint64), np.array([False, True, False, False, False]), {3: "empty"})
    assert hashed.usable.tolist() == [0, 2, 4]


def test_too_many_candidates_are_refused(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_CANDIDATES", 1000)
    with pytest.raises(overlap.InputError, match="more than 1,000 pairs .* lower --max_distance"):
        overlap.near(np.zeros(40, np.uint64), np.zeros((40, 8), np.uint64), 0)


def test_similarity_is_ssim_of_standardised_pictures():
    rng = np.random.default_rng(0)
    a, b = rng.integers(10, 240, (2, 20, 20)).astype(np.uint8)
    b = (0.5 * a + 0.3 * b).astype(np.uint8)  # nothing is clipped
    x, y = ((one - one.mean()) / one.std() for one in (a.astype(float), b.astype(float)))
    c1, c2 = 0.06**2, 0.18**2
    values = []
    for i in range(14):
        for j in range(14):
            p, q = x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]
            shared = ((p - p.mean()) * (q - q.mean())).mean()
            light = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
            values.append(max(light, 0) * (2 * shared + c2) / (p.var() + q.var() + c2))
    (found,) = overlap.similarity(a[None], b[None])
    assert found == pytest.approx(np.mean(values), abs=1e-9) and 0.2 < found < 0.95


def test_similarity_forgives_exposure_and_nothing_else(scenes):
    grey = np.stack([np.asarray(scene.convert("L").resize((64, 64))) for scene in scenes[:20]])
    light = ((grey - 128.0) * 1.3 + 230).clip(0, 255).astype(np.uint8)
    assert (light == 255).mean() > 0.2
    assert overlap.similarity(grey, grey).min() == pytest.approx(1)
    assert overlap.similarity(grey, light).min() > 0.9 and overlap.similarity(light, grey).min() > 0.9
    assert overlap.similarity(grey, 255 - grey).max() < 0
    assert overlap.similarity(grey, np.roll(grey, 1, axis=0)).max() < 0.6
    flat = np.full_like(grey, 7)
    assert np.isfinite(overlap.similarity(grey, flat)).all() and overlap.similarity(grey, flat).max() < 0.8


# -- The report --------------------------------------------------------------------------------------------------------


def test_altered_copies_are_found_and_nothing_else(scenes, tmp_path):
    rng = np.random.default_rng(1)
    copies, expected = {}, set()
    for number, chain in enumerate(chain for chain in CHAINS for _ in range(4)):
        place = int(rng.integers(40))  # the last twenty have no copy
        copy = scenes[place]
        for change in chain:
            copy = change(copy, rng)
        copies[f"copies/{number:03d}.png"] = copy
        expected.add((f"{place:02d}.png", f"copies/{number:03d}.png"))
    first = save(tmp_path / "a", {f"{i:02d}.png": scene for i, scene in enumerate(scenes)})
    assert run(first, save(tmp_path / "b", copies), "--output_dir", tmp_path / "out") == 0
    found = duplicates(tmp_path / "out")
    assert not found - expected
    assert len(found) >= 0.99 * len(expected)
    rows, facts = report(tmp_path / "out")
    assert facts["duplicates"] == len(found) and facts["candidates"] == len(rows)
    assert facts["a"] | {"flat": 0, "unreadable": 0} == {
        "name": "folder a", "images": 60, "in_duplicates": len({a for a, _ in found}), "hashes": "computed",
        "flat": 0, "unreadable": 0,
    }  # fmt: skip
    assert facts["b"]["in_duplicates"] == len({b for _, b in found})
    assert facts["settings"]["max_distance"] == 10 and facts["settings"]["min_ssim"] == 0.8


def test_a_set_is_compared_with_itself_each_pair_once(scenes, tmp_path, capsys):
    pictures = {f"{i}.png": scene for i, scene in enumerate(scenes[:10])}
    pictures |= {"x/3.jpg": encoded(scenes[3].rotate(90), "JPEG"), "y.png": scenes[7]}
    folder = save(tmp_path / "set", pictures)
    for other in ([], [folder]):
        out = tmp_path / f"out{len(other)}"
        assert run(folder, *other, "--output_dir", out) == 0
        assert duplicates(out) == {("3.png", "x/3.jpg"), ("7.png", "y.png")}
        rows, facts = report(out)
        assert facts["a"] == facts["b"] and facts["a"]["in_duplicates"] == 4
        assert "4 of 12 images of folder set have a near-duplicate in it (2 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("stored", ["neither", "a", "b", "both"])
def test_the_orientation_turns_b_into_a(scenes, tmp_path, stored):
    """Whichever side has its hashes in a column and whichever is turned for the search."""
    pixels = [np.asarray(scene) for scene in scenes[:8]]
    copies = [Image.fromarray(np.ascontiguousarray(overlap.turned(one, k))) for k, one in enumerate(pixels)]

    def table(name, pictures):
        words = [f"{overlap.dhash(picture):016x}" for picture in pictures]
        columns = {"dhash": words} if stored in (name, "both") else {}
        return save_table(tmp_path / f"{name}.parquet", pictures, **columns)

    a, b = table("a", scenes[:8]), table("b", [*copies, scenes[20]])
    assert run(a, b, "--output_dir", tmp_path / "out") == 0
    rows, facts = report(tmp_path / "out")
    found = [row for row in rows if row["duplicate"] == "yes"]
    assert [row["a"] for row in found] == [f"train[{i}] {i}.png" for i in range(8)] and len(facts["b"]["flat"]) == 0
    for i, row in enumerate(found):
        k = overlap.ORIENTATIONS.index(row["orientation"])
        assert (overlap.turned(np.asarray(copies[i]), k) == pixels[i]).all()
        assert float(row["ssim"]) == pytest.approx(1, abs=3e-3) and row["distance"] == "0"
    told = ["column dhash" if stored == name or (stored == "both" and name == "b") else "computed" for name in "ab"]
    assert [facts["a"]["hashes"], facts["b"]["hashes"]] == told


def test_stored_hashes_spare_decoding_and_are_not_believed_blindly(scenes, tmp_path, capsys):
    words = [f"{overlap.dhash(scene):016x}" for scene in scenes]
    broken = [encoded(scene) if i in (5, 9) or i % 4 == 0 else b"no picture" for i, scene in enumerate(scenes)]
    copies = save(tmp_path / "b", {"9.png": scenes[9], "5.png": scenes[5], "13.png": scenes[13]})
    table = save_table(tmp_path / "whole.parquet", broken, dhash=words)
    assert run(table, copies, "--output_dir", tmp_path / "out") == 0
    assert duplicates(tmp_path / "out") == {("train[5] 5.png", "5.png"), ("train[9] 9.png", "9.png")}
    facts = report(tmp_path / "out")[1]
    assert facts["a"]["hashes"] == "column dhash" and [*facts["a"]["unreadable"]] == ["train[13] 13.png"]
    table = save_table(tmp_path / "wrong.parquet", scenes, dhash=words[1:] + words[:1])
    assert run(table, copies, "--output_dir", tmp_path / "other") == 0
    assert "the column dhash of wrong.parquet holds other hashes" in capsys.readouterr().err
    assert len(duplicates(tmp_path / "other")) == 3 and report(tmp_path / "other")[1]["a"]["hashes"] == "computed"


def test_flat_and_unreadable_pictures_are_named_and_left_out(scenes, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(99, 103, (96, 96, 3)).astype(np.uint8)
    pictures = {
        "fine.png": scenes[0],
        "same.png": scenes[0],
        "flat.png": Image.new("RGB", (96, 96), (30, 60, 90)),
        "noisy.png": Image.fromarray(noise),
        "cut.png": encoded(scenes[1])[:500],
        "page.jpg": b"<html>log in</html>",
        "empty.tif": b"",
        "deep.tif": Image.fromarray(np.asarray(scenes[0].convert("L")).astype(np.uint16) * 37 + 900),
        "grey.png": scenes[0].convert("L"),
        "clear.png": scenes[0].convert("RGBA"),
    }
    folder = save(tmp_path / "set", {name: one for name, one in pictures.items() if name != "deep.tif"})
    pictures["deep.tif"].save(folder / "deep.tif")
    (folder / "notes.txt").write_text("no image by its name")
    assert run(folder, "--output_dir", tmp_path / "out") == 0
    facts = report(tmp_path / "out")[1]
    assert facts["a"]["images"] == 10 and facts["a"]["flat"] == ["flat.png", "noisy.png"]
    assert sorted(facts["a"]["unreadable"]) == ["cut.png", "empty.tif", "page.jpg"]
    assert "truncated" in facts["a"]["unreadable"]["cut.png"]
    alike = ["clear.png", "deep.tif", "fine.png", "grey.png", "same.png"]
    assert duplicates(tmp_path / "out") == {(a, b) for a in alike for b in alike if a < b}
    assert "not compared: 2 flat, 3 unreadable" in capsys.readouterr().err


def test_pictures_of_pairs_are_written_and_old_ones_go(scenes, tmp_path):
    rng = np.random.default_rng(0)
    copies = {f"{i:02d}.png": blurred(jpeg(scenes[i % 20], rng), rng) for i in range(30)}
    near_miss = Image.fromarray(np.asarray(scenes[40]) // 2 + np.asarray(scenes[40].filter(ImageFilter.BoxBlur(3))) // 2)  # fmt: skip
    copies["90.png"] = near_miss
    first = save(tmp_path / "a", {f"{i:02d}.png": scene for i, scene in enumerate(scenes)})
    words = [first, save(tmp_path / "b", copies), "--output_dir", tmp_path / "out"]
    assert run(*words, "--min_ssim", "0.99") == 0
    strict = len(duplicates(tmp_path / "out"))
    assert (tmp_path / "out" / "refused-00.png").exists() and strict < 30
    assert run(*words, "--min_ssim", "0.1") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".hashes", "overlap.csv", "overlap.json", "pairs-00.png", "pairs-01.png"]
    rows = [row for row in report(tmp_path / "out")[0] if row["duplicate"] == "yes"]
    worst = min(rows, key=lambda row: float(row["ssim"]))
    with Image.open(tmp_path / "out" / "pairs-00.png") as sheet:
        shown = np.asarray(sheet.crop((0, 0, 160, 160)))
        with Image.open(tmp_path / "a" / worst["a"]) as picture:
            assert (shown == np.asarray(picture.resize((160, 160)))).all()  # the least alike stands first


def test_hashing_goes_on_where_it_was_stopped(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overlap, "CHUNK", 6)
    folder = save(tmp_path / "set", {f"{i:02d}.png": scene for i, scene in enumerate(scenes)})
    words, read, work = (folder, "--output_dir", tmp_path / "out"), [], overlap._hash

    def hashed(task):
        if len(read) == 4 and not (tmp_path / "out" / "overlap.json").exists() and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        read.append(task.start)
        work(task)

    stopped = []
    monkeypatch.setattr(overlap, "_hash", hashed)
    assert run(*words) == 130 and "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "out" / "overlap.csv").exists()
    assert run(*words) == 0 and read == list(range(0, 60, 6))
    fresh = report(tmp_path / "out")
    assert run(*words) == 0 and len(read) == 10 and report(tmp_path / "out") == fresh
    scenes[50].save(folder / "07.png")  # another picture under an old name
    os.utime(folder / "07.png", (1, 1))
    assert run(*words) == 0 and read[10:] == [6]
    assert duplicates(tmp_path / "out") == {("07.png", "50.png")}


def test_several_processes_give_the_same_report(scenes, tmp_path):
    pictures = {f"{i:02d}.png": scene for i, scene in enumerate(scenes[:20])}
    folder = save(tmp_path / "set", pictures | {"copy.png": scenes[3].rotate(180), "bad.png": b"x"})
    assert run(folder, "--output_dir", tmp_path / "one") == 0
    words = [folder, "--output_dir", tmp_path / "two", "--num_proc", 2]
    done = subprocess.run(
        [sys.executable, FOLDER / "overlap.py", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert report(tmp_path / "one") == report(tmp_path / "two")
    assert (tmp_path / "one" / "pairs-00.png").read_bytes() == (tmp_path / "two" / "pairs-00.png").read_bytes()
    assert not list((tmp_path / "two").glob("unfinished-*"))


# -- Sets --------------------------------------------------------------------------------------------------------------


def test_names_of_sets(scenes, tmp_path, monkeypatch):
    root = tmp_path / "built"
    for config, first in (("one", 0), ("two", 10)):
        for split, start in (("train", 0), ("test", 5)):
            some = scenes[first + start : first + start + 5]
            save_table(root / config / f"{split}-00000-of-00001.parquet", some)
    parts = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train*\n  - split: test\n    path: {c}/test*\n"
        for c in ("one", "two")
    )
    (root / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")

    def opened(text):
        found = overlap.open_set(str(text), "image")
        return found.description, len(found), found.name(len(found) - 1)

    assert opened(f"{root}:one") == ("built:one", 10, "test[4] 4.png")
    assert opened(f"{root}:two:test") == ("built:two:test", 5, "test[4] 4.png")
    assert opened(f"{root / 'two'}::test") == ("two::test", 5, "test[4] 4.png")
    assert opened(root / "one" / "test-00000-of-00001.parquet")[1:] == (5, "train[4] 4.png")
    assert opened(f"{root}/*/test*.parquet") == ("*/test*.parquet", 10, "train[9] 4.png")
    assert opened(save(tmp_path / "a:b", {"x/y.png": scenes[0]})) == ("folder a:b", 1, "x/y.png")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **a: asked.append(a) or datasets.load_dataset_builder)
    with pytest.raises(AttributeError):  # far enough to see what the Hub would be asked for
        overlap.open_set("someone/pile:naip", "image")
    assert asked == [{"path": "someone/pile", "name": "naip"}]
    monkeypatch.undo()
    names = [f"{root}:{config}:{split}" for config in ("one", "two") for split in ("train", "test")]
    keys = [overlap.open_set(name, "image").key(0, 5) for name in names]
    assert len(set(keys)) == 4 and keys == [overlap.open_set(name, "image").key(0, 5) for name in names]


def test_columns_are_chosen_for_each_side(scenes, tmp_path):
    images = [{"bytes": encoded(scene), "path": None} for scene in scenes[:6]]
    features = datasets.Features({"before": datasets.Image(), "after": datasets.Value("binary"), "id": datasets.Value("int64")})  # fmt: skip
    rows = {"before": images[:4], "after": [one["bytes"] for one in images[2:]], "id": range(4)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pairs.parquet")
    columns = ["--image_column_name_a", "before", "--image_column_name_b", "after"]
    assert run(tmp_path / "pairs.parquet", *columns, "--output_dir", tmp_path / "out") == 0
    assert duplicates(tmp_path / "out") == {("train[2]", "train[0]"), ("train[3]", "train[1]")}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no/such/folder"], "no/such/folder does not exist; give a folder"),
        (["set", "no/such/folder"], "no/such/folder does not exist"),
        (["set/notes.txt"], "is no Parquet file"),
        (["set:config"], "holds no Parquet; leave :config out"),
        (["empty"], "holds neither Parquet nor images"),
        (["table.parquet:config"], "Parquet files have no configurations"),
        (["table.parquet::nowhere"], "cannot be opened .*nowhere"),
        (["a:b:c:d"], "too many colons"),
        (["broken.parquet"], "broken.parquet cannot be opened"),
        (["table.parquet", "--image_column_name_a", "picture"], "no column 'picture' but 'image', 'words'"),
        (["table.parquet", "--image_column_name_a", "words"], "column 'words' .* not images"),
        (["set", "--output_dir", "set"], "set holds other files"),
        (["set", "--output_dir", "set/notes.txt"], "is a file"),
        (["set", "--num_proc", "0"], "--num_proc has to be positive"),
        (["set", "--max_distance", "40"], "--max_distance 0 to 20"),
        (["set", "--min_ssim", "1.5"], "--min_ssim above 0"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(scenes, tmp_path, monkeypatch, capsys, words, sentence):
    save(tmp_path / "set", {"0.png": scenes[0], "notes.txt": b"hello"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    save_table(tmp_path / "table.parquet", scenes[:1], words=["hello"])
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert run(*words, *([] if "--output_dir" in words else ["--output_dir", "out"])) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and re.search(sentence, last)
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


# -- Real pictures -----------------------------------------------------------------------------------------------------


needs_imagery = pytest.mark.skipif(not IMAGERY.is_dir(), reason="../shared/imagery is not here")


@needs_imagery
def test_real_sets_hold_the_one_known_duplicate(tmp_path):
    ucmerced = IMAGERY / "ucmerced" / "ucmerced_128.parquet"
    assert run(ucmerced, "--output_dir", tmp_path / "own") == 0
    (pair,) = duplicates(tmp_path / "own")
    assert [name.rpartition("/")[2] for name in pair] == ["airplane01.jpg", "airplane02.jpg"]
    assert run(IMAGERY / "aid" / "aid_test_128.parquet", ucmerced, "--output_dir", tmp_path / "both") == 0
    assert duplicates(tmp_path / "both") == set() and report(tmp_path / "both")[1]["candidates"] > 10


@needs_imagery
def test_altered_copies_of_real_pictures_are_found(tmp_path):
    rng, expected, copies = np.random.default_rng(0), set(), {}
    rows = datasets.load_dataset("parquet", data_files=str(IMAGERY / "aid" / "aid_test_128.parquet"), split="train")
    places = rng.choice(len(rows), 12 * len(CHAINS), replace=False)
    for place, chain in zip(places.tolist(), [chain for chain in CHAINS for _ in range(12)]):
        copy = rows[place]["image"].convert("RGB")
        for change in chain:
            copy = change(copy, rng)
        copies[f"{place:03d}.png"] = copy
        expected.add(f"{place:03d}.png")
    copies_folder = save(tmp_path / "copies", copies)
    assert run(IMAGERY / "aid" / "aid_test_128.parquet", copies_folder, "--output_dir", tmp_path / "out") == 0
    found = duplicates(tmp_path / "out")
    assert all(int(a.partition("[")[2].partition("]")[0]) == int(b[:3]) for a, b in found)
    assert len(found) >= 0.99 * len(expected)
