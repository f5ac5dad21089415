"""The sets of the table, made from a small fake of the imagery with the real folder and column names."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import task_sets  # noqa: E402
from task_sets import PARTS, pixels_of  # noqa: E402

from gfm_hf.data.tasks import open_task  # noqa: E402


rasterio = pytest.importorskip("rasterio", reason="two of the sets come from rasters")

AID = datasets.ClassLabel(names=["airport", "beach"])
# How the fake panchromatic image follows from the bands, and how far it lies off, in its own pixels.
WEIGHTS, CONSTANT = np.array([0.25, 0.5, 0.75, 0.125]), 20
SHIFTS = [(-1, 2), (3, 0)]
TASKS = {
    "ucmerced": ("classification", 3),
    "aid": ("classification", 3),
    "sentinel2_multilabel": ("classification", 12),
    "change_quarters": ("change", 3),
    "change_pasted": ("change", 3),
    "dubai": ("segmentation", 3),
    "roads": ("segmentation", 3),
    "sr_ucmerced": ("super_resolution", 3),
    "sr_worldview": ("super_resolution", 1),
}


def picture(rng, size=128):
    """A picture that repeats no pixel, encoded as JPEG like the real ones."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return {"bytes": buffer.getvalue(), "path": None}


def palette_mask(ids):
    """A palette PNG, whose colours have nothing to do with its ids."""
    image = Image.fromarray(ids, mode="L").convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([value for i in range(256) for value in (200 - i // 2, 10, i)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def save(path, rows, **features):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name, "") for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def raster(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)


def worldview(folder, rng):
    """Two scenes with an exact mixture of the bands as panchromatic image, moved by `SHIFTS`."""
    for number, shift in enumerate(SHIFTS, start=1):
        fine = rng.integers(0, 400, (4, 384, 384)).astype(float)
        bands = fine.reshape(4, 192, 2, 192, 2).mean(axis=(2, 4)).round()
        high = np.tensordot(WEIGHTS, bands.repeat(2, axis=1).repeat(2, axis=2), axes=1) + CONSTANT
        raster(folder / f"worldview_ms{number}.tif", bands.astype(np.uint16))
        raster(folder / f"worldview_pan{number}.tif", np.roll(high, shift, (0, 1))[None].round().astype(np.uint16))


@pytest.fixture(scope="module")
def imagery(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("imagery"), np.random.default_rng(0)
    image, text = datasets.Image(), datasets.Value("string")
    labelled = {"image": image, "label": AID, "name": text}
    splits = ["train", "train", "train", "train", "val", "val", "test", "test"]
    rows = [{"image": picture(rng), "label": i % 2, "name": f"u{i}", "split": s} for i, s in enumerate(splits)]
    save(folder / "ucmerced" / "ucmerced_128.parquet", rows, **labelled, split=text)
    scenes = [{"image": picture(rng), "label": i % 2, "name": f"s{i}", "source": "AID"} for i in range(40)]
    scenes += [{"image": picture(rng), "label": -1, "name": "road", "source": "EPFL-roads"}]
    for shard in (0, 1):
        save(folder / "scenes" / f"s-{shard}.parquet", scenes[shard::2], **labelled, source=text)
    rows = [{"image": picture(rng), "label": i % 2, "name": f"t{i}"} for i in range(4)]
    save(folder / "aid" / "aid_test_128.parquet", rows, **labelled)
    pairs = {"image_a": image, "image_b": image, "mask": image, "source": text, "name": text, "split": text}
    for size, parts in ((256, ("train", "val", "test")), (128, ("train",))):
        rows = []
        for part in parts:
            mask = (rng.random((size, size)) < 0.3).astype(np.uint8) * 255
            cells = {"image_a": picture(rng, size), "image_b": picture(rng, size), "mask": task_sets.png(mask)}
            rows.append(cells | {"source": "LEVIR", "name": "row0", "split": part})
        for place, row in enumerate(rows):
            row["name"] = f"row{place}"
        save(folder / "change" / f"pairs_{size}.parquet", rows, **pairs)
    for name, ids in (("dubai", 6), ("roads", 2)):
        masks = [rng.integers(0, ids, (64, 64)).astype(np.uint8) for _ in PARTS]
        rows = [
            {"image": picture(rng, 64), "mask": palette_mask(mask), "split": part}
            for mask, part in zip(masks, ("train", "val", "test"))
        ]
        save(folder / "segmentation" / f"{name}_256.parquet", rows, image=image, mask=image, split=text)
    worldview(folder / "multispectral", rng)
    cover = np.repeat(np.repeat(rng.integers(1, 4, (1, 8, 16)), 16, axis=1), 8, axis=2).astype(np.uint8)
    cover[::20, ::20] = 7  # too few pixels of any chip to count
    for name in ("a", "b"):
        raster(folder / "multispectral" / f"lulc_{name}.tif", cover)
        values = rng.integers(1, 9000, (12, 128, 128)).astype(np.int16)
        raster(folder / "multispectral" / f"s2l2a_{name}.tif", values)
    return folder


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    monkeypatch.setattr(task_sets, "PASTED_PAIRS", {"train": 12, "validation": 3, "test": 5})


def parts_of(rows):
    return {part: [row for row in rows if row["split"] == part] for part in PARTS}


def test_every_file_is_read_by_the_task_it_is_for(imagery, tmp_path, capsys):
    assert task_sets.main(["--imagery", str(imagery), "--output_dir", str(tmp_path)]) == 0
    assert TASKS.keys() == task_sets.SETS.keys()
    assert "ucmerced.parquet: 4 train, 2 validation, 2 test" in capsys.readouterr().out
    for name, (task, bands) in TASKS.items():
        scale = {"scale": 4} if name == "sr_ucmerced" else {}
        cache = {"cache_dir": str(tmp_path / "cache")}
        data = open_task(task, parquet=tmp_path / f"{name}.parquet", num_channels=bands, **scale, **cache)
        assert data.test is not None and "cut by" not in data.description, name
        for part in (data.train, data.validation, data.test):
            assert all(image.shape[2] == bands for image in part[0].images), name
    facts = json.loads((tmp_path / "sentinel2_multilabel.json").read_text())
    assert len(facts["image_mean"]) == len(facts["band_names"]) == 12
    assert data.scale == 2 and data.train[0].target.dtype == np.uint16


def test_pictures_stay_the_bytes_they_were(imagery):
    rows = task_sets.ucmerced(imagery)[0]
    stored, _ = task_sets.read(imagery / "ucmerced" / "ucmerced_128.parquet")
    assert [row["image"]["bytes"] for row in rows] == [row["image"]["bytes"] for row in stored]
    assert [row["split"] for row in rows] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2


def test_aid_cuts_a_tenth_of_each_class_and_keeps_the_test_file(imagery):
    parts = parts_of(task_sets.aid(imagery)[0])
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 36, "validation": 4, "test": 4}
    assert sorted(row["label"] for row in parts["validation"]) == [0, 0, 1, 1]
    assert {row["name"] for row in parts["test"]} == {"t0", "t1", "t2", "t3"}
    assert all(row["label"] >= 0 for row in parts["train"])


def test_quarters_are_their_pair_and_stay_in_its_part(imagery):
    rows, *_ = task_sets.change_quarters(imagery)
    assert len(rows) == 3 * 4 + 1
    pairs = {}
    for row in rows:
        pairs.setdefault(row["name"].rpartition("/")[0], []).append(row)
    assert all(len({row["split"] for row in chips}) == 1 for chips in pairs.values())
    stored, _ = task_sets.read(imagery / "change" / "pairs_256.parquet")
    for name, column in (("image1", "image_a"), ("image2", "image_b"), ("mask", "mask")):
        a, b, c, d = (pixels_of(row[name]) for row in pairs["LEVIR/256-row1"])
        whole = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])
        assert np.array_equal(whole, pixels_of(stored[1][column]))


def test_pasted_pairs_share_no_scene_between_parts_and_repeat(imagery, monkeypatch):
    seen = []
    paste = task_sets.with_patches
    monkeypatch.setattr(
        task_sets,
        "with_patches",
        lambda scene, donors, rng: seen.append([scene, *donors]) or paste(scene, donors, rng),
    )
    rows, *_ = task_sets.change_pasted(imagery)
    assert {part: len(chips) for part, chips in parts_of(rows).items()} == task_sets.PASTED_PAIRS
    used = {part: set() for part in PARTS}
    for row, scenes in zip(rows, seen):
        used[row["split"]] |= {scene.tobytes() for scene in scenes}
    assert not used["train"] & used["validation"] and not used["train"] & used["test"]
    assert not used["validation"] & used["test"]
    assert rows == task_sets.change_pasted(imagery)[0]


def test_patches_come_from_their_donors_and_the_mask_says_where():
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 100, (128, 128, 3)).astype(np.uint8)
    donors = [np.full_like(scene, value) for value in (200, 220, 240)]
    shares = []
    for seed in range(60):
        after, mask = task_sets.with_patches(scene, donors, np.random.default_rng(seed))
        assert set(np.unique(mask)) <= {0, 255}
        near = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(9))) > 0
        deep = np.asarray(Image.fromarray(mask).filter(ImageFilter.MinFilter(9))) > 0
        assert np.array_equal(after[~near], scene[~near])
        # Where two patches touch, both are feathered, and a little of the scene shines through.
        assert not deep.any() or (after[deep] >= 200).mean() > 0.97
        shares.append((mask > 0).mean())
    unchanged = np.mean(np.array(shares) == 0)
    assert 0.03 < unchanged < 0.25 and 0.02 < np.mean(shares) < 0.15


