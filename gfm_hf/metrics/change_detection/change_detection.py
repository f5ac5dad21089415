"""Change detection as a metric of the evaluate library; the arithmetic is in functions.py beside this file."""

from typing import Any

import datasets
import evaluate

from .functions import compute, count_pairs, merge, new_state, update


DESCRIPTION = """
Precision, recall, F1 and IoU of the class "change" (label 1), from the pixels of the whole set counted together.
"""
INPUTS = """
Args:
    predictions: Maps of integer labels, one per image, of any size: 0 = no change, 1 = change.
    references: The true maps, each of the size of its prediction.
    ignore_index: Reference label of pixels that do not count (255); None = all count.
Returns:
    precision, recall, f1, iou: each in [0, 1], or nan where nothing stands under the fraction.
"""


class ChangeDetection(evaluate.Metric):
    """Scores of the class "change" over all images of all batches and processes.

    Of an image only the pairs (predicted, true label) and their pixels are stored, a few numbers instead of a map;
    so maps of any size go in, and what several processes leave on disk stays small.
    """

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": {"label": ids, "pixels": ids}, "references": ids}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Count one map (H, W)."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Count a batch: (B, H, W) arrays or tensors, or lists of maps of different sizes."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions came with {len(references)} references; pass as many.")
        tables = [count_pairs(found, true) for found, true in zip(predictions, references)]
        super().add_batch(
            predictions=[{"label": found, "pixels": pixels} for found, _, pixels in tables],
            references=[true for _, true, _ in tables],
        )

    def _compute(
        self, *, predictions: list[dict[str, list[int]]], references: list[list[int]], ignore_index: int | None = 255
    ) -> dict[str, float]:
        states = (
            update(new_state(), found["label"], true, ignore_index, found["pixels"])
            for found, true in zip(predictions, references)
        )
        return compute(merge(states))
