"""DSIFN in small: the folders of the original set and the quirks of its copies, for tests."""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


# Split -> stems; the same ones come again in other splits.
STEMS = {
    "train": ("0_0", "0_1", "0_10", "0_2", "1_0", "1_1", "1_2", "2_0"),
    "val": ("0_0", "0_3", "1_1", "2_1"),
    "test": ("0", "1", "0_0"),
}
# Split -> suffix of the masks, value of "changed", mode. Most training masks look black.
MASKS = {"train": ("png", 1, "L"), "val": ("png", 255, "RGBA"), "test": ("tif", 255, "L")}
# Some masks are of another kind than the rest of their split.
ODD_MASKS = {"train/1_1": ("jpg", 255, "L"), "train/1_2": ("tif", 1, "I;16"), "val/1_1": ("png", 1, "RGB")}
SIDE = 16


def write_dummy(folder: str | Path) -> Path:
    """Write one zip under 1 MB: 15 pairs of random pixels, 16 x 16.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes: the zip, of any name.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path, rng = Path(folder) / "dsifn from the drive.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for split, stems in STEMS.items():
            for stem in stems:
                for date in ("t1", "t2"):
                    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                    _add(archive, f"{split}/{date}/{stem}.jpg", _encoded(Image.fromarray(pixels), "JPEG"))
                # Patches across the blocks of JPEG, so that there it blurs their edges.
                change = np.roll(np.kron(rng.random((2, 2)) < 0.5, np.ones((8, 8), np.uint8)), 3, axis=(0, 1))
                suffix, value, mode = ODD_MASKS.get(f"{split}/{stem}", MASKS[split])
                _add(archive, f"{split}/mask/{stem}.{suffix}", _mask(change * value, suffix, mode))
                if split == "train":
                    _add(archive, f"{split}/mask_256/{stem}.png", _mask(change[::2, ::2] * 255, "png", "L"))
        _add(archive, "train/t1/Thumbs.db", b"what a file browser leaves behind")
    return path


def _mask(values: np.ndarray, suffix: str, mode: str) -> bytes:
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values).convert(mode)
    return _encoded(image, {"png": "PNG", "tif": "TIFF", "jpg": "JPEG"}[suffix])


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"dataset/{name}", date_time=(2020, 6, 1, 0, 0, 0)), content)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 80} if kind == "JPEG" else {}))
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
