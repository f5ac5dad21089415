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
def report(*_):
    print(time.perf_counter() - elapsed, time.process_time() - cpu, flush=True)
    os._exit(0)
register_optimizer_step_post_hook(report)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TRAINING_SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "run_continual_pretraining.py"
TINY_STUDENT = {
    "model_type": "gfm",
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 2,
}
IMAGES = 12


class Seconds(NamedTuple):
    """One measurement."""

    elapsed: float
    cpu: float


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    return parser.parse_args(argv)


def run_timed(code: str, *arguments: str) -> Seconds:
    """Run code that ends by printing elapsed and CPU seconds, in a fresh interpreter without network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"A measured process ended with status {process.returncode}:\n{process.stderr[-2000:]}")
    elapsed, cpu = process.stdout.split()[-2:]
    return Seconds(float(elapsed), float(cpu))


def write_inputs(folder: Path) -> list[str]:
    """A few noise images and a tiny student's configuration; returns the training script's arguments."""
    (folder / "images").mkdir()
    (folder / "student").mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "student" / "config.json").write_text(json.dumps(TINY_STUDENT))
    arguments = ["--train_dir", f"{folder / 'images'}", "--config_name", f"{folder / 'student'}"]
    arguments += ["--output_dir", f"{folder / 'out'}", "--num_eval_images", "4", "--dataloader_num_workers", "0"]
    return [*arguments, "--per_device_train_batch_size", "4", "--num_train_epochs", "1"]


def measure(rounds: int) -> dict[str, list[Seconds]]:
    """Every measurement of the counted rounds."""
    seconds: dict[str, list[Seconds]] = {CLASSES_ALONE: [], PACKAGE: [], PACKAGE_AFTERWARDS: [], FIRST_UPDATE: []}
    for round_number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            arguments = write_inputs(Path(folder))
            measured = (
                run_timed(STOPWATCH.format(TRANSFORMERS_CLASSES)),
                run_timed(STOPWATCH.format("import gfm_hf")),
                run_timed(TRANSFORMERS_CLASSES + STOPWATCH.format("import gfm_hf")),
                run_timed(UNTIL_FIRST_UPDATE, str(TRAINING_SCRIPT), *arguments),
            )
        if round_number:
            for values, value in zip(seconds.values(), measured):
                values.append(value)
    return seconds


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
