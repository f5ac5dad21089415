"""What is special of BigEarthNet: lists, draws, labels, bands, and real Sentinel-2 chips where they are at hand."""

import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image
from scripts import FOLDER, Script, load, rewrite

from gfm_hf.data.tasks import open_task


CHIPS = Path(__file__).parents[3] / "shared" / "imagery" / "multispectral"
HEAD = "BigEarthNet-v1.0/"
TWICE = "S2A_MSIL2A_20171121T112351_43_15"  # in the draw of 1 %, three times in that of 10 %


@pytest.fixture(scope="session")
def bigearthnet(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("bigearthnet", tmp_path_factory.mktemp("bigearthnet"))


@pytest.fixture(scope="session")
def dummy():
    module = load(FOLDER / "bigearthnet" / "dummy.py")
    return {name: module.files_of(name, number) for number, name in enumerate(sorted(module.PATCHES))}, module.PATCHES


@pytest.fixture(scope="session")
def names(bigearthnet) -> str:
    return bigearthnet.module.read_list([])


def md5(values) -> str:
    return hashlib.md5("\n".join(map(str, values)).encode()).hexdigest()


# -- Lists and draws --------------------------------------------------------------------------------------------------


def test_the_published_lists(bigearthnet, names):
    """Sizes in names and bytes, MD5: those of the files that Neumann et al. published."""
    published = {
        "train": (354_196, 11_565_074, "343f7224951da0879cabcceae7b34a64"),
        "validation": (118_065, 3_854_939, "8fe0292aa346c0833850a322e1c1e783"),
        "test": (118_065, 3_854_838, "efce8d370cf5f55afc415ace88605218"),
    }
    lists = bigearthnet.module.in_domain_splits(names)
    assert {k: (len(v), len("\n".join(v)), md5(v)) for k, v in lists.items()} == published
    assert set().union(*lists.values()) == set(bigearthnet.module.published_patches(names))


def test_the_filtered_lists(bigearthnet, names):
    filtered = {
        "train": (311_667, "f3e13597b032559be4c7bc4209141660"),
        "validation": (103_944, "ca79fcba6ceade14c09972481c680712"),
        "test": (103_728, "1bd6eff6fecd26dcbd53b3ee8f0a776b"),
    }
    lists = bigearthnet.module.filtered_splits(names)
    assert {k: (len(v), md5(v)) for k, v in lists.items()} == filtered
    others = bigearthnet.module.names_of("snow_and_cloud", names)
    assert [len(part) for part in others.values()] == [42_529, 14_121, 14_337]
    whole = bigearthnet.module.in_domain_splits(names)
    assert all(sorted(lists[split] + others[split]) == sorted(whole[split]) for split in whole)


def test_the_letters(bigearthnet, names):
    """Counts of the public lists, and what the card says of their overlap."""
    letters = bigearthnet.module.published_patches(names)
    assert len(letters) == 590_326 and sum(len(name.split("_")[2]) == 14 for name in letters) == 69_866
    count = Counter(letters.values())
    assert (count["s"] + count["S"], count["c"] + count["C"], count["n"] + count["S"] + count["C"]) == (
        61_707,
        9_280,
        57,
    )
    official = bigearthnet.module.names_of("official_19", names)
    assert {split: len(part) for split, part in official.items()} == {
        "train": 269_695,
        "validation": 123_723,
        "test": 125_866,
    }
    lists = bigearthnet.module.filtered_splits(names)
    assert Counter(letters[name] for name in lists["train"]) == {"t": 161_666, "v": 74_461, "e": 75_507, "n": 33}
    assert [sum(letters[name] == "n" for name in lists[split]) for split in ("validation", "test")] == [12, 10]


@pytest.mark.parametrize(
    "config, drawn, distinct, md5_sorted, md5_drawn",
    [
        ("1", 3_116, 3_100, "3f8ecc1ba3b15891c58b7e5d3c03732a", "f01a528712fa8fb671252cdf349ecc5d"),
        ("10", 31_166, 29_721, "93f94f5e5a21e6bb94c0755590897bcb", "a598080e526b4712d4de904a8ac164a3"),
    ],
)
def test_the_authors_draws(bigearthnet, names, config, drawn, distinct, md5_sorted, md5_drawn):
    """Recorded numbers of the authors' code: positions in the filtered list."""
    place = {name: i for i, name in enumerate(bigearthnet.module.filtered_splits(names)["train"])}
    draw = bigearthnet.module.names_of(f"authors_{config}_percent", names)["train"]
    positions = [place[name] for name in draw]
    assert positions[:3] == [27_816, 241_216, 204_008] and (len(draw), len(set(draw))) == (drawn, distinct)
    assert (md5(sorted(positions)), md5(positions)) == (md5_sorted, md5_drawn)
    assert draw[:3] == [
        "S2B_MSIL2A_20180421T100029_75_34",
        "S2A_MSIL2A_20170701T093031_34_53",
        "S2B_MSIL2A_20180525T94030_35_58",
    ]


def test_the_clean_draws(bigearthnet, names):
    small, large = (bigearthnet.module.names_of(f"clean_{p}_percent", names)["train"] for p in (1, 10))
    assert (len(small), len(set(small)), len(large), len(set(large))) == (3_116, 3_116, 31_166, 31_166)
    train = bigearthnet.module.filtered_splits(names)["train"]
    assert small == large[:3_116] and set(large) <= set(train)
    assert large == sorted(train, key=lambda name: hashlib.md5(b"clean" + name.encode()).hexdigest())[:31_166]


def test_a_list_that_comes_out_otherwise_stops(bigearthnet, names, monkeypatch):
    monkeypatch.setitem(bigearthnet.module.SPLIT_MD5, "test", ("0" * 32, "0" * 32))
    with pytest.raises(RuntimeError, match="the list of test"):
        bigearthnet.module.in_domain_splits.__wrapped__(names)


def test_the_list_is_looked_for(bigearthnet, tmp_path, monkeypatch):
    """Beside the archive, in the folder or beside it, beside the script; another list is refused."""
    read, kept = bigearthnet.module.read_list, FOLDER / "bigearthnet" / bigearthnet.module.LIST
    (tmp_path / "set").mkdir()
    text = read([])
    assert read([tmp_path / "set"]) == text and hashlib.md5(text.encode()).hexdigest().startswith("2b031fda")
    monkeypatch.setattr(bigearthnet.module, "__file__", str(tmp_path / "elsewhere" / "bigearthnet.py"))
    with pytest.raises(bigearthnet.module.InputError, match=re.escape(f"84 kB) to {tmp_path / 'set'}")):
        read([tmp_path / "set"])
    (tmp_path / kept.name).write_bytes(kept.read_bytes())
    assert read([tmp_path / "set"]) == read([tmp_path / "archive.tar.gz"]) == text
    for content, says in (
        (lzma.compress(text[:5000].encode(), preset=0), "another list"),
        (kept.read_bytes()[:-900], "cannot be read"),
        (b"<html>", "cannot be read"),
    ):
        (tmp_path / kept.name).write_bytes(content)
        with pytest.raises(bigearthnet.module.InputError, match=says):
            read([tmp_path / "set"])


def test_the_builder_says_which_list_is_missing(bigearthnet, tmp_path, monkeypatch):
    archive = shutil.copy(bigearthnet.archives()[0], tmp_path)
    monkeypatch.setattr(bigearthnet.module, "__file__", str(tmp_path / "elsewhere" / "bigearthnet.py"))
    code, said = bigearthnet.run(data_dir=Path(archive), output_dir=tmp_path / "out")
    assert code == 2 and "bigearthnet_s2_v1_patches.txt.xz is missing" in said and not (tmp_path / "out").exists()


# -- Rows -------------------------------------------------------------------------------------------------------------


def loaded(script: Script, config: str) -> datasets.DatasetDict:
    return datasets.load_dataset(str(script.built), config)


def test_splits_and_flags(bigearthnet, dummy):
    """Each patch where the names say, in the order of the archive, with its flags."""
    _, facts = dummy
    clear = loaded(bigearthnet, "in_domain")
    others = loaded(bigearthnet, "snow_and_cloud")
    for split in ("train", "validation", "test"):
        own = sorted(name for name, (where, *_) in facts.items() if where == split)
        assert clear[split]["patch"][:] == [n for n in own if not re.search("snow|cloud", facts[n][1])]
        assert not any(clear[split]["snow"][:] + clear[split]["cloud"][:])
        rows = list(zip(others[split]["patch"], others[split]["snow"], others[split]["cloud"]))
        assert rows == [
            (n, "snow" in facts[n][1], "cloud" in facts[n][1]) for n in own if n not in clear[split]["patch"]
        ]
    patches = [name for part in loaded(bigearthnet, "official_19").values() for name in part["patch"]]
    assert sorted(patches) == sorted(n for n, (_, what, _) in facts.items() if not re.search("snow|cloud|none", what))


def test_drawn_rows_come_as_often_as_drawn(bigearthnet, dummy):
    for config, times in (("authors_1_percent", 2), ("authors_10_percent", 3)):
        rows = loaded(bigearthnet, config)["train"]
        found = rows["patch"][:]
        assert found == sorted(found) and found.count(TWICE) == times
        copies = [i for i, name in enumerate(found) if name == TWICE]
        assert len({json.dumps(rows[i]["bands_20m"]) for i in copies}) == 1
    files = bigearthnet.module.RECIPE.open(str(bigearthnet.raw), None, accept=True)
    (config,) = [c for c in bigearthnet.module.RECIPE.configs if c.name == "authors_10_percent"]
    keys = [item.key for item in bigearthnet.module.plan(config, files)["train"]]
    assert [key for key in keys if key.startswith(TWICE)] == [TWICE, f"{TWICE}#2", f"{TWICE}#3"]
    clean = [set(loaded(bigearthnet, f"clean_{p}_percent")["train"]["patch"]) for p in (1, 10)]
    assert clean[0] == {"S2B_MSIL2A_20180224T112109_3_57"} and clean[0] < clean[1]


@pytest.mark.parametrize("config", ["in_domain", "authors_10_percent"])
def test_a_compressed_tar_is_read_forwards(bigearthnet, config, monkeypatch):
    """One step back begins at the start, of 70 GB: once a split, also for rows that come twice and for a manifest."""
    module, rewinds = bigearthnet.module, []
    plain = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: rewinds.append(reader) or plain(reader))
    (settings,) = [c for c in module.RECIPE.configs if c.name == config]
    files = module.RECIPE.open(str(bigearthnet.raw), None, accept=True)
    splits = module.RECIPE.splits(settings, files)
    for read in (module.row, module._digest_of):
        rewinds.clear()
        for items in splits.values():
            for item in items:
                read(files, item)
                module._digest_of(files, item)
        assert len(rewinds) <= len(splits)


