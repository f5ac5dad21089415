"""Folder, Parquet files or Hub dataset -> one stream of records.

A `Record` is cheap: a path or the encoded bytes. The main process hands records out, workers decode them.
A folder or a table that fits a disk is an `ImageTable` (known length, exact shuffling); a streamed dataset is an
`ImageStream` (unknown length, shuffled through a buffer).
"""

import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gfm_hf.data.decoding import Record
from gfm_hf.data.seeding import HOLD_OUT_STREAM, ORDER_STREAM, sample_rng


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


class ImageTable:
    """Images of known number, in a fixed order, each available at any time.

    Attributes:
        fingerprint: Hex digest that changes when the set of images changes.
        description: The source in words, for logs.
    """

    def __init__(self, length: int, read: Callable[[int], Record], fingerprint: str, description: str) -> None:
        self._length = length
        self._read = read
        self.fingerprint = fingerprint
        self.description = description

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < self._length:
            raise IndexError(f"record {i} does not exist; {self.description} ends at {self._length - 1}.")
        return self._read(i)


class ImageStream:
    """Images that arrive one after the other, number unknown.

    Attributes:
        fingerprint: Hex digest of name, configuration, split, revision and column. It cannot see that the content
            of a branch changed: pin a revision for that.
        description: The source in words, for logs.
    """

    def __init__(
        self, dataset: Any, column: str, seed: int, shuffle_buffer: int, fingerprint: str, description: str
    ) -> None:
        self._dataset = dataset
        self._column = column
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self.fingerprint = fingerprint
        self.description = description

    def records(self, epoch: int) -> Iterator[Record]:
        """Yield the records of one epoch in that epoch's order, which depends on (seed, epoch) only."""
        seed = int(sample_rng(self._seed, epoch, 0, ORDER_STREAM).integers(2**32))
        shuffled = self._dataset.shuffle(seed=seed, buffer_size=self._shuffle_buffer)
        for index, row in enumerate(shuffled):
            yield record_of_row(index, row[self._column])


def open_images(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | os.PathLike[str] | None = None,
    train_parquet: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    split: str = "train",
    streaming: bool = False,
    image_column_name: str = "image",
    seed: int = 0,
    shuffle_buffer: int = 1000,
    cache_dir: str | None = None,
    revision: str | None = None,
) -> ImageTable | ImageStream:
    """Open the images of a training run; exactly one of the three sources is given.

    Args:
        dataset_name: Hub id, or a folder that `datasets.load_dataset` understands.
        dataset_config_name: Configuration of that dataset.
        train_dir: Folder of image files, searched recursively; hidden files and folders are skipped.
        train_parquet: Parquet file, list of files, pattern, or folder of *.parquet.
        split: Split of the Hub dataset.
        streaming: Read a Hub dataset or Parquet as a stream. A folder stays a table: only its listing is read.
        image_column_name: Column that holds the images.
        seed: Seed of the stream's order; a table's order belongs to the plan.
        shuffle_buffer: Records that a stream keeps in memory to shuffle.
        cache_dir: Where `datasets` keeps what it downloads or converts.
        revision: Branch, tag or commit of the Hub dataset.

    Returns:
        An `ImageTable`, or an `ImageStream` when streaming.

    Raises:
        ValueError: No or several sources, nothing found there, or no such column; the message names the next step.
    """
    given = {"--dataset_name": dataset_name, "--train_dir": train_dir, "--train_parquet": train_parquet}
    named = [flag for flag, value in given.items() if value]
    if len(named) != 1:
        raise ValueError(
            f"{' and '.join(named) or 'no source'} given, but exactly one of {', '.join(given)} is needed."
        )
    if train_dir:
        return _open_folder(Path(train_dir))
    if train_parquet:
        files = parquet_files(train_parquet)
        description, digest = f"{len(files)} Parquet files", digest_of_files(files)
        paths = [str(file) for file in files]
        arguments: dict[str, Any] = {"path": "parquet", "data_files": {split.partition("[")[0]: paths}}
    else:
        description, digest = f"dataset {dataset_name}", ""
        arguments = {"path": dataset_name, "name": dataset_config_name, "revision": revision}
    dataset = load_rows(arguments | {"split": split, "streaming": streaming, "cache_dir": cache_dir}, description)
    dataset = _only_encoded_images(dataset, image_column_name, description)
    if not streaming:
        return _table_of_rows(dataset, image_column_name, digest, description)
    parts = (digest, dataset_name, dataset_config_name, split, revision, image_column_name)
    digest, description = digest_of_lines(map(str, parts)), f"{description}, streamed"
    return ImageStream(dataset, image_column_name, seed, shuffle_buffer, digest, description)


