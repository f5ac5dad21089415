from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gfm_hf.data.collators import PretrainingCollator, PretrainingSamples
from gfm_hf.data.decoding import Record
from gfm_hf.data.masking import expand_to_tokens, hidden_cells
from gfm_hf.data.plan import EpochPlan, SampleKey
from gfm_hf.data.sources import open_images
from gfm_hf.data.transforms import centre_view, crop_and_flip


pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform", "ignore:overflow encountered")
GEOMETRY = {"image_size": 32, "patch_size": 4, "mask_patch_size": 8}


def processor(images, input_data_format, do_resize, return_tensors):
    """The contract of the model's processor: stack and normalise."""
    assert (input_data_format, do_resize, return_tensors) == ("channels_first", False, "pt")
    pixels = np.stack(images).astype(np.float32)
    assert np.isfinite(pixels).all()
    return SimpleNamespace(pixel_values=torch.from_numpy(pixels * np.float32(20.0) - 1))


@pytest.fixture
def folder(tmp_path):
    for i in range(11):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def raster(path, pixels):
    rasterio = pytest.importorskip("rasterio", reason="rasters need rasterio")
    height, width, count = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype) as out:
        out.write(pixels.transpose(2, 0, 1))
    return Record(0, path.name, path=str(path))


def batch_of(samples, keys):
    return PretrainingCollator(processor, samples)([samples[key] for key in keys])


def test_sample_is_the_view_and_mask_of_its_record(folder):
    record = open_images(train_dir=folder)[3]
    samples = PretrainingSamples(**GEOMETRY, seed=5)
    sample = samples[(2, record)]
    image = Image.open(record.path)
    assert np.array_equal(sample["pixel_values"], crop_and_flip(image, 3, 2, 5, 32))
    assert torch.equal(sample["cells"], hidden_cells(3, 2, 5, grid=4))
    assert sample["index"] == 3


def test_evaluation_view_and_mask_do_not_change_with_the_epoch(folder):
    record = open_images(train_dir=folder)[3]
    samples = PretrainingSamples(**GEOMETRY, train=False)
    first, later = samples[(0, record)], samples[(7, record)]
    assert np.array_equal(first["pixel_values"], centre_view(Image.open(record.path), 32))
    assert np.array_equal(first["pixel_values"], later["pixel_values"])
    assert torch.equal(first["cells"], later["cells"])


def test_batch_has_the_documented_shapes_and_values(folder):
    table = open_images(train_dir=folder)
    samples = PretrainingSamples(**GEOMETRY, mask_ratio=0.5)
    keys = [SampleKey(1, table[i], 1 / 4, 9) for i in range(4)]
    batch = batch_of(samples, keys)
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    assert batch["bool_masked_pos"].shape == (4, 64) and batch["bool_masked_pos"].dtype == torch.bool
    assert batch["bool_masked_pos"].sum(1).tolist() == [32] * 4
    assert torch.equal(batch["bool_masked_pos"][2], expand_to_tokens(hidden_cells(2, 1, 0, 4, 0.5), 4, 2))
    assert batch["loss_weight"].shape == () and batch["loss_weight"] == 1.0
    assert (batch["unreadable"], batch["epoch"], batch["step"]) == ([], 1, 9)
    assert torch.equal(batch["pixel_values"][1], torch.from_numpy(samples[keys[1]]["pixel_values"]) * 20.0 - 1)


def test_unreadable_images_are_named_and_lower_the_weight(folder):
    (folder / "00.png").write_bytes(b"")
    table = open_images(train_dir=folder)
    batch = batch_of(PretrainingSamples(**GEOMETRY), [SampleKey(0, table[i], 0.5) for i in range(3)])
    assert batch["unreadable"] == [("00.png", "zero bytes")]
    assert len(batch["pixel_values"]) == len(batch["bool_masked_pos"]) == 2
    assert batch["loss_weight"] == 1.0


@pytest.mark.parametrize("record, count", [(Record(4, "gone", data=b""), 1), (None, 0)])
def test_batch_without_images_keeps_the_ranks_in_step(record, count):
    samples = PretrainingSamples(**GEOMETRY, num_channels=5)
    batch = batch_of(samples, [SampleKey(1, record, 0.5 if record else 0.0, 3)])
    assert batch["pixel_values"].shape == (1, 5, 32, 32) and not batch["pixel_values"].any()
    assert batch["bool_masked_pos"].sum() == 4 * 10  # ceil(16 * 0.6) cells of 4 tokens
    assert batch["loss_weight"] == 0.0
    assert len(batch["unreadable"]) == count


