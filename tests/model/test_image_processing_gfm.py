"""GFMImageProcessor: bands, scale and sizes cannot go wrong in silence, and the class travels with a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTModel, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from gfm_hf.model import image_processing_gfm as room
from gfm_hf.model import value_checks_gfm
from gfm_hf.model.configuration_gfm import RGB_BAND_NAMES
from gfm_hf.model.image_processing_gfm import GFMImageProcessor


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
REFLECTANCE = {"rescale_factor": 1e-4, "image_mean": [0.1, 0.12, 0.15], "image_std": [0.05, 0.06, 0.07]}
CODE = ["image_processing_gfm.py", "label_maps_gfm.py", "value_checks_gfm.py"]
IMAGERY = Path(__file__).resolve().parents[3] / "shared" / "imagery"


def photo(height=40, width=56, seed=0):
    """Smooth uint8 (H, W, 3) picture with all levels."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def pixels(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


@pytest.fixture
def plain():
    """Processor that leaves sizes alone."""
    return GFMImageProcessor(do_resize=False)


@pytest.fixture
def warned(monkeypatch):
    """Messages given to warning_once."""
    messages = []
    for file in (room, value_checks_gfm):
        monkeypatch.setattr(file.logger, "warning_once", messages.append)
    return messages


# --- equality with the stock processor ---------------------------------------------------------------------------


