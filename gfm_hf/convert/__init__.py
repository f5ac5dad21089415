"""Weights in and out: other people's Swin checkpoints to GFM models, and back."""

from gfm_hf.convert.companions import adam_state, processor_for
from gfm_hf.convert.describing import inspect_checkpoint
from gfm_hf.convert.inward import Conversion, convert_checkpoint, read_model
from gfm_hf.convert.outward import write_checkpoint
from gfm_hf.convert.reading import CheckpointError


__all__ = [
    "CheckpointError",
    "Conversion",
    "adam_state",
    "convert_checkpoint",
    "inspect_checkpoint",
    "processor_for",
    "read_model",
    "write_checkpoint",
]
