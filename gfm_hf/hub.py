"""Model cards, and the way to the Hub.

A card has two authors. What the library writes stands between two comments and is written anew each time; what a
person writes around them stays as it is. The same holds for the metadata: facts of the run are ours, the rest is not.
"""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import yaml_dump

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

BEGIN = "<!-- gfm-hf: the text down to the next such comment is written by the library, changes to it are lost -->"
END = "<!-- gfm-hf: end; write above or below, that stays -->"
BLOCK = re.compile(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}(?:\r?\n)?", re.DOTALL)
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TAGS = ["geospatial", "remote-sensing", "earth-observation", "swin", "continual-pretraining"]
# Metadata that tell of the last run, and those that only grow.
REWRITTEN = ("library_name", "pipeline_tag", "co2_eq_emissions")
LISTS = ("tags", "datasets")
# In all_results.json beside the facts.
NO_FACTS = {"unreadable", "arguments"}


class PushError(ValueError):
    """The Hub could not or would not take the folder; the message says what to do next. Nothing local is lost."""


class Head(NamedTuple):
    """What a card says about one kind of model."""

    pipeline_tag: str
    auto_class: str
    what: str
    output: str


FEATURES = Head(
    "image-feature-extraction",
    "AutoModel",
    "A Swin encoder for satellite and aerial images",
    "features = outputs.pooler_output  # (batch, {hidden_size})",
)
# A new architecture is one more line.
HEADS = {
    "GFMModel": FEATURES,
    "GFMBackbone": FEATURES,
    "GFMForPreTraining": FEATURES,
    "GFMForImageClassification": Head(
        "image-classification",
        "AutoModelForImageClassification",
        "A classifier of satellite and aerial images on a Swin encoder",
        "logits = outputs.logits  # (batch, {num_labels}); names in model.config.id2label",
    ),
    "GFMForSemanticSegmentation": Head(
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "Semantic segmentation of satellite and aerial images on a Swin encoder",
        "logits = outputs.logits  # (batch, {num_labels}, rows, columns)",
    ),
    "GFMForImageSuperResolution": Head(
        "image-to-image",
        "AutoModelForImageToImage",
        "Super-resolution of satellite and aerial images on a Swin encoder",
        "larger = outputs.reconstruction  # (batch, bands, rows, columns)",
    ),
}

CARD_BODY = """
# {title}

{summary}

## How to use

```python
from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("{processor_from}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{where}", trust_remote_code=True)
outputs = model(**processor(images, return_tensors="pt"))
{output}
```

With `import gfm_hf` first, `trust_remote_code` is not needed.{stock}
{input}{facts}
## Limits

What the model knows reflects the places, sensors and seasons of its training images. Check it on your own data before
you rely on it; other band orders or value ranges than the ones it was trained with give plausible but wrong results.

## Citation

```bibtex
@inproceedings{{mendieta2023gfm,
  title = {{Towards Geospatial Foundation Models via Continual Pretraining}},
  author = {{Mendieta, Mat{{\\'i}}as and Han, Boran and Shi, Xingjian and Zhu, Yi and Chen, Chen}},
  booktitle = {{Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)}},
  year = {{2023}}
}}
```
"""


# -- Cards -----------------------------------------------------------------------------------------------------------


def write_card(
    folder: str | Path, where: str, facts: dict[str, Any] | None = None, beside: str | None = None
) -> ModelCard:
    """Write README.md of a saved model or adapter, or bring it up to date.

    Of the metadata, `library_name`, `pipeline_tag`, `co2_eq_emissions` and the model-index entry of this model are
    written anew. License, base model, tags, data sets, other entries and unknown keys stay as they stand in README.md;
    lists are united. `base_model` is set only where weights were taken over: the Hub has no word for a student that
    was distilled from a teacher after a random start, so that teacher is named in the text alone.

    Args:
        folder: A folder with config.json and preprocessor_config.json, or with adapter_config.json.
        where: Hub id or folder under which the model is loaded.
        facts: What is known of the training, the rows of its table in order. By default read from all_results.json
            (a training run) and conversion.json (a converted checkpoint). Some have a meaning beyond the table:
            `summary` (the first sentence), `license`, `dataset_name` (Hub id or list), `base_model` (Hub id of the
            weights the training started from) and `base_model_relation` (default: finetune), `co2_kg`,
            `energy_method`, `hardware`, `country_iso_code`, and every number under `eval_*` or `test_*`, a metric.
        beside: A second README.md, such as the Hub's. Its metadata are merged in, and its text is taken over if the
            folder's README.md has nothing of a person's.

    Returns:
        The card as written.

    Raises:
        ValueError: The folder has neither configuration, or README.md has metadata that are no YAML.
    """
    folder = Path(folder)
    model = _Model.read(folder)
    # As JSON gives them back: NumPy's numbers neither compare nor print as plain ones do.
    facts = read_facts(folder) if facts is None else json.loads(json.dumps(facts, default=str))
    path = folder / "README.md"
    text = _read_card(path) if path.exists() else ""
    other = beside or ""
    if not _own_text(text):
        text, other = (other, text) if other.strip() else (text, other)
    new_text = _merged_card(
        text, other, _metadata(model, facts, where), f"{BEGIN}\n{_body(model, facts, where)}{END}\n"
    )
    _replace(path, new_text)
    return ModelCard(new_text, ignore_metadata_errors=True)


