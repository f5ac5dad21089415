"""The way to the Hub: a saved folder becomes a repository that loads where this package is absent."""

import contextlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)

from gfm_hf.cards import read_card, read_json, replace_file, write_card
from gfm_hf.model import configuration_gfm
from gfm_hf.model.configuration_gfm import AUTO_MAP


T = TypeVar("T")

CODE = Path(configuration_gfm.__file__).parent
PROCESSOR_MAP = {"AutoImageProcessor": "image_processing_gfm.GFMImageProcessor"}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What a run leaves in its folder and nobody needs to load the model: checkpoints, half-written files, trackers' logs.
IGNORED = [
    "checkpoint-*/**",
    "unfinished-*",
    "*tfevents*",
    "*hparams.yml",
    "wandb/**",
    "mlruns/**",
    "*__pycache__*",
    "*.pyc",
]
# Answers of the Hub that a second try may change.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
# Before the second, third ... try. huggingface_hub itself repeats uploads of files, but no commit and no new repository.
WAITS_S = (1, 2, 4, 8)
LONGEST_WAIT_S = 60


class PushError(ValueError):
    """The Hub could not or would not take the folder; the message says what to do next. Nothing local is lost."""


# -- Pushing -----------------------------------------------------------------------------------------------------------


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a saved model or adapter with processor, code and card, so that it loads where gfm_hf is absent.

    Repeating it is safe: files that the Hub has are not sent again. Checkpoints and trackers' logs stay at home. The
    card is merged with the folder's README.md and, where that has nothing of a person's, with the Hub's.

    Args:
        folder: Written by `save_pretrained` of model and processor, by a training run or by a conversion.
        repo_id: `namespace/name`; a bare name means your own namespace. Created where needed.
        private: Visibility of a new repository; True also refuses an existing one that is public.
        token: Default: the one of `hf auth login`, or of HF_TOKEN.
        revision: A branch, created where needed; default: main.

    Returns:
        Address of the commit.

    Raises:
        ValueError: The folder is no whole checkpoint.
        PushError: The Hub could not be reached or refused.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    _warn_of_local_base(folder)
    api = HfApi(token=token)
    with _push_errors(repo_id):
        repo_id = _patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if private and _patiently(lambda: api.repo_info(repo_id)).private is False:
            raise PushError(
                f"{repo_id} exists and is public; make it private in its settings, push to another name, or leave "
                "private out."
            )
        if revision and revision != "main" and not revision.startswith("refs/"):
            _patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        remote = _patiently(lambda: _remote_card(api, repo_id, revision))
    complete_code(folder)
    write_card(folder, repo_id, beside=remote)
    with _push_errors(repo_id):
        commit = _patiently(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=f"Upload {repo_id.rpartition('/')[2]} with gfm-hf",
                ignore_patterns=list(IGNORED),
            )
        )
    return str(commit.commit_url)


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that nobody could load.

    Raises:
        ValueError: Configuration, weights or processor are missing.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one written by save_pretrained.")
    if (folder / "adapter_config.json").exists():
        _check_weights(folder, ADAPTER_WEIGHTS)
        return
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json; give a folder written by save_pretrained.")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "gfm":
        raise ValueError(f"{folder} holds a {kind} model, not a gfm one; convert it first with gfm-hf convert.")
    _check_weights(folder, WEIGHTS)
    if not (folder / "preprocessor_config.json").exists():
        raise ValueError(
            f"{folder} has no preprocessor_config.json, without which nobody knows the bands and their normalisation; "
            "save the image processor into it."
        )


def _warn_of_local_base(folder: Path) -> None:
    """An adapter names its base; a place on one machine is no name for others."""
    settings = folder / "adapter_config.json"
    base = read_json(settings).get("base_model_name_or_path") if settings.exists() else None
    if base and Path(base).exists():
        warnings.warn(
            f"{folder} is an adapter for {base}, a folder of this machine; push that too and write its name into "
            "base_model_name_or_path of adapter_config.json, or nobody else can load it.",
            stacklevel=3,
        )