def test_labels(bigearthnet, dummy):
    module = bigearthnet.module
    assert len(module.CLASSES) == 19 and len(module.ID_OF) == 32 and len(module.DROPPED) == 11
    assert not set(module.DROPPED) & set(module.ID_OF)
    assert [i for i, (name, joined) in enumerate(module.JOINED.items()) if joined == (name,)] == [
        1, 4, 5, 6, 7, 8, 9, 10, 13, 14,
    ]  # fmt: skip
    assert (module.CLASSES[0], module.CLASSES[13], module.CLASSES[18]) == (
        "Urban fabric",
        "Transitional woodland/shrub",
        "Marine waters",
    )
    expected = {
        "S2A_MSIL2A_20170701T093031_34_53": [9, 10, 15],
        "S2B_MSIL2A_20180421T100029_75_34": [4, 17],  # both kinds of inland water are one class
        "S2B_MSIL2A_20180525T94030_35_58": [2],  # ports are dropped
        "S2B_MSIL2A_20180220T114339_64_70": [],
        "S2B_MSIL2A_20180224T112109_3_57": [3],
        TWICE: [18],
    }
    train = loaded(bigearthnet, "in_domain")["train"]
    found = dict(zip(train["patch"], train["labels"]))
    assert {name: found[name] for name in expected} == expected
    assert train.features["labels"].feature.names == list(module.CLASSES)
    assert dict(zip(train["patch"], train["labels_43"])) == {name: dummy[1][name][2] for name in train["patch"]}


