"""Time and memory of one pretraining step on the CPU: ours, the authors', and transformers' own modules.

All variants run in one process on the same batch, one after the other and again from the start, so that whatever else
the machine does hits all of them alike. What counts is CPU time of one thread, and ratios within a round.

A part of it is the kernel's. By default glibc gives freed pages back at the end of a step and fetches fresh ones in the
next, or does not, as the last allocation happens to lie; that costs up to a tenth of a step. The two MALLOC variables
below, which only work together, make it keep them. Each ratio is also given for user time alone.

Example:
    export OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=8589934592
    python benchmarks/pretraining_step.py --model swin_t --batch_size 4 --memory --output step.json
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


# Read when torch is imported. More threads than free cores spin, and spinning counts as CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from contestants import (  # noqa: E402
    FAMILIES,
    SHAPES,
    VARIANTS,
    Batch,
    Family,
    Ours,
    Variant,
    agreement,
    build_families,
    configs,
    full_step,
    make_batch,
)


ROUNDS = {"tiny": 7, "swin_t": 7, "swin_b": 3}
AUTHORS = "authors fp32"
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
AGREEMENT_MUST = 1e-5


class Seconds(NamedTuple):
    """CPU time of one step: all of it, and the part that is not the kernel's."""

    total: float
    user: float


Measured = dict[str, list[Seconds]]


class Ratios(NamedTuple):
    """How many times faster one variant is than another, seen in three ways."""

    paired: float  # median over the rounds
    minima: float  # of the fastest rounds
    user: float  # median over the rounds, user time


class Target(NamedTuple):
    """A ratio that has to be reached, for each model it is set for: at least for time, at most for memory."""

    id: str
    what: str
    variant: str
    reference: str
    must: dict[str, float]


TIME_TARGETS = (
    Target("S1", "exact fp32", "ours fp32", AUTHORS, {"swin_t": 1.05}),
    Target("S2", "fp32 student, bf16 teacher", "ours fp32, bf16 teacher", AUTHORS, {"swin_t": 1.25, "swin_b": 1.2}),
    Target("S3", "bf16, bf16 teacher", "ours bf16, bf16 teacher", AUTHORS, {"swin_t": 2.0, "swin_b": 2.0}),
    Target(
        "S4", "the same over authors bf16", "ours bf16, bf16 teacher", "authors bf16", {"swin_t": 1.12, "swin_b": 1.12}
    ),
    Target("S7", "fp32 over stock modules", "ours fp32", "stock fp32", {"swin_t": 1.0}),
    Target("S7", "bf16 over stock modules", "ours bf16, bf16 teacher", "stock bf16", {"swin_t": 1.1}),
)
MEMORY_TARGETS = (
    Target("S8", "peak memory, fp32", "ours fp32", AUTHORS, {"swin_t": 0.85}),
    Target("S8", "peak memory, bf16", "ours bf16, bf16 teacher", AUTHORS, {"swin_t": 0.72, "swin_b": 0.70}),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="swin_t", help="student; the teacher has the same widths")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, help="measured rounds (7, swin_b 3), after one that is not counted")
    parser.add_argument(
        "--attn_implementation", choices=["eager", "sdpa"], help="of ours; default: the training script's"
    )
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, one process a variant")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)  # one variant's memory, for the process that asks
    return parser.parse_args(argv)


def time_steps(families: dict[str, Family], batch: Batch, rounds: int) -> Measured:
    """CPU time of every variant's full step, one entry a round."""
    seconds: Measured = {variant.name: [] for variant in VARIANTS}
    for round_number in range(rounds + 1):
        for variant in VARIANTS:
            before = _cpu_time()
            full_step(families[variant.family], variant, batch)
            after = _cpu_time()
            if round_number:
                seconds[variant.name].append(Seconds(after.total - before.total, after.user - before.user))
    return seconds


def _cpu_time() -> Seconds:
    return Seconds(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime)


def compare(seconds: Measured, variant: str, reference: str) -> Ratios:
    """Ratios reference / variant, above 1 where the variant is faster."""
    pairs = list(zip(seconds[reference], seconds[variant]))
    return Ratios(
        paired=statistics.median(slow.total / fast.total for slow, fast in pairs),
        minima=min(slow.total for slow, _ in pairs) / min(fast.total for _, fast in pairs),
        user=statistics.median(slow.user / fast.user for slow, fast in pairs),
    )


