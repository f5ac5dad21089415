"""What is special of SpaceNet 2: pairs, both layouts, splits, rasters in bytes, and areas that are not there."""

import hashlib
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image
from scripts import FOLDER, Script, contents, load, rewrite

from gfm_hf.data.tasks import open_task


CHIPS = Path(__file__).parents[3] / "shared" / "imagery" / "multispectral"
# In the order of rows: by number.
VEGAS = {
    "train": [1, 2, 4, 5, 7, 9, 10, 1002],
    "validation": [13, 16, 2005],
    "test": [21],
}


@pytest.fixture(scope="session")
def spacenet2(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("spacenet2", tmp_path_factory.mktemp("spacenet2"))


@pytest.fixture(scope="session")
def dummy():
    return load(FOLDER / "spacenet2" / "dummy.py")


def raster(content: bytes) -> tuple[np.ndarray, rasterio.Affine, object]:
    with rasterio.MemoryFile(content) as memory, memory.open() as opened:
        return opened.read(), opened.transform, opened.crs


def loaded(folder: Path, config: str) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), config)


def tiles(folder: Path, config: str) -> dict[str, list[int]]:
    return {split: part["img"][:] for split, part in loaded(folder, config).items()}


# -- Splits -----------------------------------------------------------------------------------------------------------


def test_splits_follow_from_the_names(spacenet2):
    """By the rule in the card, written once more; not by what else is there."""
    found = tiles(spacenet2.built, "vegas")
    assert found == VEGAS
    for split, numbers in found.items():
        for number in numbers:
            share = int.from_bytes(hashlib.md5(f"AOI_2_Vegas/img{number}".encode()).digest()[:4], "big") / 2**32
            assert split == ("train" if share < 0.6 else "validation" if share < 0.8 else "test")
    areas = spacenet2.module.AREAS.values()
    whole = Counter(spacenet2.module.split_of(area.name, i) for area in areas for i in range(area.tiles))
    assert whole == {"train": 6_424, "validation": 2_102, "test": 2_067} and sum(whole.values()) == 10_593


def test_all_areas_are_joined(spacenet2, dummy):
    """In the order of the areas, from the shards of each: nothing is stored twice."""
    joined = loaded(spacenet2.built, "all")
    for part in joined.values():
        pairs = list(zip(part["aoi"], part["img"]))
        assert pairs == sorted(pairs)
    names = joined["train"].features["aoi"].names
    found = {(names[area], img) for part in joined.values() for area, img in zip(part["aoi"], part["img"])}
    assert found == {(area, number) for area, numbers in dummy.TILES.items() for number in numbers}
    assert not (spacenet2.built / "all").exists()
    assert datasets.load_dataset_builder(str(spacenet2.built)).config.name == "all"


# -- Rasters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_rasters_are_those_of_the_archive(spacenet2, dummy, streaming):
    """Pixels, grids and sizes; of the tile that is 9 x 8 and of those with borders, too."""
    odd = 0
    for split in VEGAS:
        rows = datasets.load_dataset(str(spacenet2.built), "vegas", split=split, streaming=streaming)
        for row in rows:
            for column, prefix, product in (("image", "", "MUL"), ("target", "target_", "MUL-PanSharpen")):
                pixels, transform, crs = raster(dummy.tile("AOI_2_Vegas", row["img"], product))
                again, grid, system = raster(row[column])
                assert again.dtype == np.uint16 and np.array_equal(again, pixels)
                assert grid == transform and system == crs and row[f"{prefix}crs"] == "EPSG:4326"
                assert rasterio.Affine(*row[f"{prefix}transform"]) == transform
                assert (8, row[f"{prefix}height"], row[f"{prefix}width"]) == pixels.shape
                empty = np.all([band == 0 for band in pixels], axis=0).mean()
                assert row[f"{prefix}nodata_fraction"] == empty
                assert (empty > 0) == (row["img"] % 5 == 0)
            odd += row["height"] != row["width"]
    assert odd == 2


