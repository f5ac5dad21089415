"""Pipelines on our models: the stock tasks, and change detection and super-resolution as registered tasks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import gfm_hf.pipelines  # noqa: F401
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.modeling_gfm import (
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForSemanticSegmentation,
    GFMModel,
)


TINY = {"image_size": 32, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 2,
        "decoder_channels": 16, "auxiliary_channels": 8, "mask_patch_size": 32}  # fmt: skip
CLASSES = {
    "image-classification": GFMForImageClassification,
    "image-segmentation": GFMForSemanticSegmentation,
    "image-feature-extraction": GFMModel,
    "change-detection": GFMForChangeDetection,
    "super-resolution": GFMForImageSuperResolution,
}


def photo(seed=0, height=40, width=56):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def model_of(task, **fields):
    torch.manual_seed(0)
    model = CLASSES[task](GFMConfig(**{**TINY, "num_labels": 3, **fields})).eval()
    if hasattr(model, "decode_head"):
        torch.nn.init.normal_(model.decode_head.main.classifier.weight)  # an untrained map would be one class
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model with its processor for every task."""
    saved = {}
    for task in CLASSES:
        saved[task] = tmp_path_factory.mktemp(task)
        model_of(task, num_labels=2 if task == "change-detection" else 3).save_pretrained(saved[task])
        GFMImageProcessor(size=32).save_pretrained(saved[task])
    return saved


@pytest.fixture
def pipes(folders):
    return lambda task, **kwargs: pipeline(task, model=str(folders[task]), device="cpu", **kwargs)


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed in range(2):
        paths.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(photo(seed)).save(paths[-1])
    return paths


# --- stock tasks -----------------------------------------------------------------------------------------------------


def test_classification_takes_paths_pictures_and_arrays(pipes, files):
    classify = pipes("image-classification")
    expected = classify(files[0])
    assert len(expected) == 3 and abs(sum(found["score"] for found in expected) - 1) < 1e-5
    for image in (Image.fromarray(photo()), photo(), photo().transpose(2, 0, 1).copy()):
        assert classify(image) == expected
    several = classify([photo(0), photo(1)], batch_size=2)
    assert len(several) == 2 and several[0][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


def test_classification_takes_arrays_of_many_bands():
    processor = GFMImageProcessor(size=32, image_mean=[0.4] * 12, image_std=[0.2] * 12, band_names=None)
    classify = pipeline(
        "image-classification",
        model=model_of("image-classification", num_channels=12),
        image_processor=processor,
        device="cpu",
    )
    assert len(classify(np.random.default_rng(0).integers(0, 256, (40, 56, 12), dtype=np.uint8))) == 3


def test_segmentation_gives_masks_of_the_pictures_size(folders, pipes, files):
    segment = pipes("image-segmentation")
    found = segment(files[0])
    masks = np.stack([np.asarray(entry["mask"]) for entry in found])
    assert masks.shape[1:] == (40, 56) and (masks.astype(int).sum(axis=0) == 255).all()
    assert {entry["label"] for entry in found} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert len(segment(files, batch_size=2)) == 2
    model = GFMForSemanticSegmentation.from_pretrained(folders["image-segmentation"])
    processor = GFMImageProcessor.from_pretrained(folders["image-segmentation"])
    with torch.no_grad():
        outputs = model(**processor(photo(), return_tensors="pt"))
    ids = processor.post_process_semantic_segmentation(outputs, [processor.image_size(photo())])[0]
    assert len(found) > 1
    for entry in found:
        assert np.array_equal(np.asarray(entry["mask"]) == 255, ids.numpy() == int(entry["label"][-1]))


@pytest.mark.parametrize("task", ["image-segmentation", "image-feature-extraction"])
def test_stock_tasks_that_take_no_arrays_say_so(pipes, task):
    with pytest.raises(TypeError, match="PIL image"):
        pipes(task)(photo())


def test_features(pipes, files):
    extract = pipes("image-feature-extraction")
    features = extract(files[0], return_tensors=True)
    assert features.shape == (1, 1, 128)
    assert torch.equal(features, extract(Image.fromarray(photo()), return_tensors=True))
    assert extract(files[0], pool=True, return_tensors=True).shape == (1, 128)


# --- change detection ------------------------------------------------------------------------------------------------


def test_change_detection_equals_the_steps_by_hand(folders, pipes, files):
    detect = pipes("change-detection")
    middle = float(np.median(detect((files[0], files[1]))["probabilities"]))
    found = detect((files[0], files[1]), threshold=middle)
    model = GFMForChangeDetection.from_pretrained(folders["change-detection"])
    processor = GFMImageProcessor.from_pretrained(folders["change-detection"])
    with torch.no_grad():
        outputs = model(**processor([(photo(0), photo(1))], return_tensors="pt"))
    expected = processor.post_process_change_detection(outputs, [(40, 56)], middle)[0]
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"].numpy(), atol=1e-6)
    mask = np.asarray(found["mask"])
    assert found["mask"].mode == "L" and mask.shape == (40, 56) and set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask == 255, expected["mask"].numpy()) and 0.3 < found["change_fraction"] < 0.7
    assert found["change_fraction"] == pytest.approx((mask == 255).mean())


