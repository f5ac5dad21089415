"""Real labelled sets, from listing to batches, with the library's own processor."""

import shutil
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gfm_hf import GFMImageProcessor
from gfm_hf.data.augmentation import Augmentation
from gfm_hf.data.mixing import Mixing
from gfm_hf.data.plan import EpochPlan
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import open_task

from .pictures import raster_bytes
from .sets import png, write


pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


@pytest.fixture(scope="module")
def imagery():
    folder = Path(__file__).resolve().parents[3] / "shared" / "imagery"
    if not folder.is_dir():
        pytest.skip("the imagery (../shared/imagery) is not here")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def batches(data, processor, size=64, count=2, **settings):
    """First training batches, then all of validation."""
    samples = TaskSamples(data.train, Augmentation(size, quarter_turns=True))
    fixed = TaskSamples(data.validation, Augmentation(size), train=False)
    plan = EpochPlan(data.train.table, 4)
    train = DataLoader(samples, batch_sampler=plan, collate_fn=TaskCollator(processor, samples, **settings))
    plan = EvaluationPlan(data.validation.table, 4)
    validation = DataLoader(fixed, batch_sampler=plan, collate_fn=TaskCollator(processor, fixed))
    return list(islice(train, count)), list(validation)


def test_uc_merced(imagery):
    data = open_task("classification", parquet=imagery / "ucmerced" / "ucmerced_128.parquet", train_fraction=0.1)
    assert (data.num_labels, len(data.train), len(data.validation), len(data.test)) == (21, 126, 420, 420)
    assert np.bincount(data.train.labels).tolist() == [6] * 21
    sample = data.validation[17]
    assert sample.name.startswith(data.label_names[sample.label])
    data = open_task("classification", parquet=imagery / "ucmerced" / "ucmerced_128.parquet", train_fraction=0.01)
    train, _ = batches(data, GFMImageProcessor(), mixing=Mixing())
    assert train[0]["pixel_values"].shape == (4, 3, 64, 64) and train[0]["labels"].shape == (4, 21)


def test_dubai(imagery):
    data = open_task("segmentation", parquet=imagery / "segmentation" / "dubai_256.parquet")
    assert (data.num_labels, len(data.train), len(data.validation), len(data.test)) == (6, 54, 9, 6)
    train, validation = batches(data, GFMImageProcessor())
    assert [len(batch["labels"]) for batch in validation] == [4, 4, 1]
    seen = torch.cat([batch["labels"].flatten() for batch in [*train, *validation]]).unique().tolist()
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("file, parts", [("pairs_256", (13, 4, 5)), ("pairs_128", (9, 3, 3))])
def test_pairs(imagery, file, parts):
    columns = {"before_column_name": "image_a", "after_column_name": "image_b"}
    data = open_task("change", parquet=imagery / "change" / f"{file}.parquet", **columns)
    assert (len(data.train), len(data.validation), len(data.test)) == parts
    train, validation = batches(data, GFMImageProcessor())
    assert train[0]["pixel_values"].shape == (4, 2, 3, 64, 64)
    assert train[0]["labels"].unique().tolist() == [0, 1]
    # The share of change survives decoding and resizing.
    fractions = [data.validation[i].label_map.mean() for i in range(len(data.validation))]
    found = torch.cat([batch["labels"].float().mean((1, 2)) for batch in validation])
    torch.testing.assert_close(found, torch.tensor(fractions, dtype=torch.float32), atol=0.02, rtol=0)


def test_six_bands_with_partial_labels(imagery, tmp_path):
    """Landsat: 255 stands beside 0 and 1, so it means "not labelled" and not "changed"."""
    for column, file in (("image1", "t1"), ("image2", "t2"), ("mask", "label")):
        for part in ("train", "val"):
            (tmp_path / "set" / part / column).mkdir(parents=True)
            shutil.copy(imagery / "change" / f"landsat_taizhou_{file}.tif", tmp_path / "set" / part / column / "x.tif")
    data = open_task("change", tmp_path / "set", num_channels=6)
    processor = GFMImageProcessor(band_names=None, image_mean=[0.4] * 6, image_std=[0.2] * 6)
    _, validation = batches(data, processor, size=256)
    labels = validation[0]["labels"]
    assert validation[0]["pixel_values"].shape == (1, 2, 6, 256, 256)
    assert [(labels == value).sum().item() for value in (1, 0)] == [2455, 6964]
    assert validation[0]["num_targets"] == 2455 + 6964


