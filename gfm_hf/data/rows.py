"""Folder, Parquet files or Hub data set -> rows of encoded images, masks and labels, cheap to list and to pickle."""

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gfm_hf.data.decoding import Record
from gfm_hf.data.sources import (
    IMAGE_SUFFIXES,
    digest_of_files,
    digest_of_lines,
    digest_of_names,
    holds_encoded_images,
    load_rows,
    parquet_files,
    record_of_row,
    visible_files,
)
from gfm_hf.data.splits import PARTS, part_of_name


# Between the names of columns whose bands are joined.
JOIN = "+"


@dataclass(frozen=True)
class FileStore:
    """Files below a folder, one list of names per column.

    Attributes:
        root: The folder.
        names: Column -> names below the folder, all of equal number.
        digest: Hex digest of names and sizes.
    """

    root: str
    names: dict[str, list[str]]
    digest: str

    @property
    def columns(self) -> list[str]:
        """Columns of images and masks."""
        return list(self.names)

    @property
    def arrays(self) -> dict[str, str]:
        """No column holds arrays."""
        return {}

    def value(self, i: int, column: str) -> Record:
        """Return the file of row i."""
        name = self.names[column][i]
        return Record(index=i, name=name, path=os.path.join(self.root, name))


@dataclass(frozen=True)
class TableStore:
    """A loaded data set whose images are left encoded.

    Attributes:
        dataset: A `datasets.Dataset` of the image columns.
        arrays: Columns of arrays -> dtype as stored; `datasets` hands small integers out as int64. A name such as
            "bands_10m+bands_20m" joins columns: see `joined_arrays`.
        digest: Hex digest of the data set.
    """

    dataset: Any
    arrays: dict[str, str]
    digest: str

    @property
    def columns(self) -> list[str]:
        """Columns of images and masks."""
        return list(self.dataset.column_names)

    def value(self, i: int, column: str) -> Record | np.ndarray:
        """Return the encoded image of row i, or its array."""
        if column not in self.arrays:
            return record_of_row(i, self.dataset[i][column])
        row, dtype = self.dataset[i], self.arrays[column]
        return joined_arrays([np.asarray(row[name], dtype=dtype) for name in split_name(column, row)])


def split_name(column: str, known: Container[str]) -> list[str]:
    """The columns that a name such as "bands_10m+bands_20m" joins; a column of that very name stands for itself."""
    return [column] if column in known else column.split(JOIN)


