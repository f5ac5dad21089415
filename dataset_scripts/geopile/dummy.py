"""GeoPile in small: the names, nesting and quirks of its sources, for tests."""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image


def write_dummy(folder: str | Path) -> Path:
    """Write two archives, two folders, two NAIP tiles and pile.yaml, about 100 KB in all.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    root, rng = Path(folder), np.random.default_rng(0)
    with zipfile.ZipFile(root / "NWPU-RESISC45.zip", "w") as archive:
        for name in ("airplane", "snowberg"):
            for number in range(1, 9):
                _add(archive, f"NWPU-RESISC45/{name}/{name}_{number:03d}.jpg", _picture(rng))
        _add(archive, "__MACOSX/NWPU-RESISC45/airplane/._airplane_001.jpg", b"what a file browser leaves behind")
    with zipfile.ZipFile(root / "PatternNet.zip", "w") as archive:
        _add(archive, "PatternNet/patternnet_description.pdf", b"%PDF")
        for name in ("airplane", "wastewater_treatment_plant"):
            for number in (1, 2, 3):
                _add(archive, f"PatternNet/images/{name}/{name}{number:03d}.jpg", _picture(rng))
    _mlrsnet(root / "MLRSNet", rng)
    for part, name, size in (
        ("train", "Airplane", (16, 16)),
        ("train", "Airport", (24, 17)),
        ("val", "Airplane", (9, 30)),
    ):
        _write(root / "RSD46-WHU" / part / name / f"{name}_{size[0]:05d}.png", _picture(rng, size, "PNG"))
    _write(root / "RSD46-WHU" / "train" / "Thumbs.db", b"what a file browser leaves behind")
    for number, unflown in enumerate((False, True)):
        _tile(root / "tiles" / f"m_390760{number}_ne_18_1_2015.tif", rng, unflown)
    _write(root / "pile.yaml", b"naip: {tiles: tiles, windows: 9, size: 32, seed: 1}\n")
    return root


def _mlrsnet(root: Path, rng: np.random.Generator) -> None:
    """Folder names as published, typing errors included; in the tables some rows are broken."""
    head = "image,airplane,airport,habor,swimmimg_pool"
    tables = {
        "airport": [head, "airport_00001.jpg,1,1,0,0", "airport_00002.jpg,0,1,0", "airport_00003.jpg,0,1,x,0", ""],
        "harbor&port": ["\ufeff" + head, "harbor_port_00001.jpg,0,0,1,0", "harbor_port_00001.jpg,0,0,0,0"],
    }
    for name, lines in tables.items():
        _write(root / "labels" / f"{name}.csv", "\r\n".join(lines).encode())
        for number in range(1, 4):
            file = f"{name.replace('&', '_')}_{number:05d}.jpg"
            _write(root / "Images" / name / file, _picture(rng, (16, 14 + number)))


def _tile(path: Path, rng: np.random.Generator, unflown: bool) -> None:
    """Red, green, blue and near infrared (0 over water) of 1 m a pixel; unflown columns are black, or marked nodata."""
    coarse = rng.integers(30, 220, (4, 10, 12)).astype("uint8")
    pixels = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)
    pixels[3] = 0
    if unflown:
        pixels[:, :, :20], pixels[:, :, 32:50] = 0, 255
    path.parent.mkdir(exist_ok=True)
    profile = {"driver": "GTiff", "width": 192, "height": 160, "count": 4, "dtype": "uint8", "compress": "deflate"}
    profile |= {"nodata": 255, "alpha": "unspecified"} if unflown else {}
    transform = rasterio.Affine(1, 0, 300_000, 0, -1, 4_300_000)
    with rasterio.open(path, "w", crs="EPSG:26918", transform=transform, **profile) as raster:
        raster.write(pixels)


def _picture(rng: np.random.Generator, size: tuple[int, int] = (16, 16), kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(2017, 3, 1, 0, 0, 0)), content)  # the same bytes every time


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
