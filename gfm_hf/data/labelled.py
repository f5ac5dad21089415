"""Labelled images of a folder or of Parquet files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gfm_hf.data.sources import IMAGE_SUFFIXES


@dataclass(frozen=True)
class LabelledImages:
    """Pictures kept compressed (a path or the bytes of a file) with one class each.

    Attributes:
        files: N paths or encoded files.
        labels: (N,) int64 class ids, 0 .. len(class_names) - 1.
        class_names: One name per id.
        splits: (N,) names of the part each picture belongs to, or None if the source does not say.
    """

    files: tuple[Path | bytes, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: np.ndarray | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.files)

    def subset(self, indices: np.ndarray) -> LabelledImages:
        """Return the pictures at `indices` (M,) int, or where `indices` (N,) bool is True."""
        chosen = np.arange(len(self))[indices]
        splits = None if self.splits is None else self.splits[chosen]
        return replace(self, files=tuple(self.files[i] for i in chosen), labels=self.labels[chosen], splits=splits)

    def picture(self, index: int, size: int | None = None) -> Image.Image:
        """Decode one picture to RGB; with `size`, scale its shorter side to it and cut the central square.

        Raises:
            ValueError: The file is not a picture.
        """
        file = self.files[index]
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            name = f"number {index}" if isinstance(file, bytes) else str(file)
            raise ValueError(f"Picture {name} cannot be decoded ({error}); remove or replace it.") from error
        return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)

    def pictures(self, size: int) -> np.ndarray:
        """Decode all pictures to one (N, size, size, 3) uint8 array."""
        return np.stack([np.asarray(self.picture(i, size)) for i in range(len(self))])


def open_labelled_images(
    data_dir: str | Path | None = None,
    parquet: str | Path | Sequence[str | Path] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    split_column_name: str | None = None,
) -> LabelledImages:
    """List the labelled pictures of a folder or of Parquet files, without decoding them.

    Args:
        data_dir: Folder with one sub-folder per class, searched to any depth.
        parquet: One or more Parquet files with an image and a label column; rows without a label (null, "" or below 0) are left out.
        image_column_name: Column of the pictures.
        label_column_name: Column of the classes (`ClassLabel`, whole numbers or names).
        split_column_name: Column that names the part of each row, such as "train" and "test".

    Raises:
        ValueError: Not exactly one source is given, it is missing, or it holds no labelled picture.
    """
    if (data_dir is None) == (parquet is None):
        raise ValueError("Give either a folder of class sub-folders or Parquet files, exactly one of the two.")
    if parquet is None:
        if split_column_name:
            raise ValueError("A folder has no columns; leave split_column_name out or give Parquet files.")
        return _from_folder(Path(str(data_dir)))
    paths = [parquet] if isinstance(parquet, str | Path) else list(parquet)
    return _from_parquet([str(path) for path in paths], image_column_name, label_column_name, split_column_name)


def _from_folder(folder: Path) -> LabelledImages:
    """List `folder/CLASS/**/picture`."""
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist; give one that holds a sub-folder per class.")
    classes = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    found = {d.name: sorted(p for p in d.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) for d in classes}
    found = {name: files for name, files in found.items() if files}
    if len(found) < 2:
        raise ValueError(
            f"{folder} has {len(found)} sub-folders with pictures ({', '.join(IMAGE_SUFFIXES)}); "
            "at least two classes, one sub-folder each, are needed."
        )
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    return LabelledImages(tuple(file for files in found.values() for file in files), labels, tuple(found))


def _from_parquet(paths: list[str], image_column: str, label_column: str, split_column: str | None) -> LabelledImages:
    """List the rows of Parquet files, pictures still encoded."""
    import datasets

    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"The Parquet file {missing[0]} does not exist; check the path.")
    table = datasets.load_dataset("parquet", data_files=paths, split="train")
    wanted = [image_column, label_column] + ([split_column] if split_column else [])
    absent = [column for column in wanted if column not in table.column_names]
    if absent:
        raise ValueError(
            f"There is no column '{absent[0]}' among {table.column_names}; "
            "name the columns with image_column_name, label_column_name and split_column_name."
        )
    classes = table.features[label_column]
    table = table.select_columns(wanted).cast_column(image_column, datasets.Image(decode=False))
    values = list(table[label_column])
    keep = np.array([v is not None and v != "" and (isinstance(v, str) or v >= 0) for v in values])
    present, labels = np.unique([v for v, kept in zip(values, keep, strict=True) if kept], return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"Column '{label_column}' names {len(present)} classes; at least two are needed.")
    names = classes.int2str(present.tolist()) if isinstance(classes, datasets.ClassLabel) else present.tolist()
    splits = np.array(table[split_column])[keep] if split_column else None
    files = tuple(
        cell["bytes"] or Path(cell["path"]) for cell, kept in zip(table[image_column], keep, strict=True) if kept
    )
    return LabelledImages(files, labels, tuple(str(name) for name in names), splits)
