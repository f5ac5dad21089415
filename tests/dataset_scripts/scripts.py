"""What the tests of all data sets use: find a script, run it, break its archive, compare rows."""

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np


FOLDER = Path(__file__).parents[2] / "dataset_scripts"
SCRIPTS = sorted(path.name for path in FOLDER.iterdir() if (path / f"{path.name}.py").is_file())


def load(path: Path) -> ModuleType:
    """Import a file under its own name; datasets looks for a builder's module there."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Script:
    """One data set. `raw` is what --data_dir takes, `built` the finished folder of all configurations."""

    name: str
    path: Path
    module: Any
    raw: Path
    built: Path

    @classmethod
    def prepare(cls, name: str, folder: Path) -> "Script":
        path = FOLDER / name / f"{name}.py"
        (folder / "raw").mkdir()
        raw = load(path.with_name("dummy.py")).write_dummy(folder / "raw")
        script = cls(name, path, load(path), Path(raw), folder / "built")
        code, said = script.run(output_dir=script.built)
        assert code == 0, said
        return script

    def arguments(self, *flags: str, data_dir: Path | None = None, output_dir: Path) -> list[str]:
        places = ["--data_dir", str(data_dir or self.raw), "--output_dir", str(output_dir)]
        return [*places, "--accept_archive", *flags]

    def run(self, *flags: str, data_dir: Path | None = None, output_dir: Path) -> tuple[int, str]:
        """Run the command here. Returns its exit code and what it said."""
        return self.main(self.arguments(*flags, data_dir=data_dir, output_dir=output_dir))

    def main(self, arguments: list[str]) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = self.module.main(arguments)
        return code, said.getvalue()

    @property
    def builder(self) -> type:
        kinds = [kind for kind in vars(self.module).values() if isinstance(kind, type)]
        (found,) = [kind for kind in kinds if issubclass(kind, datasets.DatasetBuilder)]
        return found

    def archives(self, raw: Path | None = None) -> list[Path]:
        """The raw files that are archives."""
        raw = raw or self.raw
        names = {archive.name for archive in self.module.RECIPE.archives}
        return [raw] if raw.is_file() else sorted(path for path in raw.iterdir() if path.name in names)

    def copy_of_raw(self, folder: Path) -> Path:
        target = folder / self.raw.name
        shutil.copytree(self.raw, target) if self.raw.is_dir() else shutil.copy(self.raw, target)
        return target

    def rows(self, config: str) -> dict[str, list[dict[str, Any]]]:
        """What the set holds, read by the script's own functions, one file after the other."""
        recipe = self.module.RECIPE
        (settings,) = [known for known in recipe.configs if known.name == config]
        with contextlib.redirect_stderr(io.StringIO()):
            files = recipe.open(str(self.raw), None, accept=True)
            plan = recipe.splits(settings, files)
        features = recipe.features(settings)
        return {
            split: [plain(features.encode_example(recipe.row(files, item))) for item in items]
            for split, items in plan.items()
        }


def encoded(dataset: Any) -> list[dict[str, Any]]:
    """Rows of a Dataset or an IterableDataset, pictures as their bytes."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return [plain(row) for row in dataset]


def plain(value: Any) -> Any:
    """A value that can be compared and told as JSON: bytes as their SHA-256, of pictures the bytes alone."""
    if isinstance(value, dict):
        if set(value) == {"bytes", "path"}:
            return plain(value["bytes"])
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        array = np.asarray(value)
        numbers = array.dtype.kind in "iuf" and array.size > 64
        return plain(json.dumps(array.tolist()).encode()) if numbers else [plain(part) for part in array.tolist()]
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that counts, hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def rewrite(archive: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    """Write a zip or tar anew, with other (name, content) pairs."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as old:
            entries = [(entry.filename, old.read(entry)) for entry in old.infolist() if not entry.is_dir()]
        with zipfile.ZipFile(archive, "w") as new:
            for name, content in change(entries):
                new.writestr(name, content)
        return
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isreg()]
        entries = [(member.name, tar.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
    compression = {b"\x1f\x8b": "gz", b"BZ": "bz2", b"\xfd7": "xz"}.get(archive.read_bytes()[:2], "")
    with tarfile.open(archive, f"w:{compression}") as tar:
        for name, content in change(entries):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
