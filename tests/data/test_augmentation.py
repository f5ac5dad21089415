import numpy as np
import pytest

from gfm_hf.data.augmentation import Augmentation, View, view_of_image, view_of_map, whole_view
from gfm_hf.data.transforms import cut


# A place where every pixel is told apart: image and map of it have to stay together.
GROUND = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20)
IMAGE = np.repeat(GROUND[..., None], 12, axis=2)
ALL = Augmentation(8, quarter_turns=True)


def draws(augmentation, count=400, seed=1):
    return [augmentation.draw(index, 0, seed, 24, 20) for index in range(count)]


def test_a_view_is_a_function_of_seed_epoch_and_index():
    assert ALL.draw(3, 2, 1, 24, 20) == ALL.draw(3, 2, 1, 24, 20)
    others = [ALL.draw(4, 2, 1, 24, 20), ALL.draw(3, 1, 1, 24, 20), ALL.draw(3, 2, 0, 24, 20)]
    assert ALL.draw(3, 2, 1, 24, 20) not in others


def test_all_eight_orientations_are_equally_likely():
    seen = [
        view_of_map(np.array([[0, 1], [2, 3]]), View((0, 0, 2, 2), v.mirror, v.upside_down, v.quarter_turns), 2)
        for v in draws(ALL, 1600)
    ]
    _, counts = np.unique(np.stack(seen).reshape(len(seen), 4), axis=0, return_counts=True)
    assert len(counts) == 8 and counts.min() > 140 and counts.max() < 260


def test_switching_one_draw_off_leaves_the_others():
    plain = Augmentation(8, horizontal_flip=False, vertical_flip=False)
    for with_all, without in zip(draws(ALL), draws(plain)):
        assert with_all.box == without.box
        assert (without.mirror, without.upside_down, without.quarter_turns) == (False, False, 0)
        assert (without.brightness, without.contrast) == (1, 1)
    flips = draws(Augmentation(8, vertical_flip=False))
    assert any(v.mirror for v in flips) and not any(v.upside_down or v.quarter_turns for v in flips)


def test_crops_keep_to_their_range():
    shares = [v.box[2] * v.box[3] / 480 for v in draws(Augmentation(8, scale=(0.3, 0.5)))]
    assert 0.25 < min(shares) < 0.33 and 0.47 < max(shares) < 0.55


@pytest.mark.parametrize("index", range(12))
def test_image_and_map_stay_together(index):
    """Without resizing both views hold the same pixels, for any turn."""
    view = ALL.draw_window(index, 0, 0, 24, 20)
    image, label_map = view_of_image(IMAGE, view, 8), view_of_map(GROUND, view, 8)
    assert image.shape == (12, 8, 8) and image.dtype == np.uint16
    assert (image == label_map).all()


def test_windows_reach_every_place():
    corners = {ALL.draw_window(i, 0, 0, 10, 9).box[:2] for i in range(200)}
    assert corners == {(top, left) for top in range(3) for left in range(2)}


@pytest.mark.parametrize("size", [5, 8, 16, 40])
def test_resized_maps_follow_resized_images(size):
    """A map of two halves and an image of it agree but for the blended edge."""
    halves = np.zeros((24, 20), np.uint8)
    halves[:, 10:] = 1
    for view in draws(Augmentation(size), 20):
        image = view_of_image(200.0 * halves[..., None], view, size)[0]
        label_map = view_of_map(halves, view, size)
        sure = (image < 1) | (image > 199)
        assert sure.mean() > 0.4 and ((image > 100) == label_map)[sure].all()


def test_maps_get_no_new_labels_and_keep_ignore():
    label_map = np.where(np.random.default_rng(0).random((24, 20)) < 0.5, 255, 3).astype(np.uint8)
    for view in draws(ALL, 20):
        assert set(np.unique(view_of_map(label_map, view, 13))) == {3, 255}


def test_the_whole_view_is_the_image_resized():
    image = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    assert np.array_equal(view_of_image(image, whole_view(24, 20), 16), cut(image, (0, 0, 24, 20), 16))
    square = image[:20]
    assert np.array_equal(view_of_image(square, whole_view(20, 20), 20), square.transpose(2, 0, 1))
    ids = np.arange(16).reshape(4, 4)
    assert np.array_equal(view_of_map(ids, whole_view(4, 4), 2), ids[1::2, 1::2])
    assert np.array_equal(view_of_map(ids, whole_view(4, 4), 8), ids.repeat(2, 0).repeat(2, 1))


def test_enlarged_views_see_the_same_ground():
    low, high = GROUND, GROUND.repeat(3, 0).repeat(3, 1)
    view = ALL.draw_window(5, 0, 0, 24, 20)
    assert np.array_equal(view_of_map(high, view.enlarged(3), 24), view_of_map(low, view, 8).repeat(3, 0).repeat(3, 1))


def test_colours_change_in_8_bits_only():
    image = np.full((4, 4, 3), 100, np.uint8)
    image[0] = 120
    box = (0, 0, 4, 4)
    brighter = view_of_image(image, View(box, brightness=1.1), 4)
    assert set(np.unique(brighter)) == {110, 132}
    flat = view_of_image(image, View(box, contrast=0.0), 4)
    assert set(np.unique(flat)) == {105}
    assert view_of_image(image, View(box, brightness=9.0), 4).max() == 255
    drawn = draws(Augmentation(4, brightness=0.2))
    assert 0.8 <= min(v.brightness for v in drawn) < 0.82 and 1.18 < max(v.brightness for v in drawn) <= 1.2
    assert {v.contrast for v in drawn} == {1.0}
    with pytest.raises(ValueError, match="8-bit images of up to three bands"):
        view_of_image(IMAGE, View((0, 0, 4, 4), brightness=1.1), 4)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"scale": (0.9, 0.5)}, {"scale": (0.0, 1.0)}, {"ratio": (0, 1)}, {"brightness": 1.0}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        Augmentation(**{"image_size": 8} | wrong)


def test_windows_larger_than_the_image_are_refused():
    for cut_window in (lambda: ALL.draw_window(0, 0, 0, 7, 20), lambda: ALL.centre_window(7, 20)):
        with pytest.raises(ValueError, match="7 x 20 px holds no window of 8 px"):
            cut_window()
