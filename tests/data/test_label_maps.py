import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.decoding import Record, UnreadableImageError
from gfm_hf.data.label_maps import check_ids, open_mask, plain_ids, survey, two_classes

from .pictures import encode, pixels_of, raster_bytes


IDS = np.array([[0, 1, 2], [5, 255, 3]], dtype=np.uint8)


def mask_of(data):
    return plain_ids(open_mask(Record(0, "a.png", data=data)), "a.png")


def palette_picture():
    picture = Image.fromarray(IDS, "L").convert("P")
    picture.putdata(IDS.ravel().tolist())
    picture.putpalette([7, 8, 9, 250, 0, 0] + [99] * 762)
    return picture


def test_ids_stay_ids_in_any_file():
    for data in (encode(IDS), encode(palette_picture()), encode(IDS.astype(np.uint16)), encode(IDS, "TIFF")):
        assert np.array_equal(mask_of(data), IDS)
    assert np.array_equal(mask_of(encode(np.stack([IDS] * 3, axis=2))), IDS)  # grey stored as colour
    assert np.array_equal(mask_of(encode(Image.fromarray(IDS % 2 == 1))), IDS % 2)
    assert np.array_equal(mask_of(raster_bytes(IDS[..., None].astype(np.int32))), IDS)
    assert np.array_equal(mask_of(raster_bytes(IDS[..., None].astype(np.uint8), nodata=0, compress="zstd")), IDS)
    assert np.array_equal(plain_ids(open_mask(IDS.astype(np.int64)), "row 0"), IDS)


def test_alpha_is_no_label():
    rgba = np.dstack([np.stack([IDS] * 3, axis=2), np.full(IDS.shape, 9, np.uint8)])
    assert np.array_equal(mask_of(encode(rgba)), IDS)


def test_floats_are_whole_ids_with_nan_to_ignore():
    values = IDS.astype(np.float32)
    values[0, 0] = np.nan
    assert mask_of(raster_bytes(values[..., None])).tolist() == [[255, 1, 2], [5, 255, 3]]
    values[0, 0] = 0.5
    with pytest.raises(ValueError, match="a.png holds fractions"):
        mask_of(raster_bytes(values[..., None]))


def test_colours_are_no_ids():
    with pytest.raises(ValueError, match="a.png is in colour .* mask_reader"):
        mask_of(encode(pixels_of(0)))
    opened = open_mask(Record(0, "a.png", data=encode(palette_picture())))
    assert opened.mode == "P" and opened.convert("RGB").getpixel((1, 0)) == (250, 0, 0)  # for a reader of colours


def test_unreadable_masks_say_why():
    with pytest.raises(UnreadableImageError, match="zero bytes"):
        mask_of(b"")
    with pytest.raises(UnreadableImageError):
        mask_of(encode(pixels_of(0, 40, 40))[:300])
    with pytest.raises(ValueError, match="a.png .* has 5 bands"):
        mask_of(raster_bytes(pixels_of(0, channels=5)))


def test_binary_masks_may_be_soft():
    assert two_classes(np.array([[0, 3, 127], [128, 250, 255]])).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_the_whole_set_says_what_255_means():
    def found(*masks):
        values, ids = survey(np.array([mask]) for mask in masks)
        return values, ids.tolist()

    assert found([0, 255], [0, 0]) == ("binary", [0, 1])
    assert found([0, 255], [0, 1]) == ("ids", [0, 1])  # the same first mask, now with pixels to ignore
    assert found([2, 7], [0, 255]) == ("ids", [0, 2, 7])
    assert found([0, 0]) == ("ids", [0])


def test_ids_of_no_class_are_refused():
    check_ids(IDS, 6, "a.png")
    with pytest.raises(ValueError, match=r"a.png holds the id 5 \(1 px\) but there are 5 classes, 0 to 4"):
        check_ids(IDS, 5, "a.png")
    with pytest.raises(ValueError, match="the id -1"):
        check_ids(np.array([[-1, 0]]), 2, "a.png")
