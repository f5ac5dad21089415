"""Near-duplicates between two sets of images, or within one: a table, a summary and pictures of the pairs.

    python dataset_scripts/overlap.py geopile ucmerced:in_domain:test --output_dir overlap

A set is a folder of images (searched recursively), a folder or a repository that `load_dataset` reads
(NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT; without a split all of them), a Parquet file or a quoted pattern.

Difference hashes of 64 bit, one set in all 8 orientations, give candidates. Those are decoded, brought to one size,
orientation and brightness, and compared by SSIM. Crops and shifted neighbours are not found. A hash of a picture that is
nearly constant says nothing: such pictures are listed in overlap.json and compared with none.

This file imports nothing of its neighbours: copy it anywhere.
"""

import argparse
import csv
import glob
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError
from tqdm import tqdm


UNFINISHED = "unfinished-"
CACHE = ".hashes"
CACHE_FORMAT = "1"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HEX_HASH = re.compile(r"[0-9a-fA-F]{16}")
# On real pictures (tests/dataset_scripts/test_overlap.py): 299 of 300 altered copies (turned, recompressed, brighter or
# darker and clipped, resized, blurred, two of these at once) lie within both limits, and of UC Merced with itself and with
# AID nothing but a picture that is there twice; the most alike of the others, two stretches of one beach, reach 0.75.
MAX_DISTANCE, MIN_SSIM = 10, 0.8
SIDE_PX = 64
# Grey levels. Below this deviation of the cells that are hashed, noise decides the bits.
FLAT_BELOW = 1.0
CHUNK = 500
MOST_CANDIDATES = 5_000_000
PICTURES_KEPT = 50_000
ORIENTATIONS = tuple(f"{turn * 90}{mirror}" for mirror in ("", " mirrored") for turn in range(4))
SHEET_PAIRS, SHEET_COLUMNS, PICTURE_PX, CAPTION_PX, MOST_SHEETS = 24, 4, 160, 42, 10


class InputError(ValueError):
    """What was given cannot be used; the message says what to do next."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# -- Hashes ------------------------------------------------------------------------------------------------------------


# --- difference hash: begin ---
# The same text stands wherever these hashes are written or compared.
def dhash(image: Image.Image) -> int:
    """Difference hash: 64 bit, row by row, is a cell of the 9 x 8 reduced grey picture darker than its right neighbour."""
    cells = np.asarray(image.convert("RGB").convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


# --- difference hash: end ---


def turned(cells: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (rows, columns, ...) counter-clockwise by `orientation % 4` quarters, then mirror it from 4 on."""
    cells = np.rot90(cells, orientation % 4)
    return cells[:, ::-1] if orientation >= 4 else cells


def inverse(orientation: int) -> int:
    """The orientation that undoes one; mirrored ones undo themselves."""
    return -orientation % 4 if orientation < 4 else orientation


def hashes_of(image: Image.Image) -> tuple[np.ndarray, float]:
    """Hash a picture in all orientations: `hashes[k]` is the `dhash` of the picture `turned` by k.

    Returns:
        (8,) uint64, and the standard deviation of the upright cells in grey levels.
    """
    grey = image.convert("RGB").convert("L")
    # Pillow reduces rows before columns and rounds in between: the transposed picture keeps quarter turns exact.
    upright = _cells(grey)
    lying = _cells(grey.transpose(Image.Transpose.TRANSPOSE))
    views = [
        upright, lying[::-1], upright[::-1, ::-1], lying[:, ::-1],
        upright[:, ::-1], lying[::-1, ::-1], upright[::-1], lying,
    ]  # fmt: skip
    bits = np.stack([(view[:, :-1] < view[:, 1:]).ravel() for view in views])
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64), float(upright.std())


def _cells(grey: Image.Image) -> np.ndarray:
    return np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS))


