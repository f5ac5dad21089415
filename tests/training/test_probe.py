from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SwinConfig, SwinModel

from gfm_hf.training.probe import (
    knn_probe,
    linear_probe,
    mean_and_spread,
    open_labelled_images,
    pooled_features,
    repeat_probe,
    stratified_split,
)


@pytest.fixture(scope="module")
def swin() -> SwinModel:
    torch.manual_seed(0)
    return SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=2))


def clusters(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes along three axes of 16, each feature on its own scale."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return (np.eye(16)[labels] + noise * rng.normal(size=(n, 16))) * np.logspace(-1, 1, 16), labels


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, **columns: list) -> Path:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": b, "path": None} for b in columns.pop("image")]
    features = datasets.Features({"image": datasets.Image(), **{k: _feature(datasets, v) for k, v in columns.items()}})
    datasets.Dataset.from_dict({"image": images, **columns}, features=features).to_parquet(path)
    return path


def _feature(datasets: object, values: list) -> object:
    kind = "string" if isinstance(values[0], str) else "int64"
    return datasets.Value(kind)  # type: ignore[attr-defined]


# ---- features


def test_pooled_features_match_the_model_and_restore_its_mode(swin: SwinModel) -> None:
    swin.train()
    pixels = torch.randn(3, 3, 32, 32)
    features = pooled_features(swin, [pixels[:2], pixels[2:]])
    assert swin.training and features.shape == (3, 32) and features.dtype == np.float32
    with torch.no_grad():
        expected = swin.eval()(pixel_values=pixels)
    assert np.allclose(features, expected.last_hidden_state.mean(1), atol=1e-5)
    assert np.allclose(features, expected.pooler_output, atol=1e-5)


def test_evaluation_mode_is_used_while_computing() -> None:
    config = SwinConfig(
        image_size=32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=2, hidden_dropout_prob=0.9
    )
    model, pixels = SwinModel(config).train(), torch.randn(1, 3, 32, 32)
    assert np.array_equal(pooled_features(model, [pixels]), pooled_features(model, [pixels]))


def test_stage_takes_the_mean_of_that_stage(swin: SwinModel) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = swin.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert np.allclose(pooled_features(swin, [pixels], stage=2), states[2].mean(1), atol=1e-5)
    with pytest.raises(ValueError, match="stage is 4.*0 to 3"):
        pooled_features(swin, [pixels], stage=4)


def test_models_without_pooler_and_with_maps_are_pooled_too() -> None:
    class Net(torch.nn.Linear):
        def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(last_hidden_state=pixel_values, hidden_states=None)

    assert np.allclose(pooled_features(Net(1, 1), [torch.full((2, 5, 4, 4), 3.0)]), np.full((2, 5), 3.0))
    tokens = torch.arange(12.0).view(2, 3, 2)
    assert np.allclose(pooled_features(Net(1, 1), [tokens]), tokens.mean(1))


def test_no_batch_is_refused(swin: SwinModel) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        pooled_features(swin, [])


# ---- probes


def test_linear_probe_separates_classes_on_unequal_scales() -> None:
    train, test = clusters(90, 0.15), clusters(60, 0.15, seed=1)
    assert linear_probe(*train, *test) > 0.95


def test_probes_are_at_chance_on_noise() -> None:
    rng = np.random.default_rng(0)
    x, y, test_x, test_y = rng.normal(size=(300, 8)), np.arange(300) % 3, rng.normal(size=(300, 8)), np.arange(300) % 3
    assert 0.2 < linear_probe(x, y, test_x, test_y) < 0.47
    assert 0.2 < knn_probe(x, y, test_x, test_y) < 0.47


def test_linear_probe_scores_the_test_part_and_never_learns_from_it() -> None:
    x, y = clusters(90, 0.1)
    assert linear_probe(x, y, x, (y + 1) % 3) == 0.0


