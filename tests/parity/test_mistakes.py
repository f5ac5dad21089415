"""Wrong forward passes give the recorded wrong numbers: the parity tests would notice and name them.

These records add the 1e-5 of the mask count in float64, the cases in float32: 2e-10 apart, below the tolerance.
"""

from copy import deepcopy

import pytest
import torch
from torch import nn

from gfm_hf.model.losses_gfm import feature_distillation_loss, masked_reconstruction_loss, pixel_mask

from .authors import TABLE, Case, Pair, assert_close, load_case, read_json, student_features


Terms = tuple[torch.Tensor, torch.Tensor]


def right(pair: Pair, case: Case) -> Terms:
    output = pair.model(case.pixel_values, case.mask, pair.features(case.pixel_values))
    return output.reconstruction_loss, output.distillation_loss


def inside(pair: Pair, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reconstruction, pooled student features and teacher features of the right forward pass."""
    output = pair.model(case.pixel_values, case.mask, output_hidden_states=True)
    features = student_features(pair.model, case.pixel_values, output)
    return output.reconstruction, features.zs, pair.features(case.pixel_values)


def pixels(case: Case) -> torch.Tensor:
    return pixel_mask(case.mask, tuple(case.mask.shape[1:]), 4)


# ---- the mistakes ----------------------------------------------------------------------------------------------------


def resize_without_aligned_corners(pair: Pair, case: Case) -> Terms:
    # A teacher leaves images of its own size alone.
    images = nn.functional.interpolate(case.pixel_values, size=(224, 224), mode="bilinear", align_corners=False)
    output = pair.model(case.pixel_values, case.mask, pair.features(images))
    return output.reconstruction_loss, output.distillation_loss


def tanh_gelu(pair: Pair, case: Case) -> Terms:
    for model in (pair.model.swin, pair.teacher_model):
        for stage in model.encoder.layers:
            for block in stage.blocks:
                block.mlp.activation_fn = nn.GELU(approximate="tanh")
    return right(pair, case)


@torch.no_grad()
def transposed_index(pair: Pair, case: Case) -> Terms:
    # Reading the table from its end swaps the two tokens of every pair.
    for model in (pair.model, pair.teacher_model):
        for name, parameter in model.named_parameters():
            if name.endswith(TABLE):
                parameter.copy_(parameter.flip(0))
    return right(pair, case)


def normed_features(pair: Pair, case: Case) -> Terms:
    reconstruction, zs, zt = inside(pair, case)
    zs, zt = (nn.functional.layer_norm(features, features.shape[1:]) for features in (zs, zt))
    distillation = feature_distillation_loss(pair.model.projector([zs])[0], zt)
    return masked_reconstruction_loss(reconstruction, case.pixel_values, pixels(case)), distillation


def no_projector(pair: Pair, case: Case) -> Terms:
    reconstruction, zs, zt = inside(pair, case)
    reconstruction_loss = masked_reconstruction_loss(reconstruction, case.pixel_values, pixels(case))
    return reconstruction_loss, feature_distillation_loss(zs, zt)


def loss_over_the_whole_image(pair: Pair, case: Case) -> Terms:
    reconstruction, _, _ = inside(pair, case)
    everything = torch.ones_like(pixels(case))
    return masked_reconstruction_loss(reconstruction, case.pixel_values, everything), right(pair, case)[1]


def inverted_mask(pair: Pair, case: Case) -> Terms:
    return right(pair, case._replace(mask=~case.mask))


def no_final_norm(pair: Pair, case: Case) -> Terms:
    pair.model.swin.layernorm = nn.Identity()
    return right(pair, case)


def layer_norm_eps(pair: Pair, case: Case) -> Terms:
    for model in (pair.model, pair.teacher_model):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12
    return right(pair, case)


MISTAKES = {
    "teacher resize align_corners=False": resize_without_aligned_corners,
    "GELU tanh approximation": tanh_gelu,
    "relative index transposed": transposed_index,
    "LayerNorm (no affine) on pooled features": normed_features,
    "no projector": no_projector,
    "L1 over the whole image": loss_over_the_whole_image,
    "mask inverted": inverted_mask,
    "no final norm before the decoder": no_final_norm,
    "LayerNorm eps 1e-12": layer_norm_eps,
}


@pytest.fixture(scope="module")
def case(parity_dir):
    return load_case(parity_dir, "b")


@pytest.fixture(scope="module")
def intact(case):
    return case.pair()


@pytest.fixture
def pair(intact):
    """A copy to spoil."""
    return deepcopy(intact)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_has_its_recorded_value_and_ours_has_not(parity_dir, pair, case, name):
    recorded = read_json(parity_dir / "mistakes.json")["case_b"]
    correct = values(*right(pair, case))
    assert_close(correct, recorded["correct"])
    wrong = values(*MISTAKES[name](pair, case))
    assert_close(wrong, recorded[name])
    # Far above the tolerance of the parity tests, 1e-9.
    assert max(abs(ours - theirs) for ours, theirs in zip(correct, wrong)) > 1e-6


def test_normaliser_counts_over_the_batch(parity_dir, pair, case):
    """With uneven masks one global count and one count per sample differ; ours is the global one."""
    recorded = read_json(parity_dir / "mistakes.json")["case_b_uneven_mask"]
    mask = case.mask.clone()
    mask[1, :, 8:] = False
    uneven = case._replace(mask=mask)
    assert_close(values(*right(pair, uneven)), recorded["correct (one global count)"])

    reconstruction, _, _ = inside(pair, uneven)
    samples = zip(reconstruction, case.pixel_values, pixels(uneven))
    losses = [masked_reconstruction_loss(*(part[None] for part in sample)) for sample in samples]
    wrong = values(torch.stack(losses).mean(), right(pair, uneven)[1])
    assert_close(wrong, recorded["per-sample normaliser"])


def values(reconstruction: torch.Tensor, distillation: torch.Tensor) -> list[float]:
    """The recorded columns; alpha is 1 here."""
    return [reconstruction.item(), distillation.item(), (reconstruction + distillation).item()]