def test_normalisation_equals_vit(plain):
    picture = Image.fromarray(photo())
    expected = ViTImageProcessorPil(do_resize=False, **IMAGENET)(picture, return_tensors="pt")["pixel_values"]
    actual = pixels(plain, picture)
    assert actual.dtype == torch.float32 and actual.is_contiguous()
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(17, 23), (90, 64)])
def test_resize_is_within_one_level_of_pil(resample, size):
    picture = np.where(photo() > 128, 255, 0).astype(np.uint8)  # hard edges: bicubic overshoots here
    settings = {"size": {"height": size[0], "width": size[1]}, "resample": resample, "do_normalize": False}
    expected = ViTImageProcessorPil(**settings)(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    actual = pixels(GFMImageProcessor(**settings), Image.fromarray(picture))
    assert actual.shape == expected.shape == (1, 3, *size)
    assert (actual - expected).abs().max() * 255 <= 1.0 + 1e-3


def test_default_is_the_papers_size():
    assert pixels(GFMImageProcessor(), photo()).shape == (1, 3, 192, 192)


def test_resize_takes_any_bands_and_types():
    cube = np.random.default_rng(0).integers(1500, 3000, (12, 30, 40)).astype(np.uint16)
    cube[0] = np.where(cube[0] > 2250, 3000, 0)
    processor = GFMImageProcessor(
        rescale_factor=1e-4, image_mean=[0.15] * 12, image_std=[0.1] * 12, band_names=None, size=20, resample=3
    )
    values = pixels(processor, cube, do_normalize=False)
    assert values.shape == (1, 12, 20, 20)
    assert values.min() >= 0  # an unsigned type keeps its range
    as_float = pixels(processor, cube.astype(np.float32), do_normalize=False)
    assert as_float.min() < 0
    torch.testing.assert_close(values[:, 1:], as_float[:, 1:])  # no overshoot below zero in the other bands


# --- inputs ------------------------------------------------------------------------------------------------------


def test_same_picture_in_every_container(plain):
    array = photo()
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    expected = pixels(plain, first)
    variants = [
        array,
        [array],
        (first,),
        first[None],
        array[None],
        Image.fromarray(array),
        torch.from_numpy(first.copy()),
        torch.from_numpy(array.copy())[None],
        array.astype(np.float32),
        array.astype(np.int16),
        array.astype(">u2"),
        array.astype(np.float16),
        torch.from_numpy(first.copy()).to(torch.float64),
        np.flip(np.flip(array, 0).copy(), 0),
    ]
    for variant in variants:
        torch.testing.assert_close(pixels(plain, variant), expected, atol=1e-6, rtol=0)


def test_batches_keep_their_order(plain):
    images = [photo(seed=seed) for seed in range(3)]
    batch = pixels(plain, images)
    assert batch.shape == (3, 3, 40, 56)
    for index, image in enumerate(images):
        assert torch.equal(batch[index], pixels(plain, image)[0])
    assert torch.equal(batch, pixels(plain, np.stack(images)))
    assert batch.is_contiguous() and pixels(plain, images, do_resize=True, size=9).is_contiguous()
    mixed = [images[0], Image.fromarray(images[1]), torch.from_numpy(images[2].astype(np.float32))]
    assert torch.equal(batch, pixels(plain, mixed))


def test_input_is_not_changed(plain):
    image = torch.from_numpy(photo().astype(np.float32))
    other = image[:20]
    before = image.clone()
    plain([image, other], return_tensors=None)
    plain(image, return_tensors="pt")
    assert torch.equal(image, before)


def test_return_types(plain):
    image = photo()
    expected = pixels(plain, [image, image])
    as_numpy = plain([image, image], return_tensors="np")["pixel_values"]
    assert isinstance(as_numpy, np.ndarray) and np.array_equal(as_numpy, expected.numpy())
    as_list = plain([image, image[:20]])["pixel_values"]
    assert [item.shape for item in as_list] == [(3, 40, 56), (3, 20, 56)]
    assert np.array_equal(as_list[0], expected[0].numpy())
    with pytest.raises(ValueError, match="'pt', 'np' or None"):
        plain(image, return_tensors="tf")


def test_unequal_sizes(plain):
    images = [photo(), photo(30, 20)]
    with pytest.raises(ValueError, match=r"\(30, 20\), \(40, 56\).*do_resize=True"):
        pixels(plain, images)
    resized = pixels(plain, images, do_resize=True, size=24)
    assert torch.equal(resized[1], pixels(plain, images[1], do_resize=True, size=24)[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1", "YCbCr", "I;16", "PA", "RGBX"])
def test_pil_modes_for_colour_and_grey_models(plain, mode):
    picture = Image.fromarray(photo()[..., 0]) if mode == "I;16" else Image.fromarray(photo()).convert(mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    assert picture.mode == mode
    levels = np.asarray(picture.convert("RGB")) if mode != "I;16" else np.stack([np.asarray(picture)] * 3, -1)
    torch.testing.assert_close(pixels(plain, picture), pixels(plain, levels))
    grey = GFMImageProcessor(do_resize=False, image_mean=[0.4], image_std=[0.2], band_names=["pan"])
    levels = np.asarray(picture.convert("L")) if mode != "I;16" else np.asarray(picture)
    torch.testing.assert_close(pixels(grey, picture), pixels(grey, levels))


@pytest.mark.filterwarnings("error")
def test_transparent_palette_and_read_only_arrays_give_no_warning(plain):
    picture = Image.fromarray(photo()).convert("P")
    picture.info["transparency"] = bytes(range(256))
    torch.testing.assert_close(pixels(plain, picture), pixels(plain, picture.convert("RGBA").convert("RGB")))
    array = photo().copy()
    array.setflags(write=False)
    assert pixels(plain, array).is_contiguous()
    assert not np.shares_memory(room._array_tensor(array, "image 0").numpy(), array)  # torch warns only once a process


def test_pil_transparency_is_no_band(plain):
    picture = Image.fromarray(np.dstack([photo(), photo()[..., :1]]), mode="RGBA")
    assert torch.equal(pixels(plain, picture, bands=["B", "G", "R"]), pixels(plain, photo()[..., ::-1]))


def test_exif_orientation_is_applied(plain, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(tmp_path / "turned.png", exif=exif)
    values = pixels(plain, Image.open(tmp_path / "turned.png"))
    assert torch.equal(values, pixels(plain, np.rot90(photo(), -1)))


def test_pil_bands_beyond_colour_need_names():
    processor = GFMImageProcessor(image_mean=[0.4] * 4, image_std=[0.2] * 4, band_names=["R", "G", "B", "N"], size=8)
    picture = Image.fromarray(np.dstack([photo(), photo()[..., :1]]), mode="RGBA")
    with pytest.raises(ValueError, match="mode RGBA but 4 bands.*bands="):
        pixels(processor, picture)
    named = pixels(processor, picture, bands=["R", "G", "B", "N"])
    assert torch.equal(named, pixels(processor, np.asarray(picture)))
    with pytest.raises(ValueError, match="mode L but 4 bands"):
        pixels(processor, picture.convert("L"), bands=["R", "G", "B", "N"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("scene.tif", "image 0 is a str.*rasterio"),
        (None, "image 0 is a NoneType"),
        ([], "images is empty"),
        (np.zeros((3, 8, 8), bool), "ndarray of bool"),
        (np.zeros((3, 8, 8), np.complex64), "ndarray of complex64"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "Tensor of torch.bool"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\) but \(C, H, W\)"),
        (np.zeros((2, 2, 3, 8, 8), np.uint8), r"shape \(2, 2, 3, 8, 8\)"),
        (np.zeros((3, 0, 8), np.uint8), r"shape \(3, 0, 8\)"),
        ([photo(), np.zeros((4, 8, 8), np.uint8)], "image 1 has shape.*3 bands were expected.*bands="),
    ],
)
def test_wrong_inputs(plain, image, message):
    with pytest.raises(ValueError, match=message):
        pixels(plain, image)


# --- channel axis and band order ---------------------------------------------------------------------------------


def test_channel_axis_is_never_guessed(plain):
    image = np.random.default_rng(0).integers(0, 256, (3, 10, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="could both be the 3 bands.*input_data_format"):
        pixels(plain, image)
    first = pixels(plain, image, input_data_format="channels_first")
    last = pixels(plain, image, input_data_format="channels_last")
    assert first.shape == (1, 3, 10, 3) and last.shape == (1, 3, 3, 10)
    assert torch.equal(last, pixels(plain, image.transpose(2, 0, 1).copy(), input_data_format="channels_first"))
    with pytest.raises(ValueError, match="channels_first axis"):
        pixels(plain, photo(), input_data_format="channels_first")
    with pytest.raises(ValueError, match="input_data_format is 'HWC'"):
        pixels(plain, photo(), input_data_format="HWC")


def test_bands_are_matched_by_name():
    processor = GFMImageProcessor(do_resize=False, band_names=["B04", "B03", "B02"], **REFLECTANCE)
    bands = ["B01", "B02", "B03", "B04", "B08"]
    cube = np.random.default_rng(0).integers(200, 3000, (5, 6, 7)).astype(np.uint16)
    expected = pixels(processor, cube[[3, 2, 1]])
    assert torch.equal(pixels(processor, cube, bands=bands), expected)
    assert torch.equal(pixels(processor, cube.transpose(1, 2, 0), bands=bands), expected)
    assert torch.equal(pixels(processor, [cube, cube], bands=tuple(bands))[1], expected[0])
    with pytest.raises(ValueError, match=r"lacks \['B03'\].*'B01'"):
        pixels(processor, cube[:4], bands=["B01", "B02", "B04", "B08"])
    with pytest.raises(ValueError, match="5 bands were expected"):
        pixels(processor, cube[:4], bands=bands)
    with pytest.raises(ValueError, match="different names"):
        pixels(processor, cube, bands=["B04", "B03", "B02", "B04", "B08"])
    unnamed = GFMImageProcessor(do_resize=False, band_names=None, **REFLECTANCE)
    with pytest.raises(ValueError, match="no band_names"):
        pixels(unnamed, cube, bands=bands)


def test_band_selection_spares_bad_values_of_other_bands(plain):
    cube = np.full((4, 5, 5), 100, np.float32)
    cube[3] = np.nan
    assert torch.isfinite(pixels(plain, cube, bands=["R", "G", "B", "thermal"])).all()


@pytest.mark.parametrize("names", [["B", "G", "R"], ["Blue", "Green", "Red"], ["B02", "B03", "B04"]])
def test_pil_colours_follow_the_model(names, warned):
    processor = GFMImageProcessor(do_resize=False, band_names=names, image_mean=[0.4] * 3, image_std=[0.2] * 3)
    values = pixels(processor, Image.fromarray(photo()))
    assert warned == []
    assert torch.equal(values, pixels(processor, photo()[..., ::-1]))
    assert len(warned) == 1 and names[0] in warned[0]


def test_assumed_order_is_said_only_where_it_matters(plain, warned):
    named = GFMImageProcessor(do_resize=False, band_names=["B04", "B03", "B02"])
    pixels(plain, photo())
    pixels(named, photo(), bands=["B04", "B03", "B02"])
    pixels(GFMImageProcessor(do_resize=False, band_names=None), photo())
    assert warned == []
    pixels(named, photo())
    assert len(warned) == 1


def test_colour_names_equal_the_configurations():
    assert room.RGB_BAND_NAMES == RGB_BAND_NAMES


# --- values ------------------------------------------------------------------------------------------------------


def reflectance(dtype=np.uint16, low=100, high=10000):
    return np.random.default_rng(0).integers(low, high, (3, 16, 16)).astype(dtype)


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        (photo() / np.float32(255), {}, "do_rescale=False"),
        ((photo() / 255.0 - 0.45) / 0.225, {}, "do_rescale=False"),
        ((photo() / 255.0 - 0.45) / 0.225, {"do_rescale": False}, "normalised"),
        (reflectance(), {}, "rescale_factor=1e-4"),
        (reflectance(np.int16, 0, 900), {}, "rescale_factor=1e-4"),
        (reflectance(np.float32), {}, "rescale_factor=1e-4"),
        (photo(), {"do_rescale": False}, "rescale_factor"),
        (photo() // 100, {"do_rescale": False}, "rescale_factor"),
        (photo(), REFLECTANCE, "are uint8 and become 0 to 0.0255.*rescale_factor"),
        (reflectance() / 1e4, REFLECTANCE, "do_rescale=False"),
        (reflectance(), {**REFLECTANCE, "do_rescale": False}, "rescale_factor"),
        (reflectance(np.float32), {**REFLECTANCE, "do_rescale": False}, "band R averages"),
        (np.where(reflectance(np.int16) > 9000, -9999, 800), REFLECTANCE, "nodata"),
        (np.where(reflectance(np.float32) > 9000, -3.4e38, 800), REFLECTANCE, "nodata"),
    ],
)
def test_values_far_from_the_statistics_are_refused(image, settings, message):
    processor = GFMImageProcessor(do_resize=False, **settings)
    with pytest.raises(ValueError, match=message):
        pixels(processor, image)
    assert torch.isfinite(pixels(processor, image, check_values=False)).all()


@pytest.mark.parametrize(
    ("image", "settings"),
    [
        (photo() // 100, {}),  # night: levels 0 to 2
        ((photo() // 100).astype(np.float32), {}),
        ((photo() // 100).astype(np.int64), {}),
        (np.full((3, 8, 8), 255, np.uint8), {}),
        (photo().astype(np.float32) * np.float32(1.1), {}),
        (photo() / 255.0, {"do_rescale": False}),
        (photo(), {"do_rescale": False, "do_normalize": False}),
        (reflectance(), REFLECTANCE),
        (reflectance(np.int16, -200, 400), REFLECTANCE),
        (np.full((3, 8, 8), 11000, np.uint16), REFLECTANCE),  # snow and cloud over the whole tile
        (np.where(reflectance() > 9990, 65535, 900).astype(np.uint16), REFLECTANCE),  # a few saturated pixels
        (reflectance() / 1e4, {**REFLECTANCE, "do_rescale": False}),
        (np.random.default_rng(0).normal(-12, 4, (3, 8, 8)), {"do_rescale": False, "image_mean": [-12.0] * 3,
                                                              "image_std": [4.0] * 3}),
        (np.random.default_rng(0).normal(0, 9, (3, 8, 8)), {"do_rescale": False, "image_mean": [0.0] * 3,
                                                            "image_std": [2.0] * 3}),
    ],
)  # fmt: skip
def test_right_values_are_accepted(image, settings, warned):
    assert torch.isfinite(pixels(GFMImageProcessor(do_resize=False, **settings), image)).all()
    assert warned == []


def test_each_image_of_a_mixed_batch_is_judged(plain):
    with pytest.raises(ValueError, match="do_rescale=False"):
        pixels(plain, [photo(), photo() / np.float32(255)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("settings", [{}, REFLECTANCE, {"do_rescale": False}])
def test_all_zero_is_fine(dtype, settings):
    values = pixels(GFMImageProcessor(do_resize=False, **settings), np.zeros((3, 8, 8), dtype))
    assert torch.isfinite(values).all()


def test_dark_tile_without_rescaling_is_only_said(warned):
    values = pixels(GFMImageProcessor(do_resize=False, do_rescale=False), photo() / 255.0 / 200)
    assert torch.isfinite(values).all() and len(warned) == 1


@pytest.mark.parametrize("size", [(8, 8), (8, 9)])
def test_nan_and_infinity_name_the_image(plain, size):
    images = [np.full((3, 8, 8), 100, np.float32), np.full((3, *size), 100, np.float32)]
    images[1][:, 0, :2] = np.nan
    images[1][2, 4, 4] = np.inf
    for check in (True, False):
        with pytest.raises(ValueError, match="image 1 has 2 NaN and 1 infinite pixels of"):
            plain(images, check_values=check)


def test_huge_finite_sum_is_not_called_infinite(plain):
    values = np.full((3, 64, 64), 3e38, np.float32)
    assert pixels(plain, values, check_values=False).shape == (1, 3, 64, 64)


def test_denormalize_goes_back():
    processor = GFMImageProcessor(do_resize=False)
    image = photo()
    levels = processor.denormalize(pixels(processor, image))
    torch.testing.assert_close(levels[0], torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255)))
    assert processor.denormalize(torch.zeros(2, 2, 3, 4, 4)).shape == (2, 2, 3, 4, 4)
    assert torch.equal(processor.denormalize(np.zeros((3, 1, 1)))[:, 0, 0], torch.tensor(processor.image_mean))
    off = GFMImageProcessor(do_normalize=False)
    assert torch.equal(off.denormalize(levels), levels)
    with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\) but \(\.\.\., 3, H, W\)"):
        processor.denormalize(torch.zeros(1, 4, 8, 8))


# --- pairs -------------------------------------------------------------------------------------------------------


def test_pairs_are_two_images_each():
    processor = GFMImageProcessor(size=24)
    singles = [photo(seed=seed) for seed in range(4)]
    expected = pixels(processor, singles).unflatten(0, (2, 2))
    arrays = [tuple(singles[:2]), tuple(singles[2:])]
    mixed = [[Image.fromarray(singles[0]), singles[1].transpose(2, 0, 1)], (torch.tensor(singles[2]), singles[3])]
    for pairs in (arrays, tuple(arrays), mixed):
        assert torch.equal(pixels(processor, pairs), expected)
    assert expected.shape == (2, 2, 3, 24, 24)
    assert np.array_equal(processor(arrays, return_tensors="np")["pixel_values"], expected.numpy())
    assert processor.denormalize(expected).shape == expected.shape


def test_pairs_of_different_sizes(plain):
    pairs = [(photo(), photo()), (photo(30, 20), photo(30, 20))]
    listed = plain(pairs)["pixel_values"]
    assert [pair.shape for pair in listed] == [(2, 3, 40, 56), (2, 3, 30, 20)]
    assert pixels(plain, pairs, do_resize=True, size=16).shape == (2, 2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(30, 20\), \(40, 56\)"):
        pixels(plain, pairs)


def test_tuple_of_two_images_stays_a_batch(plain):
    assert pixels(plain, (photo(), photo())).shape == (2, 3, 40, 56)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([(photo(), photo()), (photo(), photo(40, 50))],
         r"image 1, before, has size \(40, 56\) but the one after \(40, 50\)"),
        ([(photo(), photo()), photo()], r"image 1 is a ndarray but a pair \(before, after\).*image 0 seems"),
        ([photo(), (photo(), photo())], "image 0 is a ndarray but a pair.*image 1 seems"),
        ([(photo(), photo(), photo())], "image 0 is a tuple of 3"),
        ([[[1, 2, 3], [4, 5, 6]]], r"image 0, before, is a list.*np.asarray"),
        ([(photo(), photo()[..., :2])], "image 0, after, has shape"),
        ([(photo().astype(float), np.full((40, 56, 3), np.nan))], "image 0, after, has 2240 NaN"),
    ],
)  # fmt: skip
def test_wrong_pairs(plain, images, message):
    for resize in (False, True):
        with pytest.raises(ValueError, match=message):
            pixels(plain, images, do_resize=resize)


def test_errors_name_the_file(plain, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "before.png")
    Image.fromarray(photo(30, 20)).save(tmp_path / "after.png")
    pair = (Image.open(tmp_path / "before.png"), Image.open(tmp_path / "after.png"))
    with pytest.raises(ValueError, match=r"image 0 \(.*before.png\), before, has size"):
        plain([pair])


# --- label maps --------------------------------------------------------------------------------------------------


def ids(height=40, width=56, seed=0):
    """Blocks of ids 0 to 4, and some 255."""
    blocks = np.random.default_rng(seed).choice([0, 1, 2, 3, 4, 255], (5, 7)).astype(np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


def test_labels_follow_the_images():
    processor = GFMImageProcessor(size={"height": 20, "width": 28})
    images, maps = [photo(seed=0), photo(60, 20)], [ids(seed=0), Image.fromarray(ids(60, 20))]
    batch = processor(images, maps, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], pixels(processor, images))
    assert batch["labels"].shape == (2, 20, 28) and batch["labels"].dtype == torch.int64
    for found, raw in zip(batch["labels"], maps, strict=True):
        expected = np.asarray(Image.fromarray(np.asarray(raw)).resize((28, 20), Image.Resampling.NEAREST))
        assert np.array_equal(found.numpy(), expected)
    again = processor(images=images, segmentation_maps=maps, return_tensors="np")["labels"]
    assert again.dtype == np.int64 and np.array_equal(again, batch["labels"].numpy())
    native = processor(images, maps, do_resize=False)
    assert [found.shape for found in native["labels"]] == [(40, 56), (60, 20)]
    assert np.array_equal(native["labels"][1], ids(60, 20))
    assert "labels" not in processor(images)


def test_edges_of_image_and_labels_stay_together():
    """An object's border in the resized map lies where it lies in the resized image."""
    scene = np.zeros((64, 64, 3), np.uint8)
    scene[13:41, 22:51] = 255
    for size in (24, 45, 100):
        processor = GFMImageProcessor(size=size, do_normalize=False, mask_threshold=128)
        batch = processor(scene, scene[..., 0], return_tensors="pt")
        inside = batch["pixel_values"][0, 0] > 0.5
        assert (inside == batch["labels"][0].bool()).float().mean() > 0.98


def test_one_map_per_pair():
    processor = GFMImageProcessor(size=24, num_labels=5)
    pairs = [(photo(seed=0), photo(seed=1)), (photo(seed=2), photo(seed=3))]
    batch = processor(pairs, [ids(seed=0), ids(seed=1)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 2, 3, 24, 24) and batch["labels"].shape == (2, 24, 24)
    with pytest.raises(ValueError, match="holds 4 maps but there are 2 images"):
        processor(pairs, [ids()] * 4)
    with pytest.raises(ValueError, match=r"label map 1 has size \(30, 20\) but image 1, before has \(40, 56\)"):
        processor(pairs, [ids(), ids(30, 20)])


def test_map_of_another_size_is_refused_even_with_resize(tmp_path):
    Image.fromarray(ids(20, 28)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"label map 0 \(.*mask.png\) has size \(20, 28\) but image 0 has \(40, 56\)"):
        GFMImageProcessor()(photo(), Image.open(tmp_path / "mask.png"))
    turned = GFMImageProcessor()
    with pytest.raises(ValueError, match="size"):
        turned(photo(), ids().T)


def test_map_settings_act_in_a_call_and_are_checked():
    processor = GFMImageProcessor(do_resize=False)
    mask = np.where(photo()[..., 0] > 99, 255, 0).astype(np.uint8)
    binary = processor(photo(), mask, mask_threshold=128, num_labels=2, return_tensors="pt")["labels"][0]
    assert np.array_equal(binary.numpy(), mask // 255)
    reduced = processor(photo(), ids(), do_reduce_labels=True, num_labels=4, return_tensors="pt")["labels"][0]
    assert set(reduced.unique().tolist()) <= {0, 1, 2, 3, 255} and (reduced == 255).sum() > (ids() == 255).sum()
    with pytest.raises(ValueError, match="label map 0 holds the ids"):
        processor(photo(), ids(), num_labels=3)
    assert processor.read_label_map(ids()).dtype == np.int64


def test_ids_that_were_read_before_are_not_read_again():
    palette = [[0, 0, 0], [255, 255, 255], [0, 0, 255], [0, 255, 255]]
    processor = GFMImageProcessor(do_resize=False, palette=palette, do_reduce_labels=True)
    colours = np.asarray(palette, np.uint8)[ids() % 4]
    read = processor.read_label_map(colours)
    direct = processor(photo(), colours, return_tensors="pt")["labels"]
    assert np.array_equal(read, direct[0].numpy())
    assert torch.equal(processor(photo(), read, maps_are_ids=True, return_tensors="pt")["labels"], direct)


def test_map_settings_are_saved(tmp_path):
    settings = {"ignore_index": -100, "do_reduce_labels": True, "palette": [[0, 0, 0], [1, 2, 3]],
                "palette_tolerance": 7, "num_labels": 1, "nodata": float("nan")}  # fmt: skip
    processor = GFMImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    json.loads((tmp_path / "preprocessor_config.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    again = GFMImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.palette == ((0, 0, 0), (1, 2, 3)) and again.nodata == "nan" and again.ignore_index == -100
    with pytest.raises(ValueError, match="palette is"):
        GFMImageProcessor.from_pretrained(tmp_path, palette=[[1, 2]])
    GFMImageProcessor(mask_threshold=128).save_pretrained(tmp_path)
    assert GFMImageProcessor.from_pretrained(tmp_path).mask_threshold == 128


# --- nodata ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodata", [-9999, -9999.0, "nan", float("nan"), -3.4028234663852886e38])
def test_nodata_becomes_the_mean_and_is_ignored(nodata):
    image = reflectance(np.float32)
    image[:, :4] = np.nan if nodata == "nan" else nodata
    processor = GFMImageProcessor(do_resize=False, nodata=nodata, **REFLECTANCE)
    batch = processor(image, np.zeros((16, 16), np.uint8), return_tensors="pt")
    assert batch["pixel_values"][:, :, :4].abs().max() < 1e-5
    assert (batch["labels"][0, :4] == 255).all() and (batch["labels"][0, 4:] == 0).all()
    clean = pixels(GFMImageProcessor(do_resize=False, **REFLECTANCE), image[:, 4:])
    assert torch.equal(batch["pixel_values"][:, :, 4:], clean)
    smaller = processor(image, np.zeros((16, 16), np.uint8), do_resize=True, size=8, return_tensors="pt")
    assert (smaller["labels"][0] == 255).sum(dim=1).tolist() == [8, 8, 0, 0, 0, 0, 0, 0]
    assert smaller["pixel_values"].abs().max() <= clean.abs().max()


def test_nodata_number_needs_all_bands_and_nan_any():
    image = np.full((3, 4, 4), 100, np.uint8)
    image[0, 0, 0] = 0  # dark in one band
    image[:, 1, 1] = 0
    maps = np.ones((4, 4), np.uint8)
    processor = GFMImageProcessor(do_resize=False, nodata=0)
    batch = processor(image, maps, return_tensors="pt")
    assert torch.argwhere(batch["labels"][0] == 255).tolist() == [[1, 1]]
    assert batch["pixel_values"][0, 0, 0, 0] < -2 and batch["pixel_values"][0, :, 1, 1].abs().max() < 1e-5
    floats = image.astype(np.float32)
    floats[2, 3, 3] = np.nan
    labels = processor(floats, maps, return_tensors="pt")["labels"][0]
    assert torch.argwhere(labels == 255).tolist() == [[1, 1], [3, 3]]


def test_nodata_of_either_date():
    pair = np.full((2, 3, 4, 4), 100, np.float32)
    pair[0, :, 0, 0] = pair[1, :, 3, 3] = np.nan
    labels = GFMImageProcessor(do_resize=False, nodata="nan")([tuple(pair)], [np.zeros((4, 4))])["labels"][0]
    assert np.argwhere(labels == 255).tolist() == [[0, 0], [3, 3]]


def test_nodata_leaves_the_value_check_and_infinity(plain):
    image = reflectance(np.float32)
    image[0, 0, 0] = -9999
    with pytest.raises(ValueError, match="nodata fill"):
        pixels(GFMImageProcessor(do_resize=False, nodata=-9999, **REFLECTANCE), image)
    with pytest.raises(ValueError, match="infinite"):
        pixels(plain, np.full((3, 4, 4), np.inf), nodata="nan")
    assert pixels(plain, np.zeros((3, 4, 4), np.uint8), nodata=0).abs().max() < 1e-5
    without = GFMImageProcessor(
        do_resize=False, do_normalize=False, do_rescale=False, image_mean=None, image_std=None, nodata="nan"
    )
    assert not pixels(without, np.full((3, 4, 4), np.nan)).any()
    assert (without(np.full((3, 4, 4), np.nan), np.zeros((4, 4)))["labels"][0] == 255).all()


# --- outputs -----------------------------------------------------------------------------------------------------


def test_semantic_maps(plain):
    logits = torch.zeros(2, 3, 4, 4)
    logits[0, 1, :, :2] = 5
    logits[1, 2] = 1
    maps = plain.post_process_semantic_segmentation({"logits": logits})
    assert [tuple(found.shape) for found in maps] == [(4, 4), (4, 4)] and maps[0].dtype == torch.int64
    assert maps[0].tolist() == [[1, 1, 0, 0]] * 4 and (maps[1] == 2).all()
    sized = plain.post_process_semantic_segmentation(logits.bfloat16(), target_sizes=[(8, 12), (4, 4)])
    assert tuple(sized[0].shape) == (8, 12) and sized[0][:, :6].all() and torch.equal(sized[1], maps[1])
    with pytest.raises(ValueError, match="one .height, width. per image"):
        plain.post_process_semantic_segmentation(logits, target_sizes=[(8, 12)])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) but \(B, K, H, W\)"):
        plain.post_process_semantic_segmentation(logits[:, :, 0, 0])


def test_change_maps(plain):
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1] = torch.tensor([[2.0, -2.0], [0.0, 0.5]])
    found = plain.post_process_change_detection({"logits": logits})[0]
    assert found["mask"].dtype == torch.bool and found["mask"].tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(found["probabilities"], torch.sigmoid(logits[0, 1]))
    assert torch.equal(found["mask"].long(), plain.post_process_semantic_segmentation(logits)[0])
    assert plain.post_process_change_detection(logits, threshold=0.1)[0]["mask"].all()
    assert plain.post_process_change_detection(logits, [(6, 5)])[0]["mask"].shape == (6, 5)
    with pytest.raises(ValueError, match="threshold is -1"):
        plain.post_process_change_detection(logits, threshold=-1)


def test_super_resolution_goes_back_to_the_files_values(plain, tmp_path):
    image = photo()
    values = pixels(plain, [image, image])
    arrays = plain.post_process_super_resolution({"reconstruction": values})
    assert len(arrays) == 2 and arrays[0].dtype == np.uint8 and np.array_equal(arrays[1], image)
    pictures = plain.post_process_super_resolution(values.requires_grad_(), output_type="pil")
    assert pictures[0].mode == "RGB" and np.array_equal(np.asarray(pictures[0]), image)
    turned = GFMImageProcessor(do_resize=False, band_names=["B", "G", "R"])
    picture = turned.post_process_super_resolution(pixels(turned, Image.fromarray(image)), output_type="pil")[0]
    assert np.array_equal(np.asarray(picture), image)
    bright = plain.post_process_super_resolution(values.detach() * 3)[0]
    assert bright.min() == 0 and bright.max() == 255
    exact = plain.post_process_super_resolution(values.detach(), dtype=np.float32)[0]
    np.testing.assert_allclose(exact, image, atol=1e-3)


def test_super_resolution_of_reflectance(plain):
    processor = GFMImageProcessor(do_resize=False, **REFLECTANCE)
    cube = reflectance()
    found = processor.post_process_super_resolution(pixels(processor, cube))[0]
    assert found.dtype == np.uint16 and np.array_equal(found, cube.transpose(1, 2, 0))
    with pytest.raises(ValueError, match="3 bands of uint16 is no 8-bit picture"):
        processor.post_process_super_resolution(pixels(processor, cube), output_type="pil")
    unscaled = GFMImageProcessor(do_resize=False, do_rescale=False, **{**REFLECTANCE, "rescale_factor": 1 / 255})
    floats = cube / np.float32(1e4)
    found = unscaled.post_process_super_resolution(pixels(unscaled, floats))[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, floats.transpose(1, 2, 0), atol=1e-6)
    with pytest.raises(ValueError, match="output_type is 'pt'"):
        plain.post_process_super_resolution(torch.zeros(1, 3, 4, 4), output_type="pt")
    with pytest.raises(ValueError, match="NaN or infinite"):
        plain.post_process_super_resolution(torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\) but"):
        plain.post_process_super_resolution(torch.zeros(1, 4, 4, 4))


def test_image_size_is_what_the_processor_reads(plain, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(tmp_path / "turned.png", exif=exif)
    assert plain.image_size(Image.open(tmp_path / "turned.png")) == (56, 40)
    assert plain.image_size(photo()) == plain.image_size(photo().transpose(2, 0, 1)) == (40, 56)
    assert plain.image_size(np.zeros((4, 8, 9)), bands=["N", "R", "G", "B"]) == (8, 9)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "4 values but band_names.*has 3"),
        ({"image_std": [0.5] * 2, "band_names": None}, "2 values but image_mean has 3"),
        ({"image_std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"image_mean": 0.5}, "one finite number per band"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "one finite number per band"),
        ({"image_mean": None}, "do_normalize needs it"),
        ({"image_mean": None, "image_std": None, "do_normalize": False, "band_names": None}, "one number per band"),
        ({"band_names": "RGB"}, "list of different names"),
        ({"band_names": ["R", "R", "B"]}, "list of different names"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"resample": 0}, "resample is 0"),
        ({"size": {"shortest_edge": 224}}, "shortest_edge"),
        ({"size": (192, 192)}, "size is"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_contradicting_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GFMImageProcessor(**settings)
    given = {name: value for name, value in settings.items() if value is not None}
    if len(given) == len(settings):
        with pytest.raises(ValueError, match=message):
            pixels(GFMImageProcessor(), photo(), **settings)


def test_unknown_keywords(plain):
    with pytest.raises(TypeError, match=r"\['rescale'\].*rescale_factor"):
        GFMImageProcessor(rescale=1e-4)
    with pytest.raises(TypeError, match=r"\['band_order'\].*bands"):
        plain(photo(), band_order=["R", "G", "B"])


def test_call_overrides_do_not_stick(plain):
    before = plain.to_dict()
    pixels(plain, reflectance(), do_resize=True, size=8, band_names=["a", "b", "c"], **REFLECTANCE)
    assert plain.to_dict() == before
    assert torch.equal(pixels(plain, photo(), size=None, image_mean=None, band_names=None), pixels(plain, photo()))


def test_statistics_may_be_missing_without_normalising():
    processor = GFMImageProcessor(do_normalize=False, image_mean=None, image_std=None, band_names=["VV", "VH"], size=8)
    assert pixels(processor, np.ones((2, 8, 8), np.float32), do_rescale=False).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"band_names": None},
        {"do_normalize": False, "image_mean": None, "image_std": None, "band_names": ["VV", "VH"]},
        {"band_names": ["B04", "B03", "B02"], "size": {"height": 64, "width": 96}, "resample": 3, **REFLECTANCE},
        {"do_resize": False, "do_rescale": False, "check_values": False},
    ],
)
def test_json_round_trip(settings, tmp_path):
    processor = GFMImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    again = GFMImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert {name: getattr(again, name) for name in settings}.items() >= {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }.items()
    assert GFMImageProcessor.from_dict(json.loads(processor.to_json_string())).to_dict() == processor.to_dict()


def test_from_pretrained_overrides_are_checked(tmp_path):
    GFMImageProcessor().save_pretrained(tmp_path)
    changed = GFMImageProcessor.from_pretrained(
        tmp_path, size=64, do_resize=False, band_names=["red", "green", "blue"]
    )
    assert changed.size == {"height": 64, "width": 64} and not changed.do_resize
    assert changed.band_names == ("red", "green", "blue")
    with pytest.raises(ValueError, match="band_names"):
        GFMImageProcessor.from_pretrained(tmp_path, band_names=["B04"])


def test_settings_of_stock_processors_load(tmp_path):
    stock = ViTImageProcessorPil(size={"height": 56, "width": 56}, **IMAGENET)
    stock.save_pretrained(tmp_path)
    picture = Image.fromarray(photo())
    expected = stock(picture, return_tensors="pt")["pixel_values"]
    actual = pixels(GFMImageProcessor.from_pretrained(tmp_path), picture)
    assert (actual - expected).abs().max() <= 1.01 / 255 / 0.224


# --- travelling --------------------------------------------------------------------------------------------------


def test_auto_class_finds_the_registered_processor(tmp_path):
    import gfm_hf  # noqa: F401

    GFMImageProcessor(size=32).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is GFMImageProcessor


def test_folder_alone_loads_in_a_fresh_process(tmp_path, monkeypatch):
    monkeypatch.setattr(GFMImageProcessor, "_auto_class", "AutoImageProcessor")
    folder = tmp_path / "checkpoint"
    processor = GFMImageProcessor(size=16, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    processor.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*CODE, "preprocessor_config.json"])
    np.save(tmp_path / "image.npy", photo())
    script = (
        "import sys, numpy as np\n"
        "from transformers import AutoImageProcessor\n"
        f"processor = AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "assert 'gfm_hf' not in sys.modules\n"
        "values = processor(np.load('image.npy'), return_tensors='np')['pixel_values']\n"
        "np.save('values.npy', values)\n"
        "processor.save_pretrained('again')\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    # -P and the empty folder keep a source tree out of reach; -S is no option, it would hide transformers too.
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "values.npy"), pixels(processor, photo()).numpy())
    assert (tmp_path / "again" / "image_processing_gfm.py").exists()


def test_pipeline_takes_paths_and_pictures(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "scene.png")
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = ViTModel(config).eval()
    extractor = pipeline("image-feature-extraction", model=model, image_processor=GFMImageProcessor(size=32))
    from_path = extractor(str(tmp_path / "scene.png"), return_tensors=True)
    from_picture = extractor([Image.fromarray(photo())], return_tensors=True)[0]
    assert from_path.shape == (1, 17, 16) and torch.equal(from_path, from_picture)


# --- real files --------------------------------------------------------------------------------------------------


def real(name):
    path = IMAGERY / name
    if not path.exists():
        pytest.skip(f"the imagery file {name} is not available here")
    return path


@pytest.mark.parametrize(
    "name",
    ["cmyk.jpg", "gray.jpg", "gray_alpha.png", "palette_transparent.png", "exif_orientation6.jpg", "jp2.jp2",
     "webp.webp", "fax4.tiff", "miniswhite-1c-1b.tiff", "minisblack-2c-8b-alpha.tiff", "palette-1c-4b.tiff",
     "Transparency-lzw.tif", "BigTIFF.tif", "seq-1c-8b-multipage-adeefdcc.tiff", "label_all_zero.tif"],
)  # fmt: skip
def test_odd_pictures_are_read(name, plain):
    with Image.open(real(f"odd_files/{name}")) as picture:
        height, width = (picture.width, picture.height) if "exif" in name else (picture.height, picture.width)
        values = pixels(plain, picture)
    assert values.shape == (1, 3, height, width) and torch.isfinite(values).all()


@pytest.mark.parametrize(
    "name", ["gray_uint16.png", "lowres.tif", "test_rpcs.tif", "float_nan.tif", "inverted_lat.tif"]
)
def test_odd_deep_pictures_are_refused_by_an_8_bit_model(name, plain):
    with Image.open(real(f"odd_files/{name}")) as picture, pytest.raises(ValueError):
        pixels(plain, picture)


def test_sentinel_2_by_name():
    rasterio = pytest.importorskip("rasterio")
    paths = sorted(IMAGERY.glob("multispectral/s2l2a_*.tif"))
    if not paths:
        pytest.skip("the imagery files multispectral/s2l2a_*.tif are not available here")
    with rasterio.open(paths[0]) as source:
        cube, names = source.read(), list(source.descriptions)
    processor = GFMImageProcessor(do_resize=False, band_names=["B04", "B03", "B02"], **REFLECTANCE)
    values = pixels(processor, cube, bands=names)
    red = cube[names.index("B04")].astype(np.float32) * 1e-4
    np.testing.assert_allclose(processor.denormalize(values)[0, 0].numpy(), red, atol=1e-5)
    with pytest.raises(ValueError, match="3 bands were expected"):
        pixels(processor, cube)
    with pytest.raises(ValueError, match="rescale_factor=1e-4"):
        pixels(GFMImageProcessor(band_names=["B04", "B03", "B02"]), cube, bands=names)
