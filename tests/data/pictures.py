"""Small encoded pictures and rasters for the tests of this folder."""

import io

import numpy as np
import pytest
from PIL import Image


def pixels_of(seed, height=12, width=10, channels=3, dtype=np.uint8, top=256):
    return np.random.default_rng(seed).integers(0, top, (height, width, channels)).astype(dtype)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raster_bytes(pixels, **profile):
    rasterio = pytest.importorskip("rasterio", reason="rasters need rasterio")
    height, width, count = pixels.shape
    profile |= {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(pixels.transpose(2, 0, 1))
        return memory.read()
