from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from demo_report import (  # noqa: E402
    Facts,
    contact_sheet,
    loss_figure,
    principal_plane,
    read_trainer_state,
    write_report,
)


RECORDS = [
    {"step": s, "epoch": s / 10, "loss": 1.0, "reconstruction_loss": 1 / (1 + s), "distillation_loss": -s / 40,
     "learning_rate": 1e-3, "images_per_second": 100.0 + s} for s in range(30)
]  # fmt: skip


class Outline(HTMLParser):
    """Collects tags, the resources that the page refers to, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.resources: list[str] = []
        self.headings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.resources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.headings += tag == "h2"
        if tag not in ("meta", "img"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open_tags == []
    return parser


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    rng = np.random.default_rng(0)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "panel.png")
    (tmp_path / "trainer_state.jsonl").write_text("\n".join(json.dumps(r) for r in RECORDS) + "\n")
    score = {"linear": {"mean": 0.5, "spread": 0.0123}, "knn": {"mean": 0.25, "spread": 0.0}}
    return {
        "title": "Fields <&> forests",
        "summary": "First.\n\nSecond <script>alert(1)</script>.",
        "sample_images": [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), tmp_path / "panel.png"],
        "sample_caption": "Two pictures",
        "trainer_state": tmp_path / "trainer_state.jsonl",
        "panels": [tmp_path / "panel.png"],
        "probe": {"before $\\x$": score, "after": score},
        "features": {"before $\\x$": rng.normal(size=(20, 5)), "after": rng.normal(size=(20, 5))},
        "feature_labels": np.arange(20) % 2,
        "class_names": ["fields", "forest"],
        "checkpoint": "demo/student",
        "settings": {"batch <size>": 32},
        "timings": {"teacher": 12.34},
    }


def test_report_holds_every_part_and_nothing_external(facts: Facts, tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "demo", facts)
    assert path == tmp_path / "new" / "demo" / "report.html"
    page, found = path.read_text(encoding="utf-8"), outline(path)
    assert found.headings == 7 and len(found.resources) == 4 and 'class="missing"' not in page
    assert all(resource.startswith("data:image/") for resource in found.resources)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    for expected in (
        "50.0 ± 1.2",
        "25.0 ± 0.0",
        "12.3 s",
        "Two pictures",
        "folder = &#x27;demo/student&#x27;",
        "114 images",
    ):
        assert expected in page


def test_pictures_in_the_page_decode(facts: Facts, tmp_path: Path) -> None:
    found = outline(write_report(tmp_path, facts))
    sizes = [Image.open(io.BytesIO(base64.b64decode(r.split(",", 1)[1]))).size for r in found.resources]
    assert (40, 20) in sizes  # the panel, embedded unchanged
    assert all(min(size) >= 20 for size in sizes)


def test_text_is_escaped(facts: Facts, tmp_path: Path) -> None:
    page = write_report(tmp_path, facts).read_text(encoding="utf-8")
    assert "<script>" not in page and "Fields &lt;&amp;&gt; forests" in page and "batch &lt;size&gt;" in page


def test_missing_parts_leave_a_sentence(tmp_path: Path) -> None:
    path = write_report(tmp_path, {})
    assert outline(path).headings == 7
    assert path.read_text(encoding="utf-8").count('class="missing"') == 7


def test_unlabelled_run_keeps_its_curves(facts: Facts, tmp_path: Path) -> None:
    for key in ("probe", "features", "feature_labels", "class_names"):
        del facts[key]  # type: ignore[misc]
    page = write_report(tmp_path, facts).read_text(encoding="utf-8")
    assert page.count('class="missing"') == 2 and "carry no labels" in page and "Loss curves" in page


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 'losses'.*trainer_state"):
        write_report(tmp_path, {"losses": []})  # type: ignore[typeddict-unknown-key]


def test_curves_follow_what_was_recorded() -> None:
    both = loss_figure(RECORDS)
    assert both is not None and len(both.axes) == 3
    alone = loss_figure([{"step": 1, "reconstruction_loss": 0.5, "distillation_loss": None}, {"note": "no step"}])
    assert alone is not None and len(alone.axes) == 1
    assert alone.axes[0].lines[0].get_xydata().tolist() == [[1.0, 0.5]]
    assert loss_figure([{"step": 1}]) is None


def test_smoothed_curve_keeps_a_straight_line_straight() -> None:
    figure = loss_figure([{"step": s, "reconstruction_loss": 2.0 * s} for s in range(40)])
    assert figure is not None
    raw, smooth = (line.get_ydata() for line in figure.axes[0].lines)
    assert np.allclose(raw[3:-3], smooth[3:-3])


def test_trainer_state_from_file_or_records(facts: Facts) -> None:
    assert read_trainer_state(facts["trainer_state"]) == RECORDS == read_trainer_state(RECORDS)


def test_contact_sheet_places_pictures_row_by_row() -> None:
    colours = ("red", "lime", "blue")
    sheet = contact_sheet([Image.new("RGB", (30, 50), c) for c in colours], columns=2, cell=10, gap=2)
    assert sheet.size == (22, 22)
    assert [sheet.getpixel(at) for at in ((5, 5), (17, 5), (5, 17))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((17, 17)) == (255, 255, 255)


def test_principal_plane_keeps_the_two_strongest_directions() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 2)) * [3, 1]
    points = principal_plane(hidden @ rng.normal(size=(2, 12)) + 0.01 * rng.normal(size=(200, 12)))
    assert points.shape == (200, 2) and points[:, 0].std() >= points[:, 1].std()
    standard = (points - points.mean(0)) / points.std(0)
    fitted, *_ = np.linalg.lstsq(standard, hidden - hidden.mean(0), rcond=None)
    assert np.abs(standard @ fitted - (hidden - hidden.mean(0))).max() < 0.1
