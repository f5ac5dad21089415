import numpy as np
import pytest
from PIL import Image

from gfm_hf import GFMImageProcessor
from gfm_hf.data.decoding import Record, UnreadableImageError
from gfm_hf.data.label_maps import (
    Mask,
    check_bright,
    check_ids,
    check_number_of_ids,
    check_plausible,
    open_mask,
    plain_mask,
    survey,
    two_classes,
)

from .pictures import encode, pixels_of, raster_bytes


IDS = np.array([[0, 1, 2], [5, 255, 3]], dtype=np.uint8)


def opened(data):
    return open_mask(Record(0, "a.png", data=data))


def mask_of(data, mask_values="ids"):
    return plain_mask(opened(data), "a.png").label_map(mask_values)


def masks(*rows, **settings):
    """Masks of one row of pixels each, called 0, 1, ..."""
    for i, row in enumerate(rows):
        yield Mask(str(i), np.array([row]), np.ones((1, len(row)), bool), **settings)


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
    assert np.array_equal(plain_mask(open_mask(IDS.astype(np.int64)), "row 0").label_map("ids"), IDS)


@pytest.mark.parametrize("levels, settings, mask_values", [
    (IDS, {}, "ids"), (IDS % 2 * 255, {"mask_threshold": 128}, "binary")
])  # fmt: skip
@pytest.mark.parametrize("bands", [3, 1])
def test_what_is_transparent_is_not_labelled(levels, settings, mask_values, bands):
    """As the processor has it, which reads the same masks once the model is trained."""
    alpha = np.full(IDS.shape, 9, np.uint8)
    alpha[0, :2] = 0
    data = encode(np.dstack([levels] * bands + [alpha]))
    expected = [[255, 255, 2], [5, 255, 3]] if mask_values == "ids" else [[255, 255, 0], [1, 1, 1]]
    assert mask_of(data, mask_values).tolist() == expected
    assert GFMImageProcessor(**settings).read_label_map(opened(data)).tolist() == expected
    assert mask_of(encode(np.dstack([levels] * bands + [alpha + 1])), "ids").tolist() == levels.tolist()


def test_the_black_of_four_inks_is_not_transparency():
    picture = Image.new("CMYK", (2, 2), (0, 0, 0, 0))
    assert mask_of(encode(picture, "TIFF")).tolist() == [[255, 255], [255, 255]]  # white, and no pixel is unknown
    assert plain_mask(opened(encode(picture, "TIFF")), "a.tif").known.all()


def test_floats_are_whole_ids_with_nan_to_ignore():
    values = IDS.astype(np.float32)
    values[0, 0] = np.nan
    assert mask_of(raster_bytes(values[..., None])).tolist() == [[255, 1, 2], [5, 255, 3]]
    assert mask_of(raster_bytes(values[..., None]), "binary").tolist() == [[255, 0, 0], [0, 1, 0]]
    values[0, 0] = 0.5
    with pytest.raises(ValueError, match="a.png holds fractions .* --mask_threshold 0.5"):
        mask_of(raster_bytes(values[..., None]))


def test_colours_are_no_ids():
    with pytest.raises(ValueError, match="a.png is in colour .* --palette"):
        mask_of(encode(pixels_of(0)))
    picture = opened(encode(palette_picture()))
    assert picture.mode == "P" and picture.convert("RGB").getpixel((1, 0)) == (250, 0, 0)  # for a reader of colours


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
    def found(*rows):
        answer = survey(masks(*rows))
        return answer.mask_values, answer.ids

    assert found([0, 255], [0, 0]) == ("binary", [0, 1])
    assert found([0, 255], [0, 1]) == ("ids", [0, 1])  # the same first mask, now with pixels to ignore
    assert found([2, 7], [0, 255]) == ("ids", [0, 2, 7])
    assert found([0, 0]) == ("ids", [0])
    hidden = Mask("a", np.array([[0, 255, 7]]), np.array([[True, True, False]]))
    assert (survey([hidden]).mask_values, survey([hidden]).ids, survey([hidden]).gaps) == ("binary", [0, 1], True)


