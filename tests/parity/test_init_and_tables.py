"""Fresh weights are distributed as the authors', and position tables resized as theirs."""

import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from gfm_hf.model.modeling_gfm import GFMForPreTraining
from gfm_hf.model.weights_gfm import resize_position_table

from .authors import assert_close, read_json, student_config, under_authors_names


# (stored window, new window)
WINDOWS = [(7, 6), (7, 8), (7, 12), (6, 4), (6, 7), (6, 8), (6, 12), (8, 4), (12, 6), (12, 7)]
WINDOWS += [(3, 7), (4, 6), (4, 8), (4, 12)]  # these need offsets outside the stored ones
# Kinds that keep torch's default, and how many inputs one of their outputs has.
FAN_IN = {"patch_embed.proj": 3 * 4 * 4, "decoder": 768, "projector": 768}
STD = 0.02
# Enough values to tell distributions apart by a hundredth.
SAMPLE = 100_000


def fresh_weights(config, seed):
    """All values of each kind of parameter of a new model, float64."""
    set_seed(seed)
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, tensor in under_authors_names(GFMForPreTraining(config).named_parameters()).items():
        kind = re.sub(r"\.\d+", "", name).removeprefix("encoder.")
        kinds.setdefault(kind, []).append(tensor.double().flatten())
    return {kind: torch.cat(values) for kind, values in kinds.items()}


def kolmogorov(values, distribution):
    """Largest distance of all quantiles from a distribution's, times sqrt(n): above 2.5 once in 100,000 draws."""
    values = values[:: max(len(values) // SAMPLE, 1)].sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return (distribution(values) - steps).abs().max() * len(values) ** 0.5


@pytest.fixture(scope="module")
def config(parity_dir):
    return student_config(read_json(parity_dir / "swin_t.json")["config"])


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return read_json(parity_dir / "official_init_stats.json")["swin_t"]["kinds"]


@pytest.fixture(scope="module", params=[0, 1])
def fresh(request, config):
    return fresh_weights(config, request.param)


def test_kinds_and_constants(fresh, recorded):
    assert fresh.keys() == recorded.keys()
    constant = {kind for kind, record in recorded.items() if record["std"] == 0}
    assert len(constant) == 14
    for kind in constant:
        assert (fresh[kind] == recorded[kind]["mean"]).all(), kind


def test_means_and_deviations(fresh, recorded):
    """Within five standard errors of the difference between our sample and theirs of four models."""
    for kind, values in fresh.items():
        error = recorded[kind]["std"] * (1.25 / len(values)) ** 0.5
        assert abs(values.mean() - recorded[kind]["mean"]) <= 5 * error, kind
        assert abs(values.std() - recorded[kind]["std"]) <= 5 * error, kind


def test_uniform_kinds(fresh, recorded):
    for layer, inputs in FAN_IN.items():
        bound = inputs**-0.5
        assert_close(recorded[f"{layer}.weight"]["absmax_excl_exact_pm2"], bound, rtol=2e-4)
        for values in (fresh[f"{layer}.weight"], fresh[f"{layer}.bias"]):
            assert values.abs().max() <= bound * (1 + 1e-6), layer
            assert kolmogorov(values, lambda x: (x / bound + 1) / 2) < 2.5, layer  # noqa: B023


def test_normal_kinds(fresh, recorded):
    """Never near the two or three values of exactly -2.0 that rounding gives the authors."""
    normal = {
        kind
        for kind, record in recorded.items()
        if abs(record["std"] - STD) < 1e-3 and not kind.startswith(tuple(FAN_IN))
    }
    assert len(normal) == 7
    for kind in normal:
        assert kolmogorov(fresh[kind], lambda x: torch.special.ndtr(x / STD)) < 2.5, kind
        assert fresh[kind].abs().max() < 6.5 * STD, kind


def test_seed_decides(config):
    first, again, other = (fresh_weights(config, seed) for seed in (3, 3, 4))
    for kind, values in first.items():
        assert torch.equal(values, again[kind]), kind
        assert torch.equal(values, other[kind]) == bool(values.std() == 0), kind


# ---- position tables -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(parity_dir):
    return load_file(parity_dir / "remap_tables.safetensors")


def test_every_recorded_pair_is_compared(parity_dir):
    assert set(read_json(parity_dir / "remap_tables.json")["pairs"]) == {f"{old}->{new}" for old, new in WINDOWS}


@pytest.mark.parametrize("old, new", WINDOWS)
def test_resized_table(tables, old, new):
    ours = resize_position_table(tables[f"src_{old}_{new}"], (2 * new - 1) ** 2)
    assert ours.dtype == torch.float32
    assert_close(ours, tables[f"dst_{old}_{new}"], rtol=0, atol=1e-6)
