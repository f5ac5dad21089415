"""Labelled sets of the four tasks: opened once, cut into parts, read sample by sample.

`open_task` lists a set without decoding its images. A part (`TaskSplit`) decodes one sample at a time, by position, so
workers share nothing and every error names its file.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gfm_hf.data.decoding import Record
from gfm_hf.data.label_maps import MASK_VALUES, Mask, check_bright, check_number_of_ids, check_plausible, survey
from gfm_hf.data.reading import TASKS, MaskReader, Reading, TaskSample
from gfm_hf.data.rows import Rows, RowSet, folder_of_classes, folder_of_columns, parquet_arguments, table_of_rows
from gfm_hf.data.sources import ImageTable, digest_of_lines
from gfm_hf.data.splits import PARTS, cut_off, nested_subset, subset_with_repetition


@dataclass(frozen=True)
class TaskSplit:
    """One part of a labelled set; `split[i]` decodes sample i. Holds no pixels, pickles.

    Attributes:
        name: "train", "validation" or "test".
        rows: Its rows, images encoded.
        labels: (N,) int64 ids or (N, K) float32 multi-hot; None but for classification.
        reading: How rows become samples.
    """

    name: str
    rows: Rows
    labels: np.ndarray | None
    reading: Reading

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TaskSample:
        """Decode one sample.

        Raises:
            IndexError: There is no such sample.
            ValueError: Unreadable file, wrong band count, sizes that do not go together, an id of no class; the
                message names the file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} does not exist; the {self.name} part ends at {len(self) - 1}.")
        label = None if self.labels is None else self.labels[index]
        # One element of (N,) is a NumPy number, one row of (N, K) an array.
        return self.reading.sample(self.rows, index, int(label) if isinstance(label, np.integer) else label)

    @property
    def table(self) -> ImageTable:
        """The positions alone, for `EpochPlan`: nothing is read before a worker asks for sample `record.index`."""
        description = f"the {self.name} part of {len(self)} samples"
        return ImageTable(len(self), self._position, self.fingerprint, description)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the store, the rows chosen, their labels and the way they are read."""
        labels = "" if self.labels is None else self.labels.tobytes().hex()
        positions = self.rows.positions.astype(np.int64).tobytes().hex()
        return digest_of_lines([self.name, self.rows.store.digest, positions, labels, repr(self.reading)])

    def subset(self, chosen: np.ndarray) -> "TaskSplit":
        """Return the samples at these positions, renumbered; a position may occur twice."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, rows=self.rows.select(chosen), labels=labels)

    def _position(self, index: int) -> Record:
        return Record(index=index, name=f"{self.name} {index}")


@dataclass(frozen=True)
class TaskData:
    """A labelled set, ready for training.

    Attributes:
        task: One of `TASKS`.
        train: What to learn from.
        validation: What to choose by.
        test: What to report; None where the source brings a validation part but no test part.
        label_names: K names of classes; empty for super-resolution.
        problem_type: "single_label_classification" or "multi_label_classification"; None for other tasks.
        scale: Target px per image px, a side; 1 but for super-resolution.
        description: Source, sizes and origin of the parts, for logs and cards.
        fingerprint: Hex digest that changes with the content, the parts and the reading.
    """

    task: str
    train: TaskSplit
    validation: TaskSplit
    test: TaskSplit | None
    label_names: tuple[str, ...]
    problem_type: str | None
    scale: int
    description: str
    fingerprint: str

    @property
    def num_labels(self) -> int:
        """K."""
        return len(self.label_names)


