import math

import pytest
import torch
from torch import nn

from gfm_hf import GFMForPreTraining
from gfm_hf.training.optim import CosineSchedule, parameter_groups, scale_learning_rate, set_learning_rate


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
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
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
