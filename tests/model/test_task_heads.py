"""Segmentation, change detection and super-resolution: shapes at any size, losses, saving, export."""

import pytest
import torch
from transformers import AutoModelForImageToImage, AutoModelForSemanticSegmentation

from gfm_hf import (
    GFMBackbone,
    GFMConfig,
    GFMForChangeDetection,
    GFMForImageSuperResolution,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
)
from gfm_hf.model.losses_gfm import segmentation_loss


SIZES = [(4, 4), (20, 33), (64, 64)]


@pytest.fixture
def config(tiny_config):
    tiny_config.num_labels, tiny_config.decoder_channels, tiny_config.auxiliary_channels = 3, 16, 8
    return tiny_config


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(model, size, batch=2, bands=3):
    dates = (2,) if isinstance(model, GFMForChangeDetection) else ()
    return torch.randn(batch, *dates, bands, *size)


MAPS = [GFMForSemanticSegmentation, GFMForChangeDetection]
ALL = [*MAPS, GFMForImageSuperResolution]


def labels_for(model, pixel_values):
    if isinstance(model, GFMForImageSuperResolution):
        return torch.nn.functional.interpolate(pixel_values, scale_factor=model.config.upscale)
    return torch.randint(0, 3, (len(pixel_values), *pixel_values.shape[-2:]))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model_class", ALL)
def test_any_size_trains_every_parameter_that_it_uses(config, model_class, size, batch):
    """One image below the pyramid's coarsest cell too, where batch norm has a single value."""
    model = model_class(config).train()
    pixel_values = images(model, size, batch)
    output = model(pixel_values, labels=labels_for(model, pixel_values))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    missing = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing, missing
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "swin.embeddings.mask_token" in frozen and len(frozen) <= 3


@pytest.mark.parametrize("model_class", ALL)
def test_saved_and_loaded_it_is_the_same_model(config, model_class, tmp_path):
    model = randomise(model_class(config))
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    door = {
        GFMForSemanticSegmentation: AutoModelForSemanticSegmentation,
        GFMForImageSuperResolution: AutoModelForImageToImage,
    }
    if model_class in door:
        assert type(door[model_class].from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize("model_class", ALL)
def test_a_pretraining_checkpoint_brings_the_encoder_and_the_head_is_whole(config, model_class, tmp_path):
    pretrained = randomise(GFMForPreTraining(config))
    pretrained.save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path)
    assert torch.equal(model.swin.layernorm.weight, pretrained.swin.layernorm.weight)
    # What the checkpoint lacks is drawn, statistics of batch norm included: loading begins on a device without memory.
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith("running_var"):
            assert (tensor == 1).all()
    if model_class is GFMForImageSuperResolution:
        assert torch.equal(model.decoder[0].weight, pretrained.decoder[0].weight)


def test_maps_are_the_backbones(config):
    """The dense heads see what GFMBackbone gives."""
    model = randomise(GFMForSemanticSegmentation(config))
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    backbone = GFMBackbone(config).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    pixel_values = images(model, (40, 52))
    logits = torch.nn.functional.interpolate(
        model.decode_head.main(backbone(pixel_values).feature_maps), size=(40, 52), mode="bilinear"
    )
    torch.testing.assert_close(model(pixel_values).logits, logits)


def test_change_is_the_absolute_difference_of_two_dates(config):
    model = randomise(GFMForChangeDetection(config))
    before, after = torch.randn(2, 2, 3, 32, 32)
    forth = model(torch.stack([before, after], dim=1)).logits
    torch.testing.assert_close(model(torch.stack([after, before], dim=1)).logits, forth)
    same = model(torch.stack([before, before], dim=1)).logits
    torch.testing.assert_close(same, model(torch.stack([after, after], dim=1)).logits)
    config.change_fusion = "concat"
    ordered = randomise(GFMForChangeDetection(config))
    turned = ordered(torch.stack([after, before], dim=1)).logits
    assert not torch.allclose(ordered(torch.stack([before, after], dim=1)).logits, turned, atol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_super_resolution_starts_as_interpolation_and_learns(config, scale, bands):
    config = GFMConfig.from_dict(config.to_dict(), upscale=scale, num_channels=bands)
    torch.manual_seed(0)
    model = GFMForImageSuperResolution(config)
    pixel_values = images(model, (16, 24), bands=bands)
    start = model(pixel_values).reconstruction
    assert start.shape == (2, bands, scale * 16, scale * 24)
    interpolated = torch.nn.functional.interpolate(pixel_values, scale_factor=scale, mode="bicubic")
    torch.testing.assert_close(start, interpolated)
    labels = interpolated + 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in range(25):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4


def test_super_resolution_without_residual_rests_on_the_encoder(config):
    config.upscale_residual = False
    model = randomise(GFMForImageSuperResolution(config))
    assert model(images(model, (16, 16))).reconstruction.abs().sum() > 0


def test_segmentation_loss_against_torch():
    logits, labels = torch.randn(2, 4, 6, 5), torch.randint(0, 4, (2, 6, 5))
    torch.testing.assert_close(segmentation_loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
    labels[0, :3] = 255
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    weights = (1.0, 2.0, 0.5, 3.0)
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, labels, class_weights=weights), expected)


def test_nothing_labelled_is_no_loss_and_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255), dice_weight=1.0)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_dice_is_zero_for_the_truth_and_one_for_its_opposite():
    labels = torch.tensor([[[0, 1], [1, 255]]])
    truth = 100.0 * torch.nn.functional.one_hot(labels.clamp(max=1), 2).movedim(-1, 1)
    assert segmentation_loss(truth, labels, dice_weight=1.0) < 1e-4
    worst = segmentation_loss(truth.flip(1), labels, dice_weight=1.0) - segmentation_loss(truth.flip(1), labels)
    torch.testing.assert_close(worst, torch.tensor(1.0))


@pytest.mark.parametrize("model_class", MAPS)
def test_masks_and_pairs_of_another_shape_are_refused(config, model_class):
    model = model_class(config)
    pixel_values = images(model, (32, 32))
    with pytest.raises(ValueError, match="as large as the images"):
        model(pixel_values, labels=torch.zeros(2, 16, 16, dtype=torch.long))
    if model_class is GFMForChangeDetection:
        with pytest.raises(ValueError, match="stack the date before"):
            model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("fields", [{"change_fusion": "sum"}, {"upscale": 5}])
def test_settings_of_heads_are_checked(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GFMConfig(**fields)


@pytest.mark.parametrize("model_class", ALL)
def test_export_checkpointing_and_half_precision(config, model_class):
    model = randomise(model_class(config))
    pixel_values = images(model, (32, 40), batch=1)
    with torch.no_grad():
        expected = model(pixel_values)
        expected = expected.reconstruction if model_class is GFMForImageSuperResolution else expected.logits
        exported = torch.export.export(model, (pixel_values,)).module()(pixel_values)
        exported = exported.reconstruction if model_class is GFMForImageSuperResolution else exported.logits
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
    model.train()
    for module in model.modules():  # the second pass must not move the statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    plain = model(pixel_values, labels=labels_for(model, pixel_values)).loss
    model.activation_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pixel_values, labels=labels_for(model, pixel_values)).loss
    half.backward()
    assert half.dtype == torch.float32 and torch.isfinite(plain)
