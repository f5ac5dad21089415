"""Where weights are: a file, a folder or a place on the Hub, and what lies beside them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, HTTPError

from gfm_hf.convert.reading import CheckpointError, StoredCheckpoint, line, open_checkpoint


WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
URL = re.compile(r"https?://[^/]+/(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+)")
# What transformers calls its weights, in the order in which it looks for them.
STANDARD = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SIDE_FILES = ("config.json", "preprocessor_config.json", "all_results.json")


@dataclass(frozen=True)
class Source:
    """Weights that were found, all of them local by now.

    Attributes:
        name: As the caller gave it.
        files: The weight files: one, or the parts of one model.
        beside: Name -> content of `SIDE_FILES` that lie beside them.
        repo: Hub name, where the weights come from there.
        license: What the Hub's card says.
    """

    name: str
    files: tuple[Path, ...]
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    repo: str | None = None
    license: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The config.json; empty where there is none."""
        return self.beside.get("config.json", {})

    @property
    def is_transformers(self) -> bool:
        """Whether transformers wrote it, as a Swin or as one of ours."""
        return self.config.get("model_type") in ("swin", "gfm")

    def open(self) -> StoredCheckpoint:
        """Look into the files; parts count as one.

        Raises:
            CheckpointError: One of them is unsafe or damaged.
        """
        parts = [open_checkpoint(file) for file in self.files]
        if len(parts) == 1:
            return parts[0]
        owners = {name: part for part in parts for name in part.tensors}
        tensors = {name: part.tensors[name] for name, part in owners.items()}

        def read(name: str) -> torch.Tensor:
            return owners[name].read(name)

        return StoredCheckpoint(self.files[0].parent, f"{parts[0].kind}, {len(parts)} parts", tensors, read)


def find_source(name: str | Path, revision: str | None, token: str | None, cache_dir: str | None) -> Source:
    """Resolve what a caller may give; downloads what lies on the Hub.

    Raises:
        CheckpointError: There is nothing, or several weight files to choose from.
    """
    name = str(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(name, path)
    if path.exists():
        beside = _beside(path.parent) if path.name in STANDARD else {}
        return Source(name, (path,), beside)
    address = URL.fullmatch(name)
    parts = name.split("/", 2)
    if address:
        repo, file, revision = address["repo"], address["file"], revision or address["revision"]
    elif _looks_like_hub(name, parts):
        repo, file = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    else:
        raise CheckpointError(f"{name} does not exist; give a file, a folder, or owner/name/file of the Hub.")
    try:
        return _on_hub(name, repo, file, {"revision": revision, "token": token, "cache_dir": cache_dir})
    except (HTTPError, HFValidationError, OSError) as error:
        said = error.server_message if isinstance(error, HfHubHTTPError) else None
        raise CheckpointError(
            f"{name} is no local file, and the Hub does not give it ({said or line(error)}); check name, revision, token "
            "and network."
        ) from error


def _looks_like_hub(name: str, parts: list[str]) -> bool:
    """Whether a name that is no path may be one of the Hub: owner/name, or owner/name/file."""
    if len(parts) < 2 or not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts[:2]):
        return False
    # A mistyped path must not be asked for over the network.
    return not Path(parts[0]).exists() and not (len(parts) == 2 and name.endswith(WEIGHT_SUFFIXES))


def _in_folder(name: str, folder: Path) -> Source:
    listed = sorted(path.name for path in folder.iterdir() if path.is_file())
    chosen = _weights_among(name, listed, lambda index: read_json(folder / index))
    return Source(name, tuple(folder / file for file in chosen), _beside(folder))


def _on_hub(name: str, repo: str, file: str | None, hub: dict[str, Any]) -> Source:
    if file is not None and Path(file).name not in STANDARD:
        return Source(name, (Path(hf_hub_download(repo, file, **hub)),), repo=repo, license=_license(repo, hub))
    listed = HfApi(token=hub["token"]).list_repo_files(repo, revision=hub["revision"])

    def download(path: str) -> Path:
        return Path(hf_hub_download(repo, path, **hub))

    chosen = [file] if file else _weights_among(name, listed, lambda index: read_json(download(index)))
    beside = {side: read_json(download(side)) for side in SIDE_FILES if side in listed}
    return Source(name, tuple(map(download, chosen)), beside, repo, _license(repo, hub))


def _license(repo: str, hub: Mapping[str, Any]) -> str | None:
    try:
        readme = hf_hub_download(repo, "README.md", **hub)
    except EntryNotFoundError:
        return None
    said = ModelCard.load(readme, ignore_metadata_errors=True).data.get("license")
    return said if isinstance(said, str) else None


def _weights_among(name: str, files: Iterable[str], read_index: Any) -> list[str]:
    """The files of one model: transformers' own names first, else the only weight file there is."""
    files = list(files)
    standard = next((file for file in STANDARD if file in files), None)
    if standard and standard.endswith(".index.json"):
        parts = sorted(set(read_index(standard).get("weight_map", {}).values()))
        missing = [part for part in parts if not isinstance(part, str) or part not in files]
        if missing or not parts:
            raise CheckpointError(f"{name} lacks parts of its weights that {standard} lists; download it again.")
        return parts
    if standard:
        return [standard]
    weights = [file for file in files if file.endswith(WEIGHT_SUFFIXES)]
    # One model in two formats is no choice to make.
    safe = [file for file in weights if file.endswith(".safetensors")]
    found = safe if len(safe) == 1 else weights
    if len(found) != 1:
        what = f"{len(found)} weight files ({', '.join(found[:5])})" if found else "no weight file"
        raise CheckpointError(
            f"{name} has {what}; name the one to convert, such as {name}/{(found or ['model.pth'])[0]}."
        )
    return found


def _beside(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: read_json(folder / name) for name in SIDE_FILES if (folder / name).is_file()}


def read_json(path: Path) -> dict[str, Any]:
    """A file that should hold a JSON object; empty where it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