def test_twelve_bands_with_land_cover(imagery, tmp_path):
    for i, name in enumerate(("282d_485l_3_3", "38d_378r_2_3", "609u_541l_3_0", "637u_59r_1_3")):
        for column, kind in (("image", "s2l2a"), ("mask", "lulc")):
            folder = tmp_path / "set" / ("train" if i < 3 else "val") / column
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(imagery / "multispectral" / f"{kind}_{name}.tif", folder / f"{name}.tif")
    data = open_task("segmentation", tmp_path / "set", num_channels=12, num_labels=10)
    statistics = {"band_names": None, "image_mean": [0.1] * 12, "image_std": [0.1] * 12, "rescale_factor": 1e-4}
    train, validation = batches(data, GFMImageProcessor(**statistics), size=128)
    assert train[0]["pixel_values"].shape == (3, 12, 128, 128)
    sample = data.validation[0]
    assert sample.images[0].dtype == np.int16
    expected = torch.from_numpy(sample.images[0].transpose(2, 0, 1).astype(np.float32)) * 1e-3 - 1
    torch.testing.assert_close(validation[0]["pixel_values"][0], expected, atol=1e-4, rtol=0)
    assert np.array_equal(validation[0]["labels"][0], sample.label_map)


def test_pixels_without_measurement(imagery, tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasters need rasterio")
    with rasterio.open(imagery / "multispectral" / "hls10_input.tif") as raster:
        pixels = raster.read().transpose(1, 2, 0)
    pixels[10:20, 30:50] = -9999
    ids = (np.arange(96 * 96).reshape(96, 96) % 2).astype(np.uint8)
    for part in ("train", "val"):
        write(tmp_path / "set" / part, **{"image/x.tif": raster_bytes(pixels), "mask/x.png": png(ids)})
    data = open_task("segmentation", tmp_path / "set", num_channels=10, nodata=-9999)
    holes = np.isnan(data.validation[0].images[0]).any(2)
    statistics = {"band_names": None, "image_mean": [0.1] * 10, "image_std": [0.1] * 10, "rescale_factor": 1e-4}
    train, validation = batches(data, GFMImageProcessor(**statistics, nodata="nan"), size=96)
    assert holes.sum() == 200 and np.array_equal(validation[0]["labels"][0] == 255, holes)
    assert validation[0]["num_targets"] == (~holes).sum()
    assert torch.isfinite(train[0]["pixel_values"]).all() and train[0]["pixel_values"].min() > -2


def test_super_resolution_of_16_bits(imagery, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "set" / part / "image").mkdir(parents=True)
        for i in (1, 2):
            shutil.copy(imagery / "multispectral" / f"worldview_ms{i}.tif", tmp_path / "set" / part / "image")
    data = open_task("super_resolution", tmp_path / "set", num_channels=4, scale=2)
    statistics = {"band_names": None, "image_mean": [300.0] * 4, "image_std": [200.0] * 4, "rescale_factor": 1.0}
    train, _ = batches(data, GFMImageProcessor(**statistics), size=48)
    low, high = train[0]["pixel_values"], train[0]["labels"]
    assert low.shape == (2, 4, 48, 48) and high.shape == (2, 4, 96, 96)
    # Bicubic lowering is sharper than the mean of 2 x 2 px, but shows the same ground.
    averaged = torch.nn.functional.avg_pool2d(high, 2)
    assert (averaged - low).abs().mean() < 0.1 < (averaged - low.roll(1, 3)).abs().mean()
