"""Converts a Swin-B of the authors' layout and measures time and memory of the whole command.

    python benchmarks/conversion.py

The weights are random, the sizes real: a bare student (encoder, decoder, projector) and a training checkpoint with
teacher and optimizer state beside it. Time and memory are those of the whole process, and what its imports take of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch


CHILD = """
import json, sys, time
begin = time.perf_counter()
import gfm_hf_cli
from gfm_hf.cards import write_card
from gfm_hf.convert import read_model
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
imports, start = peak(), time.perf_counter()
assert gfm_hf_cli.main(["convert", sys.argv[1], sys.argv[2]]) == 0
end = time.perf_counter()
print(json.dumps({"whole_s": end - begin, "seconds": end - start, "imports": imports, "peak": peak()}))
"""


def main(argv: list[str] | None = None) -> None:
    """Make the files, convert each of them a few times, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, path in write_files(folder).items():
            results = [convert(path, folder / f"out-{name}-{run}") for run in range(args.runs)]
            report(name, path, results)


def write_files(folder: Path) -> dict[str, Path]:
    """Weight files of realistic size, by name."""
    from gfm_hf import GFMConfig, GFMForPreTraining
    from gfm_hf.convert.layouts import LAYOUTS
    from gfm_hf.convert.outward import translate

    torch.manual_seed(0)
    tensors, _ = translate(GFMForPreTraining(GFMConfig()), LAYOUTS["authors"])
    teacher = {
        f"teacher.{name.removeprefix('encoder.')}": value for name, value in tensors.items() if "encoder" in name
    }
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for index, value in enumerate(value for value in tensors.values() if value.is_floating_point())
    }
    files = {"bare student": folder / "bare.pth", "training checkpoint": folder / "training.pth"}
    torch.save({"model": tensors}, files["bare student"])
    torch.save({"model": {**tensors, **teacher}, "optimizer": {"state": moments}}, files["training checkpoint"])
    return files


def convert(path: Path, output: Path) -> dict[str, Any]:
    """One conversion in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(output)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, path: Path, results: list[dict[str, Any]]) -> None:
    """Print one line."""
    size = path.stat().st_size
    found = {key: median(result[key] for result in results) for key in results[0]}
    print(
        f"{name}: file {size / 2**20:.0f} MiB; {found['whole_s']:.1f} s with {found['whole_s'] - found['seconds']:.1f} s of "
        f"imports; peak {found['peak'] / 2**20:.0f} MiB ({found['peak'] / size:.2f} x the file), "
        f"{(found['peak'] - found['imports']) / 2**20:.0f} MiB of it ({(found['peak'] - found['imports']) / size:.2f} x) "
        "above the imports"
    )


if __name__ == "__main__":
    main()
