import datasets
import numpy as np
import pytest

from gfm_hf.data.decoding import Record
from gfm_hf.data.rows import folder_of_classes, folder_of_columns, parquet_arguments, table_of_rows

from .sets import class_folder, mask, mask_folder, parquet, picture, write


IMAGES = [picture(i) for i in range(4)]


def open_parquet(source, columns=("image",), **settings):
    return table_of_rows(*parquet_arguments(source), columns, **settings)


def sizes(rows):
    return {part: len(one) for part, one in rows.parts.items()}


def test_classes_are_sorted_over_all_parts(tmp_path):
    class_folder(tmp_path, {"sea": 2, "land": 1}, "train/")
    class_folder(tmp_path, {"bog": 1, "sea": 1}, "val/")
    rows = folder_of_classes(tmp_path)
    assert rows.named and sizes(rows) == {"train": 3, "validation": 2} and rows.label_names == ("bog", "land", "sea")
    assert rows.parts["train"].labels == ["land", "sea", "sea"]
    record = rows.parts["validation"].value(0, "image")
    assert (record.name, record.path) == ("bog/000.png", str(tmp_path / "val" / "bog" / "000.png"))


def test_a_class_may_be_called_train(tmp_path):
    class_folder(tmp_path, {"train": 2, "ship": 1})
    rows = folder_of_classes(tmp_path)
    assert not rows.named and sizes(rows) == {"train": 3} and rows.label_names == ("ship", "train")


def test_files_of_one_row_have_one_name(tmp_path):
    mask_folder(tmp_path, 3, ("image1", "image2"))
    write(tmp_path, **{"image1/a.jpg": IMAGES[0], "image2/a.PNG": IMAGES[1], "mask/a.tif": mask(0)})
    write(tmp_path, **{"image1/.hidden.png": b"", "image1/notes.txt": b""})
    rows = folder_of_columns(tmp_path, ("image1", "image2", "mask"))
    assert len(rows.parts["train"]) == 4
    assert [rows.parts["train"].value(3, c).name for c in ("image1", "image2", "mask")] == [
        "image1/a.jpg", "image2/a.PNG", "mask/a.tif"
    ]  # fmt: skip
    chosen = rows.parts["train"].select([3, 0, 3])
    assert [chosen.value(i, "image1").name for i in range(3)] == ["image1/a.jpg", "image1/000.png", "image1/a.jpg"]


def test_folders_without_counterparts_are_refused(tmp_path):
    mask_folder(tmp_path, 2)
    write(tmp_path, **{"image/lonely.png": IMAGES[0]})
    with pytest.raises(ValueError, match=r"image/lonely.png has no counterpart of the same name in .*/mask"):
        folder_of_columns(tmp_path, ("image", "mask"))
    write(tmp_path, **{"mask/lonely.png": mask(0), "mask/lonely.tif": mask(0)})
    with pytest.raises(ValueError, match="lonely.tif have one name|lonely.tif and"):
        folder_of_columns(tmp_path, ("image", "mask"))
    with pytest.raises(ValueError, match="has no folder image2; it needs image, image2"):
        folder_of_columns(tmp_path, ("image", "image2"))
    with pytest.raises(ValueError, match="does not exist"):
        folder_of_classes(tmp_path / "none")
    with pytest.raises(ValueError, match="no sub-folders with images"):
        folder_of_classes(write(tmp_path, **{"x/y.txt": b""}) / "x")
    twice = class_folder(tmp_path / "twice", {"train/a": 1, "val/a": 1, "valid/a": 1})
    with pytest.raises(ValueError, match="names a part twice among train, val, valid"):
        folder_of_classes(twice)


def test_parts_of_parquet_come_from_file_names(tmp_path):
    for name, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("val", 1), ("test_128", 1)):
        parquet(tmp_path / f"{name}.parquet", image=IMAGES[:count], split=["train"] * count)
    rows = open_parquet(tmp_path)
    assert rows.named and sizes(rows) == {"train": 3, "validation": 1, "test": 1}
    parquet(tmp_path / "more.parquet", image=IMAGES[:1], split=["train"])
    with pytest.raises(ValueError, match="more.parquet names no part but other files do"):
        open_parquet(tmp_path)


def test_parts_of_parquet_come_from_a_column(tmp_path):
    path = parquet(
        tmp_path / "x.parquet",
        image=IMAGES,
        split=["val", "train", "unlabelled", "train"],
        own=["test"] * 4,
        n=[0, 1, 2, 3],
    )
    rows = open_parquet(path, label_columns=("n",))
    assert rows.named and {part: one.labels for part, one in rows.parts.items()} == {
        "train": [1, 3],
        "validation": [0],
    }
    assert rows.parts["train"].value(1, "image") == Record(3, "row 3", data=IMAGES[3])
    assert sizes(open_parquet(path, split_column="own")) == {"test": 4}
    plain = open_parquet(parquet(tmp_path / "y.parquet", image=IMAGES, split=["a", "b", "c", "d"]))
    assert not plain.named and sizes(plain) == {"train": 4}


def test_declared_classes_are_found(tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    path = parquet(tmp_path / "x.parquet", {"label": names}, image=IMAGES, label=[0, 1, 0, 1])
    assert open_parquet(path, label_columns=("label", "labels")).label_names == ("a", "b")
    path = parquet(
        tmp_path / "y.parquet", {"labels": datasets.List(names)}, image=IMAGES, labels=[[0], [], [0, 1], [1]]
    )
    rows = open_parquet(path, label_columns=("label", "labels"))
    assert rows.label_names == ("a", "b") and rows.parts["train"].labels == [[0], [], [0, 1], [1]]


def test_arrays_keep_their_type(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (4, 12, 5, 6)).astype(np.uint16)
    path = parquet(tmp_path / "x.parquet", {"image": datasets.Array3D((12, 5, 6), "uint16")}, image=values.tolist())
    value = open_parquet(path).parts["train"].value(2, "image")
    assert value.dtype == np.uint16 and np.array_equal(value, values[2])


def test_missing_and_useless_columns_are_named(tmp_path):
    path = parquet(tmp_path / "x.parquet", image=IMAGES, label=[1, 2, 3, 4])
    for settings in ({"columns": ("pixels",)}, {"label_columns": ("pixels",)}, {"split_column": "pixels"}):
        with pytest.raises(ValueError, match="has no column 'pixels' but 'image', 'label'"):
            open_parquet(path, **settings)
    with pytest.raises(ValueError, match="column 'label' holds .* neither images nor arrays"):
        open_parquet(path, columns=("label",))
    with pytest.raises(ValueError, match="--parquet .* matches no Parquet file"):
        open_parquet(tmp_path / "none")


def test_digests_change_with_content(tmp_path):
    path = parquet(tmp_path / "x.parquet", image=IMAGES)
    first = open_parquet(path).parts["train"].store.digest
    assert first == open_parquet(path).parts["train"].store.digest
    parquet(path, image=IMAGES[:3])
    assert first != open_parquet(path).parts["train"].store.digest