def test_bands_are_those_of_the_archive(bigearthnet, dummy):
    """Bit by bit, in the order of the bands; plain, and as a stream."""
    files, _ = dummy
    orders = {
        "bands_10m": ("B02", "B03", "B04", "B08"),
        "bands_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
        "bands_60m": ("B01", "B09"),
    }
    stream = datasets.load_dataset(str(bigearthnet.built), "in_domain", split="train", streaming=True)
    plain = loaded(bigearthnet, "in_domain")["train"].with_format("numpy", dtype=np.uint16)
    for way in (stream, plain.select_columns(["patch", *orders])):
        for row in way:
            content = files[str(row["patch"])]
            for column, bands in orders.items():
                stack = np.asarray(row[column], dtype=np.uint16)
                for layer, band in zip(stack, bands, strict=True):
                    with Image.open(io.BytesIO(content[f"{row['patch']}_{band}.tif"])) as image:
                        assert np.array_equal(layer, np.asarray(image)) and layer.any()


def test_the_preview_is_the_input_of_the_authors(bigearthnet):
    for row in loaded(bigearthnet, "in_domain")["validation"]:
        blue, green, red, _ = np.asarray(row["bands_10m"], dtype=np.float64)
        picture = np.asarray(row["image"])
        assert picture.shape == (120, 120, 3)
        for layer, band, low, high in zip(
            picture.transpose(2, 0, 1), (red, green, blue), (27, 61, 50), (2332, 2001, 1862)
        ):
            assert np.array_equal(layer, np.floor(np.clip(255 * (band - low) / (high - low), 0, 255)))


