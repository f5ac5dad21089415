"""Time and memory of the search for near-duplicates: 100,000 x 10,000 hashes in 8 orientations.

    python benchmarks/overlap.py --pairs 1000 --output overlap.json

Hashes are random, and copies with a few bits changed are planted among them: all have to be found. What comes before
and after the search is timed per picture and per pair on noise of 256 px.

`--whole` runs the script itself instead, on so many procedural scenes of 64 px, each another one; a tenth of the smaller
set are copies of the larger one's, turned, recompressed and brighter or darker.
"""

import argparse
import csv
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance


SCRIPT = Path(__file__).parents[1] / "dataset_scripts" / "overlap.py"


def load_script() -> ModuleType:
    """Import the script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("overlap_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def time_search(script: Any, first: int, second: int, planted: int, threads: int) -> dict[str, float]:
    """Search for planted copies among random hashes."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, first, dtype=np.uint64)
    views = rng.integers(0, 2**64, (second, 8), dtype=np.uint64)
    place, other = rng.choice(first, planted, replace=False), rng.choice(second, planted, replace=False)
    orientation = rng.integers(0, 8, planted)
    noise = np.zeros(planted, np.uint64)
    for row in range(planted):
        bits = rng.choice(64, rng.integers(0, script.MAX_DISTANCE + 1), replace=False).astype(np.uint64)
        noise[row] = np.bitwise_or.reduce(np.uint64(1) << bits) if len(bits) else 0
    views[other, orientation] = hashes[place] ^ noise
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = script.near(hashes, views, script.MAX_DISTANCE, threads=threads)
    seconds = time.perf_counter() - start
    pairs = set(map(tuple, found.tolist()))
    missed = sum(row not in pairs for row in zip(place.tolist(), other.tolist(), orientation.tolist()))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "comparisons": first * second * 8,
        "search_s": seconds,
        "found": len(found),
        "planted": planted,
        "planted_missed": missed,
        "search_memory_mb": (after - before) / 1024,
        "peak_memory_mb": after / 1024,
    }


def time_pictures(script: Any, count: int = 200) -> dict[str, float]:
    """Hash pictures and compare pairs."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(count)]
    start = time.perf_counter()
    for picture in pictures:
        script.hashes_of(picture)
    hashed = time.perf_counter()
    small = rng.integers(0, 256, (2, 512, script.SIDE_PX, script.SIDE_PX), dtype=np.uint8)
    script.similarity(*small)
    compared = time.perf_counter()
    return {"hash_ms_per_image": (hashed - start) / count * 1e3, "ssim_ms_per_pair": (compared - hashed) / 512 * 1e3}


def time_whole(first: int, second: int) -> dict[str, float]:
    """Generate two sets, run the script on them, hold its table to what was planted."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        planted = write_sets(root, first, second)
        command = [
            sys.executable,
            str(SCRIPT),
            str(root / "first"),
            str(root / "second"),
            "--output_dir",
            str(root / "out"),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr)
        with (root / "out" / "overlap.csv").open(newline="") as file:
            rows = [(row["a"], row["b"]) for row in csv.DictReader(file) if row["duplicate"] == "yes"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    right = planted & set(rows)
    others = len(set(rows) - planted)
    return {"seconds": seconds, "planted": len(planted), "found": len(right), "others": others, "peak_mb": peak / 1024}


def write_sets(root: Path, first: int, second: int) -> set[tuple[str, str]]:
    """Write both sets; returns the names of the pairs that show the same."""
    sys.path.insert(0, str(SCRIPT.parents[1] / "examples"))
    from procedural_scenes import CLASSES, draw_scene

    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        (root / name).mkdir()
    pairs = set()
    for number in range(first + second - second // 10):
        scene = Image.fromarray(draw_scene(CLASSES[number % len(CLASSES)], rng, 64))
        folder, name = ("first", number) if number < first else ("second", number - first)
        scene.save(root / folder / f"{name:06d}.jpg", quality=90)
        if number < second // 10:
            turned = scene.transpose(list(Image.Transpose)[number % 7])
            altered = ImageEnhance.Brightness(turned).enhance(rng.uniform(0.75, 1.25))
            altered.save(root / "second" / f"copy_{number:06d}.jpg", quality=int(rng.integers(50, 91)))
            pairs.add((f"{number:06d}.jpg", f"copy_{number:06d}.jpg"))
    return pairs


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100_000, help="pictures of the larger set")
    parser.add_argument("--second", type=int, default=10_000, help="pictures of the smaller set, in 8 orientations")
    parser.add_argument("--pairs", type=int, default=1000, help="planted pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="time the whole report on generated pictures")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if args.whole:
        figures = time_whole(args.first, args.second)
    else:
        script = load_script()
        figures = time_search(script, args.first, args.second, args.pairs, args.threads) | time_pictures(script)
    for name, value in figures.items():
        print(f"{name:>20} {value:,.3f}" if isinstance(value, float) else f"{name:>20} {value:,}")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
