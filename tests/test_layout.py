"""Who may import whom. The rooms of the package are worth something only while their doors stay where they are."""

import ast
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gfm_hf"
# Left may use right, never back. A room always may use itself; files that stand alone are rooms of one file.
MAY_IMPORT = {
    "gfm_hf": {"model", "training", "convert", "pipelines"},  # the front desk, __init__.py
    "model": set(),
    "data": set(),
    "training": {"model", "data", "cards", "hub"},
    "metrics": set(),
    "scene": {"model"},
    "convert": {"model"},
    "cards": {"model"},
    "hub": {"model", "cards"},
    "pipelines": {"model"},
}
# A saved checkpoint takes these files along, to machines that have nothing else.
TRAVELLING = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | set(sys.stdlib_module_names)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it, relative ones made absolute.

    Of `from a.b import c` it is a.b.c where that is a module of the package, else a.b.
    """
    found = set()
    home = ".".join(path.relative_to(ROOT).parent.parts) if PACKAGE in path.parents else ""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.partition(".")[0] == "gfm_hf"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "gfm_hf"


def test_every_file_is_in_a_room_with_a_rule():
    assert {room(module) for module in modules()} <= set(MAY_IMPORT)
    assert {"model", "data", "training", "hub"} <= {room(module) for module in modules()}


@pytest.mark.parametrize("module", modules())
def test_rooms_use_only_what_they_may(module):
    home = room(module)
    used = {room(name) for name in ours(modules()[module])} - {home}
    assert used <= MAY_IMPORT[home], f"{module} must not import {sorted(used - MAY_IMPORT[home])}"


def test_no_module_imports_itself_in_a_circle():
    graph = {module: ours(path) & set(modules()) for module, path in modules().items()}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for name in graph[module]:
                visit(name, (*trail, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=lambda path: path.name)
def test_model_files_can_travel(path):
    """transformers copies what lines `from .x import y` name, and nothing else."""
    tree = ast.parse(path.read_text())
    top_level = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node in top_level and node.level == 1 and node.module and "." not in node.module
            assert (PACKAGE / "model" / f"{node.module}.py").is_file()
    names = {name.partition(".")[0] for name in imports(path)} - {"gfm_hf"}
    assert names <= TRAVELLING, f"{path.name} must not import {sorted(names - TRAVELLING)}"
    assert not list((PACKAGE / "model").glob("*/*.py"))


@pytest.mark.parametrize("folder", ["dataset_scripts", "gfm_hf/metrics"])
def test_scripts_that_stand_alone_import_nothing_of_ours(folder):
    for path in (ROOT / folder).rglob("*.py"):
        own = ".".join(path.relative_to(ROOT).parent.parts) + "."  # support files of the same folder travel along
        assert not {name for name in ours(path) if not name.startswith(own)}, path


def test_nothing_in_the_package_imports_scripts_or_tests():
    outside = {path.stem for path in ROOT.glob("examples/*.py")} | {"examples", "benchmarks", "tests"}
    for path in modules().values():
        assert not {name.partition(".")[0] for name in imports(path)} & outside, path


STEP = [
    "examples/run_continual_pretraining.py",
    "gfm_hf/data/masking.py",
    "gfm_hf/training/teacher.py",
    "gfm_hf/model/modeling_gfm.py",
    "gfm_hf/model/swin_gfm.py",
    "gfm_hf/model/losses_gfm.py",
]


def test_one_training_step_is_read_in_six_files():
    """What computes something between a mask and the optimizer step is defined in one of these files."""
    defined = {node.name: path for path in STEP for node in ast.walk(ast.parse((ROOT / path).read_text()))
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))}  # fmt: skip
    chain = {
        "train_step": 0, "hidden_cells": 1, "expand_to_tokens": 1, "GFMTeacher": 2, "GFMForPreTraining": 3,
        "embed_pixels": 4, "run_stages": 4, "masked_reconstruction_loss": 5, "feature_distillation_loss": 5,
    }  # fmt: skip
    assert {name: STEP.index(defined[name]) for name in chain} == chain
    # The step itself calls the teacher and the model, and nothing that hides more of it elsewhere.
    script = ast.parse((ROOT / STEP[0]).read_text())
    step = next(node for node in script.body if isinstance(node, ast.FunctionDef) and node.name == "train_step")
    calls = {node.func.id for node in ast.walk(step) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert calls == {"teacher", "model"}
