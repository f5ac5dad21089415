"""Builds GeoPile from generated JPEGs, kills the build, goes on, and reads the result as pretraining does.

    python benchmarks/geopile.py --images 100000

Five sources of equal share, 256 x 256 px, two as archives and three as folders of classes. Reported are images a second
and peak memory of the build; which shards the second start kept; and images a second of one core in reading:
Pillow's decoding alone, `imagefolder` and the pretraining loader (decode, crop, flip, normalise, batch), in turn in one
process, medians. `--train` adds the share of time that a real pretraining run waits for data.
"""

import argparse
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "dataset_scripts" / "geopile" / "geopile.py"
SOURCES = ("NWPU-RESISC45", "PatternNet", "MLRSNet", "RSD46-WHU", "NAIP")
CLASSES = 10
SIDE = 256


def main(argv: list[str] | None = None) -> None:
    """Generate, build, kill, go on, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--read", type=int, default=2_000, help="images read in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--max_shard_mb", type=float, default=100)
    parser.add_argument("--train", action="store_true", help="run the pretraining example on the result, too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        raw, out = Path(temporary, "raw"), Path(temporary, "geopile")
        os.environ["HF_HOME"] = str(Path(temporary, "cache"))  # before datasets is imported
        seconds = generate(raw, args.images, args.quality)
        size = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
        say(f"{args.images:,} JPEGs of {size / args.images / 1e3:.1f} kB", f"generated in {seconds:.0f} s")
        flags = ["--num_proc", str(args.num_proc), "--max_shard_mb", str(args.max_shard_mb)]
        report_build(raw, out, args.images, size, flags)
        report_reading(raw, out, args.read, args.rounds)
        if args.train:
            report_training(out, Path(temporary, "run"))


def say(what: str, figures: str) -> None:
    """One line of the report."""
    sys.stdout.write(f"{what:46} {figures}\n")
    sys.stdout.flush()


def generate(raw: Path, images: int, quality: int) -> float:
    """Write the raw files of all sources; returns the seconds it took."""
    started = time.monotonic()
    raw.mkdir()
    each = images // len(SOURCES)
    pictures = encoded(images, quality)
    for source in SOURCES:
        if source in SOURCES[:2]:
            with zipfile.ZipFile(raw / f"{source}.zip", "w") as archive:
                for name in names(each):
                    archive.writestr(f"{source}/{name}", next(pictures))
            continue
        for number in range(CLASSES):
            (raw / source / f"class_{number}").mkdir(parents=True)
        for name in names(each):
            (raw / source / name).write_bytes(next(pictures))
    return time.monotonic() - started


def names(count: int) -> Iterator[str]:
    """Paths below a source: class / picture."""
    return (f"class_{number % CLASSES}/picture_{number:06d}.jpg" for number in range(count))


def encoded(count: int, quality: int) -> Iterator[bytes]:
    """JPEGs of windows of a few large procedural scenes, each at another place."""
    sys.path.insert(0, str(ROOT / "examples"))
    from procedural_scenes import CLASSES as KINDS
    from procedural_scenes import draw_scene

    rng = np.random.default_rng(0)
    scenes = [draw_scene(kind, rng, 4 * SIDE) for kind in KINDS]
    for _ in range(count):
        scene = scenes[rng.integers(len(scenes))]
        top, left = rng.integers(0, 3 * SIDE, 2)
        window = scene[top : top + SIDE, left : left + SIDE]
        buffer = io.BytesIO()
        Image.fromarray(np.rot90(window, rng.integers(4))).save(buffer, format="JPEG", quality=quality)
        yield buffer.getvalue()


def report_build(raw: Path, out: Path, images: int, size: int, flags: list[str]) -> None:
    """Build once with a SIGKILL in the middle, once more to the end; then all again, undisturbed."""
    command = [sys.executable, str(SCRIPT), "--data_dir", str(raw), "--accept_archive", *flags, "--output_dir"]
    killed = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
    shards = max(size / (float(flags[-1]) * 1e6), 2)
    while killed.poll() is None and len(finished(out)) < shards * 0.4:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = finished(out)
    seconds, peak, _ = measured([*command, str(out)])
    after = finished(out)
    kept = sum(after.get(path) == stamp for path, stamp in before.items())
    say(
        "killed, and started again",
        f"{len(before)} shards were there, {kept} kept, {len(after)} in all, {seconds:.0f} s",
    )
    assert kept == len(before), "finished shards were written again"
    seconds, peak, cpu = measured([*command, f"{out}-again"])
    same = {path.name: path.read_bytes() for path in finished(out)} == {
        path.name: path.read_bytes() for path in finished(Path(f"{out}-again"))
    }
    say(
        "undisturbed build",
        f"{images / seconds:,.0f} images/s, {images / cpu:,.0f} a CPU second, peak {peak / 2**20:,.0f} MiB",
    )
    say("both builds have the same bytes", str(same))


def finished(out: Path) -> dict[Path, tuple[int, int]]:
    """Shards that are there, with inode and time of change."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*/[!u]*.parquet")}


