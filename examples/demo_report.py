"""Write the demo's report: one HTML file that holds its pictures and needs nothing else.

`write_report(output_dir, facts)` is the whole interface; `Facts` lists what it can show. Every part is optional: one
that is missing leaves a sentence in its place.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps


# Distinguishable with any colour vision; text and lines stay dark on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#666666")
CURVES = {
    "reconstruction_loss": "Reconstruction: mean error of hidden pixels",
    "distillation_loss": "Distillation: minus cosine to the teacher",
    "learning_rate": "Learning rate",
}
STYLE = """
body { max-width: 900px; margin: 2rem auto 4rem; padding: 0 1.2rem; color: #1c2126; background: #fff;
       font: 17px/1.6 Georgia, 'Times New Roman', serif; }
h1, h2, th, figcaption, .missing, .lead { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #d5dade; }
.lead { color: #4a545c; margin-top: 0; }
.missing { color: #66707a; font-size: .92rem; }
figure { margin: 1rem 0; }
.side-by-side { display: flex; gap: 1em; }
.side-by-side figure { margin: 0; }
img { max-width: 100%; height: auto; border: 1px solid #e3e7ea; }
figcaption { color: #4a545c; font-size: .88rem; margin-top: .35rem; line-height: 1.45; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid #e3e7ea; vertical-align: top; }
th { font-size: .88rem; color: #4a545c; }
td.number, th.number { text-align: right; }
pre { background: #f4f6f7; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.5; }
"""


class Facts(TypedDict, total=False):
    """What the report can show; every key may be absent.

    Attributes:
        title: Heading of the page.
        summary: Paragraphs on what was done, divided by blank lines.
        sample_images: Pictures for the contact sheet: paths, PIL images or (H, W, 3) uint8 arrays.
        sample_caption: What the contact sheet shows, such as how many pictures of which classes there are.
        trainer_state: The run's `trainer_state.jsonl`, or its records.
        panels: Paths of pictures of the reconstruction (PNG or JPEG).
        panel_caption: How to read those pictures.
        probe: Model name -> {"linear": {"mean", "spread"}, "knn": {...}} in 0..1, as `probe_checkpoints` returns it.
        probe_caption: Which pictures the probe was fitted and scored on.
        features: Model name -> (M, D) features of the same M pictures.
        feature_labels: (M,) class ids of those pictures.
        class_names: One name per class id.
        checkpoint: Folder or Hub name to load the result from.
        settings: Name -> value.
        timings: What was done -> seconds.
    """

    title: str
    summary: str
    sample_images: Sequence[Any]
    sample_caption: str
    trainer_state: str | Path | Sequence[Mapping[str, Any]]
    panels: Sequence[str | Path]
    panel_caption: str
    probe: Mapping[str, Mapping[str, Any]]
    probe_caption: str
    features: Mapping[str, np.ndarray]
    feature_labels: np.ndarray
    class_names: Sequence[str]
    checkpoint: str | Path
    settings: Mapping[str, Any]
    timings: Mapping[str, float]


def _open_rgb(image: Any) -> Image.Image:
    """Return a path, a PIL image or an array as an RGB picture."""
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return opened.convert("RGB")
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def contact_sheet(images: Sequence[Any], columns: int = 10, cell: int = 84, gap: int = 4) -> Image.Image:
    """Lay pictures out row by row as squares of `cell` px on white.

    Args:
        images: Paths, PIL images or (H, W, 3) uint8 arrays.
        columns: Pictures a row.
        cell: Side of a picture in px.
        gap: Space between pictures in px.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) - gap, rows * (cell + gap) - gap), "white")
    for number, image in enumerate(images):
        square = ImageOps.fit(_open_rgb(image), (cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(square, (number % columns * (cell + gap), number // columns * (cell + gap)))
    return sheet


def read_trainer_state(source: str | Path | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of a `trainer_state.jsonl` (one JSON object a line), or the records given."""
    if not isinstance(source, str | Path):
        return list(source)
    return [json.loads(line) for line in Path(source).read_text().splitlines() if line.strip()]


def _plain_axes(figure: Figure, columns: int) -> list[Any]:
    """Return axes side by side, without the box's upper and right sides."""
    axes = list(figure.subplots(1, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors="#4a545c")
    return axes


def loss_figure(records: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw each of `CURVES` that the records hold against the step; None when they hold none."""
    series = {}
    for key in CURVES:
        points = [(r["step"], r[key]) for r in records if "step" in r and r.get(key) is not None]
        if points:
            series[key] = np.array(points, dtype=float).T
    if not series:
        return None
    figure = Figure(figsize=(3.0 * len(series), 2.5), layout="constrained")
    axes = _plain_axes(figure, len(series))
    for ax, colour, (key, (steps, values)) in zip(axes, COLOURS[: len(axes)], series.items(), strict=True):
        smooth = len(steps) >= 20 and key != "learning_rate"
        ax.plot(steps, values, color=colour, lw=0.8 if smooth else 1.8, alpha=0.35 if smooth else 1.0)
        if smooth:
            ax.plot(steps, _running_mean(values), color=colour, lw=1.8)
        ax.set_title(CURVES[key], size=8.5, loc="left")
        ax.set_xlabel("step", size=8)
    return figure


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Average each value with its neighbours, a twentieth of the run on each side and fewer at the ends."""
    reach = max(len(values) // 20, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def principal_plane(features: np.ndarray) -> np.ndarray:
    """Project (M, D) features, each standardised, on the two directions in which they differ most: (M, 2)."""
    centred = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * strength[:2]


def feature_figure(features: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw one scatter per model, a dot per picture, coloured by class (the first eight classes of many)."""
    labels, shown = np.asarray(labels), list(class_names)[: len(COLOURS)]
    figure = Figure(figsize=(4.4 * len(features), 4.2), layout="constrained")
    axes = _plain_axes(figure, len(features))
    for ax, (name, values) in zip(axes, features.items(), strict=True):
        points = principal_plane(np.asarray(values, dtype=float))
        for number, (label, colour) in enumerate(zip(shown, COLOURS[: len(shown)], strict=True)):
            ax.scatter(*points[labels == number].T, s=14, color=colour, alpha=0.75, linewidths=0, label=label)
        ax.set_title(name, size=10, loc="left", parse_math=False)
        ax.set_xticks([])
        ax.set_yticks([])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8.5)
    return figure


def _embed(picture: Image.Image | Figure | str | Path, alt: str, caption: str = "") -> str:
    """Return a <figure> that holds the picture itself; PNG and JPEG files are embedded unchanged."""
    kind, buffer = "png", io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=150)
    elif isinstance(picture, Image.Image):
        kind = "jpeg"
        picture.save(buffer, format="JPEG", quality=88)
    else:
        kind = "jpeg" if Path(picture).suffix.lower() in (".jpg", ".jpeg") else "png"
        buffer.write(Path(picture).read_bytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    legend = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}">{legend}</figure>'


def _missing(reason: str) -> str:
    return f'<p class="missing">{html.escape(reason)}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers_from: int = 1) -> str:
    """Return a <table>; columns from `numbers_from` on are aligned to the right."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        classes = [' class="number"' if i >= numbers_from else "" for i in range(len(values))]
        return "".join(f"<{tag}{c}>{html.escape(str(v))}</{tag}>" for v, c in zip(values, classes, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _summary_part(facts: Facts) -> str:
    paragraphs = [p.strip() for p in facts.get("summary", "").split("\n\n") if p.strip()]
    text = "".join(f"<p>{html.escape(p)}</p>" for p in paragraphs)
    if not facts.get("sample_images"):
        return text + _missing("No sample pictures were handed over.")
    sheet = contact_sheet(facts["sample_images"])
    return text + _embed(sheet, "Contact sheet of training pictures", facts.get("sample_caption", ""))


def _curves_part(facts: Facts) -> str:
    records = read_trainer_state(facts["trainer_state"]) if "trainer_state" in facts else []
    figure = loss_figure(records)
    if figure is None:
        return _missing("No losses were recorded.")
    caption = (
        f"{len(records)} logged steps. Both losses should fall; minus one would be a perfect match with the teacher."
    )
    speeds = [r["images_per_second"] for r in records if r.get("images_per_second")]
    if speeds:
        caption += f" Median speed: {np.median(speeds):,.0f} images a second."
    return _embed(figure, "Loss curves", caption)


def _panels_part(facts: Facts) -> str:
    panels = facts.get("panels")
    if not panels:
        return _missing("No pictures of the reconstruction were made.")
    caption = facts.get("panel_caption", "From left to right: picture, what the student sees, what it rebuilds.")
    pictures = "".join(_embed(panel, "Reconstruction", "") for panel in panels)
    return f'<div class="side-by-side">{pictures}</div><figcaption>{html.escape(caption)}</figcaption>'


def _probe_part(facts: Facts) -> str:
    if not facts.get("probe"):
        return _missing("The pictures carry no labels, so the features could not be scored.")
    rows = []
    for name, result in facts["probe"].items():
        scores = [f"{100 * result[p]['mean']:.1f} ± {100 * result[p]['spread']:.1f}" for p in ("linear", "knn")]
        rows.append([name, *scores])
    caption = facts.get("probe_caption", "")
    text = f"<p>{html.escape(caption)}</p>" if caption else ""
    return text + _table(["frozen features of", "linear probe, %", "nearest neighbours, %"], rows)


def _features_part(facts: Facts) -> str:
    if not facts.get("features") or facts.get("feature_labels") is None:
        return _missing("Without labels there is nothing to colour a picture of the features by.")
    labels = np.asarray(facts["feature_labels"])
    names = facts.get("class_names") or [str(i) for i in range(int(labels.max()) + 1)]
    caption = (
        "Each dot is a test picture, placed by the two main directions of its features (PCA), one colour a class."
    )
    if len(names) > len(COLOURS):
        caption += f" The first {len(COLOURS)} of {len(names)} classes are drawn."
    return _embed(feature_figure(facts["features"], labels, names), "Features of the test pictures", caption)


def _loading_part(facts: Facts) -> str:
    if "checkpoint" not in facts:
        return _missing("No checkpoint was kept.")
    code = (
        "import gfm_hf  # registers the model with the Auto classes\n"
        "from PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f"folder = {str(facts['checkpoint'])!r}\n"
        "processor = AutoImageProcessor.from_pretrained(folder)\n"
        "model = AutoModel.from_pretrained(folder).eval()\n"
        'inputs = processor(Image.open("scene.jpg"), return_tensors="pt")\n'
        "features = model(**inputs).pooler_output  # (1, hidden_size)\n"
    )
    return f"<pre><code>{html.escape(code)}</code></pre>"


def _settings_part(facts: Facts) -> str:
    timings = [(name, f"{seconds:,.1f} s") for name, seconds in facts.get("timings", {}).items()]
    parts = [_table(["step", "time"], timings)] if timings else []
    settings = list(facts.get("settings", {}).items())
    parts += [_table(["setting", "value"], settings, numbers_from=2)] if settings else []
    return "".join(parts) or _missing("No settings were handed over.")


PARTS = (
    ("What was done", _summary_part),
    ("Learning curves", _curves_part),
    ("Rebuilding hidden pixels", _panels_part),
    ("Features before and after", _probe_part),
    ("A look at the features", _features_part),
    ("Load the model", _loading_part),
    ("Timings and settings", _settings_part),
)


def write_report(output_dir: str | Path, facts: Facts) -> Path:
    """Write `report.html` into `output_dir` and return its path.

    Args:
        output_dir: Folder, made if need be.
        facts: What to show, see `Facts`. All text is escaped.

    Raises:
        ValueError: `facts` has a key that the report does not know.
    """
    unknown = sorted(set(facts) - set(Facts.__annotations__))
    if unknown:
        raise ValueError(f"The report knows no '{unknown[0]}'; use one of {', '.join(Facts.__annotations__)}.")
    title = html.escape(facts.get("title", "Continual pretraining demo"))
    body = "\n".join(f"<section><h2>{heading}</h2>\n{part(facts)}\n</section>" for heading, part in PARTS)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
    path = Path(output_dir) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
