"""Record -> pixels: what a worker does first, and what makes an image unreadable."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin


_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
# Files that Pillow fails on reach GDAL only with such a start: others (VRT, for one) may name further files.
_RASTER_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # TIFF, JPEG 2000
_GDAL_NODATA_TAG = 42113


@dataclass(frozen=True)
class Record:
    """One image, not yet decoded.

    Attributes:
        index: Position in the dataset, or in the epoch's stream.
        name: What a log calls it: path below the folder, name inside the table, or row number.
        path: File or address of the encoded image, unless data holds it.
        data: The encoded image.
    """

    index: int
    name: str
    path: str | None = None
    data: bytes | None = None


class UnreadableImageError(ValueError):
    """One image that cannot be decoded; a run counts and skips it.

    Attributes:
        name: Name of the record.
        reason: What is wrong with it, for the log.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.name} cannot be read: {self.reason}"


def decode(record: Record, num_channels: int = 3) -> Image.Image | np.ndarray:
    """Decode one record to pixels.

    8-bit pictures of any kind (grey, palette, alpha, CMYK) become RGB, upright by their EXIF tag. Rasters of another
    depth or band count keep their bands and values, nodata values included. Of a 16-bit RGB PNG, Pillow keeps the
    upper 8 bits.

    Args:
        record: The encoded image.
        num_channels: Bands of the model. With other than 1 and 3, an 8-bit TIFF is read band by band too: a fourth
            band is then data, not transparency.

    Returns:
        PIL image in mode RGB, or (H, W, C) array of a real dtype.

    Raises:
        UnreadableImageError: Empty, truncated, too large, no image at all, complex values, or nothing but nodata.
        ValueError: A raster needs rasterio, which is not installed.
    """
    data = encoded_bytes(record)
    if num_channels in (1, 3) or not data.startswith(_RASTER_MAGICS):
        picture = _decode_picture(record.name, data)
        if picture is not None:
            return picture
    return _decode_raster(record.name, data, num_channels)


def with_right_bands(
    image: Image.Image | np.ndarray, num_channels: int, rgb_channels: tuple[int, ...] | None, name: str
) -> Image.Image | np.ndarray:
    """Make a picture grey for a one-band model, bring its colours into the model's order; refuse other bands.

    Args:
        image: What `decode` returns.
        num_channels: Bands of the model.
        rgb_channels: Places of red, green and blue among three bands, for pictures; None is (0, 1, 2).
        name: What an error calls the image.

    Returns:
        PIL image or (H, W, C) array with the model's bands.

    Raises:
        ValueError: The image's band count is not the model's.
    """
    if isinstance(image, Image.Image) and num_channels == 1:
        return image.convert("L")
    if isinstance(image, Image.Image) and num_channels == 3 and rgb_channels not in (None, (0, 1, 2)):
        colours, places = image.split(), list(rgb_channels or ())
        image = Image.merge("RGB", [colours[places.index(channel)] for channel in range(3)])
    bands = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[2]
    if bands != num_channels:
        raise ValueError(
            f"image {name} has {bands} bands but the model has {num_channels}; leave such images out, or "
            f"train a model with num_channels={bands}."
        )
    return image


def encoded_bytes(record: Record) -> bytes:
    """Fetch the encoded image and refuse what is plainly none."""
    if record.data is None and record.path is None:
        raise UnreadableImageError(record.name, "the row holds no image")
    try:
        data = record.data if record.data is not None else _read_file(str(record.path))
    except OSError as error:
        raise UnreadableImageError(record.name, f"the file cannot be opened ({error.strerror or error})") from error
    head = data[:256].lstrip().lower()
    if not data:
        raise UnreadableImageError(record.name, "zero bytes")
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableImageError(record.name, "a Git LFS pointer, not the image; run git lfs pull")
    if head.startswith((b"<!doctype html", b"<html")):
        raise UnreadableImageError(record.name, "an HTML page, not an image; download it again")
    return data


