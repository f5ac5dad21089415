"""Saving, loading, resizing, the backbone, compile and export."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)

from gfm_hf import GFMBackbone, GFMConfig, GFMForImageClassification, GFMForPreTraining, GFMImageProcessor, GFMModel
from gfm_hf.model.weights_gfm import fit_state_dict, resize_position_table


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def masks_for(pixel_values, patch=4):
    height, width = (-(-side // patch) for side in pixel_values.shape[2:])
    return torch.rand(len(pixel_values), height, width) < 0.6


@pytest.fixture
def pretrained(tiny_config, tmp_path):
    model = randomise(GFMForPreTraining(tiny_config))
    model.save_pretrained(tmp_path)
    GFMImageProcessor(size=64).save_pretrained(tmp_path)
    return model, tmp_path


def test_every_door_gives_the_same_weights(pretrained):
    model, folder = pretrained
    pixel_values = torch.randn(2, 3, 128, 128)  # stock Swin needs maps of at least its window
    with torch.no_grad():
        expected = model(pixel_values, output_hidden_states=True).hidden_states[-1]
        for encoder in (AutoModel.from_pretrained(folder), GFMModel.from_pretrained(folder)):
            assert type(encoder) is GFMModel
            assert torch.equal(encoder(pixel_values, output_hidden_states=True).hidden_states[-1], expected)
        stock = SwinModel.from_pretrained(folder)
        torch.testing.assert_close(
            stock(pixel_values, output_hidden_states=True).hidden_states[-1], expected, rtol=1e-5, atol=1e-5
        )
    for auto in (AutoModelForPreTraining, AutoModelForMaskedImageModeling):
        loaded = auto.from_pretrained(folder)
        assert type(loaded) is GFMForPreTraining
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_nothing_is_missing_or_unexpected_on_reload(pretrained):
    _, folder = pretrained
    _, info = GFMForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_names_on_disk_are_the_names_in_memory(pretrained):
    from safetensors.torch import load_file

    model, folder = pretrained
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())


def test_remote_code_from_an_empty_directory_equals_ours(pretrained, tmp_path_factory):
    """In a process where gfm_hf cannot be imported: same features by remote code, by stock Swin, and after re-saving."""
    model, folder = pretrained
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    pixel_values = torch.randn(1, 3, 70, 50)
    np.save(elsewhere / "pixel_values.npy", pixel_values.numpy())
    script = f"""
import sys
import importlib.util
sys.path = [path for path in sys.path if "gfm_hf" not in path]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("gfm_hf") is None
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
pixel_values = torch.from_numpy(np.load("pixel_values.npy"))
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert type(model).__name__ == "GFMModel" and type(model).__module__.startswith("transformers_modules")
AutoModelForPreTraining.from_pretrained({str(folder)!r}, trust_remote_code=True)
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor(np.zeros((30, 30, 3), np.uint8))
small = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True, window_size=2)
assert small.config.window_size == 2
with torch.no_grad():
    features = model(pixel_values).pooler_output
    assert torch.equal(again(pixel_values).pooler_output, features)
