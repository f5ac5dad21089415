"""Model cards.

A card has two authors. What the library writes stands between two comments and is written anew each time; what a
person writes around them stays as it is. The same holds for the metadata: facts of the run are ours, the rest is not.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import yaml_dump


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


class Head(NamedTuple):
    """What a card says about one kind of model."""

    pipeline_tag: str
    auto_class: str
    what: str
    output: str
    pairs: bool = False


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
    "GFMForChangeDetection": Head(
        "image-segmentation",
        "GFMForChangeDetection",
        "Change detection between two dates of satellite and aerial images on a Swin encoder",
        "logits = outputs.logits  # (batch, {num_labels}, rows, columns); 1 = changed",
        pairs=True,
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
{imports}

processor = AutoImageProcessor.from_pretrained("{processor_from}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{where}", trust_remote_code=True)
outputs = model(**processor({images}, return_tensors="pt"))
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
    text = read_card(path) if path.exists() else ""
    other = beside or ""
    if not _own_text(text):
        text, other = (other, text) if other.strip() else (text, other)
    new_text = _merged_card(
        text, other, _metadata(model, facts, where), f"{BEGIN}\n{_body(model, facts, where)}{END}\n"
    )
    replace_file(path, new_text)
    return ModelCard(new_text, ignore_metadata_errors=True)


def read_facts(folder: Path) -> dict[str, Any]:
    """What all_results.json and conversion.json know of a model's making; {} without them."""
    facts: dict[str, Any] = {}
    if (folder / "conversion.json").exists():
        facts |= read_json(folder / "conversion.json").get("facts", {})
    if (folder / "all_results.json").exists():
        facts |= read_json(folder / "all_results.json")
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
            read_json(folder / name) if (folder / name).exists() else {}
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
        imports=_imports(model.head),
        images="[(before, after)]" if model.head.pairs else "images",
        output=model.head.output.format(
            hidden_size=config.get("hidden_size", "hidden_size"),
            num_labels=len(config.get("id2label") or {}) or ("labels" if model.adapter else 2),
        ),
        stock="" if model.adapter else stock,
        input=_input_section(model),
        facts=_facts_section(facts),
    ).lstrip()


def _imports(head: Head) -> str:
    """For two dates transformers has no class of its own."""
    if head.auto_class.startswith("Auto"):
        return f"from transformers import AutoImageProcessor, {head.auto_class}"
    return f"from gfm_hf import {head.auto_class}\nfrom transformers import AutoImageProcessor"


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
    """Whether this is the form that `push_to_hub` or PEFT leaves where there is no card, with nothing filled in."""
    form = Path(ModelCard.default_template_path).read_text(encoding="utf-8")
    form = re.sub(r'\{\{[^}]*?default\("([^"]*)"[^}]*\}\}', r"\1", form)
    known = {re.sub(r"\s+", " ", line).strip() for line in form.splitlines()}
    lines = [re.sub(r"\s+", " ", line).strip() for line in body.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("This is the model card of a 🤗 transformers model")]
    lines = [line for line in lines if line != "### Framework versions" and not line.startswith("- PEFT ")]
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


def read_card(path: Path) -> str:
    """The text of a README.md.

    Raises:
        ValueError: It is no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8.") from error


# -- Files -------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A file that has to hold a JSON object.

    Raises:
        ValueError: It cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); save the model again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; save the model again.")
    return content


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"unfinished-{path.name}")
    temporary.write_bytes(text.encode("utf-8"))
    os.replace(temporary, path)