def near(
    hashes: np.ndarray, views: np.ndarray, max_distance: int, within: bool = False, threads: int = 1
) -> np.ndarray:
    """All pairs of hashes that differ in few bits; exact.

    Args:
        hashes: (N,) uint64.
        views: (M, V) uint64, V views of each picture of the other side.
        max_distance: Bits that may differ.
        within: Both sides are one set; each pair is given once, the smaller index first.
        threads: Each has its own buffers of about 1 MB.

    Returns:
        (P, 3) int32, in any order: index of hashes, index of views' picture, number of the view.

    Raises:
        InputError: More than MOST_CANDIDATES pairs.
    """
    rows, columns = 16, 4096
    count = views.shape[1] if views.ndim == 2 else 1
    others = np.ascontiguousarray(views).reshape(-1)
    total = 0

    def block(start: int) -> np.ndarray:
        ours = hashes[start : start + rows, None]
        first = start * count // columns * columns if within else 0
        differ = np.empty((len(ours), columns), np.uint64)
        bits, close = np.empty(differ.shape, np.uint8), np.empty(differ.shape, bool)
        found = []
        for left in range(first, len(others), columns):
            theirs = others[None, left : left + columns]
            width = theirs.shape[1]
            np.bitwise_xor(ours, theirs, out=differ[:, :width])
            np.bitwise_count(differ[:, :width], out=bits[:, :width])
            np.less_equal(bits[:, :width], max_distance, out=close[:, :width])
            if close[:, :width].any():
                i, j = np.nonzero(close[:, :width])
                place = j + left
                found.append(np.stack([i + start, place // count, place % count], axis=1).astype(np.int32))
        pairs = np.concatenate(found) if found else np.zeros((0, 3), np.int32)
        return pairs[pairs[:, 0] < pairs[:, 1]] if within else pairs

    starts = range(0, len(hashes), rows)
    pieces = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(hashes), desc="compare", unit="hash", disable=None) as bar,
    ):
        for group in range(0, len(starts), 64 * threads):  # so that not all answers wait in memory
            for pairs in pool.map(block, starts[group : group + 64 * threads]):
                pieces.append(pairs)
                total += len(pairs)
                bar.update(min(rows, len(hashes) - bar.n))
            if total > MOST_CANDIDATES:
                raise InputError(
                    f"more than {MOST_CANDIDATES:,} pairs differ in at most {max_distance} bits; lower --max_distance, "
                    "or take one of the pictures out that are there many times."
                )
    return np.concatenate(pieces) if pieces else np.zeros((0, 3), np.int32)


# -- Similarity --------------------------------------------------------------------------------------------------------


def similarity(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """SSIM of pairs of grey pictures, whatever their brightness and contrast.

    The brighter exposure has lost what it clipped, so the other picture is brought to it (gain and offset by least
    squares over the pixels that neither has clipped) and clipped alike; then both get mean 0 and deviation 1.

    Args:
        ours: (N, side, side) uint8.
        theirs: Likewise.

    Returns:
        (N,) float64, at most 1. Windows of 7 px, constants for a range of 6 deviations.
    """
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lost_a, lost_b = (a < 4) | (a > 251), (b < 4) | (b > 251)
    swap = lost_b.sum((1, 2), keepdims=True) < lost_a.sum((1, 2), keepdims=True)
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    kept = ~(lost_a | lost_b)
    kept |= kept.mean((1, 2), keepdims=True) < 0.1  # with so little left, all of it
    count = kept.sum((1, 2), keepdims=True)
    mean_a, mean_b = (np.where(kept, one, 0).sum((1, 2), keepdims=True) / count for one in (a, b))
    around = np.where(kept, a - mean_a, 0)
    gain = (around * (b - mean_b)).sum((1, 2), keepdims=True) / np.maximum(
        np.square(around).sum((1, 2), keepdims=True), 1e-6
    )
    # Of pictures that have nothing in common, the gain is near 0 or negative: they are compared as they are.
    a = np.where(gain > 0.05, np.clip(mean_b + gain * (a - mean_a), 0, 255), a)
    return _ssim(_standardised(a), _standardised(b))


def _standardised(pictures: np.ndarray) -> np.ndarray:
    around = pictures - pictures.mean((1, 2), keepdims=True)
    return around / np.maximum(around.std((1, 2), keepdims=True), 1e-6)


def _ssim(a: np.ndarray, b: np.ndarray, window: int = 7, value_range: float = 6.0) -> np.ndarray:
    """Wang et al. 2004, with a box as window."""
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    mean_a, mean_b = _box(a, window), _box(b, window)
    var_a, var_b = _box(a * a, window) - mean_a**2, _box(b * b, window) - mean_b**2
    shared = _box(a * b, window) - mean_a * mean_b
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    # Means are on both sides of 0 here: of a picture and its negative both terms would be below 0, their product not.
    light = np.maximum(light, 0)
    return (light * (2 * shared + c2) / (var_a + var_b + c2)).mean((1, 2))


def _box(pictures: np.ndarray, window: int) -> np.ndarray:
    """Mean of every window, by running sums."""
    sums = np.cumsum(np.cumsum(np.pad(pictures, ((0, 0), (1, 0), (1, 0))), axis=1), axis=2)
    far, near_ = np.s_[window:], np.s_[:-window]
    area = sums[:, far, far] - sums[:, near_, far] - sums[:, far, near_] + sums[:, near_, near_]
    return area / window**2


# -- Sets --------------------------------------------------------------------------------------------------------------


class Pictures(ABC):
    """The pictures of one set by their place, none of them decoded; it pickles.

    Attributes:
        description: The set in words, without the place where it lies.
        hashes: (N,) uint64 of a column `dhash`, or None.
    """

    description: str
    hashes: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What the report calls a picture."""

    @abstractmethod
    def source(self, i: int) -> Any:
        """What Pillow opens."""

    @abstractmethod
    def key(self, start: int, stop: int) -> str:
        """Hex digest that changes when one of these pictures does."""

    def read(self, i: int) -> Image.Image:
        """Decode one picture; 16-bit and float ones are stretched to 8 bits.

        Raises:
            ValueError: It cannot be read; the message says why.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large pictures are no news
            try:
                with Image.open(self.source(i)) as image:
                    image.load()
                    return _stretched(image) if image.mode[0] in "IF" else image.convert("RGB")
            except UnidentifiedImageError as error:  # its own message names an address in memory
                raise ValueError("Pillow knows no such image") from error
            except Exception as error:  # Pillow and its codecs raise nearly anything
                raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _stretched(image: Image.Image) -> Image.Image:
    values = np.asarray(image, np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0, 0)
    scaled = (np.where(finite, values, low) - low) / ((high - low) or 1) * 255
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


class Folder(Pictures):
    """Image files below a folder."""

    def __init__(self, root: Path) -> None:
        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename} cannot be listed ({error.strerror}); check its rights.") from error

        self._root, self._names = root, []
        for folder, below, files in os.walk(root, onerror=refuse):
            below[:] = sorted(name for name in below if not name.startswith("."))
            names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
            self._names += [Path(folder, name).relative_to(root).as_posix() for name in names]
        self._names.sort()
        self.description = f"folder {root.resolve().name}"
        if not self._names:
            raise InputError(f"{root} holds neither Parquet nor images ({' '.join(IMAGE_SUFFIXES)}); check the path.")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Path below the folder."""
        return self._names[i]

    def source(self, i: int) -> Path:
        """The file."""
        return self._root / self._names[i]

    def key(self, start: int, stop: int) -> str:
        """Of names, sizes and times."""
        lines = []
        for i in range(start, stop):
            try:
                status = self.source(i).stat()
            except OSError:  # a dangling link: it will count as unreadable
                lines.append(f"{self._names[i]} is gone")
            else:
                lines.append(f"{self._names[i]} {status.st_size} {status.st_mtime_ns}")
        return _digest(lines)


class Table(Pictures):
    """Rows of a data set, all chosen splits in turn."""

    def __init__(self, splits: dict[str, Any], column: str, description: str, digest: str) -> None:
        self.description, self._column, self._digest = description, column, digest
        self._splits = {name: _encoded(rows, column, description) for name, rows in splits.items() if len(rows)}
        self._ends = np.cumsum([len(rows) for rows in self._splits.values()])
        if not self._splits:
            raise InputError(f"{description} holds no rows; check the split and the files.")
        columns = [_stored_hashes(rows) for rows in splits.values() if len(rows)]
        if all(hashes is not None for hashes in columns):
            self.hashes = np.concatenate(columns)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _row(self, i: int) -> tuple[str, int, dict[str, Any]]:
        part = int(np.searchsorted(self._ends, i, side="right"))
        name, rows = list(self._splits.items())[part]
        row = i - int(self._ends[part]) + len(rows)
        return name, row, rows[row][self._column] or {}

    def name(self, i: int) -> str:
        """Split and row, and the file name that the row knows."""
        split, row, value = self._row(i)
        return f"{split}[{row}] {value.get('path') or ''}".strip()

    def source(self, i: int) -> Any:
        """The encoded image."""
        _, _, value = self._row(i)
        if value.get("bytes") is None and not value.get("path"):
            raise ValueError("the row holds no image")
        return value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])

    def key(self, start: int, stop: int) -> str:
        """Of the whole set and the stretch."""
        return _digest([self._digest, self._column, *map(str, self._splits), *map(str, self._ends), f"{start}:{stop}"])


def _encoded(rows: Any, column: str, description: str) -> Any:
    if column not in rows.features:
        raise InputError(
            f"{description} has no column {column!r} but {', '.join(map(repr, rows.features))}; pass "
            "--image_column_name_a or --image_column_name_b."
        )
    feature = rows.features[column]
    if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise InputError(f"column {column!r} of {description} holds {feature}, not images; name another column.")
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _stored_hashes(rows: Any) -> np.ndarray | None:
    """The column `dhash`, if it holds 16 hex digits in every row."""
    if getattr(rows.features.get("dhash"), "dtype", "") not in ("string", "large_string"):
        return None
    words = rows.select_columns(["dhash"]).with_format(None)[:]["dhash"]
    if not all(word and HEX_HASH.fullmatch(word) for word in words):
        return None
    return np.array([int(word, 16) for word in words], np.uint64)


def open_set(text: str, column: str) -> Pictures:
    """Open what a person names: see the text at the top.

    Raises:
        InputError: There is no such set, or it holds no images.
    """
    place, parts = text, list[str]()
    while not (Path(place).exists() or glob.glob(place, recursive=True)) and ":" in place:
        place, _, part = place.rpartition(":")
        parts.insert(0, part)
    found = sorted(glob.glob(place, recursive=True)) or [place]
    if len(parts) > 2 or not place:
        raise InputError(f"{text} has too many colons; write NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT.")
    config, split = [part or None for part in [*parts, "", ""][:2]]
    path = Path(place)
    if path.is_dir():
        parquet = sorted(file for file in path.rglob("*.parquet") if not _hidden(file.relative_to(path)))
        if not parquet and not parts:
            return Folder(path)
        if not parquet:
            raise InputError(f"{place} holds no Parquet; leave {':'.join(['', *parts])} out to compare its images.")
        arguments, digest = dict[str, Any](path=place, name=config), _digest_of(parquet)
    elif all(name.endswith(".parquet") and Path(name).is_file() for name in found):
        if config:
            raise InputError(
                f"Parquet files have no configurations; write {place} alone, or the folder with its card."
            )
        arguments, digest = {"path": "parquet", "data_files": found}, _digest_of([Path(name) for name in found])
    elif path.exists() or not HUB_ID.fullmatch(place):
        what = "is no Parquet file" if path.exists() else "does not exist"
        raise InputError(f"{place} {what}; give a folder of images, Parquet files, or a data set of the Hub.")
    else:
        arguments, digest = {"path": place, "name": config}, ""
    short = (
        path.resolve().name
        if path.exists()
        else place
        if HUB_ID.fullmatch(place)
        else f"{path.parent.name}/{path.name}"
    )
    description = ":".join([short, *parts]) + (f" ({column})" if column != "image" else "")
    loaded = _load(arguments | ({"split": split} if split else {}), description)
    splits = {str(split): loaded} if split else {str(name): rows for name, rows in loaded.items()}
    # Files are known by size and time; of the Hub `datasets` keeps a digest.
    digest = digest or _digest(rows._fingerprint for rows in splits.values())
    return Table(splits, column, description, _digest([digest, str(config)]))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _load(arguments: dict[str, Any], description: str) -> Any:
    try:
        return datasets.load_dataset(**arguments)
    except Exception as error:  # of files, network, configurations and splits, each its own kind
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(
            f"{description} cannot be opened ({reason}); check the name, the files or the network."
        ) from error


def _digest_of(files: Iterable[Path]) -> str:
    statuses = [(str(file), file.stat()) for file in files]
    return _digest(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in statuses)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


# -- Work on pictures, in any number of processes ----------------------------------------------------------------------


_sets: list[Pictures] = []


def _share(path: Path) -> None:
    _sets[:] = pickle.loads(path.read_bytes())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Of a killed run the workers would wait for their next task for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


class Workers:
    """Runs functions of module level over tasks that name one of the sets; a context.

    Args:
        sets: What the workers hold.
        num_proc: 1: this process does the work.
        folder: Where a file lies while workers start.
    """

    def __init__(self, sets: Sequence[Pictures], num_proc: int, folder: Path) -> None:
        _sets[:] = sets
        self._shared = folder / f"{UNFINISHED}{os.getpid()}"
        self._pool: ProcessPoolExecutor | None = None
        if num_proc > 1:
            # By a file: a long pickle into the pipe of a worker that failed to start would block for ever.
            self._shared.write_bytes(pickle.dumps(list(sets)))
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_proc, context, _share, (self._shared,))

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        """Answers in the order of the tasks."""
        return self._pool.map(function, tasks) if self._pool else map(function, tasks)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._shared.unlink(missing_ok=True)


class Hashed(NamedTuple):
    """Hashes of a set: (N, 8) uint64, (N,) bool is flat, place -> why it cannot be read."""

    views: np.ndarray
    flat: np.ndarray
    unreadable: dict[int, str]

    @property
    def usable(self) -> np.ndarray:
        """Places of the pictures that can be compared."""
        good = ~self.flat
        good[list(self.unreadable)] = False
        return np.flatnonzero(good)


class HashTask(NamedTuple):
    """A stretch of a set, and the file its hashes are kept in."""

    number: int
    start: int
    stop: int
    kept: Path


def _hash(task: HashTask) -> None:
    views, deviation = np.zeros((task.stop - task.start, 8), np.uint64), np.zeros(task.stop - task.start)
    unreadable = {}
    for place in range(task.start, task.stop):
        try:
            views[place - task.start], deviation[place - task.start] = hashes_of(_sets[task.number].read(place))
        except ValueError as error:
            unreadable[place - task.start] = str(error)
    unfinished = task.kept.with_name(f"{UNFINISHED}{os.getpid()}-{task.kept.name}")
    with unfinished.open("wb") as file:
        np.savez(file, views=views, deviation=deviation, unreadable=json.dumps(unreadable))
    os.replace(unfinished, task.kept)


def hash_set(workers: Workers, number: int, folder: Path) -> Hashed:
    """Hashes of one of the workers' sets; stretches that an earlier run has finished are read."""
    pictures = _sets[number]
    tasks = []
    for start in range(0, len(pictures), CHUNK):
        stop = min(start + CHUNK, len(pictures))
        tasks.append(HashTask(number, start, stop, folder / f"{CACHE_FORMAT}-{pictures.key(start, stop)[:40]}.npz"))
    missing = [task for task in tasks if not task.kept.exists()]
    have = sum(task.stop - task.start for task in tasks) - sum(task.stop - task.start for task in missing)
    with tqdm(
        total=len(pictures), initial=have, desc=f"hash {pictures.description}", unit="image", disable=None
    ) as bar:
        for task, _ in zip(missing, workers.map(_hash, missing)):
            bar.update(task.stop - task.start)
    views, deviation = [], []
    unreadable: dict[int, str] = {}
    for task in tasks:
        with np.load(task.kept) as kept:
            views.append(kept["views"])
            deviation.append(kept["deviation"])
            found = json.loads(str(kept["unreadable"]))
        unreadable |= {task.start + int(place): reason for place, reason in found.items()}
    flat = np.concatenate(deviation) < FLAT_BELOW
    flat[list(unreadable)] = False
    return Hashed(np.concatenate(views), flat, unreadable)


def _thumbnails(task: tuple[int, list[int]]) -> list[np.ndarray | str]:
    number, places = task
    found: list[np.ndarray | str] = []
    for place in places:
        try:
            grey = _sets[number].read(place).convert("L")
        except ValueError as error:
            found.append(str(error))
        else:
            found.append(np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)))
    return found


