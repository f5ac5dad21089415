"""SpaceNet 2 in small: an archive for each area with real names, nesting and quirks, for tests."""

import argparse
import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import rasterio


# Numbers of the tiles: not contiguous, as in the archives.
TILES = {
    "AOI_2_Vegas": (1, 2, 4, 5, 7, 9, 10, 13, 16, 21, 1002, 2005),
    "AOI_3_Paris": (3, 8, 15, 21),
    "AOI_4_Shanghai": (1, 6, 14, 4023),
    "AOI_5_Khartoum": (14, 19, 33, 1685),
}
ORIGINS = {
    "AOI_2_Vegas": (-115.3, 36.2),
    "AOI_3_Paris": (2.2, 49.0),
    "AOI_4_Shanghai": (121.6, 31.3),
    "AOI_5_Khartoum": (32.5, 15.6),
}
COARSE_DEGREES, FINE_DEGREES = 1.08e-5, 2.7e-6  # a pixel of 1.24 m, of 0.3 m, about
# One product of these is not there: the first is what published sources disagree on.
LONELY = {("AOI_2_Vegas", 1000): "MUL", ("AOI_5_Khartoum", 40): "MUL-PanSharpen"}


def write_dummy(folder: str | Path) -> Path:
    """Write the four archives, well under 1 MB together.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for area, numbers in TILES.items():
        path = Path(folder) / f"SN2_buildings_train_{area}.tar.gz"
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        ):  # always the same bytes
            with tarfile.open(fileobj=packed, mode="w") as archive:
                for name, content in files_of(area, numbers).items():
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return Path(folder)


def files_of(area: str, numbers: tuple[int, ...]) -> dict[str, bytes]:
    """The files of an archive: name -> content. The products lie far apart, the numbers in no order."""
    head = f"{area}_Train"
    files = {f"{head}/summaryData/{area}_Train_Building_Solutions.csv": b"ImageId,BuildingId,PolygonWKT_Pix\n"}
    lonely = [number for name, number in LONELY if name == area]
    for product in ("MUL", "MUL-PanSharpen"):
        wanted = [*numbers, *(number for number in lonely if LONELY[area, number] == product)]
        for number in sorted(wanted, key=str):
            files[f"{head}/{product}/{product}_{area}_img{number}.tif"] = tile(area, number, product)
    for number in numbers[:2]:
        files[f"{head}/PAN/PAN_{area}_img{number}.tif"] = b"not read"
        files[f"{head}/geojson/buildings/buildings_{area}_img{number}.geojson"] = b"{}"
    return files


def tile(area: str, number: int, product: str) -> bytes:
    """A GeoTIFF of 8 x uint16: 9 x 9 px, some 9 x 8, or 34 x 34; some with a border of zeros."""
    sharp = product == "MUL-PanSharpen"
    height, width = (34, 34) if sharp else (9, 8 if number in (7, 21) else 9)
    rng = np.random.default_rng([number, len(area), sharp])
    rows, columns = np.indices((height, width))
    pixels = 200 + 100 * np.arange(8)[:, None, None] + 7 * rows + 3 * columns + rng.integers(0, 60, (8, 1, width))
    pixels[number % 8, -1, :2] = 0  # dark in one band is no border
    if number % 5 == 0:
        pixels[:, :, : width // 3] = 0
    step = FINE_DEGREES if sharp else COARSE_DEGREES
    west, north = ORIGINS[area]
    transform = rasterio.Affine(step, 0, west + number * 1e-3, 0, -step, north)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=8, height=height, width=width, dtype="uint16", crs="EPSG:4326", transform=transform
        ) as raster:
            raster.write(pixels.astype(np.uint16))
        return memory.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
