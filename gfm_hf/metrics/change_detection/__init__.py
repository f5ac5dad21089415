"""Precision, recall, F1 and IoU of the class "change" over a whole set."""

from .functions import compute, count_pairs, merge, new_state, update


__all__ = ["compute", "count_pairs", "merge", "new_state", "update"]