def joined_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack bands of several resolutions on the grid of the finest.

    Args:
        arrays: (C_i, H_i, W_i) of the same ground and dtype; one alone is returned as it is.

    Returns:
        (sum of C_i, H, W) in that dtype; H and W are the largest. Coarser bands are resized bilinearly.
    """
    if len(arrays) == 1:
        return arrays[0]
    height, width = (max(array.shape[axis] for array in arrays) for axis in (1, 2))
    planes = []
    for array in arrays:
        if array.shape[1:] != (height, width):
            coarse = torch.from_numpy(array.astype(np.promote_types(array.dtype, np.float32)))
            fine = F.interpolate(coarse[None], size=(height, width), mode="bilinear", align_corners=False)[0].numpy()
            array = (fine.round() if array.dtype.kind in "ui" else fine).astype(array.dtype)
        planes.append(array)
    return np.concatenate(planes)


Store = FileStore | TableStore


@dataclass(frozen=True)
class Rows:
    """Some rows of a store, in an order of their own.

    Attributes:
        store: Where they come from.
        positions: (N,) rows of the store; one may occur twice.
        labels: N raw labels (ids, names, lists of them, None where a row has none); None without a label column.
    """

    store: Store
    positions: np.ndarray
    labels: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def value(self, i: int, column: str) -> Record | np.ndarray:
        """Return an encoded image or mask of row i, or an array where the column holds arrays."""
        return self.store.value(int(self.positions[i]), column)

    def select(self, chosen: np.ndarray | Sequence[int]) -> "Rows":
        """Return the rows at these positions."""
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        return Rows(self.store, self.positions[np.asarray(chosen, dtype=np.int64)], labels)


@dataclass(frozen=True)
class RowSet:
    """What a source holds.

    Attributes:
        parts: "train", "validation" and "test" as far as the source names them; only "train" if it names none.
        label_names: Names of the classes as the source declares them, else None.
        description: The source in words, for logs.
        named: The source names its parts.
    """

    parts: dict[str, Rows]
    label_names: tuple[str, ...] | None
    description: str
    named: bool


def folder_of_classes(folder: Path) -> RowSet:
    """List `[part/]CLASS/**/image`; classes are sorted by name over all parts.

    Raises:
        ValueError: No such folder, or no sub-folders with images.
    """
    found = {part: _classes_below(root) for part, root in _parts_below(folder).items()}
    names = tuple(sorted({name for classes in found.values() for name in classes}))
    if not names:
        raise ValueError(
            f"--data_dir {folder} has no sub-folders with images; make one per class, and put the images in."
        )
    parts = {}
    for part, root in _parts_below(folder).items():
        files = [(name, file) for name in names for file in found[part].get(name, [])]
        rows = _file_rows(root, {"image": [file for _, file in files]})
        parts[part] = replace(rows, labels=[name for name, _ in files])
    return RowSet(parts, names, f"folder {folder.resolve().name}", len(parts) > 1 or found.keys() != {"train"})


def folder_of_columns(folder: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> RowSet:
    """List `[part/]COLUMN/**/file`; files of one row have the same name below their column, suffix apart.

    Args:
        folder: The folder.
        columns: Sub-folders that have to exist, the first one leads.
        optional: Sub-folders that may exist.

    Raises:
        ValueError: No such folder, a sub-folder or a counterpart is missing, or two files have one name.
    """
    roots = _parts_below(folder)
    parts = {part: _file_rows(root, _columns_below(root, columns, optional)) for part, root in roots.items()}
    return RowSet(parts, None, f"folder {folder.resolve().name}", len(parts) > 1 or roots["train"] != folder)


def table_of_rows(
    arguments: dict[str, Any],
    digest: str,
    description: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    label_columns: Sequence[str] = (),
    split_column: str | None = None,
) -> RowSet:
    """Load a data set and sort its rows into parts.

    Args:
        arguments: What `datasets.load_dataset` gets.
        digest: Hex digest of the files; empty: the one that `datasets` keeps.
        description: The source in words.
        columns: Columns of images and masks that have to exist.
        optional: Such columns that may exist.
        label_columns: Columns of the labels, the first one that exists counts; none: labels are not needed.
        split_column: Column that names each row's part; by default `split`, where there is one.

    Raises:
        ValueError: It cannot be loaded, a column is missing, or a column holds something else than images.
    """
    loaded = load_rows(arguments, description)
    if len(loaded) == 1:
        ((split, dataset),) = loaded.items()
        column = split_column or ("split" if "split" in dataset.features else None)
        parts = _sorted_by_column(part_of_name(split) or "train", dataset, column)
        if split_column in dataset.features and all(chosen is None for _, chosen in parts.values()):
            raise ValueError(
                f"column {split_column!r} of {description} names no parts; its values have to be train, validation or test."
            )
    elif split_column:
        raise ValueError(
            f"{description}: the parts are named already ({', '.join(loaded)}); leave --split_column_name out, or pass one of them."
        )
    else:  # splits such as "unlabelled" name no part and stay out
        named = {part_of_name(split): (dataset, None) for split, dataset in loaded.items()}
        parts = {part: pair for part, pair in named.items() if part}
    names = None
    rows: dict[str, Rows] = {}
    for part, (dataset, chosen) in parts.items():
        label_column = next((name for name in label_columns if name in dataset.features), "".join(label_columns[:1]))
        present = _present_columns(dataset, columns, optional, label_column, split_column, description)
        declared = _declared_names(dataset.features[label_column]) if label_column else None
        if rows and declared != names:
            raise ValueError(f"{description} declares other classes in {part} than before; give all parts the same.")
        names = declared
        rows[part] = _table_rows(dataset, present, digest, label_column, chosen)
    return RowSet(rows, names, description, set(rows) != {"train"})


def parquet_arguments(source: Any) -> tuple[dict[str, Any], str, str]:
    """Resolve Parquet files, sorted into parts by their names ("train-00000-of-00002.parquet", "val/x.parquet").

    Returns:
        Arguments of `datasets.load_dataset`, digest and description.

    Raises:
        ValueError: Nothing matches, or only some files name a part.
    """
    files = parquet_files(source, flag="--parquet")
    parts = [part_of_name(re.split(r"[-_.]", file.stem)[0]) or part_of_name(file.parent.name) for file in files]
    if None in parts and any(parts):
        odd = files[parts.index(None)]
        raise ValueError(
            f"--parquet {odd} names no part but other files do; begin all names with train, validation or test."
        )
    data_files: dict[str, list[str]] = {}
    for part, file in zip(parts, files):
        data_files.setdefault(part or "train", []).append(str(file))
    return (
        {"path": "parquet", "data_files": data_files},
        digest_of_files(files),
        f"{len(files)} Parquet file{'s' if len(files) > 1 else ''}",
    )


def _parts_below(folder: Path) -> dict[str, Path]:
    """Find the sub-folders that name parts; without them the folder itself is "train"."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"--data_dir {folder} {found}, but a folder is needed; check the path.")
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    parts = [part_of_name(name) for name in names]
    # A class may be called "train", so all sub-folders have to name parts.
    if "train" not in parts or None in parts:
        return {"train": folder}
    if len(set(parts)) < len(parts):
        raise ValueError(f"--data_dir {folder} names a part twice among {', '.join(names)}; keep one folder per part.")
    return {str(part): folder / name for part, name in zip(parts, names)}


def _images_below(folder: Path) -> list[str]:
    """List names of images below a folder, sorted."""
    return sorted(name for name in visible_files(folder) if name.lower().endswith(IMAGE_SUFFIXES))


def _classes_below(root: Path) -> dict[str, list[str]]:
    """List the images of each class folder, names below root."""
    classes: dict[str, list[str]] = {}
    for name in _images_below(root):
        head, _, rest = name.partition("/")
        if rest:
            classes.setdefault(head, []).append(name)
    return classes


