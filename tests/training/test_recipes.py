"""Flags of a recipe -> optimizer groups and the rate of every update."""

import argparse

import pytest
import torch

from gfm_hf import GFMForImageClassification
from gfm_hf.training.recipes import (
    add_cosine_arguments,
    add_map_recipe_arguments,
    build_adamw,
    build_map_optimizer,
    cosine_schedule,
    fill_map_recipe,
    polynomial_schedule,
    total_steps,
)
from gfm_hf.training.task_arguments import add_finetuning_arguments


def cosine_flags(*words):
    parser = argparse.ArgumentParser()
    group = add_finetuning_arguments(parser, batch_size=128, epochs=100, patience=None)
    add_cosine_arguments(group, learning_rate=1e-4, warmup=1e-7, floor=1e-5)
    return parser.parse_args(["--output_dir", "x", *words])


def map_flags(*words, optimizer="sgd", steps=1000):
    parser = argparse.ArgumentParser()
    group = add_finetuning_arguments(parser, batch_size=8, epochs=0, patience=None)
    add_map_recipe_arguments(parser, group, optimizer=optimizer)
    args = parser.parse_args(["--output_dir", "x", *words])
    fill_map_recipe(args, steps)
    return args


def test_rates_of_the_cosine_are_those_of_512_images():
    args = cosine_flags()
    for batch_size, factor in ((512, 1), (128, 0.25)):
        schedule = cosine_schedule(args, batch_size, 100)
        assert schedule.learning_rate(0) == pytest.approx(1e-7 * factor)
        assert schedule.learning_rate(19) == pytest.approx((1e-7 + 9.99e-5 * 0.95) * factor)
        assert schedule.learning_rate(20) == pytest.approx((1e-5 + 9e-5 * 0.904508) * factor)  # cosine of a fifth
        assert schedule.learning_rate(100) == pytest.approx(1e-5 * factor)


def test_every_flag_of_the_cosine_counts():
    words = ("--learning_rate", "0.4", "--warmup_learning_rate", "0.1", "--min_learning_rate", "0.2")
    schedule = cosine_schedule(cosine_flags(*words, "--warmup_ratio", "0.5"), 512, 10)
    assert [schedule.learning_rate(step) for step in (0, 4, 5, 10)] == pytest.approx([0.1, 0.34, 0.3, 0.2])


def test_the_quirks_of_the_authors_are_two_and_a_choice():
    plain = cosine_schedule(cosine_flags(), 512, 10)
    quirks = cosine_schedule(cosine_flags("--authors_quirks"), 512, 10)
    # The first rate is used twice and the last one never.
    assert [quirks.learning_rate(step) for step in range(10)] == [
        plain.learning_rate(max(k - 1, 0)) for k in range(10)
    ]
    assert plain.learning_rate(1) != plain.learning_rate(0)
    # Of a deep group the peak alone is lowered: its floor is that of all.
    assert quirks.learning_rate(11, scale=0.01) == pytest.approx(1e-5)
    assert plain.learning_rate(10, scale=0.01) == pytest.approx(1e-7)
    assert quirks.learning_rate(3, scale=0.01) < 1e-5 < quirks.learning_rate(3)


def lr_scales(optimizer):
    return sorted({group["lr_scale"] for group in optimizer.param_groups})


@pytest.mark.parametrize("layer_decay", [0.5, 1.0])
@pytest.mark.parametrize("name", ["cosine", "adamw", "sgd"])
def test_decays_reach_the_groups_of_every_optimizer(tiny_config, name, layer_decay):
    model = GFMForImageClassification(tiny_config)
    words = ("--layer_decay", str(layer_decay), "--weight_decay", "0.03")
    if name == "cosine":
        optimizer = build_adamw(model, cosine_flags(*words))
    else:
        optimizer = build_map_optimizer(model, map_flags(*words, "--momentum", "0.6", optimizer=name))
    assert type(optimizer) is (torch.optim.SGD if name == "sgd" else torch.optim.AdamW)
    assert optimizer.defaults.get("momentum") == (0.6 if name == "sgd" else None)
    # Patch embedding, five blocks, and what stands behind.
    assert lr_scales(optimizer) == ([0.5**level for level in range(6, -1, -1)] if layer_decay < 1 else [1])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0, 0.03}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_the_defaults_of_the_authors_and_of_maps(tiny_config):
    model = GFMForImageClassification(tiny_config)
    assert lr_scales(build_adamw(model, cosine_flags())) == pytest.approx([0.9**level for level in range(6, -1, -1)])
    assert lr_scales(build_map_optimizer(model, map_flags())) == [1]


def test_a_flag_that_is_given_wins_over_the_recipe():
    args = map_flags("--learning_rate", "0.5", "--weight_decay", "0", "--warmup_steps", "0", optimizer="adamw")
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (0.5, 0, 0)
    assert (args.min_learning_rate, args.power, args.max_train_steps) == (0, 1, 1000)
    assert map_flags("--max_train_steps", "7").max_train_steps == 7
    assert map_flags("--num_train_epochs", "7").max_train_steps is None


def test_every_flag_of_the_fall_counts():
    words = ("--learning_rate", "1", "--min_learning_rate", "0.2", "--power", "2", "--warmup_steps", "4")
    schedule = polynomial_schedule(map_flags(*words), 100)
    assert schedule.learning_rate(50) == pytest.approx(0.2 + 0.8 * 0.25) and schedule.learning_rate(2) < 0.6
    assert schedule.learning_rate(4) == pytest.approx(0.2 + 0.8 * 0.96**2)
    short = polynomial_schedule(map_flags(*words), 10)  # a warm-up is a tenth of the run at most
    assert short.learning_rate(1) == pytest.approx(0.2 + 0.8 * 0.9**2)


def test_a_number_of_steps_wins_over_epochs():
    assert total_steps(cosine_flags("--num_train_epochs", "3"), 5) == 15
    assert total_steps(cosine_flags("--num_train_epochs", "3", "--max_train_steps", "4"), 5) == 4