class Thumbnails:
    """Small grey pictures of one of the workers' sets, the last PICTURES_KEPT of them in memory (4 KB each).

    Attributes:
        unreadable: Place -> why.
        flat: Places of pictures that turned out to be flat.
    """

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers, self._number = workers, number
        self._kept: dict[int, np.ndarray] = {}
        self.unreadable: dict[int, str] = {}
        self.flat: set[int] = set()

    def get(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, SIDE_PX, SIDE_PX) uint8, and (N,) bool: which of them can be compared."""
        wanted = set(places.tolist())
        if len(self._kept) + len(wanted) > PICTURES_KEPT:
            self._kept = {place: self._kept[place] for place in wanted if place in self._kept}
        missing = sorted(wanted - self._kept.keys())
        tasks = [(self._number, missing[i : i + 32]) for i in range(0, len(missing), 32)]
        for (_, some), pictures in zip(tasks, self._workers.map(_thumbnails, tasks)):
            for place, picture in zip(some, pictures):
                if isinstance(picture, str):
                    self.unreadable[place] = picture
                    picture = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
                elif _cells(Image.fromarray(picture)).std() < FLAT_BELOW:
                    self.flat.add(place)
                self._kept[place] = picture
        left_out = self.flat | self.unreadable.keys()
        usable = np.array([place not in left_out for place in places.tolist()], bool)
        return np.stack([self._kept[place] for place in places.tolist()]), usable


# -- The report --------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Candidates: places in A and B, bits that differ, how B has to be turned to look like A, SSIM."""

    a: np.ndarray
    b: np.ndarray
    distance: np.ndarray
    orientation: np.ndarray
    ssim: np.ndarray

    def take(self, chosen: np.ndarray) -> "Pairs":
        """Some of them, in this order."""
        return Pairs(*(values[chosen] for values in self))