def test_light_is_a_gain_and_an_offset_per_band():
    rng = np.random.default_rng(1)
    scene = rng.integers(60, 180, (128, 128, 3)).astype(np.uint8)
    found = task_sets.under_other_light(scene, rng)
    fits = [np.polyfit(scene[..., band].ravel(), found[..., band].ravel(), 1) for band in range(3)]
    assert all(0.84 < gain < 1.16 and abs(offset) < 13 for gain, offset in fits)
    assert len({round(gain, 3) for gain, _ in fits}) == 3
    left = found[..., 0] - np.polyval(fits[0], scene[..., 0])
    assert 1.5 < left.std() < 2.5


def test_ids_stay_and_what_is_unlabelled_is_ignored(imagery):
    for name, make in (("dubai", task_sets.dubai), ("roads", task_sets.roads)):
        stored, _ = task_sets.read(imagery / "segmentation" / f"{name}_256.parquet")
        for row, before in zip(make(imagery)[0], stored):
            old, new = pixels_of(before["mask"]), pixels_of(row["mask"])
            expected = np.where(old == 5, 255, old) if name == "dubai" else old
            assert np.array_equal(new, expected)
            assert Image.open(io.BytesIO(row["mask"]["bytes"])).mode == "L"


def test_worldview_is_registered_and_mixed_and_no_ground_is_in_two_parts(imagery):
    rows, _, facts = task_sets.sr_worldview(imagery)
    assert [tuple(shift) for shift in facts["shift_px"]] == SHIFTS
    assert np.allclose(facts["mixture"], [*WEIGHTS, CONSTANT], rtol=2e-3)
    for row in rows:
        image, target = row["image"].astype(float), row["target"].astype(float)
        assert np.abs(task_sets.halved(target[0]) - image[0]).max() <= 1
    # The fake is noise, so that equal rows of pixels are equal ground.
    ground = {
        part: {line.tobytes() for row in chips for line in row["target"][0, :, :20]}
        for part, chips in parts_of(rows).items()
    }
    assert not ground["train"] & ground["validation"] and not ground["validation"] & ground["test"]
    assert not ground["train"] & ground["test"]
    train = np.stack([row["image"] for row in parts_of(rows)["train"]]) / task_sets.WORLDVIEW_TOP
    assert facts["image_mean"] == pytest.approx([train.mean()]) and facts["image_std"] == pytest.approx([train.std()])