def test_change_detection_takes_pairs_of_anything(pipes, files, tmp_path):
    detect = pipes("change-detection")
    expected = detect((files[0], files[1]))["probabilities"]
    pairs = [
        (photo(0), photo(1)),
        [photo(0), photo(1)],
        (Image.open(files[0]), photo(1)),
        (tmp_path / "0.png", torch.tensor(photo(1).transpose(2, 0, 1).copy())),
    ]
    for pair in pairs:
        np.testing.assert_allclose(detect([pair])[0]["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(detect(pairs[0])["probabilities"], expected, atol=1e-6)
    streamed = list(detect(pair for pair in pairs[:2]))
    np.testing.assert_allclose(streamed[1]["probabilities"], expected, atol=1e-6)


def test_change_detection_batches_pairs_of_different_size(pipes):
    detect = pipes("change-detection")
    pairs = [(photo(0), photo(1)), (photo(2, 30, 20), photo(3, 30, 20)), (photo(4), photo(5))]
    alone = [detect(pair) for pair in pairs]
    together = detect(pairs, batch_size=2)
    for one, other in zip(alone, together, strict=True):
        assert one["mask"].size == other["mask"].size
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)
    assert together[1]["mask"].size == (20, 30)


def test_change_detection_threshold_and_processor_arguments(pipes):
    detect = pipes("change-detection", threshold=1.0)
    pair = (photo(0), photo(1))
    assert detect(pair)["change_fraction"] == 0.0
    assert detect(pair, threshold=0.0)["change_fraction"] == 1.0
    native = detect(pair, image_processor_kwargs={"do_resize": False})["probabilities"]
    assert native.shape == (40, 56) and not np.allclose(native, detect(pair)["probabilities"])
    turned = (photo(0)[..., ::-1].copy(), photo(1)[..., ::-1].copy())
    named = detect(turned, image_processor_kwargs={"bands": ["B", "G", "R"]})["probabilities"]
    np.testing.assert_allclose(named, detect(pair)["probabilities"], atol=1e-6)
    with pytest.raises(ValueError, match="threshold is 50"):
        detect(pair, threshold=50)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (photo(), "got a ndarray but works on pairs"),
        ([photo(), photo()], "got a ndarray but works on pairs"),
        ((photo(), photo(), photo()), "got a tuple of 3 but works on pairs"),
        ([], "inputs is empty"),
        ((photo(), photo(0, 40, 55)), r"image 0, before, has size \(40, 56\) but the one after \(40, 55\)"),
        (("nowhere.png", "nowhere.png"), "nowhere.png"),
    ],
)
def test_change_detection_refuses_what_is_no_pair(pipes, inputs, message):
    with pytest.raises(ValueError, match=message):
        pipes("change-detection")(inputs)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_file_that_is_no_picture_is_named(pipes, tmp_path):
    (tmp_path / "scene.tif").write_bytes(b"II*\0 not a raster")
    with pytest.raises(ValueError, match="scene.tif cannot be opened.*rasterio"):
        pipes("super-resolution")(str(tmp_path / "scene.tif"))


# --- super-resolution ------------------------------------------------------------------------------------------------


def test_super_resolution_keeps_the_size_it_is_given(pipes, files):
    enlarge = pipes("super-resolution")
    large = enlarge(files[0])
    assert large.mode == "RGB" and large.size == (224, 160)
    # An untrained model adds nothing to the interpolation: colours stay where they are.
    bicubic = np.asarray(Image.fromarray(photo()).resize((224, 160), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(large, dtype=float) - bicubic).mean() < 4
    assert [image.size for image in enlarge([photo(), photo(1, 8, 12)])] == [(224, 160), (48, 32)]
    assert len(enlarge(files, batch_size=2)) == 2
    assert enlarge(files[0], result_dtype="float32").shape == (160, 224, 3)


def test_super_resolution_of_reflectance_gives_arrays_in_the_files_unit():
    processor = GFMImageProcessor(
        size=32, rescale_factor=1e-4, image_mean=[0.1] * 4, image_std=[0.05] * 4, band_names=None
    )
    model = model_of("super-resolution", num_channels=4, upscale=2)
    enlarge = pipeline("super-resolution", model=model, image_processor=processor, device="cpu")
    scene = np.tile(np.array([500, 800, 1500, 3000], np.uint16), (16, 24, 1))
    large = enlarge(scene)
    assert large.shape == (32, 48, 4) and large.dtype == np.uint16
    assert np.abs(large.astype(int) - scene[:1, :1].astype(int)).max() <= 1


# --- registration and saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["change-detection", "super-resolution"])
def test_saved_pipeline_loads_again(pipes, tmp_path, task):
    pipe = pipes(task)
    pipe.save_pretrained(tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text()).get("custom_pipelines")
    again = pipeline(task, model=str(tmp_path), device="cpu")
    pair = (photo(0), photo(1))
    if task == "change-detection":
        assert np.array_equal(again(pair)["probabilities"], pipe(pair)["probabilities"])
    else:
        assert np.array_equal(np.asarray(again(pair[0])), np.asarray(pipe(pair[0])))


def test_processor_under_either_name_and_never_missing():
    model = model_of("change-detection", num_labels=2)
    processor = GFMImageProcessor(size=32)
    for name in ("image_processor", "feature_extractor"):
        pipe = pipeline("change-detection", model=model, device="cpu", **{name: processor})
        assert pipe((photo(0), photo(1)))["mask"].size == (56, 40)
    with pytest.raises(ValueError, match="no image processor"):
        gfm_hf.pipelines.ChangeDetectionPipeline(model=model, task="change-detection", device="cpu")


def test_half_precision_model():
    model = model_of("change-detection", num_labels=2).to(torch.bfloat16)
    pipe = pipeline("change-detection", model=model, image_processor=GFMImageProcessor(size=32), device="cpu")
    assert pipe((photo(0), photo(1)))["probabilities"].dtype == np.float32