@pytest.mark.parametrize("rows, told", [([[255, 255]], "no class .255 is"), ([[3, 3], [255, 3]], "1 class, 3 ")])
def test_one_class_teaches_nothing(rows, told):
    with pytest.raises(ValueError, match=f"the masks hold {told}"):
        check_number_of_ids(survey(masks(*rows)))
    check_number_of_ids(survey(masks([0, 1])))
    hidden = Mask("a", np.array([[255, 0]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match="255, transparent pixels and NaN are ignored"):
        check_number_of_ids(survey([hidden]))


@pytest.mark.parametrize(
    "rows", [[[0, 255]], [[0, 1, 3]], [range(6), [255]], [[2, 20]], [range(0, 60, 2)], [range(128)]]
)
def test_ids_with_gaps_are_plausible(rows):
    check_plausible(survey(masks(*rows)))


@pytest.mark.parametrize(
    "rows, told",
    [
        ([[0, 1], [0, 65535]], "mask 1 holds 65535, and all masks 3 different values.*--num_labels 65536"),
        ([[0, 0], [0, 254]], "mask 1 holds 254"),
        ([[0, 1], [100, 200]], "mask 1 holds 200, and all masks 4"),
        ([[0, 21]], "mask 0 holds 21"),
        ([range(100), range(80, 129)], "mask 1 holds 128, and all masks 129"),
        ([[0, 1], [-1, 2]], "mask 1 holds -1, but ids begin with 0.*correct the ids"),
    ],
)
def test_levels_and_noise_are_no_ids(rows, told):
    with pytest.raises(ValueError, match=told) as caught:
        check_plausible(survey(masks(*rows)))
    assert all(way in str(caught.value) for way in ("--mask_values binary", "--mask_threshold V", "--palette"))


def test_jpeg_masks_hold_levels_at_best():
    """Compression spreads values: five ids become ten, all of them plausible."""
    stored = [encode(ids * np.ones((8, 8), np.uint8), "JPEG") for ids in (0, 4)]
    read = [plain_mask(opened(data), f"{i}.jpg") for i, data in enumerate(stored)]
    assert all(mask.lossy for mask in read) and not plain_mask(opened(encode(IDS)), "a.png").lossy
    with pytest.raises(ValueError, match="mask 0.jpg is a JPEG, which changes values.*up to 4.*--num_labels 5"):
        check_plausible(survey(read))
    check_plausible(survey(masks([0, 255], lossy=True)))


def test_binary_masks_need_something_bright():
    check_bright(masks([0, 0]))  # nothing anywhere may be the truth
    check_bright(masks([0, 1], [0, 128]))
    with pytest.raises(ValueError, match="mask 1 holds 2 and .*--mask_values ids.*--mask_threshold 1"):
        check_bright(masks([0, 1], [0, 2], [1, 1]))
    with pytest.raises(ValueError, match="mask a holds 1 "):  # what is transparent is not bright
        check_bright([Mask("a", np.array([[1, 255]]), np.array([[True, False]]))])
    every = masks([0, 255], [0, 1])
    check_bright(every)
    assert len(list(every)) == 1  # the first bright pixel is enough


def test_ids_of_no_class_are_refused():
    check_ids(IDS, 6, "a.png")
    with pytest.raises(ValueError, match=r"a.png holds the id 5 \(1 px\) but there are 5 classes, 0 to 4"):
        check_ids(IDS, 5, "a.png")
    with pytest.raises(ValueError, match="the id -1"):
        check_ids(np.array([[-1, 0]]), 2, "a.png")
    with pytest.raises(ValueError, match="correct the mask or --num_labels, or pass --mask_values binary"):
        check_ids(IDS, 5, "a.png")
    with pytest.raises(ValueError, match="correct the mask, or pass --mask_values binary"):  # change has two, always
        check_ids(IDS, 2, "a.png", fixed=True)
