"""Small labelled sets for the tests of this folder, as folders and as Parquet files."""

import io

import datasets
import numpy as np
from PIL import Image


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed, height=16, width=16):
    return png(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def mask(seed, classes=3, height=16, width=16):
    return png(np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint8))


def write(root, **files):
    """Write `folder/name` -> bytes below root."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def class_folder(root, counts, below=""):
    """Write pictures, so many of each class."""
    seeds = iter(range(10**6))
    return write(
        root, **{f"{below}{name}/{i:03d}.png": picture(next(seeds)) for name, n in counts.items() for i in range(n)}
    )


def mask_folder(root, count, columns=("image",), below="", **options):
    """Write images of the columns and masks."""
    for i in range(count):
        for place, column in enumerate(columns):
            write(root, **{f"{below}{column}/{i:03d}.png": picture(10 * i + place)})
        write(root, **{f"{below}mask/{i:03d}.png": mask(i, **options)})
    return root


def parquet(path, features=None, **columns):
    """Write columns; lists of bytes become images."""
    kinds = dict(features or {})
    for name, values in columns.items():
        if isinstance(values[0], bytes):
            kinds[name] = datasets.Image()
            columns[name] = [{"bytes": value, "path": None} for value in values]
    table = datasets.Dataset.from_dict(columns)
    for name, kind in kinds.items():
        table = table.cast_column(name, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path