def open_task(
    task: str,
    data_dir: str | os.PathLike[str] | None = None,
    parquet: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    image_column_name: str = "image",
    label_column_name: str | None = None,
    mask_column_name: str = "mask",
    before_column_name: str = "image1",
    after_column_name: str = "image2",
    target_column_name: str = "target",
    split_column_name: str | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float | None = None,
    split_seed: int = 0,
    train_fraction: float = 1.0,
    authors_subset: bool = False,
    seed: int = 0,
    num_channels: int = 3,
    rgb_channels: tuple[int, ...] | None = None,
    nodata: float | None = None,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    mask_values: str = "auto",
    mask_reader: MaskReader | None = None,
    scale: int | None = None,
) -> TaskData:
    """Open a labelled set; exactly one of the three sources is given.

    Parts are the source's own: sub-folders, files, splits or a column named train, validation (val) and test. A
    validation part that is missing is cut off training, the same share of every class. A test part is cut off only
    where the source names no part at all, or where `test_fraction` asks for one. For masks, unless both `mask_values`
    and `num_labels` are given, all masks are read once here. Sizes that do not go together are found here too, from
    headers: in the parts that a run meets late, validation and test, and in training where its masks are read anyway.

    Args:
        task: "classification", "segmentation", "change" or "super_resolution".
        data_dir: Folder with one sub-folder per class; `image/` and `mask/`; `image1/`, `image2/` and `mask/`; or
            `image/` and, if there is one, `target/`. For masks and targets the sub-folders bear the columns' names.
        parquet: Parquet file, list of files, pattern, or folder of *.parquet.
        dataset_name: Hub id, or a folder that `datasets.load_dataset` understands.
        dataset_config_name: Configuration of that data set.
        revision: Branch, tag or commit of that data set.
        cache_dir: Where `datasets` keeps what it downloads or converts.
        image_column_name: Images; encoded, or arrays of any band count. "a+b" joins the bands (C, H, W) of two columns
            on the finer grid, in this order.
        label_column_name: Classes: `ClassLabel`, ids or names, or lists of them (multi-label). Default: `label`, else
            `labels`. Rows without a label (null, "" or below 0) are left out. Lists of 0 and 1, all of one length, are
            multi-hot where one repeats a number, which a list of ids never does.
        mask_column_name: Masks.
        before_column_name: Earlier images of pairs.
        after_column_name: Later images of pairs.
        target_column_name: High-resolution images; without such a column `image_column_name` is lowered by `scale`.
        split_column_name: Column of each row's part; default: `split`, where there is one.
        validation_fraction: Share of a validation part cut by us.
        test_fraction: Share of a test part cut by us; None is 0.2 where the source names no part at all, else none.
        split_seed: Seed of the parts cut by us; apart from `seed`, so that runs of several seeds share their test part.
        train_fraction: Share of training to keep, without repetition, of every class; of one seed, 1 % lies in 10 %.
        authors_subset: Draw that share as the authors do: with repetition and always with seed 42.
        seed: Seed of the training share.
        num_channels: Bands of the model.
        rgb_channels: Places of red, green and blue among three bands, for pictures; None is (0, 1, 2).
        nodata: Value that all bands of a pixel without measurement have; such pixels become NaN and images float32, so
            that resizing spreads no false values. The processor has to know: give it nodata="nan", or the value.
        label_names: Names of the classes, in the order of their ids.
        num_labels: Number of classes, where they have no names. Default for masks: the largest id + 1; values that
            are hardly ids (see `check_plausible`) are then refused.
        mask_values: "ids"; "binary" (from 128 on is 1); "auto" is binary where a set holds nothing but 0 and 255, else
            ids. 255 among ids is "ignore", and so is a transparent pixel.
        mask_reader: Makes (H, W) ids of a mask (PIL image or array) and its name, in place of `mask_values`: a
            processor's `read_label_map`, for colours of a palette and the like. Not part of the fingerprint.
        scale: Target px per image px, a side; default: found from the first pair.

    Raises:
        ValueError: No or several sources, nothing found there, fewer than two classes, an empty part, or labels of no
            class; the message names the next step.

    Source: fractions as in GFM section 4.3; `authors_subset` as in data/ben_data.py.
    """
    _check_choices(task, mask_values, mask_reader, label_names, num_labels)
    reading = Reading(
        task=task,
        image_columns=(before_column_name, after_column_name) if task == "change" else (image_column_name,),
        mask_column=mask_column_name,
        target_column=target_column_name if task == "super_resolution" else None,
        num_channels=num_channels,
        rgb_channels=rgb_channels,
        nodata=nodata,
        mask_values="ids" if mask_reader else mask_values,
        mask_reader=mask_reader,
    )
    hub = {"path": dataset_name, "name": dataset_config_name, "revision": revision, "cache_dir": cache_dir}
    found = _open_rows(reading, data_dir, parquet, hub, label_column_name, split_column_name)
    if "train" not in found.parts:
        raise ValueError(f"{found.description} has no training part; name one part, file or folder train.")
    names = tuple(label_names) if label_names else tuple(map(str, range(num_labels))) if num_labels else None
    labels: dict[str, np.ndarray | None] = dict.fromkeys(found.parts)
    surveyed = False
    if task == "classification":
        found, labels, names = _with_labels(found, names)
    elif task == "super_resolution":
        reading, names = _with_scale(reading, found.parts["train"], scale), ()
    else:
        reading, names, surveyed = _with_classes(reading, found.parts, names)
    reading = replace(reading, num_labels=len(names))
    splits = {part: TaskSplit(part, rows, labels[part], reading) for part, rows in found.parts.items()}
    origins = _cut_missing_parts(splits, found.named, validation_fraction, test_fraction, split_seed)
    _check_parts(splits, found.description)
    splits["train"] = _training_share(splits["train"], train_fraction, authors_subset, seed)
    _check_sizes(splits, PARTS if surveyed else ("validation", "test"))
    if train_fraction < 1 or authors_subset:
        drawn = "with repetition, as the authors" if authors_subset else f"seed {seed}"
        origins["train"] += f", {train_fraction:g} of them, {drawn}"
    return _task_data(splits, names, found.description, origins)


