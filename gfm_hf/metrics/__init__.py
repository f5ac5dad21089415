"""Scores over a whole test set, as pure functions on NumPy arrays.

Each metric is a module with the same four doors, so that batches and processes add up to one exact score:

    state = mean_iou.new_state(num_classes=6)
    for batch in loader:
        state = mean_iou.update(state, predictions, references)
    scores = mean_iou.compute(mean_iou.merge(states_of_all_processes))

The same folders are metrics of the evaluate library, which is imported only there:
`evaluate.load("gfm_hf/metrics/mean_iou")`.
"""

from . import change_detection, mean_iou, multilabel_map, psnr_ssim
from .multilabel_map import authors_batch_map


__all__ = ["authors_batch_map", "change_detection", "mean_iou", "multilabel_map", "psnr_ssim"]
