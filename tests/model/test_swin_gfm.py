"""The trunk's forward against stock Swin, and against itself in any order."""

import random
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import SwinConfig, SwinModel

from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.modeling_gfm import GFMModel
from gfm_hf.model.swin_gfm import window_plan


SHAPE = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "drop_path_rate": 0.0}


def make_pair(window, image_size=224):
    """A GFM model and a stock one with the same random weights, biases and tables included."""
    stock = SwinModel(SwinConfig(image_size=image_size, window_size=window, **SHAPE)).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = GFMModel(GFMConfig(image_size=image_size, window_size=window, **SHAPE)).eval()
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert missing == ["embeddings.mask_token"] and not unexpected
    return ours, stock


def fresh(stock):
    """Stock Swin rewrites its own geometry, so each comparison needs an untouched copy."""
    return deepcopy(stock)


@pytest.mark.parametrize("window", [4, 6, 7])
def test_any_size_in_any_order_equals_a_fresh_model_and_fresh_stock(window):
    ours, stock = make_pair(window)
    untouched = deepcopy(ours)
    rng = random.Random(window)
    compared = 0
    for _ in range(70):
        height, width, batch = rng.randint(4, 260), rng.randint(4, 260), rng.randint(1, 2)
        pixel_values = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            result = ours(pixel_values, output_hidden_states=True)
            reference = deepcopy(untouched)(pixel_values, output_hidden_states=True)
        assert torch.equal(result.last_hidden_state, reference.last_hidden_state)
        try:
            with torch.no_grad():
                expected = fresh(stock)(pixel_values, output_hidden_states=True)
        except RuntimeError:
            continue  # stock Swin cannot run maps smaller than its window
        compared += 1
        torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=5e-5)
        for mine, theirs in zip(result.reshaped_hidden_states, expected.reshaped_hidden_states):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert compared >= 5


@pytest.mark.parametrize("size", [(224, 224), (192, 256), (224, 448), (230, 300), (448, 229)])
def test_sizes_where_stock_swin_runs(size):
    ours, stock = make_pair(6 if size[0] == 192 else 7)
    pixel_values = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = fresh(stock)(pixel_values)
        result = ours(pixel_values)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(result.pooler_output, expected.pooler_output, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("size", [64, 20, 4, 5])
def test_maps_smaller_than_the_window(size):
    """A window-7 model on a small map is a model whose window is the map, with the centre of the tables."""
    ours, _ = make_pair(7)
    with torch.no_grad():
        result = ours(torch.randn(2, 3, size, size))
    assert torch.isfinite(result.last_hidden_state).all()
    assert result.pooler_output.shape == (2, 64)


def test_small_window_reads_the_centre_of_the_table():
    plan = window_plan((2, 2), 4, shifted=True, device=torch.device("cpu"))
    offsets = torch.arange(49).view(7, 7)[2:5, 2:5].reshape(-1)  # the middle 3 x 3 of the 7 x 7 table
    small = window_plan((2, 2), 2, shifted=True, device=torch.device("cpu"))
    assert torch.equal(plan.table_rows, offsets[small.table_rows])
    assert plan.mask is None


def test_window_plan_against_a_restatement_by_rolling():
    height, width, window = 10, 13, 4
    plan = window_plan((height, width), window, shifted=True, device=torch.device("cpu"))
    grid = nn.functional.pad(torch.arange(height * width).view(height, width), (0, 3, 0, 2), value=height * width)
    rolled = torch.roll(grid, (-2, -2), (0, 1))
    expected = torch.stack([part for row in rolled.split(window, 0) for part in row.split(window, 1)]).flatten()
    assert torch.equal(plan.slots, expected)
    assert torch.equal(plan.slots[plan.places], torch.arange(height * width))
    assert plan.mask.shape == (12, 1, 16, 16)


def test_plans_do_not_leak_from_inference_mode_into_training():
    ours, _ = make_pair(4)
    with torch.inference_mode():
        ours(torch.randn(1, 3, 52, 52))
    ours(torch.randn(1, 3, 52, 52)).pooler_output.sum().backward()
    assert ours.embeddings.patch_embeddings.projection.weight.grad is not None


def test_stochastic_depth_drops_both_branches():
    ours = GFMModel(GFMConfig(image_size=32, window_size=4, **(SHAPE | {"drop_path_rate": 0.9999}))).train()
    last = ours.encoder.layers[-1].blocks[-1]
    assert last.drop_path.drop_prob == pytest.approx(0.9999)
    seen = {}
    last.layernorm_before.register_forward_hook(lambda _, inputs, __: seen.update(into=inputs[0]))
    ours.layernorm.register_forward_hook(lambda _, inputs, __: seen.update(out=inputs[0]))
    ours(torch.randn(4, 3, 32, 32))
    assert torch.equal(seen["into"], seen["out"])


def test_checkpointing_changes_no_gradient_and_recomputes_each_block_once():
    pixel_values = torch.randn(1, 3, 64, 64)
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = GFMModel(GFMConfig(image_size=64, window_size=4, **SHAPE)).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        count = []
        for stage in model.encoder.layers:
            for block in stage.blocks:
                block.mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        model(pixel_values).pooler_output.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        calls.append(len(count))
    assert calls == [8, 16]
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_eager_and_sdpa_agree():
    ours, _ = make_pair(4)
    pixel_values = torch.randn(1, 3, 90, 120)
    outputs = []
    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        with torch.no_grad():
            outputs.append(ours(pixel_values).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=2e-5)


def test_no_module_changes_in_forward():
    ours, _ = make_pair(7)
    before = {
        name: deepcopy(vars(module)["window_size"])
        for name, module in ours.named_modules()
        if "window_size" in vars(module)
    }
    ours(torch.randn(1, 3, 64, 64))
    after = {
        name: vars(module)["window_size"] for name, module in ours.named_modules() if "window_size" in vars(module)
    }
    assert before == after and before


def test_gradients_equal_stock():
    ours, stock = make_pair(4, image_size=128)
    pixel_values = torch.randn(1, 3, 132, 150)
    for model in (ours, stock):
        model(pixel_values).last_hidden_state.sin().sum().backward()
    mine = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if "k_proj.bias" not in name:  # its true gradient is zero
            torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=2e-3, atol=2e-4, msg=name)


def test_masked_tokens_take_the_mask_token():
    ours, _ = make_pair(4)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2, 3] = True
    image = torch.randn(1, 3, 32, 32)
    changed = image.clone()
    changed[:, :, 8:12, 12:16] += 5
    with torch.no_grad():
        assert torch.equal(ours(image, mask).last_hidden_state, ours(changed, mask.flatten(1)).last_hidden_state)
        assert not torch.equal(ours(image).last_hidden_state, ours(changed).last_hidden_state)


def test_wrong_inputs_are_named():
    ours, _ = make_pair(4)
    with pytest.raises(ValueError, match="select bands by name"):
        ours(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match="8 x 8 tokens"):
        ours(torch.randn(1, 3, 32, 32), torch.zeros(1, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="8 x 16 tokens"):
        ours(torch.randn(1, 3, 32, 64), torch.zeros(1, 16, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="attention weights"):
        ours(torch.randn(1, 3, 32, 32), output_attentions=True)
