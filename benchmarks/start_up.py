"""Start-up: what `import gfm_hf` costs beyond the transformers classes it stands on, and the way to the first update.

Every measurement is a fresh process; those that are compared take turns.

Example:
    python benchmarks/start_up.py --rounds 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


IMPORT_MUST_S = 0.3
CLASSES_ALONE = "import of the transformers classes"
PACKAGE = "import gfm_hf"
PACKAGE_AFTERWARDS = "import gfm_hf behind those classes"
FIRST_UPDATE = "training script to its first update"
# What the package needs whatever it does itself; their cost is not ours.
TRANSFORMERS_CLASSES = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, SwinConfig, SwinModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto import AutoModelForMaskedImageModeling, AutoModelForPreTraining
"""
STOPWATCH = """
import time
elapsed, cpu = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - elapsed, time.process_time() - cpu)
"""
# Runs a script as `python script arguments` would, and leaves it after its first update.
UNTIL_FIRST_UPDATE = """
import time
elapsed, cpu = time.perf_counter(), time.process_time()
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
def report(seconds: dict[str, list[Seconds]]) -> str:
    """Markdown: the medians, and what the package adds against the target."""
    rows = {name: [statistics.median(column) for column in zip(*values)] for name, values in seconds.items()}
    lines = ["| what | elapsed s | CPU s |", "|---|---|---|"]
    lines += [f"| {name} | {elapsed:.2f} | {cpu:.2f} |" for name, (elapsed, cpu) in rows.items()]
    met = "met" if rows[PACKAGE_AFTERWARDS][1] < IMPORT_MUST_S else "not met"
    return "\n".join([*lines, "", f"Target: the package adds less than {IMPORT_MUST_S} s of CPU: {met}."])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    seconds = measure(args.rounds)
    print(report(seconds))
    if args.output:
        values = {name: [value._asdict() for value in values] for name, values in seconds.items()}
        args.output.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
