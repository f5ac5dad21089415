"""Masks -> ids: what the values mean is a setting, and nothing is learnt from a wrong reading in silence."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gfm_hf.model import label_maps_gfm as room
from gfm_hf.model.label_maps_gfm import (
    MapSettings,
    change_probability,
    final_ids,
    fit_ids,
    picture_of,
    raw_values,
    read_ids,
    read_maps,
    resize_nearest,
    resized_logits,
)


IMAGERY = Path(__file__).resolve().parents[3] / "shared" / "imagery"
# ISPRS Vaihingen with eroded borders: black first, so that do_reduce_labels ignores it.
VAIHINGEN = [[0, 0, 0], [255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0], [255, 0, 0]]
IDS = np.array([[0, 1, 2], [255, 4, 3]], dtype=np.uint8)


def settings(**changes):
    plain = {"ignore_index": 255, "do_reduce_labels": False, "palette": None, "palette_tolerance": 0,
             "mask_threshold": None, "num_labels": None, "nodata": None}  # fmt: skip
    return MapSettings(**{**plain, **changes})


def read(segmentation_map, **changes):
    return read_ids(segmentation_map, settings(**changes), "label map 0")


@pytest.fixture
def warned(monkeypatch):
    """Messages given to warning_once."""
    messages = []
    monkeypatch.setattr(room.logger, "warning_once", messages.append)
    return messages


def picture_of_ids(mode):
    picture = Image.fromarray(IDS)
    if mode == "P":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return picture.convert(mode) if picture.mode != mode else picture


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segmentation_map",
    [
        IDS, IDS.astype(np.int64), IDS.astype(np.float32), IDS.astype(">u2"), IDS[None], IDS[..., None],
        np.stack([IDS] * 3, -1), np.asfortranarray(IDS), torch.from_numpy(IDS),
        torch.from_numpy(IDS.astype(np.int64))[None], torch.from_numpy(IDS).bfloat16(), picture_of_ids("L"),
        picture_of_ids("P"), picture_of_ids("I"), picture_of_ids("RGB"), picture_of_ids("LA"), picture_of_ids("RGBA"),
        Image.fromarray(IDS.astype(np.uint16)),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(getattr(value, "dtype", "")) + str(value.shape),
)  # fmt: skip
def test_ids_in_every_container(segmentation_map):
    ids = read(segmentation_map, num_labels=5)
    assert ids.dtype == np.int64 and np.array_equal(ids, IDS)


def test_palette_picture_keeps_its_indices_unless_colours_count():
    picture = picture_of_ids("P")
    assert np.array_equal(read(picture), IDS)
    table = np.array(picture.getpalette()).reshape(-1, 3)
    palette = [table[4].tolist(), table[3].tolist(), table[2].tolist(), table[1].tolist(), table[0].tolist()]
    colours = read(picture, palette=[*palette, table[255].tolist()], num_labels=6)
    assert np.array_equal(colours, [[4, 3, 2], [5, 0, 1]])


def test_bilevel_picture_and_bools_are_two_classes():
    mask = np.array([[True, False], [False, True]])
    for segmentation_map in (mask, torch.from_numpy(mask), Image.fromarray(mask)):
        for threshold in (None, 128):
            assert np.array_equal(read(segmentation_map, mask_threshold=threshold), mask)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IDS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read(Image.open(tmp_path / "turned.png")), np.rot90(IDS, -1))


@pytest.mark.filterwarnings("error")
def test_nan_and_transparency_are_ignored(warned):
    floats = np.array([[0.0, np.nan], [2.0, 1.0]])
    assert np.array_equal(read(floats), [[0, 255], [2, 1]])
    assert np.array_equal(read(floats, ignore_index=-100), [[0, -100], [2, 1]])
    assert np.array_equal(read(np.array([[0.2, np.nan], [0.5, 1.0]]), mask_threshold=0.5), [[0, 255], [1, 1]])
    stored = np.array([[0.0, np.nan], [1.0, 1.0]], np.float32)
    assert np.array_equal(read(stored, mask_threshold=128), [[0, 255], [1, 1]])
    assert (read(np.full((2, 2), np.nan), mask_threshold=128) == 255).all()
    assert warned == []
    rgba = np.dstack([IDS, IDS, IDS, np.array([[255, 0, 255], [255, 1, 255]], np.uint8)])
    assert np.array_equal(read(Image.fromarray(rgba)), [[0, 255, 2], [255, 4, 3]])
    assert len(warned) == 1 and "16.667%" in warned[0]
    hidden = np.dstack([np.full((2, 2, 3), 77, np.uint8), np.zeros((2, 2), np.uint8)])
    assert (read(hidden, palette=VAIHINGEN) == 255).all()  # a colour that nobody sees is no unknown colour


def test_reducing_ignores_class_0_and_leaves_ignored_pixels_alone():
    assert np.array_equal(read(IDS, do_reduce_labels=True), [[255, 0, 1], [255, 3, 2]])
    shifted = np.where(IDS == 255, -100, IDS.astype(np.int64))
    assert np.array_equal(read(shifted, do_reduce_labels=True, ignore_index=-100), [[-100, 0, 1], [-100, 3, 2]])
    assert read(np.array([[254, 255]], np.uint8), do_reduce_labels=True).tolist() == [[253, 255]]


@pytest.mark.parametrize(
    ("segmentation_map", "changes", "message"),
    [
        (IDS, {"num_labels": 3}, r"holds the ids \[3, 4\] in 33.333% of its pixels but the classes are 0 to 2"),
        (IDS, {"ignore_index": -100, "num_labels": 5}, r"ids \[255\] in 16.667%"),
        (IDS, {"num_labels": 4, "do_reduce_labels": True, "ignore_index": 200}, r"ids \[254\]"),
        (np.array([[-1, 0]]), {}, r"ids \[-1\].*0 and above"),
        (np.array([[0.0, 0.4]]), {}, "fractions or infinite values, such as 0.4, in 50.000%"),
        (np.array([[0.0, np.inf]]), {}, "fractions or infinite"),
        (np.zeros((2, 2), np.complex64), {}, "ndarray of complex64"),
        ("mask.png", {}, "is a str"),
        ([[0, 1], [1, 0]], {}, "is a list.*np.asarray"),
        (np.zeros((5, 6, 7)), {}, r"shape \(5, 6, 7\).*argmax"),
        (np.zeros((3, 6, 3), np.uint8), {}, r"shape \(3, 6, 3\)"),
        (np.zeros((0, 4)), {}, r"shape \(0, 4\)"),
        (np.zeros(4), {}, r"shape \(4,\)"),
        (np.array([[[1, 2, 3]] * 2] * 2, np.uint8), {}, "colour-coded but the processor has no palette"),
    ],
)
def test_unreadable_maps(segmentation_map, changes, message):
    with pytest.raises(ValueError, match=f"^label map 0.*{message}"):
        read(segmentation_map, **changes)


# --- two classes -----------------------------------------------------------------------------------------------------


def test_threshold_makes_two_classes_of_levels():
    levels = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
    expected = [[0, 0, 0], [1, 1, 1]]
    grey = Image.fromarray(levels)
    for segmentation_map in (levels, grey, grey.convert("RGB"), grey.convert("RGBA"), levels.astype(np.float32)):
        assert np.array_equal(read(segmentation_map, mask_threshold=128, num_labels=2), expected)
    wide = np.array([[0, 65535]], np.uint16)
    assert read(wide, mask_threshold=128).tolist() == [[0, 1]]


def test_threshold_leaves_masks_of_0_and_1():
    for values in ([[0, 1], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]):
        assert read(np.array(values, np.uint8), mask_threshold=128).tolist() == values
    assert read(np.full((2, 2), 255, np.uint8), mask_threshold=128).tolist() == [[1, 1], [1, 1]]


def test_threshold_refuses_what_has_two_readings():
    with pytest.raises(ValueError, match="holds just 0, 1 and 255: ids with ignored pixels, or levels?"):
        read(np.array([[0, 1, 255]], np.uint8), mask_threshold=128)
    with pytest.raises(ValueError, match="all below mask_threshold=128; pass mask_threshold=0.5"):
        read(np.array([[0.0, 0.7]]), mask_threshold=128)


def test_0_and_255_read_as_ids_is_said(warned):
    mask = np.array([[0, 255], [0, 0]], np.uint8)
    assert np.array_equal(read(mask), mask)
    assert len(warned) == 1 and "mask_threshold=128" in warned[0] and "25.000%" in warned[0]
    for other in (IDS, np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), np.array([[1, 255]], np.uint8)):
        read(other)
    final_ids(mask, settings(), "label map 0")
    assert len(warned) == 1


# --- colours ---------------------------------------------------------------------------------------------------------


def blocks(seed=0, size=8, count=8):
    """Ids of 0 to 6 in square blocks, and their colours."""
    ids = np.random.default_rng(seed).integers(0, 7, (count, count)).repeat(size, 0).repeat(size, 1)
    return ids, np.asarray(VAIHINGEN, dtype=np.uint8)[ids]


def test_colours_of_vaihingen():
    ids, colours = blocks()
    expected = np.where(ids == 0, 255, ids - 1)
    variants = [
        colours, colours.transpose(2, 0, 1), torch.from_numpy(colours), Image.fromarray(colours),
        Image.fromarray(colours).convert("RGBA"), Image.fromarray(colours).quantize(7),
    ]  # fmt: skip
    for variant in variants:
        assert np.array_equal(read(variant, palette=VAIHINGEN, do_reduce_labels=True), expected)
    assert np.array_equal(read(colours, palette=VAIHINGEN), ids)


def test_black_and_white_colours_are_no_grey_levels():
    colours = np.array([[[0, 0, 0], [255, 255, 255]]] * 2, np.uint8)
    assert read(colours, palette=[[255, 255, 255], [0, 0, 0]]).tolist() == [[1, 0]] * 2


def test_unknown_colours_are_counted_and_named():
    _, colours = blocks()
    colours[0, :3] = [250, 5, 5]
    colours[1, 0] = [9, 9, 9]
    with pytest.raises(ValueError, match=r"colour \(250, 5, 5\), and unknown colours in 0.098% of its pixels"):
        read(colours, palette=VAIHINGEN)
    with pytest.raises(ValueError, match=r"colour \(9, 9, 9\), and unknown colours in 0.024%.*above 5 for"):
        read(colours, palette=VAIHINGEN, palette_tolerance=5)
    ids = read(colours, palette=VAIHINGEN, palette_tolerance=9)
    assert (ids[0, :3] == 6).all() and ids[1, 0] == 0
    with pytest.raises(ValueError, match="colours of type float64"):
        read(colours.astype(float), palette=VAIHINGEN)


def test_tolerance_reads_masks_stored_as_jpeg():
    ids, colours = blocks(size=16)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "JPEG", quality=90, subsampling=0)
    stored = Image.open(file)
    with pytest.raises(ValueError, match="JPEG"):
        read(stored, palette=VAIHINGEN)
    found = read(stored, palette=VAIHINGEN, palette_tolerance=100)
    assert (found == ids).mean() > 0.99


def test_ids_beside_a_palette_are_held_to_its_length():
    assert np.array_equal(read(IDS, palette=VAIHINGEN), IDS)
    with pytest.raises(ValueError, match=r"ids \[4\].*0 to 3"):
        read(IDS, palette=VAIHINGEN[:4])
    with pytest.raises(ValueError, match=r"ids \[5\].*0 to 4"):
        final_ids(np.array([[5]]), settings(palette=VAIHINGEN[:6], do_reduce_labels=True), "label map 0")


# --- batches, sizes, holes -------------------------------------------------------------------------------------------


def test_one_map_per_image(tmp_path):
    sizes, names = [(2, 3), (2, 3)], ["image 0", "image 1, before,"]
    for maps in ([IDS, IDS], (IDS, IDS), np.stack([IDS, IDS]), torch.from_numpy(np.stack([IDS, IDS]))[:, None]):
        assert [ids.tolist() for ids in read_maps(maps, sizes, names, settings(), False)] == [IDS.tolist()] * 2
    assert len(read_maps(np.zeros((1, 2, 3), np.uint8), sizes[:1], names, settings(), False)) == 1
    for maps in ([IDS], IDS):
        with pytest.raises(ValueError, match="holds 1 maps but there are 2 images"):
            read_maps(maps, sizes, names, settings(), False)
    Image.fromarray(IDS.T).save(tmp_path / "other.png")
    message = r"label map 1 \(.*other.png\) has size \(3, 2\) but image 1, before has \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        read_maps([IDS, Image.open(tmp_path / "other.png")], sizes, names, settings(), False)


def test_final_ids_are_not_read_twice():
    changes = {"do_reduce_labels": True, "num_labels": 4}
    once = read(IDS, **changes)
    assert np.array_equal(final_ids(once, settings(**changes), "label map 0"), once)
    binary = np.array([[0, 1, 255]])
    assert np.array_equal(final_ids(binary, settings(mask_threshold=128), "label map 0"), binary)
    with pytest.raises(ValueError, match=r"ids \[9\]"):
        final_ids(np.array([[9]]), settings(**changes), "label map 0")
    with pytest.raises(ValueError, match="colour-coded"):
        final_ids(blocks()[1], settings(palette=VAIHINGEN), "label map 0")


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (64, 16), (40, 56), (23, 200)])
def test_resize_equals_pils_nearest(size):
    ids = np.random.default_rng(0).integers(0, 200, (40, 56), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(resize_nearest(ids, *size), expected)


def test_resize_is_aligned_with_the_images():
    """An edge lands where the bilinear resize of the image puts it, not half a pixel beside."""
    ramp = np.tile(np.arange(64), (64, 1))
    image = torch.nn.functional.interpolate(
        torch.tensor(ramp)[None, None].float(), (45, 45), mode="bilinear", align_corners=False
    )[0, 0]
    difference = torch.from_numpy(resize_nearest(ramp, 45, 45)).float() - image
    assert difference.abs().max() <= 0.51 and abs(difference.mean().item()) < 0.05


def test_holes_are_ignored_before_the_resize():
    ids = np.zeros((4, 4), dtype=np.int64)
    first, second = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    first[0, 0] = second[3, 3] = True
    assert np.argwhere(fit_ids(ids, [first, None, second], 255, None) == 255).tolist() == [[0, 0], [3, 3]]
    assert (fit_ids(ids, [first], 255, (8, 8)) == 255).sum() == 4
    assert not ids.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"palette": [[0, 0], [1, 1]]}, "palette is"),
        ({"palette": [[0, 0, 0], [0, 0, 0]]}, "different RGB"),
        ({"palette": [[0, 0, 256]]}, "0 to 255"),
        ({"palette": [[0.0, 0.5, 1.0]]}, "0 to 255"),
        ({"palette": []}, "palette is"),
        ({"palette_tolerance": -1}, "palette_tolerance is -1"),
        ({"mask_threshold": 0}, "mask_threshold is 0"),
        ({"mask_threshold": float("nan")}, "mask_threshold is nan"),
        ({"mask_threshold": 128, "do_reduce_labels": True}, "both set"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": 256}, "ignore_index 255.*0 to 255"),
        ({"num_labels": 3, "ignore_index": 0}, "another ignore_index"),
        ({"nodata": "none"}, "nodata is 'none'"),
        ({"nodata": True}, "nodata is True"),
    ],
)
def test_contradicting_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_settings_are_plain_after_checking():
    assert settings(palette=np.array(VAIHINGEN)).palette == tuple(tuple(colour) for colour in VAIHINGEN)
    values = [
        settings(nodata=value).nodata for value in (np.uint8(0), -9999.0, float("nan"), np.float32("nan"), "nan")
    ]
    assert values == [0, -9999.0, "nan", "nan", "nan"] and type(values[0]) is int


# --- logits ----------------------------------------------------------------------------------------------------------


def test_logits_are_resized_before_the_decision():
    logits = torch.zeros(2, 2, 2, 2)
    logits[:, 1, 0, 0] = 1.0
    logits[:, 0, 1, 1] = 3.0
    first, second = resized_logits(logits, [(8, 6), (2, 2)])
    assert first.shape == (2, 8, 6) and torch.equal(second, logits[1])
    expected = torch.nn.functional.interpolate(logits[:1], (8, 6), mode="bilinear", align_corners=False)[0]
    assert torch.equal(first, expected)
    assert [tuple(item.shape) for item in resized_logits(logits, torch.tensor([[4, 4], [3, 5]]))] == [
        (2, 4, 4), (2, 3, 5),
    ]  # fmt: skip
    for sizes in ([(8, 6)], (8, 6, 3), [8, 6]):
        with pytest.raises((ValueError, TypeError), match="one \\(height, width\\) per image|not iterable"):
            resized_logits(logits, sizes)


def test_change_probability_for_any_number_of_classes():
    logits = torch.randn(3, 4, 5)
    torch.testing.assert_close(change_probability(logits), 1 - logits.softmax(0)[0])
    torch.testing.assert_close(change_probability(logits[:1]), logits[0].sigmoid())


def test_raw_values_are_rounded_and_kept_in_range():
    values = torch.tensor([[[-3.0, 0.49, 0.51, 254.6, 300.0]]])
    assert raw_values(values, np.dtype("uint8"))[0, :, 0].tolist() == [0, 0, 1, 255, 255]
    assert raw_values(values, np.dtype("int16"))[0, :, 0].tolist() == [-3, 0, 1, 255, 300]
    assert raw_values(values, np.dtype("float32")).dtype == np.float32
    assert raw_values(torch.tensor([[[70000.0]]]), np.dtype("uint16")).item() == 65535
    with pytest.raises(ValueError, match='NaN or infinite.*dtype="float32"'):
        raw_values(values / 0, np.dtype("uint8"))


def test_pictures_are_red_green_blue():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(np.asarray(picture_of(array, None)), array)
    assert np.array_equal(np.asarray(picture_of(array, [2, 1, 0])), array[..., ::-1])
    assert np.array_equal(np.asarray(picture_of(array, [1, 2, 0])), array[..., [2, 0, 1]])
    assert picture_of(array[..., :1], None).mode == "L"
    for other in (array.astype(np.uint16), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(ValueError, match="no 8-bit picture"):
            picture_of(other, None)


# --- real masks ------------------------------------------------------------------------------------------------------


def real_masks(name, count=4):
    path = IMAGERY / name
    if not path.exists():
        pytest.skip(f"the imagery file {name} is not available here")
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
    return [rows[index]["mask"] for index in range(count)]


def test_palette_masks_of_dubai():
    for mask in real_masks("segmentation/dubai_256.parquet"):
        assert mask.mode == "P"
        ids = read(mask, num_labels=6)
        assert np.array_equal(ids, np.asarray(mask)) and ids.max() <= 5


def test_change_masks_are_0_and_255(warned):
    masks = real_masks("change/pairs_256.parquet")
    found = [read(mask, mask_threshold=128, num_labels=2) for mask in masks]
    assert all(np.array_equal(ids, np.asarray(mask) // 255) for ids, mask in zip(found, masks, strict=True))
    assert warned == []
    read(next(mask for mask, ids in zip(masks, found, strict=True) if 0 < ids.mean() < 1))
    assert len(warned) == 1


def test_partly_labelled_landsat():
    path = IMAGERY / "change" / "landsat_taizhou_label.tif"
    if not path.exists():
        pytest.skip("the imagery file change/landsat_taizhou_label.tif is not available here")
    with Image.open(path) as mask:
        ids = read(mask, num_labels=2)
        assert (ids == 1).sum() == 2455 and (ids == 0).sum() == 6964
        with pytest.raises(ValueError, match="landsat|label map 0 holds just 0, 1 and 255"):
            read(mask, mask_threshold=128)
