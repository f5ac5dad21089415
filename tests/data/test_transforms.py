import math

import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.seeding import CROP_STREAM, sample_rng
from gfm_hf.data.transforms import centre_view, crop_and_flip, crop_box, cut, image_size


def picture(height, width, channels=3, dtype=np.uint8, top=256, seed=0):
    return np.random.default_rng(seed).integers(0, top, (height, width, channels)).astype(dtype)


def boxes(height, width, count=400, **kwargs):
    return [crop_box(height, width, sample_rng(0, 0, i, CROP_STREAM), **kwargs) for i in range(count)]


@pytest.mark.parametrize("height, width", [(128, 128), (97, 211), (5, 4), (1, 1), (1, 300), (300, 1), (2, 2)])
def test_boxes_lie_inside_the_image(height, width):
    for top, left, rows, columns in boxes(height, width, 100):
        assert rows >= 1 and columns >= 1
        assert 0 <= top and top + rows <= height and 0 <= left and left + columns <= width


def test_boxes_keep_area_and_aspect_in_range():
    found = np.array(boxes(1000, 1000))
    areas, aspects = found[:, 2] * found[:, 3] / 1e6, found[:, 3] / found[:, 2]
    assert 0.665 < areas.min() < 0.69 and 0.9 < areas.max() < 1.001
    assert aspects.min() > 0.745 and aspects.max() < 1.342


def test_box_follows_the_rule_draw_by_draw():
    rng = sample_rng(4, 0, 0, CROP_STREAM)
    area = 100 * 200 * rng.uniform(0.1, 0.2)
    aspect = math.exp(rng.uniform(math.log(0.5), math.log(2.0)))
    rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    expected = (rng.integers(100 - rows + 1), rng.integers(200 - columns + 1), rows, columns)
    assert crop_box(100, 200, sample_rng(4, 0, 0, CROP_STREAM), (0.1, 0.2), (0.5, 2.0)) == expected


def test_aspect_is_log_uniform():
    aspects = np.array([columns / rows for _, _, rows, columns in boxes(1000, 1000, 2000, scale=(0.05, 0.1))])
    assert abs(np.mean(np.log(aspects))) < 0.02  # a uniform ratio would give 0.026 and more
    assert abs(np.mean(aspects < 1) - 0.5) < 0.05


@pytest.mark.parametrize(
    "shape, expected", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((100, 100), (0, 0, 100, 100))]
)
def test_image_that_no_box_fits_gets_the_centred_one(shape, expected):
    assert crop_box(*shape, sample_rng(0, 0, 0, CROP_STREAM), scale=(4.0, 4.0)) == expected


@pytest.mark.parametrize("height, width, size", [(160, 160, 96), (50, 70, 96), (211, 97, 64), (1, 1, 8), (3, 400, 16)])
def test_bytes_are_resized_as_pillow_does_to_one_grey_level(height, width, size):
    """Whatever holds them; the authors' crops are Pillow's."""
    pixels = picture(height, width)
    for index in range(4):
        views = [crop_and_flip(image, index, 1, 2, size) for image in (Image.fromarray(pixels), pixels)]
        assert views[0].shape == (3, size, size) and views[0].dtype == np.uint8 and np.array_equal(*views)
        top, left, rows, columns = box = crop_box(height, width, sample_rng(index, 0, 0, CROP_STREAM))
        crop = Image.fromarray(pixels).crop((left, top, left + columns, top + rows))
        expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), int).transpose(2, 0, 1)
        assert np.abs(cut(pixels, box, size) - expected).max() <= 1
    assert np.array_equal(*(centre_view(image, size) for image in (Image.fromarray(pixels), pixels)))


def test_view_is_a_pure_function_of_seed_epoch_index():
    image = Image.fromarray(picture(80, 80))
    base = crop_and_flip(image, 1, 2, 3, 32)
    assert np.array_equal(base, crop_and_flip(image, 1, 2, 3, 32))
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert not np.array_equal(base, crop_and_flip(image, *other, 32))


def test_half_of_the_views_are_mirrored_and_none_turned():
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0)
    falling = [crop_and_flip(ramp, i, 0, 0, 16)[0] for i in range(400)]
    mirrored = [bool(view[0, 0] > view[0, -1]) for view in falling]
    assert all(np.ptp(view.astype(int), axis=0).max() <= 1 for view in falling)  # rounding may differ between rows
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize("dtype, top", [(np.uint16, 60000), (np.int16, 3000), (np.float32, 5), (np.uint32, 2**31)])
def test_rasters_keep_dtype_range_and_band_count(dtype, top):
    pixels = picture(40, 50, 7, dtype, top)
    view = crop_and_flip(pixels, 0, 0, 0, 24)
    assert view.dtype == dtype and view.shape == (7, 24, 24) and view.flags.c_contiguous
    assert view.min() >= pixels.min() and view.max() <= pixels.max()


def test_integers_are_rounded_not_cut_off():
    checker = np.tile(np.array([[0, 3], [3, 0]], dtype=np.uint16), (8, 8))[:, :, None]
    assert (cut(checker, (0, 0, 16, 16), 4)[0, 1:-1, 1:-1] == 2).all()  # the mean is 1.5


@pytest.mark.parametrize("value, dtype", [(65535, np.uint16), (2**24 + 1, np.uint32), (2**24 + 1, np.float64)])
def test_extreme_values_survive_resizing(value, dtype):
    assert np.allclose(cut(np.full((9, 7, 2), value, dtype=dtype), (0, 0, 9, 7), 31), value, rtol=1e-12, atol=0)


def test_cut_at_own_size_is_the_crop_and_ignores_what_lies_outside():
    pixels = picture(30, 40)
    expected = pixels[5:21, 7:23].transpose(2, 0, 1)
    for image in (pixels, Image.fromarray(pixels)):
        assert np.array_equal(cut(image, (5, 7, 16, 16), 16), expected)
    grey = np.ascontiguousarray(pixels[:, :, 0])
    assert np.array_equal(cut(Image.fromarray(grey), (5, 7, 16, 16), 16), expected[:1])


def test_centre_view_takes_the_centred_square():
    pixels = picture(20, 50)
    assert np.array_equal(centre_view(pixels, 20), pixels[:, 15:35].transpose(2, 0, 1))
    assert image_size(pixels) == image_size(Image.fromarray(pixels)) == (20, 50)
