"""Mean IoU as a metric of the evaluate library; the arithmetic is in functions.py beside this file."""

from typing import Any

import datasets
import evaluate

from .functions import compute, count_pairs, merge, new_state, update


DESCRIPTION = """
Mean IoU, mean and overall accuracy, and IoU, precision, recall and F1 of each class, from the pixels of the whole set
counted together.
"""
INPUTS = """
Args:
    predictions: Maps of integer class ids, one per image, of any size.
    references: The true maps, each of the size of its prediction.
    num_classes: Number of classes K; ids are 0..K-1.
    ignore_index: Reference id of pixels that do not count (255); None = all count.
Returns:
    mean_iou, mean_accuracy, overall_accuracy: in [0, 1], or nan where nothing counts.
    per_class_iou, per_class_precision, per_class_recall, per_class_f1: lists of K; nan where nothing stands under the
        fraction, and left out of the means.
"""


class MeanIou(evaluate.Metric):
    """Scores of semantic segmentation over all images of all batches and processes.

    Of an image only the pairs (predicted, true id) and their pixels are stored, a few numbers instead of a map;
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
        self,
        *,
        predictions: list[dict[str, list[int]]],
        references: list[list[int]],
        num_classes: int,
        ignore_index: int | None = 255,
    ) -> dict[str, float | list[float]]:
        start = new_state(num_classes)
        states = [
            update(start, found["label"], true, ignore_index, found["pixels"])
            for found, true in zip(predictions, references)
        ]
        return compute(merge([start, *states]), ignore_index)
