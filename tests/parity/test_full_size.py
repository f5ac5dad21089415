"""Swin-T and Swin-B at 192 px / window 6 under a 224 px / window 7 teacher, in float32, weights from the rule."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import SwinModel

from gfm_hf.model.modeling_gfm import GFMForPreTraining, GFMForPreTrainingOutput

from .authors import (
    Features,
    Pair,
    assert_close,
    build_pair,
    cosines,
    gradients,
    loss_terms,
    norms,
    read_json,
    rule_input,
    rule_tensor,
    statistics,
    student_config,
    student_features,
    teacher_config,
    token_mask,
)


# Absolute tolerances for single precision at this size.
TERMS, FEATURES = 2e-6, 3e-5


class Run(NamedTuple):
    record: dict[str, Any]
    pair: Pair
    target: torch.Tensor
    output: GFMForPreTrainingOutput
    features: Features


@pytest.fixture(scope="module", params=["swin_t", "swin_b"])
def run(request, parity_dir) -> Run:
    record = read_json(parity_dir / f"{request.param}.json")
    config = record["config"]
    pair = build_pair(config, rule_tensor, torch.float32)
    side = config["image_size"]
    pixel_values = rule_input(record["input_rule_name"], (record["batch"], config["in_chans"], side, side))
    mask = token_mask(record["mask_coarse"], config)
    target = pair.features(pixel_values)
    output = pair.model(pixel_values, mask, target, output_hidden_states=True)
    output.loss.backward()
    return Run(record, pair, target, output, student_features(pair.model, pixel_values, output))


def assert_summary(tensor: torch.Tensor, recorded: dict[str, Any], what: str = "") -> None:
    """The recorded statistics; the norm of many entries is compared relatively."""
    summary = statistics(tensor)
    assert_close(summary["l2"], recorded["l2"], rtol=1e-5, what=f"{what} l2")
    others = {key: value for key, value in recorded.items() if key != "l2"}
    assert_close(summary, others, rtol=0, atol=FEATURES, what=what)


def test_loss_and_terms(run):
    terms = loss_terms(run.output, run.record["config"]["alpha"])
    assert_close(terms, {name: run.record["float64"][name] for name in terms}, rtol=0, atol=TERMS)


def test_pooled_features(run):
    recorded = [run.record[name] for name in ("zs_pooled", "zs_projected", "zt_pooled")]
    for ours, theirs in zip((run.features.zs, run.features.zs_proj, run.target), recorded):
        assert_close(ours[:, : len(theirs[0])], theirs, rtol=0, atol=FEATURES)
    for ours, name in ((run.features.zs, "zs"), (run.features.zs_proj, "zs_proj"), (run.target, "zt")):
        assert_summary(ours, run.record[f"stat.{name}"], name)
    ours = cosines(run.features.zs_proj, run.target)
    assert_close(ours, run.record["float64"]["cos_per_sample"], rtol=0, atol=TERMS)


def test_maps_and_reconstruction(run):
    reconstruction = run.output.reconstruction.detach()
    assert_summary(reconstruction, run.record["stat.x_rec"], "x_rec")
    assert_summary(run.features.r, run.record["stat.r"], "r")
    # The places that "index" of these records names.
    assert_close(run.features.r[0, :8, 0, :6], run.record["r_slice"]["values"], rtol=0, atol=FEATURES)
    assert_close(reconstruction[0, 0, 40, 60:76], run.record["x_rec_slice"]["values"], rtol=0, atol=FEATURES)
    for index, tokens in enumerate(run.features.stages):
        assert_summary(tokens, run.record["stages"][f"student.layers.{index}"], f"stage {index}")


def test_gradient_norms(run):
    recorded = run.record["grad_norm"]
    ours = gradients(run.pair.model)
    assert ours.keys() == recorded.keys()
    assert_close(norms(ours), recorded, rtol=2e-4, atol=1e-6)
    assert_close(math.hypot(*norms(ours).values()), run.record["grad_total_norm"], rtol=2e-4)
    for name, values in run.record["grad_slice"].items():
        assert_close(ours[name].flatten()[: len(values)], values, rtol=2e-4, atol=1e-6, what=name)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("size", ["swin_t", "swin_b"])
def test_parameter_counts(parity_dir, size):
    record = read_json(parity_dir / f"{size}.json")
    recorded = record["params"]
    with torch.device("meta"):
        model = GFMForPreTraining(student_config(record["config"]))
        teacher_model = SwinModel(teacher_config(record["config"]), add_pooling_layer=False)
    assert count(model.swin) == recorded["encoder"]
    assert count(model.decoder) == recorded["decoder"]
    assert count(model.projector) == recorded["projector"]
    assert count(model) == recorded["trainable"]
    assert count(teacher_model) == recorded["teacher_all"]


def test_teacher_keeps_only_what_it_runs(run):
    """Stage 4 is dropped; the final norm stays behind, unused."""
    kept = count(run.pair.teacher_model.embeddings, run.pair.teacher_model.encoder)
    assert kept == run.record["params"]["teacher_used"]
