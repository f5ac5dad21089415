"""The yardstick is only worth something if all families compute the same step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from authors_step import Encoder, authors_names, shift_mask  # noqa: E402
from contestants import (  # noqa: E402
    FAMILIES,
    VARIANTS,
    agreement,
    build_families,
    configs,
    full_step,
    make_batch,
)

from gfm_hf.model.swin_gfm import window_plan  # noqa: E402


@pytest.fixture(scope="module")
def families():
    return build_families("tiny", FAMILIES)


@pytest.fixture(scope="module")
def batch():
    return make_batch(configs("tiny")[0], 2)


def test_ours_agrees_with_the_authors_step(families, batch):
    errors = agreement(families, batch)
    assert errors.keys() == {"features", "loss", "gradient"}
    assert max(errors.values()) < 1e-5


@torch.no_grad()
def test_every_float32_variant_has_the_same_loss(families, batch):
    whole = [v for v in VARIANTS if not v.bf16 and v.teacher in ("trainable", "frozen", "float32")]
    losses = [families[variant.family].loss(batch, variant).item() for variant in whole]
    assert len(losses) == 4 and max(losses) - min(losses) < 1e-5


@torch.no_grad()
def test_lower_precision_stays_close_and_student_only_differs(families, batch):
    losses = {variant.name: families[variant.family].loss(batch, variant).item() for variant in VARIANTS}
    for name in ("authors bf16", "stock bf16", "ours fp32, bf16 teacher", "ours bf16, bf16 teacher"):
        assert 0 < abs(losses[name] - losses["authors fp32"]) < 0.02, name
    assert abs(losses["ours fp32, student only"] - losses["ours fp32"]) > 0.02


def test_a_full_step_moves_the_student_alone(batch):
    families = build_families("tiny", FAMILIES)
    for variant in VARIANTS:
        family = families[variant.family]
        before = {name: value.clone() for name, value in family.model.named_parameters()}
        full_step(family, variant, batch)
        for name, value in family.model.named_parameters():
            if name.endswith("k_proj.bias"):
                continue  # its gradient is zero: softmax does not see what all keys share
            trained = not name.startswith("teacher.") and not (variant.teacher is None and "projector" in name)
            assert torch.equal(value, before[name]) != trained, (variant.name, name)
            assert value.grad is None


def test_authors_teacher_records_a_graph_unless_frozen(families, batch):
    authors = families["authors"]
    parameter = next(authors.model.teacher.parameters())
    for variant in VARIANTS[:2]:
        authors.loss(batch, variant)
        assert parameter.requires_grad == (variant.teacher == "trainable")


def test_masks_are_the_paper_s(batch):
    assert batch.bool_masked_pos.shape == (2, 48, 48)
    assert batch.bool_masked_pos.sum(dim=(1, 2)).tolist() == [22 * 64] * 2


@pytest.mark.parametrize(("side", "window"), [(12, 6), (14, 7)])
def test_shift_mask_is_ours(side, window):
    ours = window_plan((side, side), window, True, torch.device("cpu")).mask
    assert torch.equal(shift_mask(side, window, window // 2), ours.squeeze(1))


def test_names_reach_every_parameter_of_the_restatement(families):
    ours = authors_names(families["ours"].model.state_dict().items())
    theirs = {name: value.shape for name, value in families["authors"].model.state_dict().items()}
    assert {name: value.shape for name, value in ours.items()} == {
        name: shape for name, shape in theirs.items() if not name.startswith("teacher.")
    }


def test_stage_4_does_not_shift():
    encoder = Encoder(configs("tiny")[0], use_mask_token=True)
    shifts = [[block.shift for block in stage.blocks] for stage in encoder.stages]
    assert shifts == [[0], [0, 3], [0, 3], [0]]
