"""Small variants of the model, bands and mask, weights and images from the rule, in float64."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gfm_hf.model.modeling_gfm import GFMForPreTraining, GFMForPreTrainingOutput
from gfm_hf.model.swin_gfm import embed_pixels, run_stages

from .authors import (
    assert_close,
    build_student,
    build_teacher_model,
    cosines,
    gradients,
    loss_terms,
    norms,
    read_json,
    rule_input,
    rule_tensor,
    student_features,
    token_mask,
)


# Left out: "qk_scale_0.3". Stock Swin's scale is always head_dim ** -0.5, and ours is stock Swin's.
# "patch_norm_false" has a test of its own: stock Swin always has that norm.
VARIANTS = [
    "base",
    "in_chans_1",
    "in_chans_8",
    "in_chans_12",
    "qkv_bias_false",
    "ape_true",
    "alpha_0",
    "alpha_2.5",
    "mask_patch_16",
    "mask_patch_4",
    "mask_ratio_0.75",
    "window_8",
    "all_zero_mask",
    "all_one_mask",
    "uneven_mask",
]


class Variant(NamedTuple):
    case: dict[str, Any]
    config: dict[str, Any]
    pixel_values: torch.Tensor
    mask: torch.Tensor


def load_variant(parity_dir, name: str) -> Variant:
    records = read_json(parity_dir / "rule_variants.json")
    case = records["cases"][name]
    change = {key.lower(): value for key, value in case["change"].items()}
    kind = change.pop("mask", "")
    config = records["base_config"] | change
    side = config["image_size"]
    pixel_values = rule_input(records["input_rule_name"], (records["batch"], config["in_chans"], side, side))
    mask = drawn_mask(config, records["batch"], records["mask_seed"])
    if name == "base":
        assert torch.equal(mask, token_mask(records["mask_coarse_base"], config))
    return Variant(case, config, pixel_values.double(), special_mask(kind, mask))


def drawn_mask(config: dict[str, Any], batch: int, seed: int) -> torch.Tensor:
    """Masks of the authors' generator: the first cells of a permutation."""
    generator = np.random.RandomState(seed)
    cells = np.zeros((batch, (config["image_size"] // config["mask_patch_size"]) ** 2), dtype=np.int64)
    hidden = int(np.ceil(cells.shape[1] * config["mask_ratio"]))
    for row in cells:
        row[generator.permutation(len(row))[:hidden]] = 1
    return token_mask(cells, config)


def special_mask(kind: str, mask: torch.Tensor) -> torch.Tensor:
    if kind == "all_zero_mask":
        return torch.zeros_like(mask)
    if kind == "all_one_mask":
        return torch.ones_like(mask)
    if kind == "uneven_mask":
        uneven = torch.zeros_like(mask)
        uneven[0] = True
        uneven[1, :8, :8] = True
        return uneven
    return mask


@torch.no_grad()
def teacher_features(config: dict[str, Any], pixel_values: torch.Tensor, patch_norm: bool = True) -> torch.Tensor:
    """The recorded teacher has the student's bands; `GFMTeacher` is for three, so its steps are restated here."""
    model = build_teacher_model(config, rule_tensor, pixel_values.dtype)
    if not patch_norm:
        model.embeddings.norm = nn.Identity()
    size = (config["teacher_image_size"],) * 2
    images = nn.functional.interpolate(pixel_values, size=size, mode="bilinear", align_corners=True)
    return run_stages(model, *embed_pixels(model, images), last_stage=3)[2].hidden_states.mean(dim=1)


def assert_recorded(
    variant: Variant, model: GFMForPreTraining, output: GFMForPreTrainingOutput, target: torch.Tensor
) -> None:
    case, recorded = variant.case, variant.case["float64"]
    assert variant.mask.sum(dim=(1, 2)).tolist() == case["masked_tokens_per_sample"]
    terms = loss_terms(output, variant.config["alpha"])
    assert_close(terms, {name: recorded[name] for name in terms}, atol=1e-15)
    projected = student_features(model, variant.pixel_values, output).zs_proj
    assert_close(cosines(projected, target), recorded["cos_per_sample"])
    output.loss.backward()
    assert_close(math.hypot(*norms(gradients(model)).values()), case["grad_total_norm"])


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(parity_dir, name):
    variant = load_variant(parity_dir, name)
    model = build_student(variant.config, rule_tensor, torch.float64)
    target = teacher_features(variant.config, variant.pixel_values)
    output = model(variant.pixel_values, variant.mask, target, output_hidden_states=True)
    assert_recorded(variant, model, output, target)


def test_without_patch_norm(parity_dir):
    """No field says so; taking the module out by hand shows that nothing else depends on it."""
    variant = load_variant(parity_dir, "patch_norm_false")
    model = build_student(variant.config, rule_tensor, torch.float64)
    model.swin.embeddings.norm = nn.Identity()
    target = teacher_features(variant.config, variant.pixel_values, patch_norm=False)
    output = model(variant.pixel_values, variant.mask, target, output_hidden_states=True)
    assert_recorded(variant, model, output, target)


def test_every_variant_is_used(parity_dir):
    recorded = read_json(parity_dir / "rule_variants.json")["cases"].keys()
    assert recorded == {*VARIANTS, "patch_norm_false", "qk_scale_0.3"}
