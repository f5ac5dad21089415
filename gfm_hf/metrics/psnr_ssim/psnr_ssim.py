"""PSNR and SSIM as a metric of the evaluate library; the arithmetic is in functions.py beside this file."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .functions import compute, new_state, update


DESCRIPTION = """
PSNR (dB) and SSIM (Wang 2004: 11 x 11 Gaussian window, sigma 1.5, K1 0.01, K2 0.03, no padding) per image and on
average, for any number of bands.
"""
INPUTS = """
Args:
    predictions: Images (C, H, W) or (H, W), of any size from 11 x 11.
    references: The true images, each of the size of its prediction.
    data_range: Greatest minus least possible value, in the unit of the images. Needed before the first image: give it
        to evaluate.load, or to the compute call that brings the images.
Returns:
    psnr, ssim: means over images; per_image_psnr, per_image_ssim: lists.
"""


class PsnrSsim(evaluate.Metric):
    """PSNR and SSIM of all images of all batches and processes.

    Images are scored as they come and only their two scores are stored, with the range that they were measured
    against; so images of any size go in, and what several processes leave on disk stays small.
    """

    def __init__(self, *args: Any, data_range: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_range = data_range

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": {"psnr": number, "ssim": number}, "references": number}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Score one image, (C, H, W) or (H, W)."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Score a batch: (B, C, H, W) arrays or tensors, or lists of images of different sizes."""
        if self.data_range is None:
            raise ValueError(
                "psnr_ssim got no data_range; load it with evaluate.load(..., data_range=255) or the like."
            )
        scores = update(new_state(), predictions, references, self.data_range)
        super().add_batch(
            predictions=[{"psnr": psnr, "ssim": ssim} for psnr, ssim in scores.tolist()],
            references=[float(self.data_range)] * len(scores),
        )

    def compute(
        self, *, predictions: Any = None, references: Any = None, data_range: float | None = None
    ) -> dict[str, float | list[float]] | None:
        """Mean scores of all images; None on every process but the first."""
        if data_range is not None:
            if len(self) and data_range != self.data_range:
                raise ValueError(
                    f"compute got data_range {data_range} after images were scored with {self.data_range}; "
                    "give it to evaluate.load instead."
                )
            self.data_range = data_range
        return super().compute(predictions=predictions, references=references)

    def _compute(
        self, *, predictions: list[dict[str, float]], references: list[float]
    ) -> dict[str, float | list[float]]:
        if len(set(references)) > 1:
            raise ValueError(f"Images were scored with data_range {sorted(set(references))}; load all with one value.")
        rows = [(scores["psnr"], scores["ssim"]) for scores in predictions]
        return compute(np.array(rows, dtype=np.float64).reshape(-1, 2))
