"""Throughput of the pretraining step on one CUDA GPU: images a second, share of the peak, memory.

bfloat16 autocast with a bfloat16 teacher, eager and compiled, over a sweep of batch sizes, and the authors' step beside
them. Utilisation counts the floating-point operations of the matrix products that the step really does.

Example:
    python benchmarks/gpu_step.py --model swin_b --batch_sizes 128 256 512 --peak_tflops 989
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import SHAPES, VARIANTS, Authors, Batch, Family, Ours, Variant, configs, full_step, make_batch
from torch.utils.flop_counter import FlopCounterMode


AUTHORS_BF16 = next(variant for variant in VARIANTS if variant.name == "authors bf16")
OURS_BF16 = next(variant for variant in VARIANTS if variant.name == "ours bf16, bf16 teacher")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="swin_b")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--steps", type=int, default=20, help="measured steps, after 5 that are not counted")
    parser.add_argument(
        "--attn_implementation", choices=["eager", "sdpa"], help="of ours; default: the training script's"
    )
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense bf16 peak of the GPU (H100 SXM: 989)")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    return parser.parse_args(argv)


def count_flops(family: Family, variant: Variant, batch: Batch) -> float:
    """Floating-point operations of one full step, teacher included, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        full_step(family, variant, batch)
    return float(counter.get_total_flops())


def seconds_per_step(step: Callable[[], None], steps: int) -> float:
    """Median time of a step between CUDA events."""
    for _ in range(5):
        step()
    times = []
    for _ in range(steps):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def measure(name: str, family: Family, variant: Variant, batch: Batch, flops: float, args: Any) -> dict[str, Any]:
    """One row: throughput, utilisation and peak memory at one batch size."""
    size = len(batch.pixel_values)
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds = seconds_per_step(lambda: full_step(family, variant, batch), args.steps)
    except torch.OutOfMemoryError:
        family.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return {"name": name, "batch_size": size, "images_per_second": None}
    return {
        "name": name,
        "batch_size": size,
        "images_per_second": size / seconds,
        "utilisation": flops * size / seconds / (args.peak_tflops * 1e12),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def sweep(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for the authors' step, ours, and ours compiled; each alone on the GPU."""
    config, teacher_config = configs(args.model)
    rows = []
    for name in ("authors bf16", "ours bf16", "ours bf16, compiled"):
        family: Family
        if name == "authors bf16":
            family, variant = Authors(config, teacher_config, "cuda"), AUTHORS_BF16
        else:
            variant = OURS_BF16
            family = Ours(config, teacher_config, "cuda", [variant.teacher], args.attn_implementation)
        flops = count_flops(family, variant, make_batch(config, 2, "cuda")) / 2
        if name.endswith("compiled"):
            family.model.compile()
        for size in args.batch_sizes:
            rows.append(measure(name, family, variant, make_batch(config, size, "cuda"), flops, args))
            print(format_row(rows[-1]), flush=True)
        del family
        torch.cuda.empty_cache()
    return rows


def format_row(row: dict[str, Any]) -> str:
    """Markdown."""
    head = f"| {row['name']} | {row['batch_size']} |"
    if row["images_per_second"] is None:
        return f"{head} out of memory | | |"
    return f"{head} {row['images_per_second']:.0f} | {row['utilisation']:.1%} | {row['peak_gb']:.1f} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA GPU is visible to torch; on a CPU run benchmarks/pretraining_step.py.")
    print(f"{args.model} on {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| variant | batch | images/s | of peak | peak GB |\n|---|---|---|---|---|", flush=True)
    rows = sweep(args)
    if args.output:
        args.output.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