def test_what_is_known_of_a_patch(bigearthnet):
    rows = {row["patch"]: row for row in loaded(bigearthnet, "in_domain")["train"]}
    row = rows["S2A_MSIL2A_20170905T95032_18_90"]
    assert row["acquisition_date"] == "2017-09-05 11:23:51" and row["projection"].startswith("PROJCS[")
    assert (row["lrx"] - row["ulx"], row["uly"] - row["lry"]) == (1200, 1200) and "S2A_MSIL1C" in row["tile_source"]
    season = bigearthnet.module._facts
    facts = {"labels": ["Pastures"], "coordinates": dict.fromkeys(("ulx", "uly", "lrx", "lry"), 0)}
    facts |= {"projection": "", "tile_source": ""}
    found = [
        season(
            {"x_labels_metadata.json": json.dumps(facts | {"acquisition_date": f"2017-{month:02d}-01"}).encode()},
            "a/x",
        )["season"]
        for month in range(1, 13)
    ]
    assert [name[:2] for name in found] == "wi wi sp sp sp su su su au au au wi".split()


def test_the_examples_read_it(bigearthnet):
    """Multi-label, by the preview, by the four bands of 10 m and by all twelve."""
    for column, channels in (("image", 3), ("bands_10m", 4), ("bands_10m+bands_20m+bands_60m", 12)):
        data = open_task(
            "classification",
            dataset_name=str(bigearthnet.built),
            dataset_config_name="in_domain",
            image_column_name=column,
            num_channels=channels,
        )
        assert data.problem_type == "multi_label_classification" and data.label_names == bigearthnet.module.CLASSES
        assert (len(data.train), len(data.validation), len(data.test or ())) == (8, 3, 3)
        assert data.train[0].images[0].shape == (120, 120, channels)
        assert data.train.labels is not None and data.train.labels.sum(axis=1).tolist().count(0) == 1


# -- Refusals ---------------------------------------------------------------------------------------------------------


def changed(script: Script, folder: Path, change) -> Path:
    raw = script.copy_of_raw(folder)
    rewrite(script.archives(raw)[0], change)
    return raw


# Published as T95032.
PADDED = "S2A_MSIL2A_20170905T095032_18_90"


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda e: [*e, ("BigEarthNet-S2/x/S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57/x_B01.tif", b"x")],
            "T33UUP_26_57 is of BigEarthNet v2",
        ),
        (lambda e: [*e, (f"copy/{TWICE}/x.tif", b"x")], f"{TWICE} is there twice, as {HEAD}{TWICE} and copy/{TWICE}"),
        (lambda e: [*e, e[0]], "in two places"),  # the files of a patch have to lie together
        (lambda e: [("BigEarthNet-S1/S1A_IW_GRDH_1SDV_20170613T165043/x.tif", b"x")], "holds nothing of in_domain"),
    ],
    ids=["v2", "twice", "torn apart", "another set"],
)
def test_refused_whatever_is_accepted(bigearthnet, change, says, tmp_path):
    raw = changed(bigearthnet, tmp_path, change)
    code, said = bigearthnet.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and says in said and not (tmp_path / "out").exists()


