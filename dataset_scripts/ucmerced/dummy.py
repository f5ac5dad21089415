"""UC Merced in small: an archive with all names, the nesting and the quirks of the published one, for tests."""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


CLASSES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass", "parkinglot",
    "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip
NOT_SQUARE = {("agricultural", 4): (6, 8), ("runway", 61): (9, 8)}  # height, width: some originals are not 256 x 256


def write_dummy(folder: str | Path) -> Path:
    """Write UCMerced_LandUse.zip, under 1 MB: 2,100 TIFFs of random pixels, most of them 8 x 8.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "UCMerced_LandUse.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "UCMerced_LandUse/readme.txt", b"UC Merced Land Use in small")
        _add(archive, "UCMerced_LandUse/Images/beach/Thumbs.db", b"what a file browser leaves behind")
        pixels = b""
        for class_name in CLASSES:
            for number in range(100):
                shape = NOT_SQUARE.get((class_name, number), (8, 8))
                if (class_name, number) != ("airplane", 2):  # airplane02 repeats airplane01
                    pixels = _tiff(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
                _add(archive, f"UCMerced_LandUse/Images/{class_name}/{class_name}{number:02d}.tif", pixels)
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(2010, 10, 28, 0, 0, 0)), content)  # the same bytes every time


def _tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF")
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
