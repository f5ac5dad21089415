import math

import pytest
import torch
from torch import nn

from gfm_hf import (
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForSemanticSegmentation,
)
from gfm_hf.training.adapting import add_lora, count_parameters, freeze_backbone
from gfm_hf.training.finetuning import BestWeights


def test_the_best_weights_are_kept_and_put_back():
    model = nn.Linear(2, 2)
    best = BestWeights(model, "score")
    assert best.offer({"score": 0.5}, None)
    kept = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    assert not best.offer({"score": 0.4}, 0.5) and not best.offer({"score": math.nan}, 0.5)
    best.restore()
    assert torch.equal(model.weight, kept)
    assert best.offer({"score": 0.6}, 0.5)


def test_a_first_score_that_is_no_number_gives_way():
    best = BestWeights(nn.Linear(1, 1), "score")
    assert best.offer({"score": math.nan}, None) and best.offer({"score": 0.1}, math.nan)
    smaller = BestWeights(nn.Linear(1, 1), "loss", larger_is_better=False)
    assert (
        smaller.offer({"loss": 2.0}, None)
        and smaller.offer({"loss": 1.0}, 2.0)
        and not smaller.offer({"loss": 3.0}, 1.0)
    )


def test_frozen_weights_are_not_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    best = BestWeights(model, "score")
    best.offer({"score": 1.0}, None)
    assert set(best.weights) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip


HEADS = [GFMForImageClassification, GFMForSemanticSegmentation, GFMForChangeDetection, GFMForImageSuperResolution]


@pytest.mark.parametrize("model_class", HEADS)
def test_every_task_can_be_probed_and_adapted(tiny_config, model_class, tmp_path):
    tiny_config.decoder_channels = tiny_config.auxiliary_channels = 8
    model = model_class(tiny_config)
    whole = count_parameters(model)[1]
    freeze_backbone(model)
    assert 0 < count_parameters(model)[0] < whole
    adapted = add_lora(model_class(tiny_config), 2)
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in names) and any("lora" not in name for name in names)
    dates = (2,) if model_class is GFMForChangeDetection else ()
    adapted.eval()(pixel_values=torch.randn(1, *dates, 3, 32, 32))
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
