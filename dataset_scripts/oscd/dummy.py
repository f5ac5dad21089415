"""OSCD in small: the three archives with all cities, the nesting and the quirks of the published ones, for tests."""

import argparse
import io
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine


TRAIN = (
    "aguasclaras", "bercy", "bordeaux", "nantes", "paris", "rennes", "saclay_e", "abudhabi", "cupertino", "pisa",
    "beihai", "hongkong", "beirut", "mumbai",
)  # fmt: skip
TEST = ("brasilia", "montpellier", "norcia", "rio", "saclay_w", "valencia", "dubai", "lasvegas", "milano", "chongqing")
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")  # as they sort
NAME = "Onera Satellite Change Detection dataset - {}"
WITHOUT_PROJECTION, WITHOUT_DATES = "bercy", "pisa"
# How the change maps come: PNG and TIFF, of one band or four, or only one of the two files.
MAPS = {"nantes": ("RGBA", True), "paris": ("L", False), "rennes": (None, True), "rio": ("RGB", True)}


def write_dummy(folder: str | Path) -> Path:
    """Write the three archives, under 1 MB: 24 cities of random pixels, each of its own size, 5 to 12 px a side.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes: the folder.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    folder, rng = Path(folder), np.random.default_rng(0)
    archives = {what: _Archive(folder, what) for what in ("Images", "Train Labels", "Test Labels")}
    images = archives["Images"]
    images.add("train.txt", ",".join(TRAIN).encode() + b"\n")
    images.add("test.txt", ",".join(TEST).encode() + b"\n")
    for number, city in enumerate((*TRAIN, *TEST)):
        height, width = 5 + number % 8, 12 - number % 5
        for date in (1, 2):
            for band in BANDS:
                images.add(f"{city}/imgs_{date}_rect/{band}.tif", _band(rng, height, width, city, date, band))
        if city != WITHOUT_DATES:
            images.add(f"{city}/dates.txt", f"date_1: 2016{number % 12 + 1:02d}30\ndate_2: 20180101\n".encode())
        labels = archives["Train Labels" if city in TRAIN else "Test Labels"]
        change = rng.random((height, width)) < 0.3
        mode, tif = MAPS.get(city, ("L", True))
        if mode:
            labels.add(
                f"{city}/cm/cm.png", _encoded(Image.fromarray(change.astype(np.uint8) * 255).convert(mode), "PNG")
            )
        if tif:
            labels.add(f"{city}/cm/{city}-cm.tif", _encoded(Image.fromarray(change.astype(np.uint8) + 1), "TIFF"))
    # What no row is made of: bands at their own resolution under product names, previews.
    images.add(
        "paris/imgs_1/S2A_OPER_MSI_L1C_TL_EPA__20160824_A000634_T31UDQ_B02.tif", _band(rng, 6, 7, "paris", 1, "B02")
    )
    images.add(
        "paris/imgs_1/S2A_OPER_MSI_L1C_TL_EPA__20160824_A000634_T31UDQ_B01.tif", _band(rng, 1, 1, "paris", 1, "B01")
    )
    images.add("paris/pair/img1.png", _encoded(Image.new("RGB", (7, 6)), "PNG"))
    images.add("README.txt", b"OSCD in small")
    for archive in archives.values():
        archive.zip.close()
    return folder


class _Archive:
    """A zip with a folder of its own name in it; the same bytes every time."""

    def __init__(self, folder: Path, what: str) -> None:
        self.root = NAME.format(what)
        self.zip = zipfile.ZipFile(folder / f"{self.root}.zip", "w")

    def add(self, name: str, content: bytes) -> None:
        self.zip.writestr(zipfile.ZipInfo(f"{self.root}/{name}", date_time=(2019, 2, 25, 0, 0, 0)), content)


def _band(rng: np.random.Generator, height: int, width: int, city: str, date: int, band: str) -> bytes:
    pixels = rng.integers(0, 2**16, (height, width), dtype=np.uint16)
    left = 448_000 + 2 * date + BANDS.index(band)  # the corners of bands and dates are not quite one
    georeference = {"crs": "EPSG:32631", "transform": Affine(10, 0, left, 0, -10, 5_412_000 + height)}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        more = {} if city == WITHOUT_PROJECTION else georeference
        with memory.open(driver="GTiff", height=height, width=width, count=1, dtype="uint16", **more) as raster:
            raster.write(pixels, 1)
        return memory.read()


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
