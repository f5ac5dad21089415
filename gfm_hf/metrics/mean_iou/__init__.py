"""Mean IoU, accuracy and the scores of each class over a whole set."""

from .functions import compute, count_pairs, merge, new_state, update


__all__ = ["compute", "count_pairs", "merge", "new_state", "update"]