def read_facts(folder: Path) -> dict[str, Any]:
    """What all_results.json and conversion.json know of a model's making; {} without them."""
    facts: dict[str, Any] = {}
    if (folder / "conversion.json").exists():
        facts |= _read_json(folder / "conversion.json").get("facts", {})
    if (folder / "all_results.json").exists():
        facts |= _read_json(folder / "all_results.json")
    return {name: value for name, value in facts.items() if name not in NO_FACTS}


class _Model(NamedTuple):
    """What a folder's JSON files say: the head, config, processor and adapter settings ({} where there is none)."""

    head: Head
    config: dict[str, Any]
    processor: dict[str, Any]
    adapter: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "_Model":
        config, processor, adapter = (
            _read_json(folder / name) if (folder / name).exists() else {}
            for name in ("config.json", "preprocessor_config.json", "adapter_config.json")
        )
        if not config and not adapter:
            raise ValueError(f"{folder} has no config.json; give a folder written by save_pretrained.")
        name = (adapter.get("auto_mapping") or {}).get("base_model_class") or (config.get("architectures") or [""])[0]
        return cls(HEADS.get(name, FEATURES), config, processor, adapter)


def _metadata(model: _Model, facts: dict[str, Any], where: str) -> dict[str, Any]:
    """The card's metadata as far as the library knows them; unknown ones are absent."""
    base, relation = facts.get("base_model"), facts.get("base_model_relation", "finetune")
    if model.adapter:
        base, relation = model.adapter.get("base_model_name_or_path"), "adapter"
    data = {
        "license": facts.get("license"),
        "library_name": "peft" if model.adapter else "transformers",
        "pipeline_tag": model.head.pipeline_tag,
        "tags": TAGS,
        "datasets": _as_list(facts.get("dataset_name") or []),
        "co2_eq_emissions": _emissions(model, facts),
        "model-index": _model_index(model, facts, _title(where)),
    }
    if base and _is_hub_id(base):
        data |= {"base_model": base, "base_model_relation": relation}
    return {name: value for name, value in data.items() if value}


def _emissions(model: _Model, facts: dict[str, Any]) -> dict[str, Any]:
    """The Hub counts in grams."""
    if facts.get("co2_kg") is None:
        return {}
    emissions = {
        "emissions": float(f"{facts['co2_kg'] * 1000:.6g}"),
        "source": facts.get("energy_method"),
        "training_type": "pre-training" if model.head is FEATURES else "fine-tuning",
        "geographical_location": facts.get("country_iso_code"),
        "hardware_used": facts.get("hardware"),
    }
    return {name: value for name, value in emissions.items() if value is not None}


