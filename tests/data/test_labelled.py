from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.labelled import open_labelled_images


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, **columns: list) -> Path:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": b, "path": None} for b in columns.pop("image")]
    features = datasets.Features({"image": datasets.Image(), **{k: _feature(datasets, v) for k, v in columns.items()}})
    datasets.Dataset.from_dict({"image": images, **columns}, features=features).to_parquet(path)
    return path


def _feature(datasets: object, values: list) -> object:
    kind = "string" if isinstance(values[0], str) else "int64"
    return datasets.Value(kind)  # type: ignore[attr-defined]


# ---- features


def test_folder_gives_classes_by_name_and_pictures_by_size(tmp_path: Path) -> None:
    for name, colour in (("b", (0, 0, 255)), ("a", (255, 0, 0))):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "1.PNG").write_bytes(png(colour, (20, 10)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    data = open_labelled_images(tmp_path)
    assert data.class_names == ("a", "b") and data.labels.tolist() == [0, 1] and data.splits is None
    pictures = data.pictures(6)
    assert pictures.shape == (2, 6, 6, 3) and pictures.dtype == np.uint8
    assert pictures[1, 0, 0].tolist() == [0, 0, 255]
    assert data.picture(0).size == (20, 10)
    assert data.subset(np.array([False, True])).labels.tolist() == [1]


def test_parquet_gives_names_splits_and_drops_unlabelled_rows(tmp_path: Path) -> None:
    images = [png((i, i, i)) for i in (10, 20, 30, 40)]
    path = write_parquet(
        tmp_path / "x.parquet", image=images, label=[7, -1, 3, 7], split=["train", "train", "val", "val"]
    )
    data = open_labelled_images(parquet=path, split_column_name="split")
    assert data.class_names == ("3", "7") and data.labels.tolist() == [1, 0, 1]
    assert data.splits is not None and data.splits.tolist() == ["train", "val", "val"]
    assert data.pictures(8)[:, 0, 0, 0].tolist() == [10, 30, 40]
    named = write_parquet(tmp_path / "y.parquet", image=images, label=["sea", "", "land", "sea"])
    assert open_labelled_images(parquet=[named]).class_names == ("land", "sea")


def test_wrong_sources_are_refused_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        open_labelled_images()
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled_images(tmp_path / "none")
    with pytest.raises(ValueError, match="at least two classes"):
        open_labelled_images(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled_images(parquet=tmp_path / "none.parquet")
    path = write_parquet(tmp_path / "x.parquet", image=[png((0, 0, 0))] * 2, label=[0, 1])
    with pytest.raises(ValueError, match="no column 'species'.*label_column_name"):
        open_labelled_images(parquet=path, label_column_name="species")
    with pytest.raises(ValueError, match="has no columns"):
        open_labelled_images(tmp_path, split_column_name="split")


def test_broken_picture_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="1.png cannot be decoded"):
        open_labelled_images(tmp_path).picture(0)
