"""The whole story in a few minutes on two cores: scenes, teacher, continual pretraining, features before and after.

    python examples/demo.py --output_dir demo            # procedural scenes
    python examples/demo.py --output_dir demo --data DIR # your folder of images; class sub-folders are probed

Each step is a command that is printed before it runs, so that it can be typed again with other values.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_report import write_report
from PIL import Image
from probe_checkpoints import load_model, markdown_table, probe_model, train_and_test
from procedural_scenes import write_scenes

from gfm_hf.data.labelled import LabelledImages, open_labelled_images
from gfm_hf.training.runs import InputError, command, user_input


HERE = Path(__file__).parent
IMAGE_SIZE = 96
SCENES_PER_CLASS = {"teacher": 160, "student": 160, "test": 60}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--data", type=Path, help="folder of your own images; default: procedural scenes")
    parser.add_argument("--teacher_seconds", type=float, default=60)
    parser.add_argument("--max_train_steps", type=int, default=500)
    return parser.parse_args(argv)


def run_script(name: str, *arguments: object) -> None:
    """Run another example as a person would type it.

    Raises:
        InputError: It ended with exit code 2; its own sentence stands above.
        subprocess.CalledProcessError: It failed otherwise.
    """
    words = [str(HERE / name), *map(str, arguments)]
    print(f"\n$ python {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code == 2:
        raise InputError(f"{name} could not use its input; see the sentence above.")
    if code:
        raise subprocess.CalledProcessError(code, words)


def make_room(output_dir: Path) -> None:
    """Empty the folder of an earlier demo; any other folder that holds something is left alone."""
    marker = output_dir / ".gfm-demo"
    if marker.exists():
        shutil.rmtree(output_dir)
    elif output_dir.exists() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files that are not the demo's; pass another --output_dir.")
    output_dir.mkdir(parents=True, exist_ok=True)
    marker.touch()


def labelled_parts(args: argparse.Namespace, scenes: Path) -> tuple[LabelledImages, LabelledImages] | None:
    """Training and test part of the probe; None where a person's folder has no classes."""
    if args.data is None:
        parts = (open_labelled_images(scenes / part) for part in ("student", "test"))
        return next(parts), next(parts)
    try:
        labelled = open_labelled_images(args.data)
        return train_and_test(labelled.subset(readable(labelled)))
    except ValueError as error:
        print(f"no probe: {error}")
        return None


def readable(labelled: LabelledImages) -> np.ndarray:
    """(N,) bool, which pictures can be decoded; the pretraining run has named the others."""

    def decodes(index: int) -> bool:
        try:
            labelled.picture(index)
        except ValueError:
            return False
        return True

    return np.array([decodes(index) for index in range(len(labelled))])


def readable_pictures(paths: list[Path]) -> list[Image.Image]:
    """The pictures that Pillow can decode."""
    pictures = []
    for path in paths:
        try:
            pictures.append(Image.open(path).convert("RGB"))
        except OSError:
            continue
    return pictures


def compare(models: dict[str, str], parts: tuple[LabelledImages, LabelledImages]) -> dict[str, dict[str, Any]]:
    """Probe the frozen features of each model, loaded with `AutoModel` in this process, which trained none of them."""
    return {title: probe_model(*load_model(name), *parts, image_size=IMAGE_SIZE) for title, name in models.items()}


@command
def main(argv: list[str] | None = None) -> None:
    """Run the demo."""
    args = parse_args(argv)
    scenes, teacher, student = (args.output_dir / name for name in ("scenes", "teacher", "student"))
    if args.data is not None and not args.data.is_dir():
        raise InputError(f"{args.data} is no folder; pass the folder that holds your images.")
    if args.data is not None and args.output_dir.resolve() in [args.data.resolve(), *args.data.resolve().parents]:
        raise InputError(f"{args.data} lies in --output_dir, which the demo overwrites; pass another --output_dir.")
    make_room(args.output_dir)
    timings: dict[str, float] = {}

    def timed(title: str, started: float) -> None:
        timings[title] = time.monotonic() - started

    started = time.monotonic()
    print(f"drawing {5 * sum(SCENES_PER_CLASS.values())} procedural scenes in {scenes}")
    for seed, (part, count) in enumerate(SCENES_PER_CLASS.items()):
        write_scenes(scenes / part, count, IMAGE_SIZE, seed)
    timed("drawing the scenes", started)

    started = time.monotonic()
    shape = ["--image_size", IMAGE_SIZE, "--window_size", 3, "--embed_dim", 32]
    shape += ["--depths", 1, 1, 2, 1, "--num_heads", 2, 4, 8, 16]
    speed = ["--max_seconds", args.teacher_seconds, "--per_device_train_batch_size", 64]
    run_script("train_teacher.py", "--train_dir", scenes / "teacher", "--output_dir", teacher, *shape, *speed)
    timed("training the teacher", started)

    started = time.monotonic()
    images = args.data or scenes / "student"
    recipe = ["--image_size", IMAGE_SIZE, "--window_size", 6, "--mask_patch_size", 16]
    recipe += [
        "--per_device_train_batch_size",
        32,
        "--learning_rate",
        0.016,
        "--max_train_steps",
        args.max_train_steps,
    ]
    records = ["--logging_steps", 20, "--eval_steps", max(args.max_train_steps // 4, 1), "--num_eval_images", 32]
    run_script(
        "run_continual_pretraining.py", "--train_dir", images, "--teacher", teacher, "--output_dir", student,
        *recipe, *records,
    )  # fmt: skip
    timed("continual pretraining", started)

    started = time.monotonic()
    facts: dict[str, Any] = {}
    with user_input():
        parts = labelled_parts(args, scenes)
    if parts is not None:
        results = compare({"before (random start)": f"random:{student}", "after": str(student)}, parts)
        results |= compare({"the teacher": str(teacher)}, parts)
        print(f"\n{markdown_table(results)}")
        facts = {
            "probe": results,
            "features": {title: result["test_features"] for title, result in results.items()},
            "feature_labels": parts[1].labels,
            "class_names": parts[1].class_names,
            "probe_caption": f"Frozen features of {len(parts[0])} images, scored on {len(parts[1])} others. "
            + (
                "The teacher was trained with labels on a third set of scenes, the student without any. "
                * (not args.data)
            ),
        }
    timed("probing", started)

    found = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    shown = readable_pictures(found[:: max(len(found) // 40, 1)][:40])
    panels = sorted((student / "panels").glob("*.png"))
    report = write_report(
        args.output_dir,
        {
            "title": "Continual pretraining, from a folder of images to a backbone",
            "summary": (
                "A student that starts from random weights rebuilds hidden parts of unlabelled images and keeps its "
                "features close to those of a small frozen teacher. Then it is loaded again with AutoModel, and what "
                "its frozen features are worth is measured before and after."
            ),
            "sample_images": shown,
            "sample_caption": f"Some of the {len(found)} training images.",
            "trainer_state": student / "trainer_state.jsonl",
            "panels": panels[:1] + panels[-1:],
            "panel_caption": "After a quarter of the steps, and at the end: input, what the student sees, what it rebuilds.",
            "checkpoint": student,
            "settings": {
                "steps": args.max_train_steps,
                "crops": f"{IMAGE_SIZE} px",
                "threads": torch.get_num_threads(),
            },
            "timings": timings,
            **facts,
        },
    )
    print(f"\nreport: {report}, {sum(timings.values()):.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