def test_knn_uses_direction_not_length() -> None:
    train_x, train_y = np.array([[1.0, 0.0], [0.0, 10.0]]), np.array([0, 1])
    assert knn_probe(train_x, train_y, np.array([[10.0, 1.0], [0.1, 1.0]]), np.array([0, 1]), k=1) == 1.0
    assert knn_probe(train_x, train_y, np.array([[1.0, 0.0]]), np.array([0]), k=50) in (0.0, 1.0)


def test_too_few_training_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        linear_probe(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]))


def test_repeat_probe_gives_one_reproducible_row_per_seed_from_different_samples() -> None:
    train, test = clusters(60, 0.9), clusters(90, 0.9, seed=1)
    rows = repeat_probe(*train, *test, seeds=(0, 1, 2))
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows == repeat_probe(*train, *test, seeds=(0, 1, 2))
    assert len({row["knn"] for row in rows}) > 1


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert mean_and_spread([0.5]) == (0.5, 0.0)


# ---- splits and sources


def test_stratified_split_shares_every_class_and_depends_on_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 50])
    first, second = stratified_split(labels, (0.8, 0.2), seed=0)
    assert not set(first) & set(second) and len(first) + len(second) == 80
    assert np.bincount(labels[first]).tolist() == [8, 16, 40]
    assert np.array_equal(first, stratified_split(labels, (0.8, 0.2), seed=0)[0])
    assert not np.array_equal(first, stratified_split(labels, (0.8, 0.2), seed=1)[0])
    (half,) = stratified_split(labels, (0.5,))
    assert len(half) == 40


@pytest.mark.parametrize("fractions", [(), (0.8, 0.3), (1.0, 0.0), (-0.1, 0.5)])
def test_impossible_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="positive shares"):
        stratified_split(np.zeros(4), fractions)


def test_folder_gives_classes_by_name_and_pictures_by_size(tmp_path: Path) -> None:
    for name, colour in (("b", (0, 0, 255)), ("a", (255, 0, 0))):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "1.PNG").write_bytes(png(colour, (20, 10)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    data = open_labelled_images(tmp_path)
    assert data.class_names == ("a", "b") and data.labels.tolist() == [0, 1] and data.splits is None
    pictures = data.pictures(6)
    assert pictures.shape == (2, 6, 6, 3) and pictures.dtype == np.uint8
    assert pictures[1, 0, 0].tolist() == [0, 0, 255]
    assert data.picture(0).size == (20, 10)
    assert data.subset(np.array([False, True])).labels.tolist() == [1]


def test_parquet_gives_names_splits_and_drops_unlabelled_rows(tmp_path: Path) -> None:
    images = [png((i, i, i)) for i in (10, 20, 30, 40)]
    path = write_parquet(
        tmp_path / "x.parquet", image=images, label=[7, -1, 3, 7], split=["train", "train", "val", "val"]
    )
    data = open_labelled_images(parquet=path, split_column_name="split")
    assert data.class_names == ("3", "7") and data.labels.tolist() == [1, 0, 1]
    assert data.splits is not None and data.splits.tolist() == ["train", "val", "val"]
    assert data.pictures(8)[:, 0, 0, 0].tolist() == [10, 30, 40]
    named = write_parquet(tmp_path / "y.parquet", image=images, label=["sea", "", "land", "sea"])
    assert open_labelled_images(parquet=[named]).class_names == ("land", "sea")


def test_wrong_sources_are_refused_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        open_labelled_images()
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled_images(tmp_path / "none")
    with pytest.raises(ValueError, match="at least two classes"):
        open_labelled_images(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled_images(parquet=tmp_path / "none.parquet")
    path = write_parquet(tmp_path / "x.parquet", image=[png((0, 0, 0))] * 2, label=[0, 1])
    with pytest.raises(ValueError, match="no column 'species'.*label_column_name"):
        open_labelled_images(parquet=path, label_column_name="species")
    with pytest.raises(ValueError, match="has no columns"):
        open_labelled_images(tmp_path, split_column_name="split")


def test_broken_picture_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="1.png cannot be decoded"):
        open_labelled_images(tmp_path).picture(0)