def compare(first: Thumbnails, second: Thumbnails, candidates: np.ndarray, distances: np.ndarray) -> Pairs:
    """Look at the candidates and keep of each pair its best orientation.

    Args:
        first: Pictures of A.
        second: Pictures of B.
        candidates: (P, 3) places in A and B and orientation of B, sorted.
        distances: (P,) bits that differ.
    """
    ssim = np.full(len(candidates), np.nan)
    # Few pictures of A at a time, so that those of B are decoded once.
    with tqdm(total=len(candidates), desc="look at pairs", unit="pair", disable=None) as bar:
        for start in range(0, len(candidates), 512):
            a, b, turns = candidates[start : start + 512].T
            (ours, good), (theirs, also_good) = first.get(a), second.get(b)
            theirs = np.stack([turned(picture, turn) for picture, turn in zip(theirs, turns.tolist())])
            usable = good & also_good
            if usable.any():
                ssim[start : start + 512][usable] = similarity(ours[usable], theirs[usable])
            bar.update(len(a))
    pairs = Pairs(candidates[:, 0], candidates[:, 1], distances, candidates[:, 2], ssim)
    pairs = pairs.take(np.flatnonzero(~np.isnan(ssim)))
    pairs = pairs.take(np.lexsort((pairs.orientation, -pairs.ssim, pairs.b, pairs.a)))
    new = np.ones(len(pairs.a), bool)
    new[1:] = (np.diff(pairs.a) != 0) | (np.diff(pairs.b) != 0)
    return pairs.take(np.flatnonzero(new))


