from itertools import islice
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gfm_hf.data.augmentation import Augmentation, view_of_image, view_of_map, whole_view
from gfm_hf.data.mixing import Mixing, mix_images, soft_targets
from gfm_hf.data.plan import EpochPlan, SampleKey
from gfm_hf.data.task_batches import EvaluationPlan, TaskCollator, TaskSamples
from gfm_hf.data.tasks import open_task

from .pictures import raster_bytes
from .sets import class_folder, mask_folder, picture, png, write


SIZE = 8
ALL = Augmentation(SIZE, quarter_turns=True)


def processor(images, input_data_format, do_resize, return_tensors, segmentation_maps=None, maps_are_ids=False):
    """The contract of the model's processor: normalise and stack; pixels without measurement are ignored in maps."""
    assert (input_data_format, do_resize, return_tensors) == ("channels_first", False, "pt")
    pixels = torch.from_numpy(np.stack(images).astype(np.float32))  # (B, C, S, S), of pairs (B, 2, C, S, S)
    outputs = SimpleNamespace(pixel_values=pixels.nan_to_num(0.0) / 100 - 1)
    if segmentation_maps is not None:
        assert maps_are_ids
        maps = torch.from_numpy(np.stack(segmentation_maps).astype(np.int64))
        assert maps.ndim == 3 and len(maps) == len(pixels)
        outputs.labels = maps.masked_fill(pixels.isnan().unflatten(0, (-1, 1)).flatten(1, -3).any(1), 255)
    return outputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def classes(tmp_path):
    return open_task("classification", class_folder(tmp_path / "classes", {"a": 9, "b": 8}), test_fraction=0)


@pytest.fixture
def maps(tmp_path):
    return open_task("segmentation", mask_folder(tmp_path / "maps", 14), test_fraction=0)


@pytest.fixture
def pairs(tmp_path):
    return open_task("change", mask_folder(tmp_path / "pairs", 6, ("image1", "image2"), classes=2), mask_values="ids")


def loader(data, plan, workers=0, part="train", mixing=None, **settings):
    samples = TaskSamples(getattr(data, part), ALL, seed=3, **settings)
    return DataLoader(
        samples, batch_sampler=plan, collate_fn=TaskCollator(processor, samples, mixing), num_workers=workers
    )


def steps(data, count, batch_size=3, rank=0, world=1, accumulation=1, **settings):
    plan = EpochPlan(data.train.table, batch_size, rank, world, accumulation, seed=3)
    return list(islice(loader(data, plan, **settings), count))


def collated(data, **settings):
    samples = TaskSamples(data.train, ALL, train=False)
    return TaskCollator(processor, samples, **settings)([samples[0, record] for record in data.train.table])


# Samples


def test_image_map_and_both_dates_are_cut_alike(pairs):
    samples = TaskSamples(pairs.train, ALL, seed=5)
    sample, decoded = samples[2, pairs.train.table[1]], pairs.train[1]
    view = ALL.draw(1, 2, 5, 16, 16)
    for got, image in zip(sample["images"], decoded.images):
        assert np.array_equal(got, view_of_image(image, view, SIZE))
    assert np.array_equal(sample["label_map"], view_of_map(decoded.label_map, view, SIZE))
    assert (sample["name"], sample["index"], sample["epoch"]) == (decoded.name, 1, 2)


def test_evaluation_sees_the_whole_image_in_any_epoch(maps):
    samples = TaskSamples(maps.train, ALL, train=False)
    decoded = maps.train[1]
    for epoch in (0, 3):
        sample = samples[epoch, maps.train.table[1]]
        assert np.array_equal(sample["images"][0], view_of_image(decoded.images[0], whole_view(16, 16), SIZE))
        assert np.array_equal(sample["label_map"], decoded.label_map[1::2, 1::2])


def test_repeated_samples_get_views_of_their_own(classes):
    twice = classes.train.subset(np.array([4, 4]))
    first, second = (TaskSamples(twice, ALL)[0, record] for record in twice.table)
    assert first["name"] == second["name"] and not np.array_equal(first["images"][0], second["images"][0])