def peak_memory(variant: Variant, args: argparse.Namespace) -> int:
    """Peak resident bytes of this process after two full steps; to be called in a fresh one."""
    config, teacher_config = configs(args.model)
    extra = {}
    if FAMILIES[variant.family] is Ours:
        extra = {"teachers": [variant.teacher], "attn_implementation": args.attn_implementation}
    family = FAMILIES[variant.family](config, teacher_config, **extra)
    batch = make_batch(config, args.batch_size)
    for _ in range(2):
        full_step(family, variant, batch)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(args: argparse.Namespace) -> dict[str, int]:
    """Peak resident bytes of every variant, imports included, each in a process of its own."""
    command = [sys.executable, __file__, "--model", args.model, "--batch_size", str(args.batch_size)]
    if args.attn_implementation:
        command += ["--attn_implementation", args.attn_implementation]
    # A process that keeps its pages peaks no lower than it must.
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_PAGES}
    peaks = {}
    for variant in VARIANTS:
        output = subprocess.run(
            [*command, "--peak_of", variant.name], check=True, capture_output=True, text=True, env=environment
        )
        peaks[variant.name] = int(output.stdout.split()[-1])
    return peaks


def step_table(seconds: Measured, peaks: dict[str, int]) -> str:
    """Markdown, one row a variant; ratios to the authors' step."""
    lines = [
        f"| variant | median s | min s | paired ratio | ratio of minima | user time |{' peak MB |' if peaks else ''}",
        f"|---|---|---|---|---|---|{'---|' if peaks else ''}",
    ]
    for name, values in seconds.items():
        totals = [value.total for value in values]
        ratios = " | ".join(f"{ratio:.2f}" for ratio in compare(seconds, name, AUTHORS))
        memory = f" {peaks[name] / 1e6:.0f} |" if peaks else ""
        lines.append(f"| {name} | {statistics.median(totals):.3f} | {min(totals):.3f} | {ratios} |{memory}")
    return "\n".join(lines)


def target_rows(
    model: str, seconds: Measured, peaks: dict[str, int], errors: dict[str, float]
) -> list[dict[str, Any]]:
    """Every target that is set for the model: `id`, `what`, `must`, `seen`, `user_time`, `met`.

    A time ratio is met where the paired ratio and that of the minima both reach it; `seen` is the smaller. The ratio
    of user time stands beside it: what is left without the kernel's part.
    """
    rows = []
    for target in TIME_TARGETS:
        if model in target.must:
            ratios = compare(seconds, target.variant, target.reference)
            seen = min(ratios.paired, ratios.minima)
            rows.append(_row(target, target.must[model], seen, seen >= target.must[model], ratios.user))
    for target in MEMORY_TARGETS:
        if model in target.must and peaks:
            seen = peaks[target.variant] / peaks[target.reference]
            rows.append(_row(target, target.must[model], seen, seen <= target.must[model]))
    for name, error in errors.items():
        agrees = Target("S9", f"agreement of {name}", "ours fp32", AUTHORS, {})
        rows.append(_row(agrees, AGREEMENT_MUST, error, error <= AGREEMENT_MUST))
    return rows


def _row(target: Target, must: float, seen: float, met: bool, user_time: float | None = None) -> dict[str, Any]:
    return {"id": target.id, "what": target.what, "must": must, "seen": seen, "user_time": user_time, "met": met}


def target_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row a target."""
    lines = ["| target | what | must | seen | user time | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        user_time = "" if row["user_time"] is None else f"{row['user_time']:.3g}"
        lines.append(
            f"| {row['id']} | {row['what']} | {row['must']:.3g} | {row['seen']:.3g} | {user_time} | "
            f"{'yes' if row['met'] else 'no'} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    if args.peak_of:
        print(peak_memory(next(variant for variant in VARIANTS if variant.name == args.peak_of), args))
        return
    # First: a new process inherits the peak of the one that starts it, which is still small here.
    peaks = measure_memory(args) if args.memory else {}
    rounds = args.rounds or ROUNDS[args.model]
    batch = make_batch(configs(args.model)[0], args.batch_size)
    families = build_families(args.model, FAMILIES, args.attn_implementation)
    errors = agreement(families, batch)
    seconds = time_steps(families, batch, rounds)
    rows = target_rows(args.model, seconds, peaks, errors)
    pages = "kept" if os.environ.keys() >= KEEP_PAGES else "given back"
    print(
        f"{args.model}, batch {args.batch_size}, {rounds} rounds, one thread, torch {torch.__version__}, pages {pages}\n"
    )
    print(step_table(seconds, peaks), target_table(rows), sep="\n\n")
    if args.output:
        settings = {name: getattr(args, name) for name in ("model", "batch_size", "attn_implementation")}
        results = {
            **settings,
            "torch": torch.__version__,
            "rounds": rounds,
            "pages": pages,
            "cpu_seconds_total_user": seconds,
        }
        results |= {"peak_bytes": peaks, "agreement": errors, "targets": rows}
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