def find_candidates(args: argparse.Namespace, a: Pictures, b: Pictures, workers: Workers, folder: Path) -> Any:
    """Hash what has to be hashed and search.

    Returns:
        (P, 3) places in A and B and orientation of B; (P,) distances; (Hashed or None) of A and of B.
    """
    within = a is b
    # One set has to be decoded for its orientations; of the other a stored column does.
    turn_a = not within and (b.hashes is not None) and (a.hashes is None or len(a) < len(b))
    still, turning = (b, a) if turn_a else (a, b)
    turned_hashes = hash_set(workers, 0 if turn_a else len(_sets) - 1, folder)
    if within:
        still_hashes: Hashed | None = turned_hashes
    elif still.hashes is not None and _column_holds(still):
        still_hashes = None
    else:
        still_hashes = hash_set(workers, 1 if turn_a else 0, folder)
    ours = np.arange(len(still)) if still_hashes is None else still_hashes.usable
    plain = still.hashes[ours] if still_hashes is None else still_hashes.views[ours, 0]  # type: ignore[index]
    theirs = turned_hashes.usable
    found = near(plain, turned_hashes.views[theirs], args.max_distance, within, args.num_proc)
    distances = np.bitwise_count(plain[found[:, 0]] ^ turned_hashes.views[theirs][found[:, 1], found[:, 2]])
    places = np.stack([ours[found[:, 0]], theirs[found[:, 1]], found[:, 2]], axis=1)
    hashed = [still_hashes, turned_hashes]
    if turn_a:  # "A turned by k looks like B": B turned back looks like A
        places = np.stack([places[:, 1], places[:, 0], np.array([*map(inverse, range(8))])[places[:, 2]]], axis=1)
        hashed.reverse()
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))
    return places[order], distances[order], hashed