def complete_code(folder: Path) -> None:
    """Bring a model's code files and the doors in its configurations up to date with this package.

    Stale doors point to another repository or lack a class; either way the model would not load without gfm_hf.
    """
    if not (folder / "config.json").exists():
        return
    for source in sorted(CODE.glob("*_gfm.py")):
        target = folder / source.name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            temporary = folder / f"unfinished-{source.name}"
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
    _open_doors(folder, "config.json", AUTO_MAP)
    if read_json(folder / "preprocessor_config.json").get("image_processor_type") == "GFMImageProcessor":
        _open_doors(folder, "preprocessor_config.json", PROCESSOR_MAP)


def _open_doors(folder: Path, name: str, doors: dict[str, str]) -> None:
    settings = read_json(folder / name)
    before = settings.get("auto_map") or {}
    after = {door: _local(folder, entry) for door, entry in before.items()} | doors
    if after != before:
        replace_file(folder / name, json.dumps(settings | {"auto_map": after}, indent=2, sort_keys=True) + "\n")


def _local(folder: Path, entry: Any) -> Any:
    """`other/repo--module.Class` as `module.Class` where the folder itself has that module."""
    if not isinstance(entry, str) or "--" not in entry:
        return entry
    local = entry.rpartition("--")[2]
    return local if (folder / f"{local.partition('.')[0]}.py").exists() else entry


def _check_weights(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).exists():
            return
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [shard for shard in shards if not (folder / shard).exists()]
            if missing or not shards:
                raise ValueError(
                    f"{folder} lacks {', '.join(missing) or 'every part'} of the weights that {index.name} lists; save "
                    "the model again."
                )
            return
    raise ValueError(f"{folder} has no weights ({names[0]}); save the model into it.")


def _remote_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """README.md as it is on the Hub, or None: people edit it there too, and choose a licence when they create it."""
    try:
        return read_card(Path(api.hf_hub_download(repo_id, "README.md", revision=revision)))
    except RemoteEntryNotFoundError:
        return None


def _patiently(ask: Callable[[], T]) -> T:
    """The answer to a request, repeated with growing waits while the Hub or the network is in passing trouble."""
    for wait in WAITS_S:
        try:
            return ask()
        except (HTTPError, ConnectionError, TimeoutError) as error:
            if not _may_pass(error):
                raise
            time.sleep(max(wait, _asked_wait(error)))
    return ask()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return not isinstance(error, OfflineModeIsEnabled)


def _asked_wait(error: Exception) -> float:
    """Seconds that the Hub asks to wait, with its `Retry-After` or `RateLimit` header."""
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    limit = re.search(r"r=0;\s*t=(\d+)", headers.get("RateLimit", ""))
    asked = limit.group(1) if limit else headers.get("Retry-After", "")
    return min(int(asked) + 1, LONGEST_WAIT_S) if asked.isdigit() else 0


@contextlib.contextmanager
def _push_errors(repo_id: str) -> Iterator[None]:
    """Context in which whatever goes wrong between here and the Hub becomes one sentence."""
    try:
        yield
    except PushError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PushError(f"Pushing to {repo_id} failed: {_explanation(error)}") from error


def _explanation(error: Exception) -> str:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error.response.status_code, error.server_message or said)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it and push again."
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, HFValidationError):
        return f"this is no name for a repository ({said}); use namespace/name."
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError):
        return f"the Hub could not be reached ({said}); check the network and push again."
    return f"{said.rstrip('.')}; correct that and push again."


def _explain_answer(status: int, said: str) -> str:
    said = said.rstrip(".")
    if status == 401:
        return (
            "the Hub does not know you; log in with `hf auth login`, or set HF_TOKEN to a token that is still valid."
        )
    if status == 403:
        return f"your token may not write there ({said}); log in with `hf auth login` and a token of the type write."
    if status == 404:
        return f"the Hub does not find it ({said}); check the name and that your token may see it (`hf auth whoami`)."
    if status == 402:
        return f"the account's storage is used up ({said}); free some, or push to another namespace."
    if status == 412:
        return "somebody else changed the repository meanwhile; push again."
    if status == 429:
        return f"the Hub asks to slow down ({said}); push again in some minutes."
    if status >= 500:
        return f"the Hub is in trouble ({status}: {said}); push again later."
    return f"the Hub refuses it ({said}); correct that and push again."