def _check_choices(
    task: str,
    mask_values: str,
    mask_reader: MaskReader | None,
    label_names: Sequence[str] | None,
    num_labels: int | None,
) -> None:
    """Refuse words that are not known and numbers that contradict each other."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r} but must be one of {', '.join(TASKS)}.")
    if mask_reader and mask_values != "auto":
        raise ValueError(
            f"mask_values {mask_values!r} and a mask_reader (--palette, --mask_threshold, --do_reduce_labels) are two "
            "answers to one question; pass one."
        )
    if mask_values not in MASK_VALUES:
        raise ValueError(f"mask_values is {mask_values!r} but must be one of {', '.join(MASK_VALUES)}.")
    if label_names and num_labels not in (None, len(label_names)):
        raise ValueError(f"label_names are {len(label_names)} but num_labels is {num_labels}; leave num_labels out.")
    if label_names and len(label_names) < 2:
        raise ValueError(
            f"label_names is {label_names[0]} alone but at least two classes are needed; background is one."
        )
    if num_labels is not None and num_labels < 2:
        raise ValueError(f"num_labels is {num_labels} but at least two classes are needed; background is one.")


def _open_rows(
    reading: Reading,
    data_dir: str | os.PathLike[str] | None,
    parquet: Any,
    hub: dict[str, Any],
    label_column: str | None,
    split_column: str | None,
) -> RowSet:
    """List the rows of the one source that is given."""
    given = {"--data_dir": data_dir, "--parquet": parquet, "--dataset_name": hub["path"]}
    named = [flag for flag, value in given.items() if value]
    if len(named) != 1:
        raise ValueError(
            f"{' and '.join(named) or 'no source'} given, but exactly one of {', '.join(given)} is needed."
        )
    columns = list(reading.image_columns)
    if reading.task in ("segmentation", "change"):
        columns.append(reading.mask_column)
    optional = [reading.target_column] if reading.target_column else []
    if data_dir and reading.task == "classification":
        return folder_of_classes(Path(data_dir))
    if data_dir:
        return folder_of_columns(Path(data_dir), columns, optional)
    if parquet:
        arguments, digest, description = parquet_arguments(parquet)
        arguments["cache_dir"] = hub["cache_dir"]
    else:
        arguments, digest, description = hub, "", f"data set {hub['path']}"
    labels: tuple[str, ...] = (label_column,) if label_column else ("label", "labels")
    labels = labels if reading.task == "classification" else ()
    return table_of_rows(arguments, digest, description, columns, optional, labels, split_column)


def _with_labels(
    found: RowSet, names: tuple[str, ...] | None
) -> tuple[RowSet, dict[str, np.ndarray | None], tuple[str, ...]]:
    """Leave rows without a label out and turn labels into ids or multi-hot rows."""
    parts = {
        part: rows.select([i for i, v in enumerate(_raw(rows)) if _labelled(v)]) for part, rows in found.parts.items()
    }
    several = any(isinstance(value, list | tuple) for rows in parts.values() for value in _raw(rows))
    if several:
        parts, names = _with_lists_of_ids(parts, names, declared=found.label_names is not None)
    values = [value for rows in parts.values() for value in _raw(rows)]
    flat = [one for value in values for one in value] if several else values
    names = names or found.label_names
    ids = _ids_of_labels(flat, found.label_names, names, found.description)
    names = names or tuple(str(value) for value in ids)
    if len(names) < 2 or (not several and len({ids[value] for value in map(_plain, _raw(parts["train"]))}) < 2):
        raise ValueError(
            f"{found.description} has {len(set(flat))} class with labelled images in its training part; at least two "
            "are needed."
        )
    labels: dict[str, np.ndarray | None] = {}
    for part, rows in parts.items():
        if several:
            labels[part] = np.zeros((len(rows), len(names)), dtype=np.float32)
            for row, value in zip(labels[part], _raw(rows)):  # type: ignore[arg-type]
                row[[ids[_plain(one)] for one in value]] = 1
        else:
            labels[part] = np.array([ids[_plain(value)] for value in _raw(rows)], dtype=np.int64)
    left_out = sum(map(len, found.parts.values())) - len(values)
    description = found.description + (f" ({left_out} rows without a label left out)" if left_out else "")
    return replace(found, parts=parts, description=description), labels, names


def _with_lists_of_ids(
    parts: dict[str, Rows], names: tuple[str, ...] | None, declared: bool
) -> tuple[dict[str, Rows], tuple[str, ...] | None]:
    """Check lists of labels, and turn multi-hot ones, [1, 0, 1], into ids, [0, 2]; `declared` lists hold ids."""
    lists = {
        f"row {row} of the {part} part": value
        for part, rows in parts.items()
        for row, value in zip(rows.positions.tolist(), _raw(rows))
    }
    for row, value in lists.items():
        if None in value:
            raise ValueError(f"the labels of {row} are {value}; take None out of the list, or leave the row out.")
    length = None if declared else _multi_hot_length(lists)
    if length is None:
        return parts, names
    if names and len(names) != length:
        raise ValueError(
            f"the labels are multi-hot lists of {length} but there are {len(names)} classes, {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; correct the lists or label_names."
        )
    parts = {
        part: replace(rows, labels=[np.flatnonzero(value).tolist() for value in _raw(rows)])
        for part, rows in parts.items()
    }
    return parts, names or tuple(map(str, range(length)))


def _multi_hot_length(lists: dict[str, Any]) -> int | None:
    """Tell by what a list of ids never does, to repeat one, whether lists are multi-hot: their length, else None.

    Args:
        lists: Name of a row -> its labels.

    Raises:
        ValueError: A list repeats an id and they are not multi-hot, or lists of two may be either.
    """
    lengths = {len(value) for value in lists.values()}
    alike = len(lengths) == 1 and all(one in (0, 1) for value in lists.values() for one in value)
    row = next((row for row, value in lists.items() if _repeats_number(value)), None)
    if row is None and alike and lengths == {2}:
        raise ValueError(
            "all lists of labels are [0, 1] or [1, 0], which is either multi-hot or both classes everywhere; store "
            "lists of ids, such as [0] and [1], or one label per image."
        )
    if row is not None and not alike:
        raise ValueError(
            f"the labels of {row} are {lists[row]}: no ids, since one occurs twice, and not multi-hot either, since the "
            "lists are not all of 0 and 1 and of one length; store each id once, or one place per class."
        )
    return None if row is None else lengths.pop()


def _repeats_number(labels: Sequence[Any]) -> bool:
    """Tell whether a list holds a number twice; names may well stand for several objects of one kind."""
    return len(set(labels)) < len(labels) and not any(isinstance(one, str) for one in labels)


def _raw(rows: Rows) -> list[Any]:
    return rows.labels or []


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _labelled(value: Any) -> bool:
    """Tell whether a row has a label; an empty list is the label "none of them"."""
    if isinstance(value, list | tuple):
        return True
    return value is not None and value != "" and (isinstance(value, str) or value >= 0)


def _ids_of_labels(
    values: list[Any], declared: tuple[str, ...] | None, names: tuple[str, ...] | None, description: str
) -> dict[Any, int]:
    """Map each raw label to its id: names by their place, ids as they are, anything else by its rank."""
    present = sorted({_plain(value) for value in values})
    if names is None:
        return {value: rank for rank, value in enumerate(present)}
    places = {name: place for place, name in enumerate(names)}
    ids = {value: places.get(value, -1) if isinstance(value, str) else value for value in present}
    wrong = [value for value, place in ids.items() if not 0 <= place < len(names)]
    if wrong or (declared and len(declared) != len(names)):
        what = f"the label {wrong[0]!r}" if wrong else f"{len(declared or ())} classes"
        raise ValueError(
            f"{description} has {what} but the {len(names)} classes are {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; correct the labels or label_names."
        )
    return ids


def _with_scale(reading: Reading, rows: Rows, scale: int | None) -> Reading:
    """Find out whether targets are there, and how much larger they are."""
    has_target = reading.target_column in rows.store.columns
    reading = replace(reading, target_column=reading.target_column if has_target else None)
    if scale is None and has_target and len(rows):
        sizes = [
            reading.image(rows, 0, str(column))[1].shape for column in (*reading.image_columns, reading.target_column)
        ]
        scale = round(sizes[1][0] / sizes[0][0])
    if scale is None or scale < 1 or (scale == 1 and not has_target):
        raise ValueError(f"scale is {scale} but must say how many times finer the target is; pass --scale 2, 3 or 4.")
    return replace(reading, scale=scale)


def _with_classes(
    reading: Reading, parts: dict[str, Rows], names: tuple[str, ...] | None
) -> tuple[Reading, tuple[str, ...], bool]:
    """Find out how masks are meant, how many classes they have, and say whether all of them were read for that."""
    if reading.task == "change" and names is None:
        names = ("no change", "change")
    if reading.mask_values == "binary":
        check_bright(_masks(reading, parts))
        return reading, names or ("0", "1"), False
    if reading.mask_values == "ids" and names is not None:
        return reading, names, False
    found = survey(_masks(reading, parts), reading.mask_values)
    check_number_of_ids(found)
    if names is None:
        check_plausible(found)
        names = tuple(map(str, range(found.ids[-1] + 1)))
    return replace(reading, mask_values=found.mask_values), names, True


def _masks(reading: Reading, parts: dict[str, Rows]) -> Iterator[Mask]:
    """Decode the masks of all parts."""
    return (reading.mask(rows, i) for rows in parts.values() for i in range(len(rows)))


def _check_sizes(splits: dict[str, TaskSplit], parts: Sequence[str]) -> None:
    """Refuse rows of these parts whose sizes do not go together; classes are told from images of any size."""
    for split in splits.values():
        if split.name in parts and split.reading.task != "classification":
            for i in range(len(split)):
                split.reading.check_sizes(split.rows, i)


def _groups(split: TaskSplit) -> np.ndarray:
    """(N,) class of each sample where it has exactly one, else zeros."""
    single = split.labels is not None and split.labels.ndim == 1
    return split.labels if single else np.zeros(len(split), dtype=np.int64)  # type: ignore[return-value]


def _cut_missing_parts(
    splits: dict[str, TaskSplit], named: bool, validation_fraction: float, test_fraction: float | None, seed: int
) -> dict[str, str]:
    """Cut validation and test off training where they are missing; return where each part comes from."""
    if test_fraction is None:
        test_fraction = 0.0 if named else 0.2
    wanted = {"validation": validation_fraction, "test": test_fraction}
    missing = {part: share for part, share in wanted.items() if part not in splits and share}
    if min(wanted.values()) < 0 or sum(missing.values()) >= 1:
        raise ValueError(f"parts of {wanted} leave nothing to train on; use smaller fractions, such as 0.2.")
    if "validation" not in splits and not validation_fraction:
        raise ValueError("there is no validation part; name one, or pass a validation_fraction above 0.")
    origins = {part: "of the source" for part in splits}
    if missing:
        train = splits["train"]
        *chosen, rest = cut_off(_groups(train), list(missing.values()), seed)
        for part, positions in zip(missing, chosen):
            splits[part] = replace(train.subset(positions), name=part)
            origins[part] = f"{missing[part]:g} of it, cut by seed {seed}"
        origins["train"] = "the rest"
        splits["train"] = train.subset(rest)
    return origins


def _check_parts(splits: dict[str, TaskSplit], description: str) -> None:
    for part, split in splits.items():
        if not len(split):
            raise ValueError(f"the {part} part of {description} is empty; add samples, or take the part out.")


def _training_share(train: TaskSplit, fraction: float, as_authors: bool, seed: int) -> TaskSplit:
    """Keep a share of the training part."""
    if as_authors:
        return train.subset(subset_with_repetition(len(train), fraction))
    return train.subset(nested_subset(_groups(train), fraction, seed))


def _task_data(
    splits: dict[str, TaskSplit], names: tuple[str, ...], description: str, origins: dict[str, str]
) -> TaskData:
    """Put the answer together."""
    train = splits["train"]
    problem = None
    if train.labels is not None:
        problem = f"{'single' if train.labels.ndim == 1 else 'multi'}_label_classification"
    parts = ", ".join(f"{len(splits[part])} {part} ({origins[part]})" for part in PARTS if part in splits)
    return TaskData(
        task=train.reading.task,
        train=train,
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=names,
        problem_type=problem,
        scale=train.reading.scale,
        description=f"{description}: {parts}",
        fingerprint=digest_of_lines(splits[part].fingerprint for part in PARTS if part in splits),
    )
