"""Images of a labelled set that were in the pretraining data, by difference hashes.

A quick look at the start of a run: hashes alone, which differ in at most `MAX_DISTANCE` bits in any of the 8
orientations. `dataset_scripts/overlap.py` looks closer.
"""

import glob
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gfm_hf.data.decoding import Record, UnreadableImageError, decode
from gfm_hf.data.sources import ImageTable, load_rows, open_images, parquet_files, visible_files
from gfm_hf.data.tasks import TaskSplit


# Stricter than the report, which looks at the pictures too: hashes of different aerial pictures are hardly this close.
MAX_DISTANCE = 2
# Grey levels; below this deviation of the hashed cells the bits are noise.
FLAT_BELOW = 2.0


# --- difference hash: begin ---
# The same text stands wherever these hashes are written or compared.
def dhash(image: Image.Image) -> int:
    """Difference hash: 64 bit, row by row, is a cell of the 9 x 8 reduced grey picture darker than its right neighbour."""
    cells = np.asarray(image.convert("RGB").convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


# --- difference hash: end ---


def source_of_name(name: str) -> dict[str, Any]:
    """Tell what a person means by the name of a set.

    Args:
        name: A folder of images or of Parquet, a Parquet file or pattern, or a data set of the Hub: ID, ID:CONFIG,
            ID:CONFIG:SPLIT or ID::SPLIT.

    Returns:
        Arguments of `open_images`.
    """
    if Path(name).is_dir() and not any(file.endswith(".parquet") for file in visible_files(Path(name))):
        return {"train_dir": name}
    if Path(name).exists() or glob.glob(name, recursive=True):
        return {"train_parquet": name}
    dataset, config, split = [*name.split(":"), "", ""][:3]
    return {"dataset_name": dataset, "dataset_config_name": config or None, "split": split or "train"}


def hashes_of_source(source: dict[str, Any], most_images: int | None = None) -> np.ndarray | None:
    """Hash all images of a source, or read its column `dhash` (16 hex digits a row) where it has one.

    Args:
        source: Arguments of `open_images`.
        most_images: Decode no more than so many; None: any number.

    Returns:
        (N,) uint64 without images that cannot be read; None if there are more images to decode than that.

    Raises:
        ValueError: There is no such source; the message names the next step.
    """
    if "train_dir" not in source:
        stored = _stored_hashes(source)
        if stored is not None:
            return stored
    images = open_images(**source)
    assert isinstance(images, ImageTable)  # nothing here streams
    if most_images is not None and len(images) > most_images:
        return None
    count = min(8, os.cpu_count() or 1)
    hashed: list[int | None] = []
    with (
        ThreadPoolExecutor(count) as pool,
        tqdm(desc="hash pretraining data", total=len(images), disable=None) as bar,
    ):
        for start in range(0, len(images), 64 * count):  # a pool takes all that it is given into memory
            stop = min(start + 64 * count, len(images))
            hashed += pool.map(_upright_hash, map(images.__getitem__, range(start, stop)))
            bar.update(stop - start)
    return np.array([found for found in hashed if found is not None], np.uint64)


def seen_samples(split: TaskSplit, hashes: np.ndarray) -> list[str]:
    """Name the samples of a part of which an image is among the hashed ones; rasters and flat pictures are left out."""
    names = []
    for i in tqdm(range(len(split)), "compare with pretraining data", disable=None):
        values = [split.rows.value(i, column) for column in split.reading.image_columns]
        pictures = [(value, _picture(value)) for value in values if isinstance(value, Record)]
        seen = [value.name for value, picture in pictures if picture is not None and _is_among(picture, hashes)]
        names += seen[:1]
    return names


def _stored_hashes(source: dict[str, Any]) -> np.ndarray | None:
    if source.get("train_parquet"):
        files = [str(file) for file in parquet_files(source["train_parquet"], "--pretraining_data")]
        arguments: dict[str, Any] = {"path": "parquet", "data_files": files}
    else:
        names = {"path": "dataset_name", "name": "dataset_config_name", "revision": "revision"}
        arguments = {theirs: source.get(ours) for theirs, ours in names.items()}
    arguments |= {"split": source.get("split", "train"), "cache_dir": source.get("cache_dir")}
    rows = load_rows(arguments, "the pretraining data")
    if "dhash" not in rows.features:
        return None
    return np.array([int(digits, 16) for digits in rows["dhash"] if digits], np.uint64)


def _picture(record: Record) -> Image.Image | None:
    """Decode an 8-bit picture that is not flat."""
    try:
        image = decode(record)
    except UnreadableImageError:  # the run itself says so
        return None
    if not isinstance(image, Image.Image):
        return None
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return image if cells.std() >= FLAT_BELOW else None


def _upright_hash(record: Record) -> int | None:
    picture = _picture(record)
    return None if picture is None else dhash(picture)


def _is_among(picture: Image.Image, hashes: np.ndarray) -> bool:
    # The seven members of Transpose and the picture itself are all orientations.
    views = [dhash(picture), *(dhash(picture.transpose(turn)) for turn in Image.Transpose)]
    return any((np.bitwise_count(hashes ^ np.uint64(view)) <= MAX_DISTANCE).any() for view in views)