def test_super_resolution_cuts_targets_where_it_cuts_images(tmp_path):
    for i in range(5):
        write(tmp_path, **{f"image/{i}.png": picture(i, 40, 36)})
    data = open_task("super_resolution", tmp_path, scale=2)
    decoded = data.train[0]
    for train, view in ((True, ALL.draw_window(0, 0, 0, 20, 18)), (False, ALL.centre_window(20, 18))):
        sample = TaskSamples(data.train, ALL, train=train)[0, data.train.table[0]]
        assert np.array_equal(sample["images"][0], view_of_image(decoded.images[0], view, 8))
        assert np.array_equal(sample["target"], view_of_image(decoded.target, view.enlarged(2), 16))
    batch = collated(data)
    assert batch["pixel_values"].shape == (3, 3, 8, 8) and batch["labels"].shape == (3, 3, 16, 16)
    torch.testing.assert_close(batch["labels"][0], torch.from_numpy(sample["target"]).float() / 100 - 1)
    with pytest.raises(ValueError, match=r"image image/\d.png: an image of 20 x 18 px holds no window of 19 px"):
        TaskSamples(data.train, Augmentation(19))[0, data.train.table[0]]


# Batches


def test_batches_of_each_task(classes, maps, pairs):
    batch = collated(classes)
    assert batch["pixel_values"].shape == (13, 3, SIZE, SIZE) and batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == classes.train.labels.tolist() and batch["labels"].dtype == torch.int64
    assert batch["index"].tolist() == list(range(13)) and batch["names"][0] == classes.train[0].name
    batch = collated(maps)
    assert batch["labels"].shape == (11, SIZE, SIZE) and batch["labels"].dtype == torch.int64
    assert batch["num_targets"] == 11 * SIZE * SIZE
    batch = collated(pairs)
    assert batch["pixel_values"].shape == (len(pairs.train), 2, 3, SIZE, SIZE)
    sample = TaskSamples(pairs.train, ALL, train=False)[0, pairs.train.table[1]]
    for date in range(2):
        expected = torch.from_numpy(sample["images"][date]).float() / 100 - 1
        torch.testing.assert_close(batch["pixel_values"][1, date], expected)
    assert np.array_equal(batch["labels"][1], sample["label_map"])


def test_pixels_that_one_date_lacks_are_ignored(tmp_path):
    for i in range(5):
        dates = np.random.default_rng(i).integers(1, 9, (2, 8, 8, 3)).astype(np.float32)
        dates[0, 0, :] = dates[1, :, 7] = -1
        files = {f"image{date + 1}/{i}.tif": raster_bytes(dates[date]) for date in range(2)}
        write(tmp_path, **files, **{f"mask/{i}.png": png(np.ones((8, 8), np.uint8))})
    data = open_task("change", tmp_path, mask_values="ids", nodata=-1)
    batch = collated(data)
    expected = np.ones((8, 8), int)
    expected[0, :] = expected[:, 7] = 255
    assert np.array_equal(batch["labels"][0], expected) and batch["num_targets"] == len(batch["labels"]) * 49


def test_what_the_processor_refuses_is_named(maps, monkeypatch):
    def refuse(images, **arguments):
        if any(image.sum() == bad for image in images):
            raise ValueError("too bright.")
        return processor(images, **arguments)

    samples = TaskSamples(maps.train, ALL, train=False)
    views = [samples[0, record] for record in maps.train.table]
    bad = views[3]["images"][0].sum()
    with pytest.raises(ValueError, match=f"image {views[3]['name']}: too bright."):
        TaskCollator(refuse, samples)(views)


def test_training_batches_are_mixed_by_their_step(classes):
    plain = steps(classes, 8)
    mixed = steps(classes, 8, mixing=Mixing())
    for before, after in zip(plain, mixed):
        mix = Mixing().draw(3, before["epoch"], before["step"], SIZE, SIZE)
        torch.testing.assert_close(after["pixel_values"], mix_images(before["pixel_values"], mix))
        torch.testing.assert_close(after["labels"], soft_targets(before["labels"], 2, 0.1, mix.lam))
        assert after["loss_weight"] == before["loss_weight"]


def test_mixing_is_for_classes(maps):
    with pytest.raises(ValueError, match="not for segmentation"):
        TaskCollator(processor, TaskSamples(maps.train, ALL), Mixing())


# Several processes


def losses(batch):
    """Per-sample losses of a fixed linear "model"; their mean is what a model returns."""
    pixels, labels = (batch[key].reshape(len(batch["labels"]), -1).double() for key in ("pixel_values", "labels"))
    return pixels.mean(1) * (1 + labels.mean(1))