def _column_holds(pictures: Pictures) -> bool:
    """Whether a column `dhash` has been written by `dhash`: some rows are hashed anew."""
    assert pictures.hashes is not None
    for place in np.linspace(0, len(pictures) - 1, min(16, len(pictures))).astype(int).tolist():
        try:
            image = pictures.read(place)
        except ValueError:
            continue
        if (dhash(image) ^ int(pictures.hashes[place])).bit_count() > 4:  # another decoder may be off by a bit or two
            _say(f"warning: the column dhash of {pictures.description} holds other hashes; its pictures are read.")
            return False
    return True


def draw_sheets(a: Pictures, b: Pictures, pairs: Pairs, most: int) -> Iterator[Image.Image]:
    """Pages of pairs as they come, B turned like A, each with its SSIM, distance and names."""
    for start in range(0, min(len(pairs.a), most * SHEET_PAIRS), SHEET_PAIRS):
        page = pairs.take(np.arange(start, min(start + SHEET_PAIRS, len(pairs.a))))
        rows = -(-len(page.a) // SHEET_COLUMNS)
        wide, high = 2 * PICTURE_PX + 12, PICTURE_PX + CAPTION_PX
        sheet = Image.new("RGB", (min(len(page.a), SHEET_COLUMNS) * wide, rows * high), "white")
        pen = ImageDraw.Draw(sheet)
        for i, (left, right, distance, orientation, ssim) in enumerate(zip(*(values.tolist() for values in page))):
            x, y = i % SHEET_COLUMNS * wide, i // SHEET_COLUMNS * high
            size = (PICTURE_PX, PICTURE_PX)
            sheet.paste(a.read(left).resize(size), (x, y))
            other = np.ascontiguousarray(turned(np.asarray(b.read(right).resize(size)), orientation))
            sheet.paste(Image.fromarray(other), (x + PICTURE_PX + 2, y))
            lines = [f"SSIM {ssim:.3f}, {distance} bits, B turned {ORIENTATIONS[orientation]}"]
            lines += [f"A {_short(a.name(left))}", f"B {_short(b.name(right))}"]
            pen.text((x, y + PICTURE_PX), "\n".join(lines), fill="black", spacing=1)
        yield sheet


def _short(name: str, length: int = 50) -> str:
    name = name.encode("ascii", "replace").decode()
    return name if len(name) <= length else f"...{name[3 - length :]}"


def write_report(args: argparse.Namespace, a: Pictures, b: Pictures, pairs: Pairs, facts: dict[str, Any]) -> None:
    """Write pictures, table and summary; each file whole, the summary last."""
    folder = Path(args.output_dir)
    duplicate = pairs.ssim >= args.min_ssim
    close = ~duplicate & (pairs.ssim >= args.min_ssim / 2)  # what is far below it need not be looked at
    alike, others = pairs.take(np.flatnonzero(duplicate)), pairs.take(np.flatnonzero(close))
    alike, others = alike.take(np.argsort(alike.ssim)), others.take(np.argsort(-others.ssim)[:SHEET_PAIRS])
    pages = [*((f"pairs-{i:02d}.png", page) for i, page in enumerate(draw_sheets(a, b, alike, MOST_SHEETS)))]
    pages += [*((f"refused-{i:02d}.png", page) for i, page in enumerate(draw_sheets(a, b, others, 1)))]
    for old in (*folder.glob("pairs-[0-9][0-9].png"), *folder.glob("refused-[0-9][0-9].png")):
        old.unlink()
    for name, page in pages:
        unfinished = folder / f"{UNFINISHED}{name}"
        page.save(unfinished)
        os.replace(unfinished, folder / name)
    unfinished = folder / f"{UNFINISHED}overlap.csv"
    with unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "distance", "orientation", "ssim", "duplicate"])
        for left, right, distance, orientation, ssim in zip(*(values.tolist() for values in pairs)):
            answer = "yes" if ssim >= args.min_ssim else "no"
            turn = ORIENTATIONS[orientation]
            table.writerow([a.name(left), b.name(right), distance, turn, f"{ssim:.4f}", answer])
    os.replace(unfinished, folder / "overlap.csv")
    unfinished = folder / f"{UNFINISHED}overlap.json"
    unfinished.write_text(json.dumps(facts, indent=2), encoding="utf-8")
    os.replace(unfinished, folder / "overlap.json")