def _model_index(model: _Model, facts: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """One entry with all finite numbers under `eval_*` and `test_*`; [] without any."""
    dataset = _as_list(facts.get("dataset_name") or "custom")[0]
    results = []
    for split, prefix in (("validation", "eval_"), ("test", "test_")):
        metrics = [
            {"type": key.removeprefix(prefix), "value": value, "name": key.replace("_", " ")}
            for key, value in facts.items()
            if key.startswith(prefix) and _is_number(value)
        ]
        if metrics:
            about = {"type": dataset, "name": str(facts.get("images") or "own images")}
            task = {"type": model.head.pipeline_tag}
            results.append({"task": task, "dataset": about | {"split": split}, "metrics": metrics})
    return [{"name": name, "results": results}] if results else []


def _body(model: _Model, facts: dict[str, Any], where: str) -> str:
    config = model.config
    base = model.adapter.get("base_model_name_or_path")
    stock = " Stock `SwinModel.from_pretrained` loads the encoder too." if model.head is FEATURES else ""
    return CARD_BODY.format(
        title=_title(where),
        summary=_summary(model, facts),
        where=where,
        processor_from=where if model.processor or not base else base,
        auto_class=model.head.auto_class,
        output=model.head.output.format(
            hidden_size=config.get("hidden_size", "hidden_size"),
            num_labels=len(config.get("id2label") or {}) or ("labels" if model.adapter else 2),
        ),
        stock="" if model.adapter else stock,
        input=_input_section(model),
        facts=_facts_section(facts),
    ).lstrip()


def _summary(model: _Model, facts: dict[str, Any]) -> str:
    if facts.get("summary"):
        return str(facts["summary"])
    what = model.head.what
    if model.adapter:
        return f"{what}: an adapter for `{_shown(model.adapter.get('base_model_name_or_path') or 'its base')}`."
    teacher = (model.config.get("teacher") or {}).get("name")
    distilled = f" while its features stay close to those of a frozen teacher ({_shown(teacher)})" if teacher else ""
    method = "the method of [GFM](https://arxiv.org/abs/2302.04476)"
    if model.head is not FEATURES:
        return f"{what}, which was pretrained by {method}." if teacher else f"{what}."
    if "steps" not in facts:
        return f"{what}, for gfm-hf, which continually pretrains such encoders by {method}."
    return f"{what}, continually pretrained with gfm-hf by {method}: it rebuilds masked pixels{distilled}."


def _input_section(model: _Model) -> str:
    """Bands and normalisation: with another order or scale the model is wrong without a word."""
    if not model.processor:
        return ""
    config, processor = model.config, model.processor
    means, stds = (processor.get(name) or () for name in ("image_mean", "image_std"))
    names = processor.get("band_names") or config.get("band_names")
    names = names or [str(band) for band in range(config.get("num_channels") or len(means) or 3)]
    rows = [["band", "mean", "standard deviation"], ["---"] * 3]
    for band, name in enumerate(names):
        rows.append([name, *(_cell(values[band]) if band < len(values) else "none" for values in (means, stds))])
    factor = processor.get("rescale_factor") if processor.get("do_rescale", True) else 1
    others = [["", ""], ["---"] * 2, ["values are first multiplied by", _cell(factor)]]
    others.append(["ground sampling distance", f"{_cell(config['gsd'])} m" if config.get("gsd") else "not stated"])
    if config.get("image_size"):
        sizes = f"{config['image_size']} px; any size from one patch ({config.get('patch_size', 4)} px) up runs"
        others.append(["training crops", sizes])
    return f"\n## Input\n\n{_table(rows)}\n\n{_table(others)}\n"


def _facts_section(facts: dict[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), _cell(value)]
        for name, value in facts.items()
        if name != "summary" and isinstance(value, str | int | float | list | tuple) and value != []
    ]
    heading = "Training" if "steps" in facts else "Origin"
    return f"\n## {heading}\n\n{_table([['', ''], ['---'] * 2, *rows])}\n" if rows else ""


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _title(where: str) -> str:
    return where.rstrip("/").rpartition("/")[2]


def _shown(name: str) -> str:
    """A folder's own name, not where it lies on somebody's disk; a Hub id as it is."""
    return name if _is_hub_id(name) else _title(name)


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- What was there before ---------------------------------------------------------------------------------------------


def _merged_card(text: str, other: str, new: dict[str, Any], block: str) -> str:
    """The new README.md.

    Args:
        text: The card whose text stays.
        other: A card of which only the metadata count, less than those of `text`.
        new: Metadata of the library.
        block: Text of the library, with its comments.
    """
    front = FRONT_MATTER.match(text)
    yaml_text = front.group(1) if front else ""
    old, older = _yaml(yaml_text), _yaml(match.group(1) if (match := FRONT_MATTER.match(other)) else "")
    ours = {match.group(1).strip() for match in re.finditer(r"^# (.+)$", "".join(BLOCK.findall(text + other)), re.M)}
    metadata = _merged_metadata(_united(old, older), new, ours)
    body = text[front.end() :] if front else text
    newline = "\r\n" if "\r\n" in text else "\n"
    front_matter = f"---\n{_edited_yaml(yaml_text, old, metadata)}---\n"
    return _with_newline(front_matter, newline) + _merged_body(body, _with_newline(block, newline), newline)


def _merged_body(body: str, block: str, newline: str) -> str:
    if not _own_text(body) and not BLOCK.search(body):
        return newline + block
    blocks = list(BLOCK.finditer(body))
    if not blocks:
        return body + ("" if body.endswith("\n") else newline) + newline + block
    kept = [body[: blocks[0].start()], block]
    for one, following in zip(blocks, [*blocks[1:], None]):
        kept.append(body[one.end() : following.start() if following else len(body)])
    return "".join(kept)