@pytest.mark.parametrize("world, accumulation, batch_size", [(2, 1, 3), (1, 2, 3), (3, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize("name", ["classes", "maps"])
def test_the_mean_over_ranks_is_that_of_one_process(request, name, world, accumulation, batch_size):
    data = request.getfixturevalue(name)
    whole = steps(data, 7, 6)
    assert {len(batch["index"]) for batch in whole} >= {6, len(data.train) % 6}  # the epoch's odd end is among them
    shared = [steps(data, 7 * accumulation, batch_size, rank, world, accumulation) for rank in range(world)]
    for step, one in enumerate(whole):
        pieces = [rank[step * accumulation + a] for a in range(accumulation) for rank in shared]
        expected = losses(one).mean()
        total = sum(piece["loss_weight"].double() * losses(piece).mean() for piece in pieces)
        torch.testing.assert_close(total / (world * accumulation), expected, rtol=1e-6, atol=0)
        assert torch.equal(torch.cat([p["pixel_values"] for p in pieces if p["names"]]), one["pixel_values"])
        assert [n for piece in pieces for n in piece["names"]] == one["names"]
        assert sum(piece["num_targets"] for piece in pieces) == one["num_targets"]


@pytest.mark.parametrize("world, batch_size", [(1, 4), (2, 4), (3, 2), (4, 3), (20, 1)])
def test_evaluation_takes_each_sample_once_in_order(classes, world, batch_size):
    one = list(loader(classes, EvaluationPlan(classes.train.table, batch_size), train=False))
    expected = torch.cat([losses(batch) for batch in one]).mean()
    plans = [EvaluationPlan(classes.train.table, batch_size, rank, world) for rank in range(world)]
    ranks = [list(loader(classes, plan, train=False)) for plan in plans]
    assert {len(rank) for rank in ranks} == {len(plans[0])}  # all have the same number of steps to take
    batches = [batch for step in zip(*ranks) for batch in step]
    index = torch.cat([batch["index"] for batch in batches])
    assert index[index >= 0].tolist() == list(range(13))
    total = sum(batch["loss_weight"].double() * losses(batch).mean() for batch in batches)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for got, wanted in zip(batches, one):
        assert torch.equal(got["pixel_values"], wanted["pixel_values"])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world": 2}, {"rank": -1}])
def test_plans_that_cannot_be_are_refused(classes, wrong):
    with pytest.raises(ValueError, match="check both"):
        EvaluationPlan(classes.train.table, **{"batch_size": 2} | wrong)


def test_workers_and_resumed_runs_make_the_same_batches(maps):
    here = steps(maps, 6)
    there = steps(maps, 6, workers=2)
    plan = EpochPlan(maps.train.table, 3, seed=3, epoch_start=1, step_start=0)
    resumed = list(islice(loader(maps, plan), 2))
    for first, second in [*zip(here, there), *zip(here[4:], resumed)]:
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"]) and first["names"] == second["names"]
    assert [batch["epoch"] for batch in here] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", ["classes", "maps", "pairs"])
def test_a_rank_without_samples_takes_an_empty_step(request, name):
    data = request.getfixturevalue(name)
    samples = TaskSamples(data.train, ALL)
    real = TaskCollator(processor, samples)([samples[0, data.train.table[0]]])
    empty = TaskCollator(processor, samples)([samples[SampleKey(1, None, 0.0, 4)]])
    for key in ("pixel_values", "labels"):
        assert empty[key].shape == real[key].shape and empty[key].dtype == real[key].dtype
        assert not empty[key].any()
    assert (empty["loss_weight"], empty["num_targets"], empty["names"]) == (0, 0, [])
    assert empty["index"].tolist() == [-1] and (empty["epoch"], empty["step"]) == (1, 4)
    if name == "classes":
        soft = TaskCollator(processor, samples, Mixing())([samples[SampleKey(1, None, 0.0, 4)]])
        assert soft["labels"].shape == (1, 2)


def test_errors_of_workers_stay_one_sentence(classes, tmp_path):
    (tmp_path / "classes" / classes.train[0].name).write_bytes(b"")
    batches = loader(classes, EvaluationPlan(classes.train.table, 2), workers=1, train=False)
    with pytest.raises(ValueError, match=r"ValueError: image ./00.\.png cannot be read: zero bytes"):
        list(batches)