def test_sentinel2_chips_name_what_covers_them_and_stay_apart(imagery):
    rows, _, _ = task_sets.sentinel2_multilabel(imagery)
    cover = task_sets.read_raster(imagery, "lulc_a")[0]
    ground = {part: np.zeros((128, 128), dtype=bool) for part in PARTS}
    for row in rows:
        cell, top, left = row["name"].split("/")
        if cell == "a":
            box = np.s_[int(top) : int(top) + 32, int(left) : int(left) + 32]
            ground[row["split"]][box] = True
            shares = {name: (cover[box] == place).mean() for place, name in enumerate(task_sets.LAND_COVER, start=1)}
            assert set(row["labels"]) == {name for name, share in shares.items() if share >= 0.05}
    assert sum(part.astype(int) for part in ground.values()).max() == 1
    assert [part.mean() for part in ground.values()] == [0.5, 0.25, 0.25]


def test_a_tile_is_cut_where_its_classes_are_in_all_parts():
    cover = np.ones((128, 128), dtype=np.uint8)
    cover[:, 64:] = 2  # left and right: parts from left to right would each lack a class
    bands = np.zeros((12, 128, 128), dtype=np.int16)
    by_rows, by_columns = (task_sets.chips(bands, cover, "a", choice) for choice in (True, False))
    assert task_sets.shared_classes(by_rows) == 2 and task_sets.shared_classes(by_columns) == 0


def test_a_folder_without_the_imagery_is_named(tmp_path, capsys):
    assert task_sets.main(["--imagery", str(tmp_path), "--output_dir", str(tmp_path / "sets")]) == 2
    assert "ucmerced_128.parquet is missing" in capsys.readouterr().err
