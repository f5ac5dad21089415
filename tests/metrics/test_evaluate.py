"""The folders as metrics of the evaluate library: loaded by path, offline, in one process and in two."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gfm_hf import metrics


ROOT = Path(__file__).parents[2]
NAMES = ["change_detection", "mean_iou", "multilabel_map", "psnr_ssim"]


def map_batches(classes):
    """Three batches: an array, a tensor, and a list of maps of different sizes; some pixels are to be ignored."""
    generator = np.random.default_rng(classes)
    batches = []
    for shape in [(2, 9, 7), (3, 5, 5), (1, 4, 6)]:
        true = generator.integers(0, classes, shape)
        found = np.where(generator.random(shape) < 0.6, true, generator.integers(0, classes, shape))
        batches.append((found, np.where(generator.random(shape) < 0.2, 255, true)))
    batches[1] = tuple(torch.from_numpy(maps) for maps in batches[1])
    mixed = [list(maps) + [maps[0, :2, :3]] for maps in batches[2]]
    return [batches[0], batches[1], (mixed[0], [true.astype(np.uint8) for true in mixed[1]])]


def score_batches():
    generator = np.random.default_rng(3)
    labels = [generator.random((count, 4)) < 0.4 for count in (6, 7, 2)]
    return [(np.round(generator.random(part.shape) + 0.3 * part, 1), part.astype(int)) for part in labels]


def image_batches():
    generator = np.random.default_rng(4)
    true = [generator.random((2, 3, 12, 15)), generator.random((1, 3, 12, 15)), generator.random((2, 11, 13))]
    found = [images + generator.normal(size=images.shape) * 0.1 for images in true]
    return [(found[0], true[0]), (torch.from_numpy(found[1]), torch.from_numpy(true[1])), (list(found[2]), true[2])]


BATCHES = {
    "change_detection": map_batches(2),
    "mean_iou": map_batches(4),
    "multilabel_map": score_batches(),
    "psnr_ssim": image_batches(),
}
LOAD = {name: {"data_range": 1.5} if name == "psnr_ssim" else {} for name in NAMES}
COMPUTE = {name: {"num_classes": 5} if name == "mean_iou" else {} for name in NAMES}


def expected(name, batches):
    """What the pure functions say."""
    module, state = getattr(metrics, name), getattr(metrics, name).new_state(*COMPUTE[name].values())
    for predictions, references in batches:
        if "iou" in name or name == "change_detection":
            for found, true in zip(predictions, references):
                state = module.update(state, found, true)
        else:
            state = module.update(state, predictions, references, *LOAD[name].values())
    return module.compute(state)


MAP = np.zeros((1, 3, 3), int)
MISTAKES = [
    ("change_detection", "compute", {"predictions": MAP, "references": MAP + 2}, "label 2"),
    ("change_detection", "add_batch", {"predictions": MAP, "references": MAP[:, :2]}, "(3, 3) and references (2, 3)"),
    ("mean_iou", "add_batch", {"predictions": MAP[[0, 0]], "references": MAP}, "2 predictions came with 1"),
    ("mean_iou", "add_batch", {"predictions": MAP * 0.5, "references": MAP}, "dtype float64"),
    ("multilabel_map", "add", {"prediction": [0.1, 0.2], "reference": [0, 2]}, "multi-hot"),
    ("psnr_ssim", "add", {"prediction": MAP[0], "reference": MAP[0]}, "no data_range"),
    ("psnr_ssim", "compute", {"predictions": MAP, "references": MAP, "data_range": 1}, "at least 11 x 11"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    cases = {
        name: {
            "path": f"gfm_hf/metrics/{name}",
            "options": LOAD[name],
            "batches": BATCHES[name],
            "compute_options": COMPUTE[name],
        }
        for name in NAMES
    }
    mistakes = [(f"gfm_hf/metrics/{name}", call, arguments) for name, call, arguments, _ in MISTAKES]
    (folder / "in").write_bytes(pickle.dumps((cases, mistakes)))
    offline = {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "USE_TF": "0"}
    script = [sys.executable, "-W", "error::RuntimeWarning", str(Path(__file__).with_name("score_with_evaluate.py"))]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [*script, str(folder / "in"), str(folder / "out")],
        cwd=ROOT, env=kept | offline, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return pickle.loads((folder / "out").read_bytes())


def text(scores):
    """Every digit, and nan equal to nan; fails on what is not plain Python."""
    return json.dumps(scores)


@pytest.mark.parametrize("name", NAMES)
def test_same_scores_as_the_pure_functions(results, name):
    for how in ("one", "by_image"):
        assert text(results[name][how]) == text(expected(name, BATCHES[name]))
    for how in ("again", "at_once"):
        assert text(results[name][how]) == text(expected(name, BATCHES[name][:1]))


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_score_as_one(results, name):
    one, two = ({key: value for key, value in results[name][how].items() if "per_image" not in key}
                for how in ("one", "two"))  # fmt: skip
    assert text(two) == text(one)
    assert text(results[name]["two"]) == text(expected(name, BATCHES[name][::2] + BATCHES[name][1::2]))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_scores_nan(results, name):
    numbers = [value for value in results[name]["nothing"].values() if not isinstance(value, list)]
    assert numbers and np.isnan(numbers).all()


def test_mistakes_are_told_in_one_sentence(results):
    for error, (*_, part) in zip(results["errors"], MISTAKES, strict=True):
        assert error and part in error and "\n" not in error


@pytest.mark.parametrize("path", sorted((ROOT / "gfm_hf" / "metrics").rglob("*.py")), ids=lambda path: path.stem)
def test_files_can_travel(path):
    """evaluate copies NAME.py and what its lines `from .x import y` name, and imports each library by its line."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert len(node.names) == 1
            used.add(node.names[0].name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            used.add("." + (node.module or "") if node.level else node.module.partition(".")[0])
    folder, is_metric = path.parent.name, path.stem == path.parent.name
    allowed = {"numpy", "math", "typing", "collections"} | (
        {"evaluate", "datasets", ".functions"} if is_metric else set()
    )
    allowed |= {".functions"} if path.stem == "__init__" else set()
    allowed |= {".", ".multilabel_map"} if folder == "metrics" else set()
    assert used <= allowed
