"""WHU aerial in small: the archive under its older name, with the nesting and the variants of its copies, for tests."""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


ARCHIVE = "3. The cropped image tiles and raster labels.zip"
ROOT = "3. The cropped aerial image tiles and raster labels/3. The cropped image tiles and raster labels"
# Split -> folder, folder of the pictures, folder of the labels, suffix, number of tiles.
SPLITS = {
    "train": ("train", "image", "label", "tif", 10),
    "validation": ("val", "Image", "Mask", "png", 3),
    "test": ("test", "images", "Label", "TIF", 4),
}
LABEL_MODES = {"train/3": "1", "train/4": "RGB", "validation/1": "RGBA"}
SIDE = 16


def write_dummy(folder: str | Path) -> Path:
    """Write one zip under 1 MB: 17 tiles of random pixels, 16 x 16.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes: the folder with the zip.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(Path(folder) / ARCHIVE, "w") as archive:
        for split, (name, images, labels, suffix, count) in SPLITS.items():
            for number in range(count):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                _add(archive, f"{name}/{images}/{number}.{suffix}", _encoded(Image.fromarray(pixels), suffix))
                label = Image.fromarray(((rng.random((SIDE, SIDE)) < 0.3) * 255).astype(np.uint8))
                label = label.convert(LABEL_MODES.get(f"{split}/{number}", "L"))
                _add(archive, f"{name}/{labels}/{number}.{suffix}", _encoded(label, suffix))
            for leftover in ("Thumbs.db", "0.tfw", "0.tif.aux.xml"):
                _add(archive, f"{name}/{images}/{leftover}", b"no picture")
    return Path(folder)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{ROOT}/{name}", date_time=(2018, 9, 1, 0, 0, 0)), content)


def _encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if suffix == "png" else "TIFF")
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
