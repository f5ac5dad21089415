"""PSNR and SSIM of images of any number of bands, in NumPy alone.

The state is one row per image, float64 (N, 2): PSNR in dB and SSIM. Rows of several batches or processes are joined,
and means are exact sums, so they do not depend on the order.

Both need `data_range`, the distance between the least and the greatest value that an image can take (255 for 8 bit,
1.0 for reflectance, 2047 for 11 bit), never that of the image at hand: scores with different ranges do not compare.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def new_state() -> np.ndarray:
    """Start with no image: float64 (0, 2)."""
    return np.zeros((0, 2))


def update(state: np.ndarray, predictions: Any, references: Any, data_range: float) -> np.ndarray:
    """Score the images of a batch.

    Args:
        state: float64 (N, 2), left as it is.
        predictions: Images (C, H, W) or (H, W): an array or tensor of B, or a list of images of different sizes.
        references: The true images, each of the size of its prediction.
        data_range: Greatest minus least possible value, in the unit of the images.

    Returns:
        float64 (N + B, 2).

    Raises:
        ValueError: The batches are not as long as each other, or a pair of images does not suit `ssim`.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions came with {len(references)} references; pass as many.")
    rows = [
        (psnr(found, true, data_range), ssim(found, true, data_range)) for found, true in zip(predictions, references)
    ]
    return np.concatenate([state, np.array(rows, dtype=np.float64).reshape(-1, 2)])


def merge(states: Iterable[np.ndarray]) -> np.ndarray:
    """Join the rows of several batches or processes; the order of states is the order of images."""
    return np.concatenate([new_state(), *states])


def compute(state: np.ndarray) -> dict[str, float | list[float]]:
    """Turn rows into mean scores.

    Returns:
        `psnr` (dB) and `ssim`, means over images, nan without an image; `per_image_psnr`, `per_image_ssim`: lists of
        N. An image equal to its reference has PSNR inf, and so has the mean then.
    """
    psnrs, ssims = state[:, 0].tolist(), state[:, 1].tolist()
    return {"psnr": _mean(psnrs), "ssim": _mean(ssims), "per_image_psnr": psnrs, "per_image_ssim": ssims}


def psnr(prediction: ArrayLike, reference: ArrayLike, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range**2 / MSE), with the MSE over all bands and pixels.

    Args:
        prediction: (C, H, W) or (H, W).
        reference: The true image, of the same shape.
        data_range: Greatest minus least possible value, in the unit of the images.

    Returns:
        dB; inf where the images are equal.

    Raises:
        ValueError: The shapes differ, an image is empty or not finite, or data_range is not above 0.
    """
    found, true = _image_pair(prediction, reference, data_range)
    error = float(np.mean((found - true) ** 2))
    return 10 * math.log10(data_range**2 / error) if error else math.inf


def ssim(prediction: ArrayLike, reference: ArrayLike, data_range: float) -> float:
    """Structural similarity: 11 x 11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, mean over pixels and bands.

    Each band is compared with its own. Only windows that lie wholly inside the image count, (H - 10)(W - 10) of
    them a band: no border is padded or invented. Tools that mirror the border and count its windows too, such as
    torchmetrics, differ in the third digit on small images.

    Args:
        prediction: (C, H, W) or (H, W), at least 11 pixels a side.
        reference: The true image, of the same shape.
        data_range: Greatest minus least possible value, in the unit of the images.

    Returns:
        Value in [-1, 1]; 1 where the images are equal.

    Raises:
        ValueError: As `psnr`, or the image is smaller than the window.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    found, true = _image_pair(prediction, reference, data_range)
    if min(found.shape[-2:]) < WINDOW:
        raise ValueError(
            f"The images are {found.shape[-2]} x {found.shape[-1]} px; SSIM needs at least {WINDOW} x {WINDOW}, "
            "score larger images or use psnr alone."
        )
    return _mean([_band_ssim(*bands, data_range) for bands in zip(found, true)])


def _band_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """SSIM of one band, (H, W) each."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    # The variances are those of the values less their overall mean: same numbers, no cancellation for large offsets.
    offset_x, offset_y = x.mean(), y.mean()
    x, y = x - offset_x, y - offset_y
    rest_x, rest_y = mean_x - offset_x, mean_y - offset_y
    var_x, var_y = _window_mean(x * x) - rest_x**2, _window_mean(y * y) - rest_y**2
    covariance = _window_mean(x * y) - rest_x * rest_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean(luminance * structure))


def _window_mean(band: np.ndarray) -> np.ndarray:
    """Gaussian mean around each pixel whose window fits: (H, W) -> (H - 10, W - 10)."""
    distance = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(distance**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    rows, columns = band.shape[0] - WINDOW + 1, band.shape[1] - WINDOW + 1
    down = sum(weight * band[k : k + rows] for k, weight in enumerate(weights))
    return sum(weight * down[:, k : k + columns] for k, weight in enumerate(weights))


def _image_pair(prediction: Any, reference: Any, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (C, H, W), checked."""
    if not (0 < data_range < math.inf):
        raise ValueError(
            f"data_range is {data_range}; expected the images' greatest minus least possible value, above 0."
        )
    found, true = _image(prediction, "prediction"), _image(reference, "reference")
    if found.shape != true.shape:
        raise ValueError(
            f"prediction has shape {found.shape} and reference {true.shape} (bands, rows, columns); "
            "expected equal shapes, bring both to one size and layout first."
        )
    return found, true


def _image(values: Any, name: str) -> np.ndarray:
    """As float64 (C, H, W); torch tensors come from any device and in any precision."""
    array = np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values)
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers of shape (C, H, W) or (H, W), "
            "pass one image at a time or a batch to update."
        )
    array = array.astype(np.float64).reshape(-1, *array.shape[-2:])
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds nan or infinite values, which have no distance; fill or crop them first.")
    return array


def _mean(scores: list[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else math.nan
