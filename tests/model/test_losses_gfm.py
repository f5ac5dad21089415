"""The objective and one stage of the trunk, restated in plain NumPy from their definitions."""

import math

import numpy as np
import pytest
import torch

from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.decoders_gfm import PixelDecoder
from gfm_hf.model.losses_gfm import feature_distillation_loss, masked_reconstruction_loss, pixel_mask
from gfm_hf.model.modeling_gfm import GFMForPreTraining, GFMModel
from gfm_hf.model.swin_gfm import run_stages


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def array(tensor):
    return tensor.detach().numpy()


# ---- definitions -----------------------------------------------------------------------------------------------------


def masked_l1(reconstruction, images, mask):
    """Mean over hidden pixels and bands: (B, C, H, W) twice, (B, 1, H, W).

    The count is a whole number, to which torch adds the 1e-5 in float32, in the authors' code as in ours.
    """
    batch, bands, height, width = images.shape
    total, hidden = 0.0, 0
    for b, y, x in np.ndindex(batch, height, width):
        if mask[b, 0, y, x]:
            hidden += 1
            total += sum(abs(images[b, c, y, x] - reconstruction[b, c, y, x]) for c in range(bands))
    return total / float(np.float32(hidden) + np.float32(1e-5)) / bands


def minus_cosine(ours, theirs):
    """(B, D) twice."""
    return -np.mean([u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(ours, theirs)])


def decode(features, weight, bias, stride):
    """(B, D, h, w) -> (B, C, h * stride, w * stride): each token's outputs laid out below it, band by band."""
    batch, _, height, width = features.shape
    bands = len(bias) // stride**2
    image = np.empty((batch, bands, height * stride, width * stride))
    for b, row, column in np.ndindex(batch, height, width):
        cell = (weight[:, :, 0, 0] @ features[b, :, row, column] + bias).reshape(bands, stride, stride)
        rows, columns = slice(row * stride, (row + 1) * stride), slice(column * stride, (column + 1) * stride)
        image[b, :, rows, columns] = cell
    return image


def layer_norm(tokens, norm):
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * array(norm.weight) + array(norm.bias)


def linear(tokens, layer):
    return tokens @ array(layer.weight).T + array(layer.bias)