def _read_file(path: str) -> bytes:
    """Read a local file, or an address such as the hf:// and zip:// ones of streamed datasets."""
    if "://" not in path:
        return Path(path).read_bytes()
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


def _decode_picture(name: str, data: bytes) -> Image.Image | None:
    """Decode an 8-bit picture to upright RGB with Pillow; None means that the raster reader has to try."""
    raster = data.startswith(_RASTER_MAGICS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata of a readable picture is no news
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data))
            if image.mode not in _EIGHT_BIT_MODES:
                return None
            image.load()
            picture = _to_rgb(_upright(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnreadableImageError(name, _too_large()) from error
        except Exception as error:  # damaged files make Pillow raise nearly anything, from OSError to struct.error
            if raster:
                return None
            raise UnreadableImageError(name, _short(error)) from error
    if _is_all_nodata(image):
        raise UnreadableImageError(name, "every pixel is nodata")
    return picture


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a broken EXIF block leaves the pixels as they are."""
    try:
        # Pillow would copy a picture that is upright already, as nearly all are.
        return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    except Exception:  # any of Pillow's parse errors; the pixels themselves are sound
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to RGB; transparency is dropped, not painted."""
    if image.mode == "RGB":
        return image
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # premultiplied alpha converts to its own kind only
    return (image.convert(straight) if straight else image).convert("RGB")


def _is_all_nodata(image: Image.Image) -> bool:
    """Tell whether a TIFF names a nodata value and holds nothing else."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    try:
        nodata = float(tags[_GDAL_NODATA_TAG])
    except (KeyError, ValueError, TypeError):
        return False
    return bool((np.asarray(image) == nodata).all())


def _decode_raster(name: str, data: bytes, num_channels: int) -> Image.Image | np.ndarray:
    """Decode a raster of any depth and band count with rasterio."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise ValueError(
            f"image {name} is no 8-bit picture and needs rasterio to be read; run pip install gfm-hf[geo]."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.MemoryFile(data, filename="image") as memory, memory.open() as raster:
                if Image.MAX_IMAGE_PIXELS and raster.width * raster.height > Image.MAX_IMAGE_PIXELS:
                    raise UnreadableImageError(name, _too_large())
                bands, nodata = raster.read(), raster.nodata
        except UnreadableImageError:
            raise
        except Exception as error:  # as above: fuzzed headers reach every corner of GDAL
            raise UnreadableImageError(name, _short(error.__cause__ or error)) from error
    return _usable_bands(name, bands, nodata, num_channels)


def _usable_bands(name: str, bands: np.ndarray, nodata: float | None, num_channels: int) -> Image.Image | np.ndarray:
    """Refuse (C, H, W) values that no model can use; hand grey and RGB bytes out as a picture."""
    if np.iscomplexobj(bands):
        raise UnreadableImageError(name, f"complex values ({bands.dtype})")
    empty = np.isnan(bands) if np.issubdtype(bands.dtype, np.floating) else np.zeros(bands.shape, dtype=bool)
    if nodata is not None:
        empty |= bands == nodata
    if empty.all():
        raise UnreadableImageError(name, "every pixel is nodata")
    if bands.dtype == np.uint8 and len(bands) in (1, 3) and num_channels in (1, 3):
        pixels = bands[0] if len(bands) == 1 else np.ascontiguousarray(bands.transpose(1, 2, 0))
        return Image.fromarray(pixels).convert("RGB")
    return bands.transpose(1, 2, 0)


def _too_large() -> str:
    """Say why a huge image is refused."""
    return f"more than {Image.MAX_IMAGE_PIXELS} pixels, the limit of Pillow; cut it into tiles"


def _short(error: BaseException) -> str:
    """Say an error in one line, without the memory address that Pillow puts in."""
    text = " ".join(str(error).split())
    return "no known image format" if "cannot identify image file" in text else f"{type(error).__name__}: {text[:200]}"