def test_nan_and_overflow_count_as_unreadable(tmp_path):
    fine = np.ones((40, 40, 2), dtype=np.float32)
    holed, huge = fine.copy(), fine.copy()
    holed[20, 20, 1] = np.nan
    huge[:, :, 0] = 3e38
    records = [raster(tmp_path / f"{i}.tif", pixels) for i, pixels in enumerate((holed, fine, huge))]
    samples = PretrainingSamples(**GEOMETRY, num_channels=2)
    batch = batch_of(samples, [SampleKey(0, record, 1.0) for record in records])
    assert sorted(batch["unreadable"]) == [("0.tif", "NaN or infinite pixels"), ("2.tif", "NaN or infinite pixels")]
    assert torch.isfinite(batch["pixel_values"]).all() and len(batch["bool_masked_pos"]) == 1
    assert batch["loss_weight"] == 1.0
    alone = batch_of(samples, [SampleKey(0, records[2], 1.0)])
    assert alone["loss_weight"] == 0.0 and not alone["pixel_values"].any() and alone["unreadable"]


def test_wrong_band_count_is_the_users_error(folder, tmp_path):
    record = raster(tmp_path / "four.tif", np.ones((40, 40, 4), dtype=np.uint16))
    with pytest.raises(ValueError, match="four.tif has 4 bands but the model has 3"):
        PretrainingSamples(**GEOMETRY)[(0, record)]
    with pytest.raises(ValueError, match="00.png has 3 bands but the model has 4"):
        PretrainingSamples(**GEOMETRY, num_channels=4)[(0, open_images(train_dir=folder)[0])]
    assert PretrainingSamples(**GEOMETRY, num_channels=4)[(0, record)]["pixel_values"].dtype == np.uint16


def test_one_band_model_sees_luminance(folder):
    record = open_images(train_dir=folder)[0]
    view = PretrainingSamples(**GEOMETRY, num_channels=1, train=False)[(0, record)]["pixel_values"]
    assert np.array_equal(view, centre_view(Image.open(record.path).convert("L"), 32)) and view.shape == (1, 32, 32)


@pytest.mark.parametrize("options, message", [({"mask_ratio": 1.0}, "--mask_ratio"), ({"image_size": 30}, "24 or 32")])
def test_bad_settings_are_refused_before_the_first_worker_starts(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainingSamples(**(GEOMETRY | options))


def batches(folder, count, workers, **plan):
    plan = EpochPlan(open_images(train_dir=folder), seed=1, **plan)
    samples = PretrainingSamples(**GEOMETRY, seed=1)
    loader = DataLoader(
        samples, batch_sampler=plan, collate_fn=PretrainingCollator(processor, samples), num_workers=workers
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def test_workers_and_resume_give_the_same_batches(folder):
    plain = batches(folder, 10, 0, batch_size=2, accumulation=2)  # 11 images: 3 steps an epoch, the last of 3
    for one, two in zip(plain, batches(folder, 10, 2, batch_size=2, accumulation=2), strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"])
        assert torch.equal(one["bool_masked_pos"], two["bool_masked_pos"])
        assert one["loss_weight"] == two["loss_weight"]
    assert [(b["epoch"], b["step"]) for b in plain[::2]] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    resumed = batches(folder, 2, 0, batch_size=2, accumulation=2, epoch_start=1, step_start=1)
    assert all(
        torch.equal(one["pixel_values"], two["pixel_values"]) for one, two in zip(plain[8:], resumed, strict=True)
    )


def test_worlds_see_the_same_epoch(folder):
    def rows(world):
        found = []
        for rank in range(world):
            for batch in batches(folder, 6 // world, 0, batch_size=2, rank=rank, world=world):
                if batch["loss_weight"] > 0 and batch["epoch"] == 0:
                    found += [row.numpy().tobytes() for row in batch["pixel_values"]]
        return sorted(found)

    assert len(set(rows(1))) == 11
    assert rows(1) == rows(2) == rows(3)


def test_pictures_follow_the_models_band_order(tmp_path):
    Image.fromarray(np.full((40, 40, 3), (250, 120, 10), np.uint8)).save(tmp_path / "red.png")
    record = open_images(train_dir=tmp_path)[0]
    plain, turned = (
        PretrainingSamples(image_size=32, mask_patch_size=16, rgb_channels=order)[0, record]["pixel_values"]
        for order in ((0, 1, 2), (2, 1, 0))
    )
    assert plain[:, 0, 0].tolist() == [250, 120, 10] and turned[:, 0, 0].tolist() == [10, 120, 250]
