"""Vaihingen in small: the three archives with some areas of a few tiles, and files that are to be left alone."""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


NAME = "ISPRS_semantic_labeling_Vaihingen{}.zip"
# Area -> width, height. Of the 33 areas some, so small that they have 1 to 4 tiles; 9 belongs to no split.
SIZES = {
    1: (600, 520), 3: (512, 512), 5: (600, 512), 7: (512, 512), 9: (512, 512),
    2: (512, 530), 4: (512, 512), 6: (512, 512), 38: (512, 512),
}  # fmt: skip
COLOURS = np.array(
    [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)], dtype=np.uint8
)
BLOCK = 64  # patches of one class, so that the files stay small


def write_dummy(folder: str | Path) -> Path:
    """Write the three archives, under 1 MB.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes: the folder.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = ("", "_ground_truth_COMPLETE", "_ground_truth_eroded_COMPLETE")
    top, full, eroded = (zipfile.ZipFile(Path(folder) / NAME.format(part), "w") for part in parts)
    for area, (width, height) in SIZES.items():
        name = f"top_mosaic_09cm_area{area}"
        blocks = (height // BLOCK + 1, width // BLOCK + 1)
        picture = np.kron(rng.integers(0, 256, (*blocks, 3)), np.ones((BLOCK, BLOCK, 1), int))
        classes = np.kron(rng.integers(0, 6, blocks), np.ones((BLOCK, BLOCK), int))
        picture[::7, ::5] = 255 - picture[::7, ::5]
        _add(top, f"top/{name}.tif", picture[:height, :width])
        classes = classes[:height, :width]
        _add(full, f"{name}.tif", COLOURS[classes])
        seam = np.minimum(np.indices(classes.shape) % BLOCK, BLOCK - 1 - np.indices(classes.shape) % BLOCK).min(0) < 3
        boundary = np.where(seam, 6, classes)
        _add(eroded, f"{name}_noBoundary.tif", COLOURS[boundary])
        # What is left alone: masks of the training areas once more, and heights.
        if area in (1, 3):
            other = COLOURS[(classes + 1) % 6]
            _add(top, f"gts_for_participants/{name}.tif", other)
            _add(top, f"gts_eroded_for_participants/{name}_noBoundary.tif", other)
            _add(top, f"dsm/dsm_09cm_matching_area{area}.tif", other[..., 0])
    for archive in (top, full, eroded):
        archive.close()
    return Path(folder)


def _add(archive: zipfile.ZipFile, name: str, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="TIFF", compression="tiff_adobe_deflate")
    archive.writestr(zipfile.ZipInfo(name, date_time=(2013, 7, 1, 0, 0, 0)), buffer.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
