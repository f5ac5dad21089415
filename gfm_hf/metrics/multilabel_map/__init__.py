"""Average precision of multi-label classification over a whole set: micro, macro, and per class."""

from .functions import authors_batch_map, average_precision, compute, merge, new_state, update


__all__ = ["authors_batch_map", "average_precision", "compute", "merge", "new_state", "update"]
