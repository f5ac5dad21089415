import json
import math
import warnings

import numpy as np
import pytest
import torch

from gfm_hf.metrics.psnr_ssim import compute, merge, new_state, psnr, ssim, update


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def noisy_pair(seed, shape, data_range):
    generator = np.random.default_rng(seed)
    true = generator.random(shape) * data_range
    return np.clip(true + generator.normal(size=shape) * data_range * 0.1, 0, data_range), true


def slow_ssim(found, true, data_range):
    """Window by window and pixel by pixel, as the paper's formula reads."""
    distance = np.arange(-5, 6)
    window = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for x_band, y_band in zip(found, true):
        for row in range(x_band.shape[0] - 10):
            for column in range(x_band.shape[1] - 10):
                x, y = (band[row : row + 11, column : column + 11] for band in (x_band, y_band))
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                both = (window * (x - mean_x) * (y - mean_y)).sum()
                values.append(
                    (2 * mean_x * mean_y + c1) * (2 * both + c2)
                    / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
                )  # fmt: skip
    return np.mean(values)


@pytest.mark.parametrize(
    ("shape", "data_range"), [((1, 11, 11), 1.0), ((3, 14, 19), 255.0), ((8, 13, 12), 2047.0), ((12, 12, 11), 1e4)]
)
def test_like_the_formulas(shape, data_range):
    found, true = noisy_pair(0, shape, data_range)
    assert ssim(found, true, data_range) == pytest.approx(slow_ssim(found, true, data_range), rel=1e-10)
    error = sum((float(a) - float(b)) ** 2 for a, b in zip(found.ravel(), true.ravel())) / found.size
    assert psnr(found, true, data_range) == pytest.approx(20 * math.log10(data_range) - 10 * math.log10(error))


@pytest.mark.parametrize(
    ("shape", "data_range", "decibel", "similarity"),
    [
        # torchmetrics 1.9.0 of noisy_pair(bands, ...)[None] in float64: peak_signal_noise_ratio(found, true,
        # data_range=data_range) and the mean of structural_similarity_index_measure(found, true,
        # data_range=data_range, return_full_image=True)[1][..., 5:-5, 5:-5]: without that cut it counts windows over
        # mirrored borders, and gives 0.9493, 0.9466 and 0.9439.
        ((1, 11, 11), 1.0, 20.51070955690697, 0.9465669449774963),
        ((3, 24, 31), 255.0, 20.419777180018848, 0.9507333647741739),
        ((8, 40, 16), 2047.0, 20.63593685945907, 0.946397745294776),
    ],
)
def test_like_torchmetrics(shape, data_range, decibel, similarity):
    found, true = noisy_pair(shape[0], shape, data_range)
    assert psnr(found, true, data_range) == pytest.approx(decibel, rel=1e-6)
    assert ssim(found, true, data_range) == pytest.approx(similarity, rel=1e-6)


def test_equal_images():
    image = np.full((2, 12, 12), 1e4)
    assert psnr(image, image, 1.0) == math.inf and ssim(image, image, 1.0) == pytest.approx(1)
    scores = compute(update(new_state(), [image, image], [image, image + 1], data_range=1.0))
    assert scores["psnr"] == math.inf and scores["per_image_psnr"] == [math.inf, 0.0]


def test_a_large_offset_costs_no_digits():
    found, true = noisy_pair(1, (1, 12, 12), 1.0)
    assert ssim(found + 1e6, true + 1e6, 1.0) == pytest.approx(slow_ssim(found + 1e6, true + 1e6, 1.0), rel=1e-6)


def test_bytes_do_not_wrap_and_maps_are_one_band():
    found, true = np.full((12, 12), 250, np.uint8), np.full((12, 12), 5, np.uint8)
    assert psnr(found, true, 255) == pytest.approx(20 * math.log10(255 / 245))
    assert ssim(found, true, 255) == ssim(found[None], true[None].astype(float), 255)


def test_batches_join_in_any_order_and_leave_their_state():
    batches = [noisy_pair(seed, (count, 2, 11, 12), 1.0) for seed, count in enumerate((3, 1, 4))]
    states = [update(new_state(), *batch, data_range=1.0) for batch in batches]
    whole = compute(update(new_state(), *(np.concatenate(images) for images in zip(*batches)), data_range=1.0))
    assert compute(merge(states)) == whole
    assert compute(update(states[0], *batches[1], data_range=1.0)) == compute(merge(states[:2]))
    assert len(states[0]) == 3
    turned = compute(merge(states[::-1]))
    assert (turned["psnr"], turned["ssim"]) == (whole["psnr"], whole["ssim"])
    assert whole["psnr"] == pytest.approx(np.mean(whole["per_image_psnr"])) and len(whole["per_image_ssim"]) == 8
    json.dumps(whole, allow_nan=False)


def test_no_images():
    for state in (new_state(), merge([]), update(new_state(), [], [], data_range=1.0)):
        scores = compute(state)
        assert math.isnan(scores["psnr"]) and math.isnan(scores["ssim"]) and scores["per_image_psnr"] == []


def test_tensors_and_images_of_different_sizes():
    pairs = [noisy_pair(seed, shape, 1.0) for seed, shape in enumerate([(3, 11, 12), (14, 13)])]
    found, true = zip(*pairs)
    state = update(new_state(), found, true, data_range=1.0)
    tensors = [[torch.from_numpy(image).requires_grad_() for image in images] for images in (found, true)]
    assert (update(new_state(), *tensors, data_range=1.0) == state).all()
    low = torch.ones(1, 11, 11, dtype=torch.bfloat16)
    assert psnr(low, low * 0.5, 1.0) == pytest.approx(20 * math.log10(2))


IMAGE = np.zeros((2, 12, 12))


@pytest.mark.parametrize(
    ("found", "true", "data_range", "message"),
    [
        (IMAGE, IMAGE[:1], 1.0, r"\(2, 12, 12\) and reference \(1, 12, 12\)"),
        (IMAGE[:, :10], IMAGE[:, :10], 1.0, "10 x 12 px; SSIM needs at least 11 x 11"),
        (IMAGE[None], IMAGE[None], 1.0, "one image at a time"),
        (IMAGE[:0], IMAGE[:0], 1.0, r"shape \(0, 12, 12\)"),
        (IMAGE + math.nan, IMAGE, 1.0, "prediction holds nan"),
        (IMAGE, IMAGE + math.inf, 1.0, "reference holds nan or infinite"),
        (IMAGE, IMAGE, 0, "data_range is 0"),
        (IMAGE, IMAGE, math.nan, "data_range is nan"),
    ],
)
def test_mistakes(found, true, data_range, message):
    with pytest.raises(ValueError, match=message):
        ssim(found, true, data_range)


def test_batches_of_different_lengths():
    with pytest.raises(ValueError, match="2 predictions came with 1 references"):
        update(new_state(), [IMAGE, IMAGE], [IMAGE], data_range=1.0)
