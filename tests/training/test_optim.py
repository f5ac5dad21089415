import math

import pytest
import torch
from torch import nn

from gfm_hf import GFMForImageClassification, GFMForPreTraining, GFMForSemanticSegmentation
from gfm_hf.training.optim import (
    CosineSchedule,
    PolynomialSchedule,
    layer_decay_groups,
    parameter_groups,
    scale_learning_rate,
    set_learning_rate,
)


def names_by_group(model: nn.Module, **options) -> tuple[list[str], list[str]]:
    """Names of the decayed and of the undecayed parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = parameter_groups(model, 0.05, **options)
    assert decayed["weight_decay"] == 0.05 and undecayed["weight_decay"] == 0.0
    return [names[id(p)] for p in decayed["params"]], [names[id(p)] for p in undecayed["params"]]


@pytest.fixture
def model(tiny_config):
    tiny_config.use_absolute_embeddings = True
    return GFMForPreTraining(tiny_config)


@pytest.mark.parametrize("decay_position_tables", [False, True])
def test_every_parameter_is_in_one_group_and_each_kind_where_it_belongs(model, decay_position_tables):
    decayed, undecayed = names_by_group(model, decay_position_tables=decay_position_tables)
    assert sorted(decayed + undecayed) == sorted(name for name, _ in model.named_parameters())
    assert len(decayed + undecayed) == len(set(decayed + undecayed))
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    kinds = {
        "bias": lambda name: name.endswith(".bias"),
        "norm": lambda name: "norm" in name and name.endswith(".weight"),
        "mask token": lambda name: name.endswith("mask_token"),
        "position embeddings": lambda name: name.endswith("position_embeddings"),
    }
    for kind, belongs in kinds.items():
        assert any(map(belongs, undecayed)) and not any(map(belongs, decayed)), kind
    tables = [name for name in shapes if name.endswith("relative_position_bias_table")]
    assert len(tables) == 5 and set(tables) <= set(decayed if decay_position_tables else undecayed)
    for part in (
        "q_proj.weight",
        "fc1.weight",
        "projection.weight",
        "reduction.weight",
        "decoder.0.weight",
        "projector",
    ):
        assert any(part in name for name in decayed), part
    assert all(shapes[name] > 1 for name in decayed)


def test_frozen_parameters_are_left_out(model):
    model.swin.requires_grad_(False)
    decayed, undecayed = names_by_group(model)
    assert sorted(decayed + undecayed) == [
        "decoder.0.bias",
        "decoder.0.weight",
        "projector.0.bias",
        "projector.0.weight",
    ]


def test_undecayed_parameters_stay_where_decayed_ones_shrink():
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
    optimizer = torch.optim.AdamW(parameter_groups(layer, 0.5), lr=0.0)
    assert set_learning_rate(optimizer, CosineSchedule(0.1, 0.1, 0.1, 0, 10), 3) == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.1)] * 2
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert layer.weight.tolist() == [[pytest.approx(0.95)] * 2] * 2 and layer.bias.tolist() == [1, 1]


SCHEDULE = CosineSchedule(peak=4e-4, start=2e-6, floor=2e-5, warmup_steps=100, total_steps=1000)


def test_warm_up_is_linear_and_the_cosine_runs_over_the_whole_run():
    rates = [SCHEDULE.learning_rate(step) for step in range(1000)]
    assert rates[0] == 2e-6 and rates[50] == pytest.approx((4e-4 + 2e-6) / 2)
    assert all(after > before for before, after in zip(rates[:99], rates[1:100]))
    # Where the warm-up ends the cosine is already a tenth of its way down.
    assert rates[100] == pytest.approx(2e-5 + 3.8e-4 / 2 * (1 + math.cos(0.1 * math.pi))) and rates[100] < 4e-4
    assert rates[500] == pytest.approx(2.1e-4)
    assert all(after < before for before, after in zip(rates[100:], rates[101:]))
    assert 2e-5 < rates[999] < 2.001e-5


def test_authors_use_the_first_rate_twice_and_lag_by_one():
    lagging = CosineSchedule(**{**vars(SCHEDULE), "repeat_first": True})
    rates = [SCHEDULE.learning_rate(step) for step in range(1000)]
    assert [lagging.learning_rate(step) for step in range(1000)] == [rates[0], *rates[:-1]]


def test_without_warm_up_the_first_rate_is_the_peak():
    assert CosineSchedule(1.0, 0.1, 0.2, 0, 10).learning_rate(0) == 1.0


def test_rates_scale_with_the_batch():
    assert scale_learning_rate(2e-4, 1024) == 4e-4 and scale_learning_rate(1e-6, 256) == 5e-7
    assert scale_learning_rate(1.0, 8, reference=16) == 0.5


def test_polynomial_schedule_falls_from_peak_to_floor_after_its_warm_up():
    schedule = PolynomialSchedule(peak=0.01, floor=1e-4, total_steps=100, power=0.9)
    assert schedule.learning_rate(0) == pytest.approx(0.01) and schedule.learning_rate(100) == pytest.approx(1e-4)
    assert schedule.learning_rate(50) == pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)
    straight = PolynomialSchedule(peak=1.0, floor=0.0, total_steps=100, power=1.0, warmup_steps=10)
    assert straight.learning_rate(0) == pytest.approx(1e-6)
    assert straight.learning_rate(5) == pytest.approx(0.95 * 0.5, rel=1e-5)
    assert straight.learning_rate(10) == pytest.approx(0.9) and straight.learning_rate(10, scale=0.5) == pytest.approx(
        0.45
    )


def test_lowered_groups_follow_their_own_peak():
    schedule = CosineSchedule(peak=1.0, start=0.1, floor=0.01, warmup_steps=10, total_steps=100)
    assert schedule.learning_rate(30, scale=0.5) == pytest.approx(0.5 * schedule.learning_rate(30))
    theirs = CosineSchedule(peak=1.0, start=0.1, floor=0.01, warmup_steps=10, total_steps=100, scale_peak_only=True)
    assert theirs.learning_rate(0, scale=0.5) == pytest.approx(0.1)
    assert theirs.learning_rate(99, scale=0.005) > theirs.learning_rate(50, scale=0.005)  # up to the floor


def test_levels_of_an_adapted_and_of_a_dense_model(tiny_config):
    """Every trainable parameter has one level, wherever wrappers put the trunk; heads are on the last."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    tiny_config.decoder_channels = tiny_config.auxiliary_channels = 8
    dense = GFMForSemanticSegmentation(tiny_config)
    groups = {group["name"]: group for group in layer_decay_groups(dense, 0.05, 0.9)}
    count = sum(len(group["params"]) for group in groups.values())
    assert count == sum(parameter.requires_grad for parameter in dense.parameters())
    assert groups["layer_0_decay"]["lr_scale"] == pytest.approx(0.9**6) and groups["layer_6_decay"]["lr_scale"] == 1
    head = {id(parameter) for parameter in dense.decode_head.parameters()}
    assert head <= {id(p) for name in ("layer_6_decay", "layer_6_no_decay") for p in groups[name]["params"]}
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(GFMForImageClassification(tiny_config), config)
    named = {group["name"]: len(group["params"]) for group in layer_decay_groups(adapted, 0.05, 0.9)}
    assert named == {**{f"layer_{level}_decay": 2 for level in range(1, 6)}, "layer_6_decay": 1, "layer_6_no_decay": 1}