def visible_pairs(size, window, shift):
    """Which token sees which: {token: [(token, row offset, column offset), ...]}.

    Two tokens see each other if the shifted windows put them together and the wrap around the border did not.
    """
    places = list(np.ndindex(*size))
    moved = [tuple((place[axis] - shift) % size[axis] for axis in (0, 1)) for place in places]
    seen = {}
    for one, (place, at) in enumerate(zip(places, moved)):
        seen[one] = []
        for other, (other_place, other_at) in enumerate(zip(places, moved)):
            together = all(at[axis] // window == other_at[axis] // window for axis in (0, 1))
            offset = tuple(place[axis] - other_place[axis] for axis in (0, 1))
            unwrapped = offset == tuple(at[axis] - other_at[axis] for axis in (0, 1))
            if together and unwrapped:
                seen[one].append((other, *offset))
    return seen


def attention(tokens, layer, seen, table_window):
    """Self-attention of one image's tokens, (L, D), head by head and token by token."""
    heads, dim = layer.num_attention_heads, layer.head_dim
    query, key, value = (linear(tokens, part) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    table = array(layer.relative_position_bias.relative_position_bias_table)
    side, centre = 2 * table_window - 1, table_window - 1
    output = np.empty_like(tokens)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        for one, others in seen.items():
            scores = [
                query[one, part] @ key[other, part] / math.sqrt(dim)
                + table[(rows + centre) * side + columns + centre, head]
                for other, rows, columns in others
            ]
            weights = np.exp(scores) / np.exp(scores).sum()
            output[one, part] = sum(weight * value[other, part] for weight, (other, _, _) in zip(weights, others))
    return linear(output, layer.o_proj)


def block(tokens, layer, seen, table_window):
    tokens = tokens + attention(layer_norm(tokens, layer.layernorm_before), layer.attention, seen, table_window)
    hidden = linear(layer_norm(tokens, layer.layernorm_after), layer.mlp.fc1)
    gelu = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    return tokens + linear(gelu, layer.mlp.fc2)


def merge(tokens, size, layer):
    """Four neighbours become one token: (0, 0), (1, 0), (0, 1), (1, 1) side by side."""
    grid = tokens.reshape(*size, -1)
    merged = [
        np.concatenate([grid[row + down, column + right] for right in (0, 1) for down in (0, 1)])
        for row in range(0, size[0], 2)
        for column in range(0, size[1], 2)
    ]
    return layer_norm(np.stack(merged), layer.norm) @ array(layer.reduction.weight).T


# ---- comparisons -----------------------------------------------------------------------------------------------------


def test_masked_l1_counts_hidden_pixels_over_the_whole_batch():
    reconstruction, images = randn(3, 2, 4, 5), randn(3, 2, 4, 5)
    mask = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    mask[0], mask[1, :, :2], mask[2, :, 3, 4] = True, True, True
    expected = masked_l1(array(reconstruction), array(images), array(mask))
    assert masked_reconstruction_loss(reconstruction, images, mask).item() == pytest.approx(expected, rel=1e-12)


def test_masked_l1_of_nothing_hidden_is_zero():
    loss = masked_reconstruction_loss(randn(1, 3, 4, 4), randn(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    assert loss.item() == 0


def test_minus_cosine():
    ours, theirs = randn(5, 7), randn(5, 7)
    expected = minus_cosine(array(ours), array(theirs))
    assert feature_distillation_loss(ours, theirs).item() == pytest.approx(expected, rel=1e-12)
    assert feature_distillation_loss(ours, 3 * ours).item() == pytest.approx(-1)
    assert feature_distillation_loss(ours, -ours).item() == pytest.approx(1)


def test_no_gradient_flows_to_the_teacher():
    ours, theirs = randn(2, 3).requires_grad_(), randn(2, 3).requires_grad_()
    feature_distillation_loss(ours, theirs).backward()
    assert ours.grad is not None and theirs.grad is None


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_losses_are_never_narrower_than_float32(low):
    images = torch.randn(1, 3, 4, 4, dtype=low)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert masked_reconstruction_loss(images, images, mask).dtype == torch.float32
    features = torch.randn(2, 8, dtype=low)
    assert feature_distillation_loss(features, features).dtype == torch.float32


def test_pixel_mask_covers_each_tokens_pixels():
    tokens = torch.rand(2, 3, 5) < 0.5
    expected = np.stack([np.kron(grid, np.ones((4, 4), dtype=bool)) for grid in array(tokens)])
    for mask in (tokens, tokens.flatten(1)):
        pixels = pixel_mask(mask, (3, 5), 4)
        assert pixels.dtype == torch.bool and pixels.shape == (2, 1, 12, 20)
        assert np.array_equal(array(pixels)[:, 0], expected)


def test_pixel_decoder_lays_outputs_below_their_token():
    decoder = PixelDecoder(hidden_size=6, num_channels=2, stride=4).double()
    features = randn(2, 6, 3, 5)
    expected = decode(array(features), array(decoder[0].weight), array(decoder[0].bias), stride=4)
    np.testing.assert_allclose(array(decoder(features)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size, window", [((4, 6), 2), ((6, 6), 3), ((4, 4), 6)], ids=["wide", "odd", "small map"])
def test_one_stage_with_and_without_shift(size, window):
    """An unshifted and a shifted block, then the merging; a map below the window is one window of its own."""
    config = GFMConfig(embed_dim=4, depths=(2, 1), num_heads=(2, 2), window_size=window, distillation_stages=(1,))
    model = GFMModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    tokens = randn(1, size[0] * size[1], 4)
    ours = run_stages(model, tokens, size, last_stage=1)[0]

    stage = model.encoder.layers[0]
    effective = min(window, *size)
    shift = window // 2 if min(size) > window else 0
    expected = array(tokens)[0]
    for layer, by in zip(stage.blocks, (0, shift)):
        expected = block(expected, layer, visible_pairs(size, effective, by), window)
    np.testing.assert_allclose(array(ours.feature_tokens)[0], expected, rtol=1e-10, atol=1e-12)
    merged = merge(expected, size, stage.downsample)
    np.testing.assert_allclose(array(ours.hidden_states)[0], merged, rtol=1e-10, atol=1e-12)


def test_objective_of_the_model(tiny_config):
    """Reconstruction behind the final norm; distillation of the third stage's mean over all tokens, without norm."""
    tiny_config.distillation_weight = 0.7
    model = GFMForPreTraining(tiny_config).double()
    images, target = randn(2, 3, 64, 64), randn(2, 64)
    mask = torch.rand(2, 16, 16) < 0.6
    output = model(images, mask, target, output_hidden_states=True)

    *_, third, last = output.hidden_states
    normed = layer_norm(array(last), model.swin.layernorm).transpose(0, 2, 1).reshape(2, 64, 2, 2)
    decoder = model.decoder[0]
    image = decode(normed, array(decoder.weight), array(decoder.bias), stride=32)
    np.testing.assert_allclose(array(output.reconstruction), image, rtol=1e-10, atol=1e-12)

    reconstruction = masked_l1(image, array(images), array(pixel_mask(mask, (16, 16), 4)))
    distillation = minus_cosine(linear(array(third).mean(axis=1), model.projector[0]), array(target))
    assert output.reconstruction_loss.item() == pytest.approx(reconstruction, rel=1e-10)
    assert output.distillation_loss.item() == pytest.approx(distillation, rel=1e-10)
    assert output.loss.item() == pytest.approx(reconstruction + 0.7 * distillation, rel=1e-10)