def test_a_padded_name_is_another_name(bigearthnet, tmp_path):
    raw = changed(bigearthnet, tmp_path, lambda e: [(n.replace("20170905T95032", "20170905T095032"), c) for n, c in e])
    shutil.unpack_archive(bigearthnet.archives(raw)[0], tmp_path / "unpacked")
    code, said = bigearthnet.main(["--data_dir", str(tmp_path / "unpacked"), "--output_dir", str(tmp_path / "out")])
    assert code == 2 and f"1 patches have names that are not published, the first is {PADDED}" in said
    code, said = bigearthnet.run("--config", "in_domain", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 0 and PADDED in (tmp_path / "out" / "README.md").read_text()
    assert PADDED not in datasets.load_dataset(str(tmp_path / "out"), split="train")["patch"]


def test_wrong_counts(bigearthnet, tmp_path):
    code, said = bigearthnet.run("--exact", data_dir=bigearthnet.raw, output_dir=tmp_path / "out")
    assert code == 2 and "patches: found 19, expected 590,326" in said and not (tmp_path / "out").exists()


def other_metadata(**new):
    def change(content: bytes) -> bytes:
        return json.dumps(json.loads(content) | new).encode()

    return change


def other_pixels(shape: tuple[int, int], dtype: str):
    buffer = io.BytesIO()
    Image.fromarray(np.ones(shape, dtype=dtype)).save(buffer, format="TIFF")
    return lambda _: buffer.getvalue()


@pytest.mark.parametrize(
    "part, change, says",
    [
        ("_B8A.tif", lambda content: None, "_B8A.tif is missing"),
        ("_B8A.tif", other_pixels((120, 120), "uint16"), "_B8A.tif holds 120 x 120 uint16, expected 60 x 60 uint16"),
        ("_B8A.tif", other_pixels((60, 60), "uint8"), "_B8A.tif holds 60 x 60 uint8, expected"),
        ("_B8A.tif", lambda content: content[:-100], "_B8A.tif is no readable GeoTIFF"),
        ("_metadata.json", lambda content: None, "_metadata.json is missing"),
        ("_metadata.json", lambda content: content[:40], "_metadata.json is not as published"),
        ("_metadata.json", other_metadata(coordinates={"ulx": 1}), "_metadata.json is not as published (KeyError"),
        ("_metadata.json", other_metadata(labels=["Pasture"]), "has the label 'Pasture', which is none of the 43"),
        ("_metadata.json", other_metadata(labels=[]), "has no label"),
    ],
)
def test_a_broken_patch_is_named(bigearthnet, part, change, says, dummy):
    patch = "S2B_MSIL2A_20180421T100029_75_34"
    contents = {name: change(c) if name.endswith(part) else c for name, c in dummy[0][patch].items()}
    contents = {name: content for name, content in contents.items() if content is not None}
    assert bigearthnet.module._patch(dummy[0][patch], HEAD + patch)["labels"] == [4, 17]
    with pytest.raises(bigearthnet.module.UnreadableError, match=re.escape(says)) as error:
        bigearthnet.module._patch(contents, HEAD + patch)
    assert str(error.value).startswith(HEAD + patch)


def test_a_patch_without_a_band_is_left_out(bigearthnet, tmp_path):
    """If one asks for that; the others are the same."""
    missing = f"{TWICE}_B8A.tif"
    raw = changed(bigearthnet, tmp_path, lambda e: [(n, c) for n, c in e if not n.endswith(missing)])
    code, said = bigearthnet.run("--config", "in_domain", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and f"{missing} is missing" in said
    flags = ["--config", "in_domain", "--skip_unreadable"]
    assert bigearthnet.run(*flags, data_dir=raw, output_dir=tmp_path / "skipped")[0] == 0
    assert f"{missing} is missing" in (tmp_path / "skipped" / "README.md").read_text()
    left = datasets.load_dataset(str(tmp_path / "skipped"), split="train")["patch"][:]
    assert left == [name for name in loaded(bigearthnet, "in_domain")["train"]["patch"] if name != TWICE]


# -- Real files -------------------------------------------------------------------------------------------------------

# Order of the bands in the chips.
CHIP_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
REAL = {
    "s2l2a_38d_378r_2_3": "S2A_MSIL2A_20170701T093031_34_53",
    "s2l2a_282d_485l_3_3": "S2B_MSIL2A_20180525T94030_8_3",
    "s2l2a_609u_541l_3_0": "S2A_MSIL2A_20180510T94032_13_36",
    "s2l2a_637u_59r_1_3": "S2B_MSIL2A_20180421T100029_75_34",
}


def real_patch(chip: Path) -> tuple[dict[str, np.ndarray], rasterio.Affine, str]:
    """120 px of a Sentinel-2 chip, the bands of 20 and 60 m as means, as BigEarthNet has them."""
    with rasterio.open(chip) as raster:
        pixels = raster.read()[:, :120, :120].clip(0).astype(np.uint16)
        transform, crs = raster.transform, raster.crs.to_wkt()
    bands = {}
    for band, layer in zip(CHIP_BANDS, pixels, strict=True):
        step = 1 if band in ("B02", "B03", "B04", "B08") else 6 if band in ("B01", "B09") else 2
        size = 120 // step
        bands[band] = layer.reshape(size, step, size, step).mean(axis=(1, 3)).astype(np.uint16)
    return bands, transform, crs


@pytest.mark.skipif(not CHIPS.is_dir(), reason="needs ../shared/imagery/multispectral")
def test_real_chips_as_patches(bigearthnet, tmp_path):
    """Uncompressed GeoTIFFs with a grid, as in the archive; all pixels come back, the preview shows them."""
    expected = {}
    with tarfile.open(tmp_path / "BigEarthNet-S2-v1.0.tar.gz", "w:gz") as archive:
        for chip, patch in sorted(REAL.items(), key=lambda pair: pair[1]):
            bands, transform, crs = real_patch(CHIPS / f"{chip}.tif")
            expected[patch] = bands
            for band, layer in bands.items():
                size = len(layer)
                grid = transform @ rasterio.Affine.scale(120 // size)
                more = {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": crs, "transform": grid}
                with rasterio.MemoryFile() as memory:
                    with memory.open(height=size, width=size, **more) as raster:
                        raster.write(layer, 1)
                    add(archive, f"{HEAD}{patch}/{patch}_{band}.tif", memory.read())
            (ulx, uly), (lrx, lry) = transform @ (0, 0), transform @ (120, 120)
            facts = {"labels": ["Pastures"], "projection": crs, "tile_source": chip}
            facts |= {"coordinates": {"ulx": ulx, "uly": uly, "lrx": lrx, "lry": lry}}
            facts |= {"acquisition_date": "2017-07-01 09:30:31"}
            add(archive, f"{HEAD}{patch}/{patch}_labels_metadata.json", json.dumps(facts).encode())
    code, said = bigearthnet.run("--config", "in_domain", data_dir=tmp_path, output_dir=tmp_path / "out")
    assert code == 0 and "BigEarthNet-S2-v1.0.tar.gz has the MD5" in said
    rows = [row for part in datasets.load_dataset(str(tmp_path / "out")).values() for row in part]
    assert sorted(row["patch"] for row in rows) == sorted(REAL.values())
    for row in rows:
        for column, (bands, _) in bigearthnet.module.BANDS.items():
            for band, layer in zip(bands, row[column], strict=True):
                assert np.array_equal(layer, expected[row["patch"]][band]), (row["patch"], band)
        picture = np.asarray(row["image"])
        assert picture.std() > 8 and len(np.unique(picture)) > 60, "no picture of a landscape"
        assert row["lrx"] > row["ulx"] and row["uly"] > row["lry"]
    raw = sum(layer.nbytes for bands in expected.values() for layer in bands.values())
    assert raw == len(REAL) * bigearthnet.module.PIXEL_BYTES


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
