import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gfm_hf.data import decoding
from gfm_hf.data.decoding import Record, UnreadableImageError, decode

from .pictures import encode, pixels_of, raster_bytes


pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
ODD_FILES = Path(__file__).parents[3] / "shared" / "imagery" / "odd_files"


def read(data, **options):
    return decode(Record(0, "x", data=data), **options)


# Decoding pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_eight_bit_pictures_become_rgb(mode):
    image = Image.fromarray(pixels_of(0)).convert(mode)
    decoded = read(encode(image))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_cmyk_and_premultiplied_alpha_become_rgb():
    assert read(encode(Image.fromarray(pixels_of(0)).convert("CMYK"), "JPEG")).mode == "RGB"
    assert decoding._to_rgb(Image.new("La", (3, 3))).mode == "RGB"


def test_exif_orientation_is_applied():
    image = Image.fromarray(pixels_of(0, height=6, width=9))
    exif = Image.Exif()
    exif[274] = 6
    decoded = read(encode(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(decoded), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "zero bytes"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\x00\x01 no image at all", "no known image format"),
        (b"II*\0 no TIFF either", "x cannot be read"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        read(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_pictures_never_decode(kind):
    data = encode(pixels_of(0, 90, 80), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(UnreadableImageError):
            read(data[: int(len(data) * share)])


def test_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match="more than 100 pixels"):
        read(encode(pixels_of(0)))  # between one and two times the limit Pillow only warns
    with pytest.raises(UnreadableImageError, match="more than 100 pixels"):
        read(raster_bytes(pixels_of(0, dtype=np.uint16)))


def test_error_survives_a_trip_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "zero bytes")))
    assert (error.name, error.reason, str(error)) == ("a.png", "zero bytes", "image a.png cannot be read: zero bytes")


# Decoding rasters


@pytest.mark.parametrize("dtype, bands", [(np.uint16, 4), (np.int16, 12), (np.float32, 1), (np.uint8, 5)])
def test_rasters_keep_bands_values_and_dtype(dtype, bands):
    pixels = pixels_of(0, channels=bands, dtype=dtype, top=250)
    decoded = read(raster_bytes(pixels))
    assert decoded.dtype == dtype and np.array_equal(decoded, pixels)


def test_sixteen_bit_png_keeps_its_depth():
    pytest.importorskip("rasterio", reason="rasters need rasterio")
    pixels = pixels_of(0, channels=1, dtype=np.uint16, top=60000)
    assert np.array_equal(read(encode(pixels[:, :, 0])), pixels)


def test_eight_bit_raster_of_four_bands_follows_the_model():
    pixels = pixels_of(0, channels=4)
    data = raster_bytes(pixels)
    assert np.array_equal(read(data, num_channels=4), pixels)
    assert np.array_equal(np.asarray(read(data)), pixels[:, :, :3])


def test_one_band_of_bytes_is_a_grey_picture():
    pixels = pixels_of(0, channels=1)
    assert np.array_equal(np.asarray(read(raster_bytes(pixels))), np.repeat(pixels, 3, axis=2))
    assert np.array_equal(np.asarray(read(raster_bytes(pixels, compress="LERC"))), np.repeat(pixels, 3, axis=2))


def test_nodata_is_kept_unless_there_is_nothing_else():
    for dtype, nodata in [(np.uint8, 0), (np.uint16, 0), (np.int16, -9999), (np.float32, np.nan)]:
        pixels = np.full((6, 5, 3), nodata, dtype=dtype)
        with pytest.raises(UnreadableImageError, match="every pixel is nodata"):
            read(raster_bytes(pixels, nodata=nodata))
        pixels[0, 0, 0] = 7
        assert np.array_equal(
            np.asarray(read(raster_bytes(pixels, nodata=nodata))), pixels, equal_nan=dtype == np.float32
        )
    assert read(raster_bytes(np.zeros((6, 5, 3), dtype=np.uint16))).max() == 0  # black without a nodata tag is data


def test_complex_raster_is_unreadable():
    with pytest.raises(UnreadableImageError, match="complex"):
        read(raster_bytes(np.ones((4, 4, 1), dtype=np.complex64)))


@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}, {"compress": "deflate", "tiled": True}])
def test_truncated_rasters_never_decode(options):
    data = raster_bytes(pixels_of(0, 200, 190, 4, np.uint16, 60000), **options)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(UnreadableImageError):
            read(data[: int(len(data) * share)])


def test_a_file_that_names_other_files_is_not_followed(tmp_path):
    pytest.importorskip("rasterio", reason="rasters need rasterio")
    (tmp_path / "secret.tif").write_bytes(raster_bytes(pixels_of(0, dtype=np.uint16)))
    vrt = f'<VRTDataset rasterXSize="10" rasterYSize="12"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>\
<SourceFilename>{tmp_path}/secret.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    for options in ({}, {"num_channels": 4}):
        with pytest.raises(UnreadableImageError):
            read(vrt.encode(), **options)


def test_missing_rasterio_names_the_extra(monkeypatch):
    data = raster_bytes(pixels_of(0, channels=4, dtype=np.uint16))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ValueError, match=r"pip install gfm-hf\[geo\]") as caught:
        read(data)
    assert not isinstance(caught.value, UnreadableImageError)
    assert read(encode(pixels_of(0), "TIFF")).mode == "RGB"  # 8-bit pictures do not need it


def test_every_odd_file_decodes_or_is_named():
    if not ODD_FILES.exists():
        pytest.skip("the collection of awkward files is not beside this repository")
    pytest.importorskip("rasterio", reason="rasters need rasterio")
    unreadable = set()
    for path in sorted(ODD_FILES.iterdir()):
        for num_channels in (3, 4):
            try:
                image = decode(Record(0, path.name, path=str(path)), num_channels)
            except UnreadableImageError as error:
                assert error.name == path.name and error.reason
                unreadable.add(path.stem)
            else:
                assert isinstance(image, Image.Image) and image.mode == "RGB" or image.ndim == 3
    assert unreadable >= {"empty", "truncated", "truncated_half", "git_lfs_pointer", "html_error_page", "all-nodata"}
    assert unreadable <= {
        *("empty", "truncated", "truncated_half", "git_lfs_pointer", "html_error_page", "manifest"),
        *("all-nodata", "label_all_zero", "inverted_lat", "cint16", "fuzz_divide_by_zero_1"),
    }