def test_rasters_are_packed_without_loss(spacenet2):
    """Also the extremes of uint16, a nodata value, and a file without a grid; the same bytes every time."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (8, 40, 30), dtype=np.uint16)
    pixels[:, 0, :2] = 0, 65_535
    grid = {"transform": rasterio.Affine.identity(), "crs": None, "nodata": 0}
    packed = spacenet2.module.geotiff(pixels, grid)
    assert packed == spacenet2.module.geotiff(pixels, grid)
    again, found = spacenet2.module._raster(packed, "x")
    assert np.array_equal(again, pixels) and found == grid
    smooth = np.tile(np.arange(400, dtype=np.uint16), (8, 100, 1))
    with rasterio.MemoryFile(packed := spacenet2.module.geotiff(smooth, grid)) as memory, memory.open() as opened:
        assert (opened.profile["compress"], opened.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"]) == ("deflate", "2")
    assert len(packed) < smooth.nbytes / 20


def test_the_examples_read_it(spacenet2):
    """Pairs of eight bands at a scale of 4, also where 34 px are no four times 9 or 8."""
    data = open_task(
        "super_resolution", dataset_name=str(spacenet2.built), dataset_config_name="vegas", num_channels=8
    )
    assert data.scale == 4 and (len(data.train), len(data.validation), len(data.test or ())) == (8, 3, 1)
    for sample in (data.train[i] for i in range(len(data.train))):
        height, width, bands = sample.images[0].shape
        assert bands == 8 and sample.target.shape == (4 * height, 4 * width, 8) and sample.target.dtype == np.uint16


# -- Layouts and areas ------------------------------------------------------------------------------------------------


def exploded(spacenet2: Script, folder: Path) -> Path:
    """The tiles as they lie in the bucket."""
    names = {"MUL": "MS", "MUL-PanSharpen": "PS-MS", "PAN": "PAN"}
    for archive in spacenet2.archives():
        with tarfile.open(archive) as tar:
            for member in tar:
                area, product, *_, name = member.name.split("/")
                if product in names:
                    area, number = area.removesuffix("_Train"), name.rpartition("_")[2]
                    kind = names[product]
                    target = folder / "train" / area / kind / f"SN2_buildings_train_{area}_{kind}_{number}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())
    return folder


def test_the_layout_of_the_bucket(spacenet2, tmp_path):
    raw = exploded(spacenet2, tmp_path / "raw")
    other = raw / "test_public" / "AOI_2_Vegas" / "MS"
    other.mkdir(parents=True)
    (other / "SN2_buildings_test_public_AOI_2_Vegas_MS_img3.tif").write_bytes(b"not labelled")
    code, said = spacenet2.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 0, said
    shards = {name: content for name, content in contents(spacenet2.built).items() if name.endswith(".parquet")}
    assert {name: found for name, found in contents(tmp_path / "out").items() if name != "README.md"} == shards


def test_one_area_is_enough(spacenet2, tmp_path):
    """As an archive or in a folder; the command without --config says what to do."""
    (archive,) = [path for path in spacenet2.archives() if "Paris" in path.name]
    (tmp_path / "raw").mkdir()
    shutil.copy(archive, tmp_path / "raw")
    for number, raw in enumerate((archive, tmp_path / "raw")):
        out = tmp_path / f"out{number}"
        assert spacenet2.run("--config", "paris", data_dir=raw, output_dir=out)[0] == 0
        assert tiles(out, "paris") == tiles(spacenet2.built, "paris")
    for flags in ((), ("--config", "all"), ("--config", "vegas")):
        code, said = spacenet2.run(*flags, data_dir=tmp_path / "raw", output_dir=tmp_path / "none")
        assert code == 2 and "no tile of AOI_2_Vegas" in said and "pass --config" in said
        assert not (tmp_path / "none").exists()


def test_a_download_is_not_promised(spacenet2, tmp_path):
    with pytest.raises(SystemExit):
        spacenet2.main(["--download", "--output_dir", str(tmp_path / "out")])
    builder = spacenet2.builder(config_name="vegas", cache_dir=str(tmp_path))
    with pytest.raises(spacenet2.module.InputError, match="cannot be downloaded by itself.*--no-sign-request"):
        builder.download_and_prepare()


def test_tiles_of_the_test_part_do_not_count(spacenet2, tmp_path):
    raw = tmp_path / "raw"
    for archive in spacenet2.archives():
        shutil.unpack_archive(archive, raw)
    for area in spacenet2.module.AREAS.values():
        shutil.copytree(raw / f"{area.name}_Train", raw / f"{area.name}_Test_public")
    assert spacenet2.run("--config", "vegas", data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    assert tiles(tmp_path / "out", "vegas") == VEGAS


def test_a_tile_in_both_layouts_is_refused(spacenet2, tmp_path):
    raw = exploded(spacenet2, tmp_path / "raw")
    shutil.unpack_archive(spacenet2.archives()[0], raw)
    code, said = spacenet2.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "img1 of AOI_2_Vegas is there twice, as " in said and not (tmp_path / "out").exists()


# -- What is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(spacenet2, dummy, monkeypatch, tmp_path) -> Path:
    """The unpacked set, with counts that are those of the small archives."""
    for config, area in spacenet2.module.AREAS.items():
        number = len(dummy.TILES[area.name]) + sum(name == area.name for name, _ in dummy.LONELY)
        monkeypatch.setitem(spacenet2.module.AREAS, config, area._replace(tiles=number))
    for archive in spacenet2.archives():
        shutil.unpack_archive(archive, tmp_path / "raw")
    return tmp_path / "raw"


def plainly(spacenet2: Script, *flags: str, data_dir: Path, output_dir: Path) -> tuple[int, str]:
    return spacenet2.main(["--data_dir", str(data_dir), "--output_dir", str(output_dir), *flags])


def test_a_tile_that_sources_disagree_on_is_left_out(spacenet2, counted, tmp_path):
    code, said = plainly(spacenet2, "--config", "vegas", "--exact", data_dir=counted, output_dir=tmp_path / "out")
    assert code == 0, said
    sentence = "1 tiles of AOI_2_Vegas have no MUL-PanSharpen and are left out: img1000"
    assert sentence in said and sentence in (tmp_path / "out" / "README.md").read_text()
    assert tiles(tmp_path / "out", "vegas") == VEGAS


def test_other_tiles_without_a_partner(spacenet2, counted, tmp_path):
    """Refused; accepted they are named; --exact never accepts them."""
    sentence = "1 tiles of AOI_5_Khartoum have no MUL and are left out: img40"
    flags = ["--config", "khartoum"]
    assert sentence in plainly(spacenet2, *flags, data_dir=counted, output_dir=tmp_path / "out")[1]
    flags.append("--accept_archive")
    code, said = plainly(spacenet2, *flags, "--exact", data_dir=counted, output_dir=tmp_path / "out")
    assert code == 2 and sentence in said and not (tmp_path / "out").exists()
    assert plainly(spacenet2, *flags, data_dir=counted, output_dir=tmp_path / "out")[0] == 0
    assert sentence in (tmp_path / "out" / "README.md").read_text()


def test_a_wrong_count(spacenet2, counted, tmp_path):
    """A tile of which nothing is there."""
    for path in counted.rglob("*AOI_3_Paris_img8.tif"):
        path.unlink()
    flags = ["--config", "paris", "--exact", "--accept_archive"]
    code, said = plainly(spacenet2, *flags, data_dir=counted, output_dir=tmp_path / "out")
    assert code == 2 and "tiles of AOI_3_Paris: found 3, expected 4" in said


def test_an_interrupted_unpacking_is_done_again(spacenet2, tmp_path):
    """The library would take the folder for whole, and rows would be lost."""
    archive = shutil.copy(spacenet2.archives()[1], tmp_path)
    flags = ["--config", "paris"]
    assert spacenet2.run(*flags, data_dir=Path(archive), output_dir=tmp_path / "out")[0] == 0
    (folder,) = [Path(path) for path in spacenet2.module.RECIPE.open(archive, None, accept=True).paths]
    assert Path(datasets.config.DOWNLOADED_DATASETS_PATH) in folder.parents and tmp_path not in folder.parents
    tile = folder / "AOI_3_Paris_Train" / "MUL" / "MUL_AOI_3_Paris_img8.tif"
    whole = tile.read_bytes()
    for number, change in enumerate((lambda: tile.write_bytes(whole[:100]), tile.unlink)):
        change()
        assert spacenet2.run(*flags, data_dir=Path(archive), output_dir=tmp_path / f"{number}")[0] == 0
        assert tile.read_bytes() == whole and contents(tmp_path / f"{number}") == contents(tmp_path / "out")


VRT = b"""<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="UInt16" band="1"/></VRTDataset>"""


def test_a_broken_tile_is_named(spacenet2, dummy):
    whole = dummy.tile("AOI_2_Vegas", 1, "MUL")
    pixels, transform, crs = raster(whole)
    grid = {"transform": transform, "crs": crs, "nodata": None}
    for content, says in (
        (whole[:-200], "is no readable GeoTIFF"),
        (VRT, "is no readable GeoTIFF"),
        (b"", "is no readable GeoTIFF"),
        (spacenet2.module.geotiff(pixels[:4], grid), "has 4 bands of uint16, expected 8 of uint16"),
        (spacenet2.module.geotiff(pixels.astype(np.uint8), grid), "has 8 bands of uint8, expected 8 of uint16"),
    ):
        with pytest.raises(spacenet2.module.UnreadableError, match=f"a/MUL_img1.tif {says}"):
            spacenet2.module._raster(content, "a/MUL_img1.tif")


# -- Real files -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CHIPS.is_dir(), reason="needs ../shared/imagery/multispectral")
def test_real_worldview_pixels(spacenet2, dummy, tmp_path):
    """Four bands of two dates as eight, and the same sharpened by their panchromatic bands, enlarged to 650 px."""
    found = {name: raster((CHIPS / f"worldview_{name}.tif").read_bytes()) for name in ("ms1", "ms2", "pan1", "pan2")}
    low = np.concatenate([found["ms1"][0], found["ms2"][0]])[:, :162, :162]
    fine = np.stack([enlarged(band) for band in low])
    pan = np.concatenate([np.stack([enlarged(found[name][0][0, :324, :324])] * 4) for name in ("pan1", "pan2")])
    target = (fine * pan / pan.mean()).clip(0, 2047).astype(np.uint16)
    pixels = {"MUL": low, "MUL-PanSharpen": target}
    raw = spacenet2.copy_of_raw(tmp_path)

    def real(entries):
        for name, content in entries:
            product = name.split("/")[1]
            if name.endswith("Khartoum_img14.tif") and product in pixels:
                _, transform, crs = raster(content)
                grid = {"transform": transform, "crs": crs, "nodata": None}
                content = spacenet2.module.geotiff(pixels[product], grid)
            yield name, content

    rewrite(raw / "SN2_buildings_train_AOI_5_Khartoum.tar.gz", real)
    assert spacenet2.run("--config", "khartoum", data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    rows = [row for part in loaded(tmp_path / "out", "khartoum").values() for row in part if row["img"] == 14]
    assert len(rows) == 1 and (rows[0]["width"], rows[0]["target_width"]) == (162, 650)
    assert np.array_equal(raster(rows[0]["image"])[0], low) and np.array_equal(raster(rows[0]["target"])[0], target)
    assert len(rows[0]["target"]) < 0.6 * target.nbytes


def enlarged(band: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(band.astype(np.float32)).resize((650, 650), Image.Resampling.BICUBIC))
