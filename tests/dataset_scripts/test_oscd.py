"""What is special of OSCD: cities, order of the bands, bit-exact rasters, change maps, and real Sentinel-2 scenes."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.windows import Window
from scripts import Script, encoded, rewrite

from gfm_hf.data.tasks import open_task


REAL = Path(__file__).parents[3] / "shared" / "imagery" / "multispectral"
NAME = "Onera Satellite Change Detection dataset - "
IMAGES, TRAIN_LABELS = f"{NAME}Images", f"{NAME}Train Labels"
# As published; not taken from the script.
TRAIN = "aguasclaras bercy bordeaux nantes paris rennes saclay_e abudhabi cupertino pisa beihai hongkong beirut mumbai"
TEST = "brasilia montpellier norcia rio saclay_w valencia dubai lasvegas milano chongqing"
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]


@pytest.fixture(scope="session")
def oscd(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("oscd", tmp_path_factory.mktemp("oscd"))


@pytest.fixture(scope="session")
def unpacked(oscd: Script) -> dict[str, bytes]:
    """Every file of the archives, its name without the archive's own folder."""
    files = {}
    for archive in oscd.archives():
        with zipfile.ZipFile(archive) as opened:
            files |= {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    return files


def read(content: bytes) -> tuple[np.ndarray, dict]:
    with MemoryFile(content) as memory, memory.open() as raster:
        return raster.read(), {"crs": raster.crs, "transform": raster.transform, "names": raster.descriptions}


# -- Rows -------------------------------------------------------------------------------------------------------------


def test_the_official_cities(oscd, tmp_path):
    code, said = oscd.run("--exact", output_dir=tmp_path / "out")
    assert code == 0, said
    for config in ("all_bands", "rgb"):
        loaded = datasets.load_dataset(str(tmp_path / "out"), config)
        assert {split: " ".join(part["city"]) for split, part in loaded.items()} == {"train": TRAIN, "test": TEST}


@pytest.mark.parametrize("streaming", [False, True])
def test_rasters_are_bit_exact(oscd, unpacked, streaming):
    """Pixels of every band in the fixed order, size, projection and transform, from Parquet."""
    projections = set()
    for part in datasets.load_dataset(str(oscd.built), "all_bands", streaming=streaming).values():
        for row in part:
            for date in (1, 2):
                bands = [unpacked[f"{row['city']}/imgs_{date}_rect/{band}.tif"] for band in BANDS]
                pixels, more = read(row[f"image{date}"])
                assert pixels.dtype == np.uint16 and pixels.shape == (13, row["height"], row["width"])
                assert np.array_equal(pixels, np.concatenate([read(band)[0] for band in bands]))
                assert list(more["names"]) == BANDS
                with MemoryFile(row[f"image{date}"]) as memory, memory.open() as opened:
                    layout = opened.tags(ns="IMAGE_STRUCTURE")
                assert (layout["COMPRESSION"], layout["PREDICTOR"], layout["INTERLEAVE"]) == ("DEFLATE", "2", "BAND")
                first = read(unpacked[f"{row['city']}/imgs_1_rect/B02.tif"])[1]
                assert (more["crs"], more["transform"]) == (first["crs"], first["transform"])
                assert row["crs"] == (first["crs"] and "EPSG:32631")
                assert row["transform"] == (first["crs"] and list(first["transform"])[:6])
                other = read(unpacked[f"{row['city']}/imgs_2_rect/B03.tif"])[1]
                assert first["crs"] is None or other["transform"] != first["transform"]
                projections.add(row["crs"])
    assert projections == {"EPSG:32631", None}


def test_change_maps(oscd, unpacked):
    """0 and 1 in mode L, whichever of the files a city has."""
    variants = set()
    for part in datasets.load_dataset(str(oscd.built), "rgb").values():
        for row in part:
            city = row["city"]
            found = {name for name in unpacked if name.startswith(f"{city}/cm/")}
            tif, png = f"{city}/cm/{city}-cm.tif", f"{city}/cm/cm.png"
            modes = [Image.open(io.BytesIO(unpacked[name])).mode for name in sorted(found)]
            variants.add((*modes, len(found)))
            if tif in found:
                expected = read(unpacked[tif])[0][0] - 1
            else:
                expected = np.asarray(Image.open(io.BytesIO(unpacked[png])).convert("L")) // 255
            assert row["mask"].mode == "L" and np.array_equal(row["mask"], expected)
            assert 0 < expected.mean() < 1 and row["mask"].size == (row["width"], row["height"])
    assert variants == {("L", "L", 2), ("RGBA", "L", 2), ("RGB", "L", 2), ("L", 1)}


def test_the_stretch(oscd, unpacked):
    """SeCo's limits, written out once more; red, green, blue."""
    limits = {"B04": (426, 3698), "B03": (667, 2969), "B02": (885, 2620)}
    for row in datasets.load_dataset(str(oscd.built), "rgb", split="test"):
        for date in (1, 2):
            for channel, (band, (low, high)) in enumerate(limits.items()):
                value = read(unpacked[f"{row['city']}/imgs_{date}_rect/{band}.tif"])[0][0].astype(np.int64)
                expected = np.where(value <= low, 0, np.where(value >= high, 255, (value - low) * 255 // (high - low)))
                assert np.array_equal(np.asarray(row[f"image{date}"])[..., channel], expected), (row["city"], band)
    values = np.arange(5000, dtype=np.uint16)[:, None]
    picture = Image.open(io.BytesIO(oscd.module._picture(np.stack([values] * 3), {})["bytes"]))
    for channel, (low, high) in enumerate(limits.values()):
        expected = [max(0, min(value - low, high - low)) * 255 // (high - low) for value in range(5000)]
        assert np.asarray(picture)[:, 0, channel].tolist() == expected
    bands = np.array([426, 667, 885, 2062, 1818, 1753, 3698, 2969, 2620], dtype=np.uint16).reshape(3, 3).T[..., None]
    picture = Image.open(io.BytesIO(oscd.module._picture(bands, {})["bytes"]))
    assert np.asarray(picture)[:, 0].tolist() == [[0, 0, 0], [127, 127, 127], [255, 255, 255]]


@pytest.mark.parametrize("declared, kept", [(None, None), (0.0, 0.0), (-9999.0, None)])
def test_nodata_is_kept_where_it_is_a_value(oscd, declared, kept):
    grid = {"crs": None, "transform": rasterio.Affine(10, 0, 0, 0, -10, 0), "nodata": declared}
    content = oscd.module._geotiff(np.ones((13, 2, 2), np.uint16), grid)
    with MemoryFile(content) as memory, memory.open() as opened:
        assert opened.nodata == kept


def test_dates(oscd, unpacked):
    loaded = datasets.load_dataset(str(oscd.built), "all_bands")
    dates = {row["city"]: (row["date1"], row["date2"]) for part in loaded.values() for row in part}
    assert dates.pop("pisa") == (None, None)  # its dates.txt is missing
    for city, (first, second) in dates.items():
        assert f"date_1: {first.replace('-', '')}\ndate_2: {second.replace('-', '')}" in (
            unpacked[f"{city}/dates.txt"].decode()
        )


def test_change_detection_reads_it(oscd):
    """By the reader of examples/run_change_detection.py: both configurations, three bands and thirteen."""
    for config, bands in (("rgb", 3), ("all_bands", 13)):
        data = open_task("change", dataset_name=str(oscd.built), dataset_config_name=config, num_channels=bands)
        assert data.num_labels == 2 and len(data.test) == 10
        assert len(data.train) + len(data.validation) == 14
        sample = data.test[0]
        row = datasets.load_dataset(str(oscd.built), config, split="test")[0]
        for image, stored in zip(sample.images, (row["image1"], row["image2"])):
            expected = np.asarray(stored) if bands == 3 else read(stored)[0].transpose(1, 2, 0)
            assert np.array_equal(image, expected)
        assert np.array_equal(sample.label_map, row["mask"])


# -- Refusals ---------------------------------------------------------------------------------------------------------


def changed(oscd: Script, folder: Path, archive: str, change) -> Path:
    raw = oscd.copy_of_raw(folder)
    rewrite(raw / f"{archive}.zip", change)
    return raw


def raster(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF")
    return buffer.getvalue()


def put(name: str, content: bytes):
    """Put a file in, in place of one of the same name."""
    return lambda entries: [*((n, c) for n, c in entries if n != name), (name, content)]


def without(name: str):
    return lambda entries: [(n, c) for n, c in entries if n != name]


PARIS = f"{IMAGES}/paris/imgs_2_rect/B10.tif"
PARIS_SIZE = (9, 8)


@pytest.mark.parametrize(
    "archive, change, says",
    [
        (IMAGES, put(f"{IMAGES}/train.txt", b"paris,berlin"), r"train\.txt is not the official list of train: a"),
        (IMAGES, put(f"{IMAGES}/test.txt", f"{TEST} zurich".replace(" ", ",").encode()), r"zurich is too much"),
        (IMAGES, put(f"{IMAGES}/berlin/imgs_1_rect/B01.tif", b""), r"berlin is no city of this set"),
        (
            IMAGES,
            put("copy/paris/imgs_1_rect/B01.tif", b""),
            r"imgs_1_rect/B01 of paris is there twice, as .* and cop",
        ),
        (IMAGES, put(PARIS, raster(np.ones((8, 8), np.uint16))), r"paris/imgs_2_rect/B10\.tif is 8 x 8 uint16, exp"),
        (IMAGES, put(PARIS, raster(np.ones(PARIS_SIZE, np.float32))), r"B10\.tif is 8 x 9 float32, expected uint16"),
        (IMAGES, put(PARIS, raster(np.ones((*PARIS_SIZE, 3), np.uint8))), r"B10\.tif has 3 bands, expected 1"),
        (
            TRAIN_LABELS,
            put(f"{TRAIN_LABELS}/bercy/cm/bercy-cm.tif", raster(np.ones((6, 11), np.uint8))),
            r"the two change maps of bercy, .*cm\.png and .*bercy-cm\.tif, differ in \d+ px",
        ),
        (
            TRAIN_LABELS,
            put(f"{TRAIN_LABELS}/rennes/cm/rennes-cm.tif", raster(np.zeros((10, 12), np.uint8))),
            r"rennes-cm\.tif holds 0, expected 1 \(no change\) and 2",
        ),
        (
            TRAIN_LABELS,
            put(f"{TRAIN_LABELS}/rennes/cm/rennes-cm.tif", raster(np.ones((4, 4), np.uint8))),
            r"of rennes have the sizes \d+ x \d+, \d+ x \d+, 4 x 4",
        ),
    ],
    ids="wrong-list longer-list wrong-city twice size-of-band float bands maps-differ map-of-zeros map-size".split(),
)
def test_refused_whatever_is_accepted(oscd, archive, change, says, tmp_path):
    raw = changed(oscd, tmp_path, archive, change)
    code, said = oscd.run("--config", "all_bands", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(says, said), said
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    "archive, name, says",
    [
        (IMAGES, PARIS, "paris lacks imgs_2_rect/B10.tif"),
        (TRAIN_LABELS, f"{TRAIN_LABELS}/paris/cm/cm.png", "paris lacks its change map"),
    ],
)
def test_a_city_that_is_not_whole(oscd, archive, name, says, tmp_path):
    """Named; left out where another archive is accepted, but not with --exact."""
    raw = changed(oscd, tmp_path, archive, without(name))
    code, said = oscd.run("--exact", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "cities of train: found 13, expected 14" in said and says in said
    assert oscd.run("--config", "all_bands", data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    assert says in (tmp_path / "out" / "README.md").read_text()
    loaded = datasets.load_dataset(str(tmp_path / "out"), "all_bands")
    assert " ".join(loaded["train"]["city"]) == TRAIN.replace("paris ", "")
    with zipfile.ZipFile(raw / f"{IMAGES}.zip") as first, zipfile.ZipFile(raw / f"{archive}.zip") as second:
        [opened.extractall(tmp_path / "unpacked") for opened in (first, second)]
    code, said = oscd.main(["--data_dir", str(tmp_path / "unpacked"), "--output_dir", str(tmp_path / "no")])
    assert code == 2 and "--accept_archive" in said  # no checksum of a folder, yet what is missing is said


def test_all_three_archives_are_needed(oscd, tmp_path):
    raw = oscd.copy_of_raw(tmp_path)
    code, said = oscd.run(data_dir=raw / f"{IMAGES}.zip", output_dir=tmp_path / "out")
    assert code == 2 and "one of several archives; pass the folder" in said
    (raw / f"{TRAIN_LABELS}.zip").unlink()
    code, said = oscd.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and f"lacks {TRAIN_LABELS}.zip" in said


def test_renamed_folders(oscd, tmp_path):
    """As re-uploads have them, unpacked and with the change maps in the folders of the cities."""
    for archive in oscd.archives():
        shutil.unpack_archive(archive, tmp_path / "raw")
    (tmp_path / "raw" / IMAGES).rename(tmp_path / "raw" / "onera_satellite_change_detection dataset__images")
    (tmp_path / "raw" / TRAIN_LABELS).rename(tmp_path / "raw" / "train_labels")
    cities = tmp_path / "raw" / "onera_satellite_change_detection dataset__images"
    for city in (tmp_path / "raw" / f"{NAME}Test Labels").iterdir():
        (city / "cm").rename(cities / city.name / "cm")
    arguments = ["--data_dir", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out"), "--exact"]
    assert oscd.main(arguments)[0] == 0
    loaded = datasets.load_dataset(str(tmp_path / "out"), "all_bands")
    assert {split: encoded(part) for split, part in loaded.items()} == oscd.rows("all_bands")


# -- Real files -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/imagery/multispectral")
def test_real_scenes(oscd, tmp_path):
    """Two Sentinel-2 L1C scenes, band by band in the layout of the set; a part of the second date is elsewhere."""
    scenes = {"paris": "s2_t60hwb.tif", "rio": "s2l1c_38d_378r_2_3.tif"}
    written = {}
    for city, scene in scenes.items():
        with rasterio.open(REAL / scene) as source:
            before = source.read(window=Window(0, 0, 120, 100)).astype(np.uint16)
            after, change = before.copy(), np.zeros((100, 120), np.uint8)
            after[:, 30:70, 20:60] = source.read(window=Window(80, 80, 40, 40)).astype(np.uint16)
            change[30:70, 20:60] = 1
            profile = {"driver": "GTiff", "count": 1, "height": 100, "width": 120, "dtype": "uint16"}
            profile |= {"crs": source.crs, "transform": source.transform, "nodata": source.nodata}
        for date, pixels in ((1, before), (2, after)):
            folder = tmp_path / "raw" / IMAGES / city / f"imgs_{date}_rect"
            folder.mkdir(parents=True)
            for band, values in zip(BANDS, pixels):
                with rasterio.open(folder / f"{band}.tif", "w", **profile) as raster:
                    raster.write(values, 1)
        folder = tmp_path / "raw" / "labels" / city / "cm"
        folder.mkdir(parents=True)
        Image.fromarray(change * 255).convert("RGBA").save(folder / "cm.png")
        Image.fromarray(change + 1).save(folder / f"{city}-cm.tif")
        written[city] = before, after, change, profile
    code, said = oscd.run(data_dir=tmp_path / "raw", output_dir=tmp_path / "out")
    assert code == 0, said
    found = {}
    for config in ("all_bands", "rgb"):
        for part in datasets.load_dataset(str(tmp_path / "out"), config).values():
            found |= {(config, row["city"]): row for row in part}
    for city, (before, after, change, profile) in written.items():
        row, picture = found["all_bands", city], found["rgb", city]
        for name, pixels in (("image1", before), ("image2", after)):
            stored, more = read(row[name])
            assert np.array_equal(stored, pixels)
            assert (more["crs"], more["transform"]) == (profile["crs"], profile["transform"])
            assert len(row[name]) < 0.8 * pixels.nbytes
            rgb = np.asarray(picture[name])
            assert rgb.shape == (100, 120, 3) and rgb.std() > 3
        assert np.array_equal(row["mask"], change) and np.array_equal(picture["mask"], change)
        differ = (np.asarray(picture["image1"]) != np.asarray(picture["image2"])).any(2)
        assert not differ[change == 0].any() and differ[change == 1].mean() > 0.5