def _told(pictures: Pictures, hashed: Hashed | None, seen: Thumbnails, involved: np.ndarray) -> dict[str, Any]:
    """What the summary says of a set."""
    flat = set(seen.flat) | (set() if hashed is None else set(np.flatnonzero(hashed.flat).tolist()))
    unreadable = ({} if hashed is None else hashed.unreadable) | seen.unreadable
    return {
        "name": pictures.description,
        "images": len(pictures),
        "in_duplicates": len(np.unique(involved)),
        "hashes": "column dhash" if hashed is None else "computed",
        "flat": [pictures.name(place) for place in sorted(flat)],
        "unreadable": {pictures.name(place): reason for place, reason in sorted(unreadable.items())},
    }


def build(args: argparse.Namespace) -> None:
    """Everything from the names of the sets to the last line."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --output_dir.")
    ours = (CACHE, "overlap.json", "overlap.csv")
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise InputError(f"{folder} holds other files; choose a new --output_dir, or that of an earlier report.")
    column_b = args.image_column_name_b or args.image_column_name_a
    a = open_set(args.a, args.image_column_name_a)
    alone = args.b in (None, args.a) and column_b == args.image_column_name_a
    b = a if alone else open_set(args.b or args.a, column_b)
    cache = folder / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob(f"{UNFINISHED}*"), *cache.glob(f"{UNFINISHED}*")):
        left.unlink()
    with Workers([a] if a is b else [a, b], args.num_proc, folder) as workers:
        candidates, distances, (hashed_a, hashed_b) = find_candidates(args, a, b, workers, cache)
        first = Thumbnails(workers, 0)
        second = first if a is b else Thumbnails(workers, 1)
        pairs = compare(first, second, candidates, distances)
    duplicate = pairs.ssim >= args.min_ssim
    in_a, in_b = pairs.a[duplicate], pairs.b[duplicate]
    told_a = _told(a, hashed_a, first, np.concatenate([in_a, in_b]) if a is b else in_a)
    facts = {
        "a": told_a,
        "b": told_a if a is b else _told(b, hashed_b, second, in_b),
        "candidates": len(pairs.a),
        "duplicates": int(duplicate.sum()),
        "settings": {
            "max_distance": args.max_distance,
            "min_ssim": args.min_ssim,
            "flat_below": FLAT_BELOW,
            "image_column_name_a": args.image_column_name_a,
            "image_column_name_b": column_b,
        },
    }
    write_report(args, a, b, pairs, facts)
    if a is b:
        told = f"{told_a['in_duplicates']:,} of {len(a):,} images of {a.description} have a near-duplicate in it"
        parts = [told_a]
    else:
        parts = [facts["a"], facts["b"]]  # type: ignore[list-item]
        told = " and ".join(
            f"{part['in_duplicates']:,} of {part['images']:,} images of {part['name']}" for part in parts
        )
        told += " are near-duplicates of each other"
    left_out = [f"{sum(len(part[word]) for part in parts):,} {word}" for word in ("flat", "unreadable")]
    _say(
        f"{told} ({facts['duplicates']:,} pairs, {facts['candidates']:,} candidates; not compared: "
        f"{', '.join(left_out)}); {folder / 'overlap.csv'}"
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="a set, such as the pretraining images")
    parser.add_argument("b", metavar="B", nargs="?", help="another one, such as a benchmark; default: A itself")
    parser.add_argument("--output_dir", required=True, help="new folder, or that of an earlier or interrupted report")
    parser.add_argument("--image_column_name_a", default="image")
    parser.add_argument("--image_column_name_b", help="default: that of A")
    parser.add_argument("--max_distance", type=int, default=MAX_DISTANCE, help="bits of 64 in which candidates differ")
    parser.add_argument(
        "--min_ssim", type=float, default=MIN_SSIM, help="from this similarity on a pair is a duplicate"
    )
    parser.add_argument("--num_proc", type=int, default=1, help="processes that decode")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 the input is at fault."""
    args = parse_args(argv)
    try:
        if args.num_proc < 1 or not 0 <= args.max_distance <= 20 or not 0 < args.min_ssim <= 1:
            raise InputError(
                "--num_proc has to be positive, --max_distance 0 to 20, --min_ssim above 0 and at most 1."
            )
        build(args)
    except (InputError, OSError) as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
