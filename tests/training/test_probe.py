from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import SwinConfig, SwinModel

from gfm_hf.training.probe import (
    knn_probe,
    linear_probe,
    mean_and_spread,
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