def _columns_below(root: Path, columns: Sequence[str], optional: Sequence[str]) -> dict[str, list[str]]:
    """Match the files of all columns by name."""
    columns = [*columns, *(column for column in optional if (root / column).is_dir())]
    missing = [column for column in columns if not (root / column).is_dir()]
    if missing:
        raise ValueError(f"--data_dir: {root} has no folder {missing[0]}; it needs {', '.join(columns)}.")
    files = {column: _by_stem(root, column) for column in columns}
    leading = files[columns[0]]
    for column in columns[1:]:
        lonely = sorted(leading.keys() ^ files[column].keys())
        if lonely:
            has = columns[0] if lonely[0] in leading else column
            raise ValueError(
                f"{root / files[has][lonely[0]]} has no counterpart of the same name in "
                f"{root / (column if has == columns[0] else columns[0])}; add it, or take the file out."
            )
    return {column: [files[column][stem] for stem in sorted(leading)] for column in columns}


def _by_stem(root: Path, column: str) -> dict[str, str]:
    """Map names without suffix to names below root."""
    files: dict[str, str] = {}
    for name in _images_below(root / column):
        stem = os.path.splitext(name)[0]
        if stem in files:
            raise ValueError(f"{root / files[stem]} and {name} have one name, suffix apart; rename one of them.")
        files[stem] = f"{column}/{name}"
    return files


def _file_rows(root: Path, names: dict[str, list[str]]) -> Rows:
    """Wrap lists of files."""
    digest = digest_of_names(root, [name for column in names.values() for name in column])
    count = len(next(iter(names.values())))
    return Rows(FileStore(str(root), names, digest), np.arange(count))


def _present_columns(
    dataset: Any,
    columns: Sequence[str],
    optional: Sequence[str],
    label_column: str,
    split_column: str | None,
    description: str,
) -> list[str]:
    """Check that all needed columns exist; return the image columns that do."""
    parts = [name for column in columns for name in split_name(column, dataset.features)]
    needed = [column for column in (*parts, label_column, split_column) if column]
    for column in needed:
        if column not in dataset.features:
            raise ValueError(
                f"{description} has no column {column!r} but {', '.join(map(repr, dataset.features))}; name the columns "
                "with --image_column_name, --label_column_name and the like."
            )
    return [*columns, *(column for column in optional if column in dataset.features)]


def _declared_names(feature: Any) -> tuple[str, ...] | None:
    """Read the class names of a `ClassLabel`, or of a list of them."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
    names = getattr(inner, "names", None)
    return tuple(names) if names else None


def _sorted_by_column(part: str, dataset: Any, column: str | None) -> dict[str, tuple[Any, np.ndarray | None]]:
    """Sort the rows of one data set by the column that names their part; rows of no part stay out."""
    if column not in dataset.features:  # where a person named it, the check of columns says so
        return {part: (dataset, None)}
    own = [part_of_name(value) for value in dataset[column]]
    if not any(own):
        return {part: (dataset, None)}
    return {name: (dataset, np.flatnonzero([one == name for one in own])) for name in PARTS if name in own}


def _table_rows(
    dataset: Any, columns: Sequence[str], digest: str, label_column: str, chosen: np.ndarray | None
) -> Rows:
    """Wrap a data set, or the chosen rows of it."""
    digest = digest_of_lines([digest or dataset._fingerprint, str(dataset.split), *columns])
    labels = list(dataset[label_column]) if label_column else None
    rows = Rows(_table_store(dataset, columns, digest), np.arange(len(dataset)), labels)
    return rows if chosen is None else rows.select(chosen)


def _ratio(shape: tuple[int, ...]) -> float | None:
    """Height over width of arrays (bands, rows, columns); None of others."""
    return shape[1] / shape[2] if len(shape) == 3 else None


def _table_store(dataset: Any, columns: Sequence[str], digest: str) -> TableStore:
    """Leave images encoded and find the columns of arrays."""
    from datasets import Image as ImageFeature

    arrays: dict[str, str] = {}
    parts = {column: split_name(column, dataset.features) for column in columns}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    shapes = {name: getattr(dataset.features[name], "shape", ()) for name in names}
    dataset = dataset.select_columns(names)
    for name in names:
        feature = dataset.features[name]
        if holds_encoded_images(feature):
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
            continue
        if not hasattr(feature, "shape"):
            raise ValueError(f"column {name!r} holds {feature}, neither images nor arrays; name another column.")
        arrays[name] = feature.dtype
    for column, part in ((column, part) for column, part in parts.items() if len(part) > 1):
        dtypes = {arrays.get(name) for name in part}
        ratios = {_ratio(shapes[name]) for name in part}
        if None in dtypes | ratios or len(dtypes) > 1 or len(ratios) > 1:
            raise ValueError(
                f"columns {column} cannot be joined: all of them have to hold arrays (bands, rows, columns) of one dtype "
                "and of the same ground."
            )
        arrays[column] = str(dtypes.pop())
    return TableStore(dataset, arrays, digest)
