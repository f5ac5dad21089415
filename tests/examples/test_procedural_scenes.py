from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from procedural_scenes import (  # noqa: E402
    CLASSES,
    Scene,
    build_scene,
    draw_change,
    draw_scene,
    main,
    photograph,
    write_scenes,
)

from gfm_hf.data.tasks import open_task  # noqa: E402


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("size", [16, 33, 96])
def test_every_class_draws_a_picture_with_contrast(kind: str, size: int) -> None:
    scene = draw_scene(kind, np.random.default_rng(3), size)
    assert scene.shape == (size, size, 3) and scene.dtype == np.uint8
    assert scene.std() > 5


def test_same_seed_same_picture_other_seed_other_picture() -> None:
    first, again, other = (draw_scene("roofs", np.random.default_rng(seed), 48) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_unknown_class_and_tiny_size_are_refused_with_a_next_step() -> None:
    with pytest.raises(ValueError, match="desert.*fields, forest"):
        draw_scene("desert", np.random.default_rng(0))
    with pytest.raises(ValueError, match="8 px.*16 px"):
        draw_scene("water", np.random.default_rng(0), 8)


def test_patch_covers_the_share_asked_for() -> None:
    scene = Scene.empty(np.random.default_rng(0), 64)
    for share in (0.2, 0.5, 0.8):
        assert scene.patch(share).mean() == pytest.approx(share, abs=0.05)


def test_window_paints_into_the_scene_itself() -> None:
    scene = Scene.empty(np.random.default_rng(0), 32)
    window = scene.window(np.array([4.0, 20.0]), 3.0)
    window.lay(np.ones(3), np.ones(window.x.shape))
    assert scene.canvas[20, 4, 0] == 1 and scene.canvas[4, 20, 0] == 0
    assert window.x.min() == 1 and window.y.min() == 17


def test_water_is_smoother_than_forest() -> None:
    def roughness(kind: str) -> float:
        scenes = [draw_scene(kind, np.random.default_rng(seed), 64).mean(axis=2) for seed in range(12)]
        return float(np.median([np.abs(np.diff(s, axis=0)).mean() / s.std() for s in scenes]))

    assert roughness("forest") > 1.5 * roughness("water")


def test_colour_alone_does_not_decide_but_is_not_empty() -> None:
    """The nearest class mean in mean colour beats chance and stays far from certain."""
    colours = {
        k: np.array([draw_scene(k, np.random.default_rng(s), 32).mean((0, 1)) for s in range(40)]) for k in CLASSES
    }
    means = np.stack([colours[k][:20].mean(axis=0) for k in CLASSES])
    right = [np.linalg.norm(colours[k][20:, None] - means, axis=2).argmin(1) == i for i, k in enumerate(CLASSES)]
    assert np.mean(right) < 0.65


def test_files_do_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    assert write_scenes(tmp_path / "few", 1, 32, seed=5) == 5
    write_scenes(tmp_path / "more", 2, 32, seed=5)
    assert sorted(p.name for p in (tmp_path / "more").iterdir()) == sorted(CLASSES)
    for kind in CLASSES:
        few, more = (Image.open(tmp_path / n / kind / f"{kind}_0000.png") for n in ("few", "more"))
        assert np.array_equal(np.asarray(few), np.asarray(more))
    assert len(list((tmp_path / "more").rglob("*.png"))) == 10


def test_command_line_answers_bad_input_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output_dir", str(tmp_path), "--images_per_class", "1", "--size", "16"])
    assert "5 scenes of 16 px" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--output_dir", str(tmp_path), "--images_per_class", "0"])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err


def test_maps_say_what_shows() -> None:
    """Each kind of scene shows its own class, and pixels of one class look more alike than the scene does."""
    for kind in ("forest", "roads", "roofs", "water"):
        shares = [
            (build_scene(kind, np.random.default_rng(seed), 64).ids == CLASSES.index(kind)).mean() for seed in range(6)
        ]
        assert min(shares) > 0.02 and np.mean(shares) > 0.15
    scene = build_scene("water", np.random.default_rng(0), 96)
    picture = photograph(scene).astype(float)
    within = np.mean([picture[scene.ids == label].std(axis=0).mean() for label in np.unique(scene.ids)])
    assert len(np.unique(scene.ids)) > 1 and within < 0.9 * picture.std(axis=(0, 1)).mean()


def test_changes_are_where_the_mask_says() -> None:
    """Outside the mask the same ground shows under another light: bands stay correlated, inside they do not."""
    inside, outside = [], []
    for seed in range(8):
        before, after, mask = draw_change("fields", np.random.default_rng(seed), 96)
        assert set(np.unique(mask)) == {0, 255} and 0.005 < (mask == 255).mean() < 0.6
        for part, found in ((mask == 255, inside), (mask == 0, outside)):
            found.append(np.corrcoef(before[part].mean(axis=1), after[part].mean(axis=1))[0, 1])
    assert np.mean(outside) > 0.7 > 0.4 > np.mean(inside)


@pytest.mark.parametrize(("labels", "task"), [("maps", "segmentation"), ("changes", "change")])
def test_labelled_scenes_are_read_by_the_scripts(labels: str, task: str, tmp_path: Path) -> None:
    main(["--output_dir", str(tmp_path), "--images_per_class", "4", "--size", "32", "--labels", labels])
    data = open_task(task, tmp_path)
    assert data.num_labels == (5 if labels == "maps" else 2)
    assert sum(len(part) for part in (data.train, data.validation, data.test) if part) == 20
    assert data.train[0].label_map is not None and data.train[0].label_map.shape == (32, 32)
