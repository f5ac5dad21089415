"""Refusing images whose values cannot belong to a model's statistics: wrong factor, nodata fills, no numbers."""

from typing import Any, Protocol

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

# "Usual value" of a band = |mean| + std. Clouds and snow reach about 7 times that; a wrong factor is off by 50 or more.
TOO_LARGE = 10.0
# Floats in 0..1, or already normalised ones, peak below 2 % of it once they are divided by 255 again.
TOO_SMALL = 0.02
# Below minus twice the usual value lie nodata fills (-9999), not measurements.
TOO_NEGATIVE = -2.0
# Float pictures in 0..255 that were resized elsewhere may overshoot 255 a little.
FLOAT_OVERSHOOT = 1.25


class Statistics(Protocol):
    """What the checks need to know of a processor's settings.

    Attributes:
        image_mean: Mean of each band, after the factor.
        image_std: Standard deviation of each band, likewise.
        do_rescale: Whether the factor is used.
    """

    image_mean: Any
    image_std: Any

    do_rescale: bool

    @property
    def factor(self) -> float:
        """Raw value to the statistics' unit."""
        ...

    @property
    def file_type(self) -> str:
        """Type of the files whose values the factor fits."""
        ...

    def label(self, band: int) -> str:
        """Name or number of a band."""
        ...


def check_finite(values: torch.Tensor, names: list[str]) -> None:
    """Refuse NaN and infinite values in (B, C, H, W)."""
    # One pass without extra memory; only a suspicious sum is looked at closely (it may also have overflowed).
    if torch.isfinite(values.sum()):
        return
    nan = values.isnan().any(dim=1).flatten(1).sum(dim=1)
    inf = values.isinf().any(dim=1).flatten(1).sum(dim=1)
    bad = torch.nonzero(nan + inf).flatten()
    if len(bad) > 0:
        index = int(bad[0])
        raise ValueError(
            f"{names[index]} has {int(nan[index])} NaN and {int(inf[index])} infinite pixels of "
            f'{values[index, 0].numel()}; replace them first, or pass nodata="nan" if they were not measured.'
        )


def check_scale(values: torch.Tensor, dtype: torch.dtype, settings: Statistics) -> None:
    """Refuse (B, C, H, W) raw values that cannot belong to the statistics, whatever the picture shows."""
    mean, std = torch.tensor(settings.image_mean), torch.tensor(settings.image_std)
    usual = mean.abs() + std
    if not dtype.is_floating_point:
        info, factor = torch.iinfo(dtype), settings.factor
        _check_integer_type(values, info, usual, std, settings)
        if info.min == 0 and info.max * factor <= TOO_LARGE * usual.min():
            return  # No value of this type can fail what follows; 8-bit pictures need no pass over the data.
    # The L1 norm over the count is the mean of |value|, without a copy of the data.
    size = values[:, 0].numel()
    average = torch.linalg.vector_norm(values, ord=1, dim=(0, 2, 3)).cpu() * settings.factor / size
    low, high = (torch.stack(ends).cpu() for ends in _extremes(values))
    _check_eight_bit(high.max().item(), dtype, settings)
    # Bands around zero (anomalies, displacements) may fall far below it; only positive quantities are held to it.
    _check_negative(low * settings.factor, usual, mean > 0.5 * std, settings)
    _check_average(average, usual, settings)
    if dtype.is_floating_point:
        _check_small(values, torch.maximum(low.abs(), high.abs()) * settings.factor, usual, settings)


def _check_average(average: torch.Tensor, usual: torch.Tensor, settings: Statistics) -> None:
    """Refuse bands whose mean absolute value is far above the usual."""
    bad = torch.nonzero(average > TOO_LARGE * usual).flatten()
    if len(bad) > 0:
        band = int(bad[0])
        raise ValueError(
            f"band {settings.label(band)} averages {average[band]:.3g} after rescaling but the model's statistics "
            f"expect about {usual[band]:.3g}; set do_rescale and rescale_factor (1/255 for 8-bit images, 1e-4 for "
            f"reflectance as integers), or mask nodata values, or pass check_values=False if they are right."
        )


def _extremes(values: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Smallest and largest value of each band of (B, C, H, W)."""
    ends = [values[:, band].aminmax() for band in range(values.shape[1])]
    return [end.min for end in ends], [end.max for end in ends]


def _check_integer_type(
    values: torch.Tensor, info: torch.iinfo, usual: torch.Tensor, std: torch.Tensor, settings: Statistics
) -> None:
    """Refuse integer types that cannot express the statistics: range too short, or steps too coarse.

    Looks at the type, not at the picture, so a night scene is never mistaken for a wrong factor.
    """
    short = info.max * settings.factor < 0.5 * usual.max()
    coarse = settings.factor > 2 * std.max()
    if (short or coarse) and bool(values.any()):
        raise ValueError(
            f"images are {info.dtype} and become 0 to {info.max * settings.factor:.3g} in steps of "
            f"{settings.factor:.3g}, but the model's statistics expect about {usual.max():.3g} with spread "
            f"{std.max():.3g}; set do_rescale and rescale_factor (1/255 for 8-bit images), or pass check_values=False."
        )


def _check_eight_bit(top: float, dtype: torch.dtype, settings: Statistics) -> None:
    """Refuse values above 255 where the factor says 8-bit pictures."""
    limit = 255 * (FLOAT_OVERSHOOT if dtype.is_floating_point else 1)
    if abs(settings.factor * 255 - 1) < 1e-3 and top > limit:
        raise ValueError(
            f"images reach {top:.6g} but rescale_factor=1/255 is for 8-bit pictures of 0 to 255; for reflectance as "
            f"integers of 0 to 10000 pass rescale_factor=1e-4 with image_mean and image_std per band in reflectance."
        )


def _check_negative(low: torch.Tensor, usual: torch.Tensor, positive: torch.Tensor, settings: Statistics) -> None:
    """Refuse strongly negative values in bands whose statistics say that they are positive."""
    bad = torch.nonzero(positive & (low < TOO_NEGATIVE * usual)).flatten()
    if len(bad) > 0:
        band = int(bad[0])
        raise ValueError(
            f"band {settings.label(band)} falls to {low[band]:.3g} after rescaling but the model's statistics expect "
            f"about {usual[band]:.3g}; replace nodata fill values first, do not pass normalised images, or pass "
            f"check_values=False if they are right."
        )


def _check_small(values: torch.Tensor, peak: torch.Tensor, usual: torch.Tensor, settings: Statistics) -> None:
    """Refuse floats that were brought to 0..1 (or normalised) before and would be rescaled again."""
    if not bool((peak < TOO_SMALL * usual).all()):
        return
    if bool((values == values.round()).all()):
        return  # whole numbers stored as floats: an empty or dark 8-bit picture, not one in 0..1
    message = (
        f"images peak at {peak.max():.3g} in units after rescaling but the model's statistics expect about "
        f"{usual.max():.3g}"
    )
    if settings.do_rescale:
        raise ValueError(
            f"{message}; they look rescaled already: pass do_rescale=False, or check_values=False if they are right."
        )
    # Without rescaling a nearly black tile looks the same, so this one is only said.
    logger.warning_once(f"{message}; check that image_mean and image_std are in the images' unit.")
