"""Teachers of several families, tiny and with random weights, against the whole models they were cut from."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from gfm_hf import GFMForPreTraining, GFMTeacher


# The maps are never smaller than the window, as at 224 px with window 7: there stock Swin agrees with itself.
SWIN = {"image_size": 128, "embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
FAMILIES = {
    "swin": lambda: SwinModel(SwinConfig(**SWIN)),
    "swinv2": lambda: Swinv2Model(Swinv2Config(**SWIN)),
    "vit": lambda: ViTModel(ViTConfig(image_size=32, patch_size=8, **VIT)),
    "beit": lambda: BeitModel(BeitConfig(image_size=32, patch_size=8, **VIT)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **VIT)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=3, **VIT)
    ),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(image_size=32, patch_size=8, num_register_tokens=2, **VIT)),
    "convnext": lambda: ConvNextModel(ConvNextConfig(image_size=64, **STAGES)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
}


def save(model: PreTrainedModel, folder: Path) -> str:
    """Save with weights that matter everywhere: fresh norms and biases would hide a missing or doubled norm."""
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    model.eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def swin(tmp_path) -> tuple[SwinModel, str]:
    model = FAMILIES["swin"]()
    return model, save(model, tmp_path / "swin")


def images_for(model: PreTrainedModel, count: int = 2) -> torch.Tensor:
    size = getattr(model.config, "image_size", 64)
    return torch.randn(count, 3, size, size)


@torch.no_grad()
def pooled_hidden_states(model: PreTrainedModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Mean over the places of each stage's output, of the whole model; class and register tokens come first."""
    pooled = []
    for states in model(images, output_hidden_states=True).hidden_states[1:]:
        if states.ndim == 4:
            pooled.append(states.mean(dim=(2, 3)))
        else:
            places = (images.shape[2] // model.config.patch_size) ** 2
            pooled.append(states[:, max(states.shape[1] - places, 0) :].mean(dim=1))
    return pooled


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_pooled_hidden_states_of_the_whole_model(family, tmp_path):
    model = FAMILIES[family]()
    name, images = save(model, tmp_path / "teacher"), images_for(model)
    expected = pooled_hidden_states(model, images)
    for stages in ([1], [3], [4], [3, 1]):
        teacher = GFMTeacher.from_pretrained(name, stages=stages)
        features = teacher(images)
        assert [tensor.shape[1] for tensor in features] == teacher.hidden_sizes and teacher.stages == stages
        for stage, tensor in zip(stages, features, strict=True):
            assert torch.allclose(tensor, expected[stage - 1], atol=1e-6), (family, stage)
        assert not any(tensor.requires_grad for tensor in features)


def kept(teacher: GFMTeacher) -> set[str]:
    return {name for name, _ in teacher._model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_behind_the_last_stage_is_kept(family, tmp_path):
    model = FAMILIES[family]()
    name = save(model, tmp_path / "teacher")
    # What has an influence on the features of a stage is what is needed for it, and nothing else.
    images = images_for(model, 1)
    for stage in (1, 3):
        model.zero_grad(set_to_none=True)
        model(images, output_hidden_states=True).hidden_states[stage].sum().backward()
        needed = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        surplus = kept(GFMTeacher.from_pretrained(name, stages=[stage])) - needed
        assert not [name for name in surplus if "mask_token" not in name], surplus


def test_swin_is_cut_to_the_size_the_paper_uses(swin):
    """Stem and stages 1 to 3 with their mergings: neither stage 4 nor the final norm."""
    model, name = swin
    wanted = {n for n, _ in model.named_parameters() if n.startswith("embeddings.")}
    wanted |= {n for n, _ in model.named_parameters() if n.startswith(tuple(f"encoder.layers.{i}." for i in range(3)))}
    assert kept(GFMTeacher.from_pretrained(name, stages=[3])) - {"embeddings.mask_token"} == wanted


def test_gfm_checkpoint_can_be_a_teacher(tiny_config, tmp_path):
    student = GFMForPreTraining(tiny_config).eval()
    student.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = student(images, output_hidden_states=True).hidden_states[3].mean(dim=1)
    teacher = GFMTeacher.from_pretrained(str(tmp_path), stages=[3])
    assert torch.allclose(teacher(images)[0], expected, atol=1e-6)


@pytest.mark.parametrize("family", ["swin", "vit", "resnet"])
@pytest.mark.parametrize("stage", [0, 5, -1])
def test_stage_that_is_not_there(family, stage, tmp_path):
    name = save(FAMILIES[family](), tmp_path / "teacher")
    with pytest.raises(ValueError, match=f"has stages 1 to 4 but stage {stage} was asked for"):
        GFMTeacher.from_pretrained(name, stages=[stage])


def test_model_without_layers_is_refused():
    class Flat(PreTrainedModel):
        config_class = ViTConfig

        def __init__(self, config):
            super().__init__(config)
            self.linear = nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"No list of \[12\] layers .* use a ViT-, Swin-"):
        GFMTeacher(Flat(ViTConfig()), [1], image_size=32, name="flat")


def test_it_is_no_module_and_learns_nothing(swin):
    model, name = swin
    teacher = GFMTeacher.from_pretrained(name)
    assert not isinstance(teacher, nn.Module)
    student = nn.Module()
    student.teacher = teacher
    assert not list(student.parameters()) and not student.state_dict()
    images = images_for(model).requires_grad_()
    assert not teacher(images)[0].requires_grad
    assert not any(parameter.requires_grad for parameter in teacher._model.parameters())
    assert not teacher._model.training and teacher.name == name and teacher.device.type == "cpu"


def test_images_are_resized_to_the_teachers_size(swin):
    model, name = swin
    images = torch.randn(2, 3, 96, 96)
    resized = nn.functional.interpolate(images, size=(128, 128), mode="bilinear", align_corners=True)
    assert torch.allclose(
        GFMTeacher.from_pretrained(name)(images)[0], pooled_hidden_states(model, resized)[2], atol=1e-5
    )
    small = GFMTeacher.from_pretrained(name, image_size=64)
    assert small.image_size == 64
    shrunk = nn.functional.interpolate(images, size=(64, 64), mode="bilinear", align_corners=True)
    assert torch.equal(small(images)[0], small(shrunk)[0])


def test_red_green_and_blue_are_picked_from_the_students_bands(swin):
    model, name = swin
    images = torch.randn(2, 6, 128, 128)
    teacher = GFMTeacher.from_pretrained(name, rgb_channels=(4, 2, 0))
    expected = pooled_hidden_states(model, images[:, [4, 2, 0]])[2]
    assert torch.allclose(teacher(images)[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="6 bands; pass rgb_channels"):
        GFMTeacher.from_pretrained(name)(images)


def test_images_are_brought_to_the_teachers_normalisation(swin):
    model, name = swin
    ViTImageProcessorPil(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0]).save_pretrained(name)
    pictures = torch.rand(2, 3, 128, 128)
    mean, std = torch.tensor([0.4, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.4])
    as_student = (pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    as_teacher = (pictures - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    expected = pooled_hidden_states(model, as_teacher)[2]
    teacher = GFMTeacher.from_pretrained(name, image_mean=mean.tolist(), image_std=std.tolist())
    assert torch.allclose(teacher(as_student)[0], expected, atol=1e-5)
    # Not told how they were normalised, it takes them as they come.
    assert torch.allclose(GFMTeacher.from_pretrained(name)(as_teacher)[0], expected, atol=1e-6)


def test_without_a_processor_imagenets_normalisation_is_assumed(swin):
    model, name = swin
    images = images_for(model)
    teacher = GFMTeacher.from_pretrained(name, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    assert torch.equal(teacher(images)[0], GFMTeacher.from_pretrained(name)(images)[0])


@pytest.mark.parametrize("family", ["swin", "vit", "convnext"])
def test_bfloat16_points_the_same_way(family, tmp_path):
    model = FAMILIES[family]()
    name, images = save(model, tmp_path / "teacher"), images_for(model)
    full = GFMTeacher.from_pretrained(name)(images)[0]
    half = GFMTeacher.from_pretrained(name, dtype=torch.bfloat16)(images)[0]
    assert half.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(full, half.float(), dim=1).min() > 0.999


def test_the_students_autocast_does_not_reach_it(swin):
    model, name = swin
    images, teacher = images_for(model), GFMTeacher.from_pretrained(name)
    with torch.autocast("cpu", torch.bfloat16):
        features = teacher(images)[0]
    assert features.dtype == torch.float32 and torch.equal(features, teacher(images)[0])


def test_fast_dtype_is_a_float_the_device_has():
    assert GFMTeacher.fast_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