def hold_out(images: ImageTable | ImageStream, count: int, seed: int) -> tuple[ImageTable | ImageStream, list[Record]]:
    """Set some images aside for evaluation.

    Args:
        images: All images.
        count: How many to set aside; at most a tenth of a table.
        seed: Seed of the draw.

    Returns:
        What is left for training, and the records set aside. Records keep their index. Of a stream, which knows no
        other place to take them from, the first records are taken and also stay in training.
    """
    if isinstance(images, ImageStream):
        return images, list(itertools.islice(images.records(0), count))
    order = sample_rng(seed, 0, 0, HOLD_OUT_STREAM).permutation(len(images))
    count = min(count, max(len(images) // 10, 1))
    held_out, kept = order[:count], np.sort(order[count:])
    if not len(kept):
        raise ValueError(f"{images.description} leaves nothing to train on; add images.")

    def read(i: int) -> Record:
        return images[int(kept[i])]

    rest = ImageTable(len(kept), read, images.fingerprint, images.description)
    return rest, [images[int(i)] for i in held_out]


def _open_folder(folder: Path) -> ImageTable:
    """List the image files below a folder."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"--train_dir {folder} {found}, but a folder of images is needed; check the path.")
    files = list(visible_files(folder))
    names = sorted(name for name in files if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        found = f"holds {len(files)} files, none of them {' '.join(IMAGE_SUFFIXES)}" if files else "holds no files"
        hint = "convert them, or pass Parquet files with --train_parquet" if files else "check the path"
        raise ValueError(f"--train_dir {folder} {found}; {hint}.")

    def read(i: int) -> Record:
        return Record(index=i, name=names[i], path=os.path.join(folder, names[i]))

    return ImageTable(
        len(names), read, digest_of_names(folder, names), f"folder {folder.resolve().name}, {len(names)} images"
    )


def visible_files(folder: Path) -> Iterator[str]:
    """Walk a folder, through links but never twice through one place; yield names below it, hidden ones left out."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"folder {error.filename} cannot be listed ({error.strerror}); check its rights.") from error

    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(root).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def parquet_files(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], flag: str = "--train_parquet"
) -> list[Path]:
    """Resolve a file, a list, a pattern or a folder to existing Parquet files, sorted within each entry."""
    entries = [source] if isinstance(source, str | os.PathLike) else list(source)
    files: list[Path] = []
    for entry in map(Path, entries):
        if entry.is_dir():
            found = [entry / name for name in sorted(visible_files(entry)) if name.endswith(".parquet")]
        else:
            found = [entry] if entry.is_file() else sorted(map(Path, glob.glob(str(entry), recursive=True)))
        if not found:
            raise ValueError(
                f"{flag} {entry} matches no Parquet file; pass a file, a folder of *.parquet or a quoted pattern."
            )
        files += found
    return files


def load_rows(arguments: dict[str, Any], description: str) -> Any:
    """Call `datasets.load_dataset` and turn its failures into one sentence."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ImportError as error:
        raise ValueError(f"{description} needs the library datasets; run pip install gfm-hf[train].") from error
    try:
        return load_dataset(**arguments)
    except (FileNotFoundError, ConnectionError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{description} cannot be opened ({' '.join(str(cause).split())[:300]}); check the name, the files, the "
            "network and, for private data, hf auth login."
        ) from error


def _only_encoded_images(dataset: Any, column: str, description: str) -> Any:
    """Keep the image column alone, with its bytes left encoded."""
    from datasets import Image as ImageFeature

    features = dataset.features
    if features is None:
        raise ValueError(f"{description} does not say which columns it has; load it without --streaming.")
    if column not in features:
        raise ValueError(
            f"{description} has no column {column!r} but {', '.join(map(repr, features))}; pass --image_column_name."
        )
    feature = features[column]
    if not holds_encoded_images(feature):
        raise ValueError(
            f"column {column!r} of {description} holds {feature}, not images; pass another --image_column_name."
        )
    return dataset.select_columns([column]).cast_column(column, ImageFeature(decode=False))


def holds_encoded_images(feature: Any) -> bool:
    """Tell whether a column of `datasets` holds files of images: as such, as bytes, or as paths."""
    from datasets import Image as ImageFeature
    from datasets import Value

    encoded = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return isinstance(feature, ImageFeature) or encoded or struct


def _table_of_rows(dataset: Any, column: str, fingerprint: str, description: str) -> ImageTable:
    """Wrap a loaded dataset."""
    if not len(dataset):
        raise ValueError(f"{description} holds no rows; check the split and the files.")

    def read(i: int) -> Record:
        return record_of_row(i, dataset[i][column])

    # Parquet files are known by name and size; a Hub dataset by the digest `datasets` keeps of its files.
    digest = fingerprint or digest_of_lines([dataset._fingerprint])
    return ImageTable(len(dataset), read, digest, f"{description}, {len(dataset)} images")


def record_of_row(index: int, value: dict[str, Any] | None) -> Record:
    """Make a record of an undecoded image value; a missing value becomes a record without data."""
    data, path = (value or {}).get("bytes"), (value or {}).get("path")
    # Beside bytes, path is only a name: no such file needs to exist.
    return Record(index=index, name=path or f"row {index}", path=None if data is not None else path, data=data)


def digest_of_names(root: Path, names: Sequence[str]) -> str:
    """Digest names below root and sizes in bytes: content is trusted, moving the folder changes nothing."""

    def size(name: str) -> int:
        try:
            return os.stat(os.path.join(root, name)).st_size
        except OSError:  # a dangling link: the record will count as unreadable
            return -1

    return digest_of_lines(f"{name} {size(name)}" for name in names)


def digest_of_files(files: Sequence[Path]) -> str:
    """Digest names below the deepest common folder and sizes in bytes."""
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    return digest_of_names(root, [file.absolute().relative_to(root).as_posix() for file in files])


def digest_of_lines(lines: Iterable[str]) -> str:
    """Hash text lines to sha256 hex."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