def measured(command: list[str]) -> tuple[float, int, float]:
    """Run a command; returns wall seconds, the peak of one of its processes in bytes, and CPU seconds of all."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(said)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, usage.ru_maxrss * 1024, cpu


def report_reading(raw: Path, out: Path, count: int, rounds: int) -> None:
    """Images a second of one core, by ways that take turns."""
    import torch
    from datasets import load_dataset

    from gfm_hf import GFMImageProcessor
    from gfm_hf.data.collators import PretrainingCollator, PretrainingSamples
    from gfm_hf.data.plan import SampleKey
    from gfm_hf.data.sources import open_images

    torch.set_num_threads(1)
    started = time.monotonic()
    table = open_images(train_parquet=str(out / "**" / "*.parquet"))
    say("load_dataset of the Parquet, first time", f"{time.monotonic() - started:.1f} s for {len(table):,} rows")
    started = time.monotonic()
    folder = load_dataset("imagefolder", data_dir=str(raw / SOURCES[-1]), split="train")
    say("imagefolder of one source, first time", f"{time.monotonic() - started:.1f} s for {len(folder):,} rows")
    rng = np.random.default_rng(0)
    places = rng.permutation(len(table))[:count].tolist()
    rows = rng.permutation(len(folder))[:count].tolist()
    files = [table[place].data or b"" for place in places]
    samples = PretrainingSamples()
    collate = PretrainingCollator(GFMImageProcessor(), samples)

    def pillow() -> None:
        for content in files:
            np.asarray(Image.open(io.BytesIO(content)))

    def imagefolder() -> None:
        for place in rows:
            np.asarray(folder[place]["image"])

    def loader() -> None:
        for start in range(0, len(places), 32):
            keys = [SampleKey(0, table[place], 1.0, 0) for place in places[start : start + 32]]
            collate([samples[key] for key in keys])

    ways: dict[str, Callable[[], None]] = {
        "Pillow alone": pillow,
        "imagefolder": imagefolder,
        "pretraining loader": loader,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            rates[name].append(len(places if way is not imagefolder else rows) / (time.process_time() - started))
    for name, found in rates.items():
        share = median(a / b for a, b in zip(found, rates["Pillow alone"]))
        say(name, f"{median(found):,.0f} images a CPU second, {share:.0%} of Pillow alone")


def report_training(out: Path, run: Path) -> None:
    """A real pretraining run, Swin-T without teacher, on the Parquet: how long its steps wait for data."""
    from gfm_hf import GFMConfig

    GFMConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)).save_pretrained(run / "config")
    command = [sys.executable, str(ROOT / "examples" / "run_continual_pretraining.py")]
    command += ["--train_parquet", str(out / "**" / "*.parquet"), "--config_name", str(run / "config")]
    command += ["--max_train_steps", "30", "--per_device_train_batch_size", "8", "--logging_steps", "10"]
    command += ["--dataloader_num_workers", "1", "--num_eval_images", "8", "--output_dir", str(run / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = [json.loads(line) for line in (run / "out" / "trainer_state.jsonl").read_text().splitlines()]
    waits: list[Any] = [line["data_wait"] for line in lines if "data_wait" in line][1:]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line][1:]
    say("real run", f"{median(rates):.0f} images/s, {median(waits):.1%} of the time waits for data")


if __name__ == "__main__":
    main()
