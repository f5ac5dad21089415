import io
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.tasks import open_task

from .pictures import raster_bytes
from .sets import class_folder, mask, mask_folder, parquet, picture, png, write


IMAGES = [picture(i) for i in range(20)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def names(split):
    return [split[i].name for i in range(len(split))]


# Classification


def test_a_folder_of_classes(tmp_path):
    data = open_task("classification", class_folder(tmp_path, {"sea": 20, "land": 10}))
    assert data.label_names == ("land", "sea") and data.num_labels == 2 and data.scale == 1
    assert data.problem_type == "single_label_classification"
    assert [np.bincount(part.labels).tolist() for part in (data.train, data.validation, data.test)] == [
        [6, 12], [2, 4], [2, 4]
    ]  # fmt: skip
    everything = names(data.train) + names(data.validation) + names(data.test)
    assert len(set(everything)) == 30
    sample = data.train[17]
    assert (sample.index, sample.label, sample.label_map, sample.target) == (17, 1, None, None)
    assert sample.name.startswith("sea/") and sample.images[0].shape == (16, 16, 3)
    assert sample.images[0].dtype == np.uint8 and type(sample.label) is int
    cut = "(0.2 of it, cut by seed 0)"
    assert data.description.endswith(f"18 train (the rest), 6 validation {cut}, 6 test {cut}")
    with pytest.raises(IndexError, match="train part ends at 17"):
        data.train[18]


def test_the_parts_of_the_source_are_kept(tmp_path):
    for below, count in (("train/", 10), ("val/", 2), ("test/", 3)):
        class_folder(tmp_path, {"a": count, "b": count}, below)
    data = open_task("classification", tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 4, 6]
    assert data.description.endswith("20 train (of the source), 4 validation (of the source), 6 test (of the source)")


@pytest.mark.parametrize("own, expected", [("val", (16, 4, None)), ("test", (12, 4, 4))])
def test_missing_parts_are_cut_off_training(tmp_path, own, expected):
    """A source with validation and no test keeps its protocol; a test part is always left alone."""
    parts = ["train"] * 16 + [own] * 4
    data = open_task(
        "classification", parquet=parquet(tmp_path / "x.parquet", image=IMAGES, label=[0, 1] * 10, split=parts)
    )
    assert (len(data.train), len(data.validation), data.test and len(data.test)) == expected
    if own == "val":
        wanted = open_task("classification", parquet=tmp_path / "x.parquet", test_fraction=0.25)
        assert (len(wanted.train), len(wanted.validation), len(wanted.test)) == (12, 4, 4)


def test_training_share_leaves_the_other_parts(tmp_path):
    folder = class_folder(tmp_path, {"a": 50, "b": 20})
    whole, half, tenth, other = (
        open_task("classification", folder, train_fraction=f, seed=s)
        for f, s in ((1, 3), (0.5, 3), (0.1, 3), (0.1, 4))
    )
    assert np.bincount(half.train.labels).tolist() == [15, 6] and np.bincount(tenth.train.labels).tolist() == [3, 1]
    assert set(names(tenth.train)) < set(names(half.train)) < set(names(whole.train))
    assert names(tenth.train) != names(other.train)
    assert names(tenth.test) == names(whole.test) == names(other.test)
    assert names(tenth.validation) == names(other.validation)
    moved = open_task("classification", folder, split_seed=1)
    assert names(moved.test) != names(whole.test)
    assert "0.1 of them, seed 3" in tenth.description


def test_the_authors_subset_repeats(tmp_path):
    data = open_task(
        "classification", class_folder(tmp_path, {"a": 50, "b": 50}), train_fraction=0.9, authors_subset=True
    )
    chosen = np.random.default_rng(42).choice(60, 54)
    assert data.train.rows.positions.tolist() == open_task(
        "classification", tmp_path
    ).train.rows.positions[chosen].tolist()  # fmt: skip
    assert len(set(names(data.train))) < 54 == len(data.train)


def test_labels_of_columns(tmp_path):
    def opened(labels, **settings):
        path = parquet(
            tmp_path / "x.parquet", settings.pop("features", None), image=IMAGES[: len(labels)], species=labels
        )
        return open_task("classification", parquet=path, label_column_name="species", **settings)

    def found(data):
        parts = (data.train, data.validation, data.test)
        return {int(p) + 1: part.labels[i] for part in parts for i, p in enumerate(part.rows.positions)}

    named = opened(["sea", "land", "", None] + ["sea", "land"] * 5)
    assert named.label_names == ("land", "sea") and "2 rows without a label left out" in named.description
    assert found(named)[1] == 1 and found(named)[2] == 0 and 3 not in found(named)
    assert opened([7, -1, 3] + [7, 3] * 5).label_names == ("3", "7")
    assert opened([0, 2] * 6, num_labels=3).label_names == ("0", "1", "2")
    ordered = opened(["sea", "land"] * 6, label_names=["sea", "land"])
    assert found(ordered)[1] == 0
    declared = datasets.ClassLabel(names=["a", "b", "c"])
    assert opened([0, 2] * 6, features={"species": declared}).num_labels == 3  # b has no picture, ids stay


def test_several_labels(tmp_path):
    feature = {"labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))}
    path = parquet(tmp_path / "x.parquet", feature, image=IMAGES[:10], labels=[[0, 2], []] * 5)
    data = open_task("classification", parquet=path)
    assert data.problem_type == "multi_label_classification" and data.num_labels == 3
    assert {tuple(row) for row in data.train.labels.tolist()} == {(1, 0, 1), (0, 0, 0)}
    sample = data.train[0]
    assert sample.label.dtype == np.float32 and sample.label.shape == (3,)
    assert len(open_task("classification", parquet=path, train_fraction=0.5).train) == 3


ONE_HOT = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["int64", "float32", "bool"])
def test_multi_hot_lists_are_no_ids(tmp_path, kind):
    feature = {"label": datasets.List(datasets.Value(kind))}
    path = parquet(tmp_path / "x.parquet", feature, image=IMAGES[:12], label=ONE_HOT * 3)
    data = open_task("classification", parquet=path)
    assert data.problem_type == "multi_label_classification" and data.label_names == ("0", "1", "2")
    parts = [data.train, data.validation, data.test]
    found = {int(row): part.labels[i].tolist() for part in parts for i, row in enumerate(part.rows.positions)}
    assert [found[row] for row in range(12)] == ONE_HOT * 3
    assert open_task("classification", parquet=path, label_names=["a", "b", "c"]).label_names == ("a", "b", "c")
    with pytest.raises(ValueError, match="multi-hot lists of 3 but there are 2 classes, a, b;"):
        open_task("classification", parquet=path, label_names=["a", "b"])


def test_lists_that_repeat_nothing_are_ids(tmp_path):
    def found(labels, feature=None):
        path = parquet(tmp_path / "x.parquet", feature, image=IMAGES[: len(labels)], labels=labels)
        data = open_task("classification", parquet=path)
        return data.label_names, {tuple(row) for row in data.train.labels.tolist()}

    assert found([[0], [1]] * 5) == (("0", "1"), {(1, 0), (0, 1)})
    assert found([[0, 1], [1, 2]] * 5) == (("0", "1", "2"), {(1, 1, 0), (0, 1, 1)})
    assert found([[0, 1], []] * 5) == (("0", "1"), {(1, 1), (0, 0)})
    assert found([[1, 1], [0, 1]] * 5) == (("0", "1"), {(1, 1), (0, 1)})  # two places, since one list repeats
    # Where names say that numbers are ids, or labels are names, one may stand for several objects.
    declared = {"labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))}
    assert found([[0, 0, 1], [1, 1, 1]] * 5, declared) == (("a", "b", "c"), {(1, 1, 0), (0, 1, 0)})
    assert found([["sea", "sea"], ["land"]] * 5) == (("land", "sea"), {(0, 1), (1, 0)})


@pytest.mark.parametrize(
    "labels, feature, message",
    [
        ([[0, 2], [3, 3]] * 3, None, r"labels of row 1 of the train part are \[3, 3\]: no ids"),
        ([[0, 1], [0, 1, 1]] * 3, None, r"labels of row 1 of the train part are \[0, 1, 1\]: no ids"),
        ([[0, 1], [1, 0]] * 3, None, "either multi-hot or both classes"),
        ([[0, 1], [2, None]] * 3, None, r"labels of row 1 of the train part are \[2, None\]; take None out"),
        ([["a"], ["b", None]] * 3, None, "labels of row 1 of the train part"),
        ([[0], [1, None]] * 3, datasets.ClassLabel(names=["a", "b"]), "labels of row 1 of the train part"),
    ],
)
def test_lists_that_mean_nothing_are_named(tmp_path, labels, feature, message):
    features = {"labels": datasets.List(feature)} if feature else None
    path = parquet(tmp_path / "x.parquet", features, image=IMAGES[:6], labels=labels)
    with pytest.raises(ValueError, match=message):
        open_task("classification", parquet=path)


@pytest.mark.parametrize(
    "labels, settings, message",
    [
        ([1] * 10, {}, "has 1 class with labelled images"),
        ([0, 1, 5] * 3, {"num_labels": 3}, "has the label 5 but the 3 classes are 0, 1, 2"),
        (["a", "b"] * 5, {"label_names": ["a", "c"]}, "has the label 'b' but the 2 classes are a, c"),
        ([0, 1] * 5, {"label_names": ["a", "c"], "num_labels": 3}, "label_names are 2 but num_labels is 3"),
        ([0, 1] * 5, {"num_labels": 1}, "at least two classes"),
        ([0, 1] * 5, {"label_names": ["roof"]}, "label_names is roof alone but at least two classes"),
        ([0, 1] * 5, {"validation_fraction": 0.6, "test_fraction": 0.5}, "leave nothing to train on"),
        ([0, 1] * 5, {"validation_fraction": 0}, "no validation part"),
        ([0, 1] * 5, {"train_fraction": 0}, "train_fraction is 0"),
        ([0, 1], {}, "the validation part of 1 Parquet file is empty"),
    ],
)
def test_sets_that_cannot_be_trained_on(tmp_path, labels, settings, message):
    path = parquet(tmp_path / "x.parquet", image=IMAGES[: len(labels)], label=labels)
    with pytest.raises(ValueError, match=message):
        open_task("classification", parquet=path, **settings)


def test_words_and_sources_are_checked(tmp_path):
    with pytest.raises(ValueError, match="task is 'detection' but must be one of classification"):
        open_task("detection", tmp_path)
    with pytest.raises(ValueError, match="mask_values is 'gray'"):
        open_task("segmentation", tmp_path, mask_values="gray")
    with pytest.raises(ValueError, match="no source given, but exactly one"):
        open_task("classification")
    with pytest.raises(ValueError, match="--data_dir and --parquet given"):
        open_task("classification", tmp_path, tmp_path)
    path = parquet(tmp_path / "x.parquet", image=IMAGES[:4], label=[0, 1] * 2, split=["val"] * 4)
    with pytest.raises(ValueError, match="has no training part"):
        open_task("classification", parquet=path)


def test_a_data_set_by_name(tmp_path):
    """A folder stands for the Hub: its splits become parts, those of other names stay out."""
    for split, count in (("train", 8), ("validation", 2), ("extra", 3)):
        parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet", image=IMAGES[:count], label=([0, 1] * 4)[:count])
    write(tmp_path, **{"set/README.md": (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {s}-*.parquet\n" for s in ("train", "validation", "extra"))
        + "---\n"
    ).encode()})  # fmt: skip
    data = open_task("classification", dataset_name=str(tmp_path / "set"))
    assert (len(data.train), len(data.validation), data.test) == (8, 2, None)


# Maps


def test_segmentation_folder(tmp_path):
    data = open_task("segmentation", mask_folder(tmp_path, 10))
    assert data.label_names == ("0", "1", "2") and (len(data.train), len(data.validation), len(data.test)) == (6, 2, 2)
    sample = data.train[0]
    number = int(sample.name[6:9])
    assert np.array_equal(png(sample.label_map), mask(number)) and sample.label is None
    assert np.array_equal(png(sample.images[0]), picture(10 * number))


def test_pairs_and_bright_masks(tmp_path):
    mask_folder(tmp_path, 10, ("image1", "image2"))
    for i in range(10):
        write(tmp_path, **{f"mask/{i:03d}.png": png((np.arange(256).reshape(16, 16) > 20 * i).astype(np.uint8) * 255)})
    data = open_task("change", tmp_path)
    assert data.label_names == ("no change", "change")
    sample = data.train[0]
    number = int(sample.name[7:10])
    assert [png(image) for image in sample.images] == [picture(10 * number), picture(10 * number + 1)]
    assert np.array_equal(sample.label_map.ravel(), np.arange(256) > 20 * number)
    # One pixel of class 1 and 255 means "ignore" in the whole set, also in masks of 0 and 255 alone.
    odd = np.zeros((16, 16), np.uint8)
    odd[0, 0] = 1
    write(tmp_path, **{"mask/000.png": png(odd)})
    data = open_task("change", tmp_path)
    assert {*np.unique(np.concatenate([data.train[i].label_map for i in range(6)]))} <= {0, 1, 255}
    assert 255 in np.concatenate([data.train[i].label_map for i in range(6)])


def test_maps_without_a_survey_are_checked_when_read(tmp_path):
    mask_folder(tmp_path, 4)
    data = open_task("segmentation", tmp_path, mask_values="ids", num_labels=2)
    with pytest.raises(ValueError, match=r"mask mask/00\d.png holds the id 2 .* correct the mask or --num_labels"):
        data.train[0]
    pairs = mask_folder(tmp_path / "pairs", 4, ("image1", "image2"))
    with pytest.raises(ValueError, match="holds the id 2 .* correct the mask, or pass"):  # there is no such flag
        open_task("change", pairs, mask_values="ids").train[0]
    assert open_task("segmentation", tmp_path, label_names=["a", "b", "c", "d"]).num_labels == 4
    with pytest.raises(ValueError, match=r"mask mask/000.png holds 2 and .*--mask_values ids .*--mask_threshold 1"):
        open_task("segmentation", tmp_path, mask_values="binary")
    write(tmp_path, **{"mask/003.png": png(np.full((16, 16), 128, np.uint8))})
    assert open_task("segmentation", tmp_path, mask_values="binary").num_labels == 2


@pytest.mark.parametrize("levels, told", [(256, "holds 255|holds 254"), (65536, r"holds 65\d\d\d")])
def test_levels_do_not_become_classes(tmp_path, levels, told):
    mask_folder(tmp_path, 5, classes=2)
    noise = np.random.default_rng(0).integers(0, levels, (16, 16)).astype(np.uint16)
    write(tmp_path, **{"mask/002.png": png(noise)})
    with pytest.raises(ValueError, match=f"mask mask/002.png ({told}).*--num_labels"):
        open_task("segmentation", tmp_path)
    assert open_task("segmentation", tmp_path, num_labels=levels).num_labels == levels
    write(tmp_path, **{"mask/002.png": jpeg(noise.astype(np.uint8) % 2)})
    with pytest.raises(ValueError, match="mask mask/002.png is a JPEG"):
        open_task("segmentation", tmp_path)


def test_transparent_pixels_of_masks_are_ignored(tmp_path):
    mask_folder(tmp_path, 5)
    alpha = np.full((16, 16), 255, np.uint8)
    alpha[:4] = 0
    for bright in (False, True):
        for i in range(5):
            ids = np.random.default_rng(i).integers(0, 2, (16, 16)).astype(np.uint8)
            write(tmp_path, **{f"mask/{i:03d}.png": png(np.dstack([ids * (255 if bright else 1)] * 3 + [alpha]))})
        data = open_task("segmentation", tmp_path)
        assert data.num_labels == 2 and data.train.reading.mask_values == ("binary" if bright else "ids")
        label_map = data.train[0].label_map
        assert (label_map[:4] == 255).all() and set(np.unique(label_map[4:])) == {0, 1}


def test_masks_in_colour_need_a_reader(tmp_path):
    mask_folder(tmp_path, 5)
    for i in range(5):
        write(tmp_path, **{f"mask/{i:03d}.png": picture(i)})
    with pytest.raises(ValueError, match=r"mask/000.png is in colour .* --palette"):
        open_task("segmentation", tmp_path)

    def red_half(picture, name):
        assert picture.mode == "RGB" and name.startswith("mask mask/00")
        return np.where(np.asarray(picture)[..., 0] < 128, 255, np.asarray(picture)[..., 1] // 128)

    data = open_task("segmentation", tmp_path, mask_reader=red_half)
    assert data.num_labels == 2 and set(np.unique(data.train[0].label_map)) == {0, 1, 255}
    # What a reader gives are ids: 0 and 255 alone are background and nothing known.
    with pytest.raises(ValueError, match="masks hold 1 class, 0"):
        open_task("segmentation", tmp_path, mask_reader=lambda picture, name: np.asarray(picture)[..., 0] // 128 * 255)
    with pytest.raises(ValueError, match="--do_reduce_labels.* two answers"):
        open_task("segmentation", tmp_path, mask_reader=red_half, mask_values="ids")


def broken(folder, **files):
    """Put the same bad file in every place of a column."""
    for path in folder.rglob("*.png"):
        if path.parent.name in files:
            path.write_bytes(files[path.parent.name])
    return folder


@pytest.mark.parametrize(
    "task, files, message",
    [
        ("segmentation", {"mask": mask(0, height=15)}, r"mask mask/00\d.png is 15 x 16 px but its image 16 x 16 px"),
        ("segmentation", {"image": b"<html>"}, r"image image/00\d.png cannot be read: an HTML page"),
        ("segmentation", {"image": b""}, r"image image/00\d.png cannot be read: zero bytes"),
        ("change", {"image2": picture(0, 16, 15)}, r"pair image1/00\d.png is 16 x 16 px before and 16 x 15 px after"),
    ],
)
def test_bad_files_are_named(tmp_path, task, files, message):
    columns = ("image1", "image2") if task == "change" else ("image",)
    folder = broken(mask_folder(tmp_path, 5, columns, classes=2), **files)
    with pytest.raises(ValueError, match=message) as caught:
        open_task(task, folder, mask_values="ids", num_labels=2)
    assert type(caught.value) is ValueError  # others do not survive the way out of a worker


def parts_folder(folder, columns=("image", "mask"), classes=2):
    """Two rows in each part; "mask" is a mask, all else are images."""
    for part in ("train", "val", "test"):
        for i in range(2):
            files = {c: mask(i, classes) if c == "mask" else picture(i) for c in columns}
            write(folder, **{f"{part}/{column}/{i}.png": data for column, data in files.items()})
    return folder


IDS = {"mask_values": "ids", "num_labels": 2}
SIZES = [
    ("segmentation", ("image", "mask"), "mask", IDS, r"mask mask/1.png is 15 x 16 px but its image 16 x 16 px"),
    ("change", ("image1", "image2", "mask"), "image2", {}, r"pair image1/1.png is 16 x 16 px before and 15 x 16 px"),
    ("change", ("image1", "image2", "mask"), "mask", {"mask_values": "ids"}, "mask mask/1.png is 15 x 16 px"),
    ("super_resolution", ("image", "target"), "target", {"scale": 1}, "target target/1.png is 15 x 16 px but 1 times"),
]


@pytest.mark.parametrize("task, columns, column, settings, message", SIZES)
@pytest.mark.parametrize("part", ["val", "test"])
def test_sizes_of_late_parts_are_known_at_once(tmp_path, monkeypatch, part, task, columns, column, settings, message):
    folder = parts_folder(tmp_path, columns)
    data = open_task(task, folder, **settings)
    assert len(data.test) == 2
    write(folder, **{f"{part}/{column}/1.png": mask(1, 2, 15) if column == "mask" else picture(1, 15)})
    with pytest.raises(ValueError, match=message):
        open_task(task, folder, **settings)


def test_sizes_are_read_from_headers_alone(tmp_path, monkeypatch):
    folder = parts_folder(tmp_path)
    monkeypatch.setattr("gfm_hf.data.reading.decode", None)
    monkeypatch.setattr("gfm_hf.data.reading.open_mask", None)
    open_task("segmentation", folder, **IDS)
    write(folder, **{"train/mask/1.png": mask(1, 2, 15)})
    open_task("segmentation", folder, **IDS)  # the first epoch tells
    monkeypatch.undo()
    for settings in ({"num_labels": 2}, {"mask_values": "ids"}):  # where all masks are read anyway, training too
        with pytest.raises(ValueError, match=r"mask mask/1.png is 15 x 16 px but its image 16 x 16 px"):
            open_task("segmentation", folder, **settings)


def test_what_has_no_header_is_left_to_the_reader(tmp_path):
    folder = parts_folder(tmp_path, ("image", "target"))
    write(folder, **{"val/image/1.png": b"<html>", "val/target/1.png": b"<html>"})
    with pytest.raises(ValueError, match="image image/1.png cannot be read: an HTML page"):
        open_task("super_resolution", folder, scale=1)


def test_sizes_of_turned_pictures_and_of_rasters(tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x112] = 6
    for part in ("train", "val"):
        for i in range(2):
            write(tmp_path / "phone" / part, **{
                f"image/{i}.jpg": jpeg(np.zeros((12, 16, 3), np.uint8), exif=turned), f"mask/{i}.png": mask(i, 2, 16, 12)
            })  # fmt: skip
            pixels = np.zeros((16, 12, 5), np.uint16)
            files = {"image": raster_bytes(pixels), "mask": raster_bytes(np.ones((16, 12 - i, 1), np.int32))}
            write(tmp_path / "raster" / part, **{f"{column}/{i}.tif": data for column, data in files.items()})
    assert open_task("segmentation", tmp_path / "phone", **IDS).validation[0].images[0].shape == (16, 12, 3)
    for i in range(2):
        write(tmp_path / "phone" / "val", **{f"mask/{i}.png": mask(i, 2, 12, 16)})
    with pytest.raises(ValueError, match="mask mask/0.png is 12 x 16 px but its image 16 x 12 px"):
        open_task("segmentation", tmp_path / "phone", **IDS)
    with pytest.raises(ValueError, match="mask mask/1.tif is 16 x 11 px but its image 16 x 12 px"):
        open_task("segmentation", tmp_path / "raster", num_channels=5, **IDS)
    write(tmp_path / "raster" / "val", **{"mask/1.tif": raster_bytes(np.ones((16, 12, 1), np.int32))})
    monkeypatch.setattr("gfm_hf.data.reading.decode", None)  # no pixel is needed
    open_task("segmentation", tmp_path / "raster", num_channels=5, **IDS)


def test_sizes_inside_tables(tmp_path):
    columns = {"image": IMAGES[:6], "mask": [mask(i, 2) for i in range(5)] + [mask(5, 2, 15)]}
    parquet(tmp_path / "x.parquet", **columns, split=["train"] * 4 + ["val", "test"])
    with pytest.raises(ValueError, match="mask row 5 is 15 x 16 px but its image 16 x 16 px"):
        open_task("segmentation", parquet=tmp_path / "x.parquet", **IDS)


def test_masks_that_teach_nothing_are_refused(tmp_path):
    folder = broken(mask_folder(tmp_path, 5), mask=png(np.full((16, 16), 255, np.uint8)))
    with pytest.raises(ValueError, match="masks hold no class"):
        open_task("segmentation", folder)
    broken(folder, mask=png(np.full((16, 16), 3, np.uint8)))
    with pytest.raises(ValueError, match="masks hold 1 class, 3"):
        open_task("segmentation", folder)
    broken(folder, mask=b"")
    with pytest.raises(ValueError, match=r"mask mask/000.png cannot be read: zero bytes; replace it"):
        open_task("segmentation", folder)


# Bands


def test_rasters_of_any_band_count(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 9000, (10, 16, 14, 12)).astype(np.uint16)
    pixels[:, :2] = 9999
    pixels[:, 5, :, 3] = 9999  # one band alone may well have this value
    for i in range(10):
        write(tmp_path, **{f"{'ab'[i % 2]}/{i}.tif": raster_bytes(pixels[i])})
    data = open_task("classification", tmp_path, num_channels=12)
    sample = data.train[0]
    assert sample.images[0].dtype == np.uint16
    assert np.array_equal(sample.images[0], pixels[int(sample.name[2])])
    holed = open_task("classification", tmp_path, num_channels=12, nodata=9999).train[0].images[0]
    assert holed.dtype == np.float32 and np.isnan(holed[:2]).all() and np.array_equal(holed[2:], sample.images[0][2:])
    assert open_task("classification", tmp_path).train.fingerprint != data.train.fingerprint
    with pytest.raises(ValueError, match=r".tif has 12 bands but the model has 3"):
        open_task("classification", tmp_path).train[0]


def test_colours_follow_the_model(tmp_path):
    class_folder(tmp_path, {"a": 5, "b": 5})
    plain = open_task("classification", tmp_path).train[0].images[0]
    swapped = open_task("classification", tmp_path, rgb_channels=(2, 1, 0)).train[0].images[0]
    assert np.array_equal(swapped, plain[..., ::-1])
    grey = open_task("classification", tmp_path, num_channels=1).train[0].images[0]
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(plain).convert("L")))


def test_arrays_of_columns(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (10, 6, 8, 9)).astype(np.uint16)
    maps = values[:, 0] % 3
    path = parquet(
        tmp_path / "x.parquet",
        {"image": datasets.Array3D((6, 8, 9), "uint16"), "mask": datasets.Array2D((8, 9), "uint8")},
        image=values.tolist(),
        mask=maps.tolist(),
    )
    data = open_task("segmentation", parquet=path, num_channels=6)
    sample = data.train[0]
    row = int(sample.name[4:])
    assert np.array_equal(sample.images[0], values[row].transpose(1, 2, 0)) and sample.images[0].dtype == np.uint16
    assert np.array_equal(sample.label_map, maps[row])


def test_a_column_of_parts_that_names_none_is_refused(tmp_path):
    """Not passed over in silence: the parts would be other ones than asked for."""
    rows = {
        "image": [Image.open(io.BytesIO(picture(i))) for i in range(10)],
        "label": [0, 1] * 5,
        "area": list(range(10)),
    }
    table = datasets.Dataset.from_dict(rows)
    (tmp_path / "both").mkdir()
    (tmp_path / "one").mkdir()
    for part in ("train", "test"):
        table.to_parquet(tmp_path / "both" / f"{part}.parquet")
    table.to_parquet(tmp_path / "one" / "data.parquet")
    with pytest.raises(ValueError, match="'area' of .* names no parts"):
        open_task("classification", parquet=tmp_path / "one", split_column_name="area")
    with pytest.raises(ValueError, match="the parts are named already .test, train."):
        open_task("classification", parquet=tmp_path / "both", split_column_name="area")


# Super-resolution


def test_bands_of_several_columns(tmp_path):
    """Fine bands stay, coarse ones are resized; columns that do not go together are named."""
    rng = np.random.default_rng(0)
    fine, coarse = (rng.integers(0, 9000, (6, *shape)).astype(np.uint16) for shape in ((2, 12, 12), (3, 6, 6)))
    kinds = {"fine": datasets.Array3D((2, 12, 12), "uint16"), "coarse": datasets.Array3D((3, 6, 6), "uint16")}
    features = datasets.Features(
        kinds | {"other": datasets.Array3D((1, 4, 4), "uint8"), "label": datasets.Value("int64")}
    )
    other = np.zeros((6, 1, 4, 4), np.uint8)
    rows = {"fine": list(fine), "coarse": list(coarse), "other": list(other), "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    options = {"num_channels": 5, "validation_fraction": 0.34, "test_fraction": 0}
    data = open_task("classification", parquet=tmp_path / "a.parquet", image_column_name="fine+coarse", **options)
    sample = data.train[0]
    row, pixels = int(data.train.rows.positions[0]), sample.images[0]
    assert pixels.shape == (12, 12, 5) and pixels.dtype == np.uint16
    assert np.array_equal(pixels[..., :2], fine[row].transpose(1, 2, 0))
    # Bilinear by a factor of 2: a corner keeps its value, its neighbour inside is 3/4 of it and 1/4 of the next one.
    assert np.array_equal(pixels[0, 0, 2:], coarse[row, :, 0, 0])
    between = (0.75 * coarse[row, :, 0, 0] + 0.25 * coarse[row, :, 0, 1]).round()
    assert np.abs(pixels[0, 1, 2:] - between).max() <= 1
    odd = open_task(
        "classification",
        parquet=tmp_path / "a.parquet",
        image_column_name="fine+coarse",
        **options | {"num_channels": 3},
    )
    with pytest.raises(ValueError, match="has 5 bands but the model has 3"):
        odd.train[0]
    for name, says in (("fine+nothing", "no column 'nothing'"), ("fine+other", "cannot be joined")):
        with pytest.raises(ValueError, match=says):
            open_task("classification", parquet=tmp_path / "a.parquet", image_column_name=name, **options)


def test_pairs_of_arrays(tmp_path):
    features = {"image": datasets.Array3D((3, 4, 5), "uint8"), "target": datasets.Array3D((3, 8, 10), "uint8")}
    low, high = (np.zeros((5, 3, side, side // 4 * 5), np.uint8).tolist() for side in (4, 8))
    data = open_task("super_resolution", parquet=parquet(tmp_path / "x.parquet", features, image=low, target=high))
    assert data.scale == 2 and data.test[0].target.shape == (8, 10, 3)


def test_targets_are_lowered_where_there_is_no_low_image(tmp_path):
    for i in range(5):
        write(tmp_path, **{f"image/{i}.png": picture(i, 19, 16)})
    data = open_task("super_resolution", tmp_path, scale=4)
    sample = data.train[0]
    assert data.scale == 4 and data.num_labels == 0 and sample.images[0].shape == (4, 4, 3)
    full = np.asarray(Image.open(tmp_path / sample.name))
    assert np.array_equal(sample.target, full[:16])
    expected = np.asarray(Image.fromarray(full[:16]).resize((4, 4), Image.Resampling.BICUBIC))
    difference = sample.images[0].astype(int) - expected
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.2  # rounded, not cut off
    for scale in (None, 1, 0):
        with pytest.raises(ValueError, match="pass --scale 2, 3 or 4"):
            open_task("super_resolution", tmp_path, scale=scale)
    with pytest.raises(ValueError, match="too small to be lowered by 20"):
        open_task("super_resolution", tmp_path, scale=20)


def test_pairs_of_two_resolutions(tmp_path):
    for i in range(5):
        write(tmp_path, **{f"image/{i}.png": picture(i, 8, 9), f"target/{i}.png": picture(i, 34, 36)})
    data = open_task("super_resolution", tmp_path)
    sample = data.train[0]
    assert data.scale == 4 and sample.images[0].shape == (8, 9, 3)
    full = np.asarray(Image.open(tmp_path / "target" / sample.name[6:]))
    assert np.array_equal(sample.target, full[:32])  # two rows too many are less than a low-resolution pixel
    with pytest.raises(ValueError, match=r"target target/\d.png is 34 x 36 px but 3 times its image is 24 x 27 px"):
        open_task("super_resolution", tmp_path, scale=3)


# Passing on


def test_parts_pickle_and_fingerprints_tell_sets_apart(tmp_path):
    folder = class_folder(tmp_path / "folder", {"a": 10, "b": 10})
    path = parquet(tmp_path / "x.parquet", image=IMAGES, label=[0, 1] * 10)
    for arguments in ({"data_dir": folder}, {"parquet": path}):
        data = open_task("classification", **arguments)
        copy = pickle.loads(pickle.dumps(data))
        assert np.array_equal(copy.train[3].images[0], data.train[3].images[0])
        again = open_task("classification", **arguments)
        assert copy.fingerprint == data.fingerprint == again.fingerprint
        for change in ({"train_fraction": 0.5}, {"split_seed": 1}, {"num_channels": 1}):
            assert open_task("classification", **arguments, **change).fingerprint != data.fingerprint


def test_the_table_for_plans_reads_nothing(tmp_path):
    data = open_task("classification", class_folder(tmp_path, {"a": 10, "b": 10}))
    broken(tmp_path, a=b"", b=b"")
    table = data.train.table
    assert len(table) == 12 and table[3].index == 3 and table[3].path is None and table[3].data is None
    assert table.description == "the train part of 12 samples"