def _merged_metadata(old: dict[str, Any], new: dict[str, Any], ours: set[str]) -> dict[str, Any]:
    """`old` with what the library knows; `ours` are the names under which it wrote model-index entries before."""
    # The relation belongs to the base model: both are a person's, or both are ours.
    skipped = {"base_model_relation"} if old.get("base_model") else set()
    merged = _united(old, {name: value for name, value in new.items() if name not in skipped})
    merged |= {name: new[name] for name in REWRITTEN if name in new}
    ours = ours | {entry["name"] for entry in new.get("model-index", [])}
    index = [entry for entry in _entries(old) if entry.get("name") not in ours] + _entries(new)
    merged.pop("model-index", None)
    return merged | ({"model-index": index} if index else {})


def _united(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two cards' metadata: lists are joined, of single values the first one's count."""
    both = first | {name: value for name, value in second.items() if first.get(name) is None}
    for name in LISTS:
        values = [item for value in (first.get(name), second.get(name)) if value for item in _as_list(value)]
        if values:
            both[name] = list(dict.fromkeys(values))
    names = {entry.get("name") for entry in _entries(first)}
    index = _entries(first) + [entry for entry in _entries(second) if entry.get("name") not in names]
    return both | ({"model-index": index} if index else {})


def _entries(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in _as_list(metadata.get("model-index") or []) if isinstance(entry, dict)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _edited_yaml(text: str, old: dict[str, Any], metadata: dict[str, Any]) -> str:
    """Metadata as YAML in which keys that did not change stand as they stood, comments included."""
    parts = re.split(r"^(?=[A-Za-z_][\w-]*[ \t]*:)", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    edited, written = parts[0], set()
    for part in parts[1:]:
        name = part.partition(":")[0].strip()
        if name in metadata:
            same = metadata[name] == old.get(name)
            edited += part if same else yaml_dump({name: metadata[name]}, sort_keys=False)
            written.add(name)
    rest = {name: value for name, value in metadata.items() if name not in written}
    edited += yaml_dump(rest, sort_keys=False) if rest else ""
    try:
        whole = yaml.safe_load(edited) == metadata
    except yaml.YAMLError:
        whole = False
    return edited if whole else yaml_dump(metadata, sort_keys=False)


def _own_text(text: str) -> str:
    """What a person wrote into a card: its text without metadata, our block and the empty form of transformers."""
    front = FRONT_MATTER.match(text)
    body = BLOCK.sub("", text[front.end() :] if front else text)
    return "" if _is_empty_form(body) else body.strip()


def _is_empty_form(body: str) -> bool:
    """Whether this is the form that `push_to_hub` leaves where there is no card, with nothing filled in."""
    form = Path(ModelCard.default_template_path).read_text(encoding="utf-8")
    form = re.sub(r'\{\{[^}]*?default\("([^"]*)"[^}]*\}\}', r"\1", form)
    known = {re.sub(r"\s+", " ", line).strip() for line in form.splitlines()}
    lines = [re.sub(r"\s+", " ", line).strip() for line in body.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("This is the model card of a 🤗 transformers model")]
    return bool(lines) and lines[0] == "# Model Card for Model ID" and set(lines) <= known


def _yaml(text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(
            f"the metadata of README.md are no YAML ({' '.join(str(error).split())}); correct or delete them."
        ) from error
    if not isinstance(data, dict):
        raise ValueError("the metadata of README.md are no list of `name: value`; correct or delete them.")
    return data


def _with_newline(text: str, newline: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", newline)


def _read_card(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8.") from error


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
                commit_message=f"Upload {_title(repo_id)} with gfm-hf",
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
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "gfm":
        raise ValueError(f"{folder} holds a {kind} model, not a gfm one; convert it first with gfm-hf convert.")
    _check_weights(folder, WEIGHTS)
    if not (folder / "preprocessor_config.json").exists():
        raise ValueError(
            f"{folder} has no preprocessor_config.json, without which nobody knows the bands and their normalisation; "
            "save the image processor into it."
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
    if _read_json(folder / "preprocessor_config.json").get("image_processor_type") == "GFMImageProcessor":
        _open_doors(folder, "preprocessor_config.json", PROCESSOR_MAP)


def _open_doors(folder: Path, name: str, doors: dict[str, str]) -> None:
    settings = _read_json(folder / name)
    before = settings.get("auto_map") or {}
    after = {door: _local(folder, entry) for door, entry in before.items()} | doors
    if after != before:
        _replace(folder / name, json.dumps(settings | {"auto_map": after}, indent=2, sort_keys=True) + "\n")


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
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
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
        return _read_card(Path(api.hf_hub_download(repo_id, "README.md", revision=revision)))
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


# -- Files -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); save the model again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; save the model again.")
    return content


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"unfinished-{path.name}")
    temporary.write_bytes(text.encode("utf-8"))
    os.replace(temporary, path)