np.save("features.npy", features.numpy())
"""
    environment = {"HF_HOME": str(elsewhere / "home"), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=elsewhere, env=environment, check=True)
    with torch.no_grad():
        expected = GFMModel.from_pretrained(folder)(pixel_values).pooler_output
    np.testing.assert_allclose(np.load(elsewhere / "features.npy"), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_stock_swin_folder_to_gfm_and_back(tmp_path):
    stock = SwinModel(SwinConfig(image_size=64, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4))
    randomise(stock).save_pretrained(tmp_path / "stock")
    ours = GFMModel.from_pretrained(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours")
    for reloaded in (GFMModel.from_pretrained(tmp_path / "ours"), SwinModel.from_pretrained(tmp_path / "ours")):
        for name, tensor in stock.state_dict().items():
            assert torch.equal(reloaded.state_dict()[name], tensor), name


def test_stock_mask_token_is_kept_and_a_missing_one_is_drawn(tmp_path):
    config = SwinConfig(image_size=64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
    masked = randomise(SwinForMaskedImageModeling(config))
    masked.save_pretrained(tmp_path / "masked")
    SwinModel(config).save_pretrained(tmp_path / "plain")
    kept = GFMModel.from_pretrained(tmp_path / "masked").embeddings.mask_token
    assert torch.equal(kept, masked.swin.embeddings.mask_token)
    drawn = GFMForPreTraining.from_pretrained(tmp_path / "plain").swin.embeddings.mask_token
    assert 0 < drawn.abs().max() < 0.2


@pytest.mark.parametrize("how", ["keyword", "config", "auto keyword", "load_state_dict"])
def test_another_window_resizes_the_tables(pretrained, how):
    model, folder = pretrained
    if how == "keyword":
        loaded = GFMForPreTraining.from_pretrained(folder, window_size=6).swin
    elif how == "config":
        loaded = GFMModel.from_pretrained(folder, config=GFMConfig.from_pretrained(folder, window_size=6))
    elif how == "auto keyword":
        loaded = AutoModel.from_pretrained(folder, window_size=6)
    else:
        loaded = GFMModel(GFMConfig.from_pretrained(folder, window_size=6))
        loaded.load_state_dict(fit_state_dict(model.swin.state_dict(), loaded))
    assert loaded.config.window_size == 6
    tables = [name for name in model.swin.state_dict() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 5
    for name, tensor in loaded.state_dict().items():
        stored = model.swin.state_dict()[name]
        expected = resize_position_table(stored, 121) if name in tables else stored
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("how", ["keyword", "config", "auto keyword"])
def test_other_bands_keep_the_filters_of_red_green_and_blue(pretrained, how):
    model, folder = pretrained
    bands = {"num_channels": 5, "rgb_channels": (3, 2, 1)}
    if how == "keyword":
        loaded = GFMForPreTraining.from_pretrained(folder, **bands)
    elif how == "config":
        loaded = GFMForPreTraining.from_pretrained(folder, config=GFMConfig.from_pretrained(folder, **bands))
    else:
        loaded = AutoModelForPreTraining.from_pretrained(folder, **bands)
    filters = loaded.swin.embeddings.patch_embeddings.projection.weight
    stored = model.swin.embeddings.patch_embeddings.projection.weight
    assert torch.equal(filters[:, [3, 2, 1]], stored)
    assert filters[:, [0, 4]].abs().max() <= 1 / math.sqrt(5 * 16)
    decoder, stored_decoder = (m.decoder[0].weight.view(m.config.num_channels, -1) for m in (loaded, model))
    assert torch.equal(decoder[[3, 2, 1]], stored_decoder)
    grey = GFMModel.from_pretrained(folder, num_channels=1)
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = GFMModel.from_pretrained(folder)(image.expand(-1, 3, -1, -1)).pooler_output
        torch.testing.assert_close(grey(image).pooler_output, expected, rtol=1e-4, atol=1e-5)


def test_bands_that_are_not_named_are_asked_for(pretrained):
    _, folder = pretrained
    with pytest.raises(ValueError, match="rgb_channels"):
        GFMModel.from_pretrained(folder, num_channels=5)
    named = GFMModel.from_pretrained(folder, num_channels=4, band_names=("B02", "B03", "B04", "B08"))
    assert named.config.rgb_channels == (2, 1, 0)


@pytest.mark.parametrize("order", [{"band_names": ("B", "G", "R")}, {"rgb_channels": (2, 1, 0)}])
def test_the_same_bands_in_another_order_move_their_filters(pretrained, order):
    model, folder = pretrained
    loaded = GFMForPreTraining.from_pretrained(folder, **order)
    assert loaded.config.rgb_channels == (2, 1, 0)
    image = torch.randn(1, 3, 32, 32)
    mask = masks_for(image)
    with torch.no_grad():
        expected, turned = model(image, mask), loaded(image.flip(1), mask)
    torch.testing.assert_close(turned.reconstruction.flip(1), expected.reconstruction, rtol=1e-4, atol=1e-5)


def test_the_other_bands_fill_the_remaining_places_in_their_order(tiny_config, tmp_path):
    names = ("R", "G", "B", "NIR", "SWIR")
    stored = GFMModel(GFMConfig.from_dict(tiny_config.to_dict(), num_channels=5, band_names=names))
    stored.save_pretrained(tmp_path)
    turned = GFMModel.from_pretrained(tmp_path, band_names=("NIR", "B", "G", "R", "SWIR"))
    filters, expected = (model.embeddings.patch_embeddings.projection.weight for model in (turned, stored))
    assert torch.equal(filters, expected[:, [3, 2, 1, 0, 4]])


def test_dtype_is_kept_while_weights_are_fitted(pretrained, tmp_path):
    _, folder = pretrained
    assert GFMModel.from_pretrained(folder, window_size=6, dtype=torch.bfloat16).dtype == torch.bfloat16
    SwinModel(SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2))).save_pretrained(tmp_path / "stock")
    assert GFMModel.from_pretrained(tmp_path / "stock", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_loaded_configuration_equals_the_saved_one(pretrained):
    model, folder = pretrained
    assert GFMConfig.from_pretrained(folder).rgb_channels == model.config.rgb_channels == (0, 1, 2)


@pytest.mark.parametrize("model_class", [GFMModel, GFMForPreTraining, GFMBackbone])
def test_lora_with_gradient_checkpointing(model_class, tiny_config):
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    model = model_class(tiny_config)
    model.activation_checkpointing_enable()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    outputs = adapted(torch.randn(1, 3, 32, 32))
    (outputs.feature_maps if model_class is GFMBackbone else outputs)[0].sum().backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert trained and all("lora" in name for name in trained)


def test_backbone_and_model_agree(pretrained):
    _, folder = pretrained
    model = GFMModel.from_pretrained(folder)
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    backbone = GFMBackbone.from_pretrained(folder, out_features=stages)
    for size in ((64, 64), (30, 100), (128, 64), (20, 20)):
        pixel_values = torch.randn(1, 3, *size)
        with torch.no_grad():
            output = backbone(pixel_values, output_hidden_states=True)
            reference = model(pixel_values, output_hidden_states=True)
            assert torch.equal(output.hidden_states[0], reference.reshaped_hidden_states[0])
            assert torch.equal(output.hidden_states[4], reference.reshaped_hidden_states[4])
            for stage in (1, 2, 3):
                height, width = output.hidden_states[stage].shape[2:]
                tokens = output.hidden_states[stage].flatten(2).transpose(1, 2)
                merged = model.encoder.layers[stage - 1].downsample(tokens, (height, width))
                torch.testing.assert_close(merged, reference.hidden_states[stage], rtol=1e-5, atol=1e-5)
            for name, feature_map, plain in zip(stages, output.feature_maps, output.hidden_states):
                normed = backbone.hidden_states_norms[name](plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                torch.testing.assert_close(feature_map, normed)
    assert [feature_map.shape[1] for feature_map in output.feature_maps] == backbone.channels
    assert type(AutoBackbone.from_config(backbone.config)) is GFMBackbone


def test_backbone_passes_the_features_asked_for(pretrained):
    _, folder = pretrained
    backbone = GFMBackbone.from_pretrained(folder, out_indices=[2, 4])
    assert backbone.out_features == ["stage2", "stage4"]
    shapes = [tuple(feature_map.shape) for feature_map in backbone(torch.randn(1, 3, 64, 96)).feature_maps]
    assert shapes == [(1, 16, 8, 12), (1, 64, 2, 3)]


def test_pretraining_terms_and_their_sum(tiny_config):
    tiny_config.distillation_weight = 0.5
    model = randomise(GFMForPreTraining(tiny_config))
    pixel_values = torch.randn(3, 3, 50, 70)
    mask, features = masks_for(pixel_values), torch.randn(3, 64)
    both = model(pixel_values, mask, features)
    assert both.reconstruction.shape == pixel_values.shape
    torch.testing.assert_close(both.loss, both.reconstruction_loss + 0.5 * both.distillation_loss)
    assert -1 <= both.distillation_loss <= 1
    alone = model(pixel_values, mask)
    assert alone.distillation_loss is None and torch.equal(alone.loss, alone.reconstruction_loss)
    distilled = model(pixel_values, teacher_features=[features])
    torch.testing.assert_close(distilled.loss, 0.5 * distilled.distillation_loss)
    assert model(pixel_values).loss is None
    assert isinstance(model(pixel_values, mask, return_dict=False), tuple)


def test_several_distilled_stages_and_foreign_feature_sizes():
    config = GFMConfig(
        image_size=64, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2), window_size=4,
        distillation_stages=(1, 3), teacher_hidden_sizes=(10, 12),
    )  # fmt: skip
    model = GFMForPreTraining(config)
    pixel_values = torch.randn(2, 3, 32, 32)
    output = model(pixel_values, teacher_features=[torch.randn(2, 10), torch.randn(2, 12)])
    assert output.loss.requires_grad
    with pytest.raises(ValueError, match="one tensor"):
        model(pixel_values, teacher_features=torch.randn(2, 10))
    with pytest.raises(ValueError, match="teacher_hidden_sizes"):
        model(pixel_values, teacher_features=[torch.randn(2, 12), torch.randn(2, 10)])


def test_teacher_features_receive_no_gradient(tiny_config):
    features = torch.randn(2, 64, requires_grad=True)
    GFMForPreTraining(tiny_config)(torch.randn(2, 3, 64, 64), teacher_features=features).loss.backward()
    assert features.grad is None


def test_classifier_equals_stock_swins(tiny_config, tmp_path):
    tiny_config.num_labels = 5
    model = randomise(GFMForImageClassification(tiny_config))
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 128, 128)
    stock = SwinForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixel_values).logits, model(pixel_values).logits, rtol=1e-5, atol=1e-5)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is GFMForImageClassification and again.num_labels == 5
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


def test_stock_classifier_brings_its_head_and_a_new_head_is_drawn_on_request(tmp_path):
    config = SwinConfig(image_size=64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_labels=3)
    stock = randomise(SwinForImageClassification(config))
    stock.save_pretrained(tmp_path)
    model = GFMForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(model.classifier.weight, stock.classifier.weight) and model.num_labels == 3
    with pytest.raises(RuntimeError, match="size mismatch"):
        GFMForImageClassification.from_pretrained(tmp_path, num_labels=7)
    other = GFMForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (7, 16)
    assert torch.equal(other.swin.layernorm.weight, stock.swin.layernorm.weight)


def test_classifier_takes_a_pretrained_encoder_of_any_size_and_bands(pretrained):
    model, folder = pretrained
    classifier = GFMForImageClassification.from_pretrained(
        folder,
        num_labels=4,
        num_channels=4,
        band_names=("B08", "B04", "B03", "B02"),
        problem_type="multi_label_classification",
    )
    filters = classifier.swin.embeddings.patch_embeddings.projection.weight
    assert torch.equal(filters[:, 1:], model.swin.embeddings.patch_embeddings.projection.weight)
    for size in ((4, 4), (30, 50), (64, 64)):
        output = classifier(torch.randn(2, 4, *size), labels=torch.ones(2, 4), output_hidden_states=True)
        assert output.logits.shape == (2, 4) and output.loss.requires_grad and len(output.hidden_states) == 5


def test_classification_losses_follow_labels_and_problem_type(tiny_config):
    tiny_config.num_labels = 3
    model = randomise(GFMForImageClassification(tiny_config))
    pixel_values, indices, hot = torch.randn(2, 3, 32, 32), torch.tensor([2, 0]), torch.eye(3)[[2, 0]]
    logits = model(pixel_values).logits
    one_label = torch.nn.functional.cross_entropy(logits, indices)
    several = torch.nn.functional.multilabel_soft_margin_loss(logits, hot)
    torch.testing.assert_close(model(pixel_values, labels=indices).loss, one_label)
    torch.testing.assert_close(model(pixel_values, labels=hot).loss, several)
    model.config.problem_type = "single_label_classification"
    torch.testing.assert_close(model(pixel_values, labels=hot).loss, one_label)  # probabilities of one label
    model.config.problem_type = "multi_label_classification"
    torch.testing.assert_close(model(pixel_values, labels=hot.long()).loss, several)
    with pytest.raises(ValueError, match="multi-hot"):
        model(pixel_values, labels=indices)
    model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="problem_type"):
        model(pixel_values, labels=hot)


def test_bfloat16(tiny_config):
    model = randomise(GFMForPreTraining(tiny_config))
    pixel_values = torch.randn(2, 3, 64, 64)
    mask, features = masks_for(pixel_values), torch.randn(2, 64)
    exact = model(pixel_values, mask, features).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(pixel_values, mask, features)
    assert mixed.loss.dtype == torch.float32
    torch.testing.assert_close(mixed.loss, exact, rtol=0.03, atol=0.03)
    half = model.to(torch.bfloat16)(pixel_values, mask, features).loss
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)


def test_export_and_back(tiny_config):
    model = randomise(GFMModel(tiny_config))
    pixel_values = torch.randn(1, 3, 52, 64)
    with torch.no_grad():
        program = torch.export.export(model, (pixel_values,))
        exported = program.module()(pixel_values).last_hidden_state
        # Tracing must not leave traced tensors behind.
        torch.testing.assert_close(exported, model(pixel_values).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_without_graph_breaks(tiny_config):
    model = randomise(GFMForPreTraining(tiny_config))
    pixel_values = torch.randn(2, 3, 64, 64)
    mask, features = masks_for(pixel_values), torch.randn(2, 64)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values, mask, features).loss, model(pixel_values, mask, features).loss)


def test_config_round_trip_and_checks(tmp_path):
    config = GFMConfig(band_names=("B02", "B03", "B04", "B08"), num_channels=4, distillation_stages=(2, 3), gsd=10.0)
    assert config.rgb_channels == (2, 1, 0)
    config.save_pretrained(tmp_path)
    again = GFMConfig.from_pretrained(tmp_path)
    for name in ("depths", "num_heads", "rgb_channels", "distillation_stages", "band_names"):
        assert tuple(getattr(again, name)) == tuple(getattr(config, name))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gfm"
    assert GFMConfig.from_pretrained(tmp_path, embed_dim=64).hidden_size == 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_norm_eps": 1e-6}, "1e-5"),
        ({"depths": (2, 2)}, "num_heads"),
        ({"embed_dim": 30}, "do not divide"),
        ({"mask_patch_size": 30}, "multiple of patch_size"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"distillation_stages": (5,)}, "distillation_stages"),
        ({"teacher_hidden_sizes": (5, 6)}, "teacher_hidden_sizes"),
        ({"band_names": ("R", "G")}, "band_names"),
        ({"rgb_channels": (0, 1, 5)}, "rgb_channels"),
        ({"window_size": "six"}, "window_size"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        GFMConfig(**fields)


def test_defaults_are_the_papers_student():
    with torch.device("meta"):
        model = GFMForPreTraining(GFMConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {"swin": 86_725_304, "decoder": 3_148_800, "projector": 1_049_600}
