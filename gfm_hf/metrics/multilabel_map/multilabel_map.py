"""Multi-label average precision as a metric of the evaluate library; the arithmetic is in functions.py beside it."""

from typing import Any

import datasets
import evaluate

from .functions import authors_batch_map, compute, new_state, update


DESCRIPTION = """
Average precision of multi-label classification over the whole set: micro, macro, and of each class. All scores are
kept until the end.
"""
INPUTS = """
Args:
    predictions: (B, K) scores, logits or probabilities.
    references: (B, K) labels, 1 = the image has the class.
    batch_size: If given, adds batch_map, the mean of the micro average precision of successive batches of this many
        images, as the GFM authors reported it.
Returns:
    micro_map, macro_map: in [0, 1], or nan where there is no positive label.
    per_class_ap: list of K; nan for a class without a positive label, which is left out of macro_map.
"""


class MultilabelMap(evaluate.Metric):
    """Micro and macro average precision over all images of all batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.List(datasets.Value("float64")),
            "references": datasets.List(datasets.Value("bool")),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Keep the (K,) scores and labels of one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Keep the scores of a batch: (B, K) arrays, tensors or lists."""
        empty = not len(predictions) and not len(references)
        batches = [] if empty else update(new_state(), predictions, references)
        super().add_batch(
            predictions=[row for scores, _ in batches for row in scores.tolist()],
            references=[row for _, labels in batches for row in labels.tolist()],
        )

    def _compute(
        self, *, predictions: list[list[float]], references: list[list[bool]], batch_size: int | None = None
    ) -> dict[str, float | list[float]]:
        if not predictions:
            return compute(new_state())
        results = compute(update(new_state(), predictions, references))
        if batch_size is not None:
            results["batch_map"] = authors_batch_map(predictions, references, batch_size)
        return results
