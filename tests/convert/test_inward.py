import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwinConfig, SwinForImageClassification, SwinForMaskedImageModeling, SwinModel

from gfm_hf import (
    GFMBackbone,
    GFMConfig,
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
    GFMImageProcessor,
    GFMModel,
    convert_checkpoint,
)
from gfm_hf.convert import CheckpointError, processor_for, read_model, write_checkpoint
from gfm_hf.convert.layouts import LAYOUTS
from gfm_hf.convert.outward import translate
from gfm_hf.model.weights_gfm import resize_position_table


@pytest.fixture
def config():
    return GFMConfig(
        image_size=64,
        embed_dim=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        window_size=4,
        mlp_ratio=2.0,
        num_labels=5,
    )


def filled(model):
    """A model whose every weight is different from a fresh one's."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


SOURCES = [
    (GFMForPreTraining, "authors", "file.pth", ()),
    (GFMForPreTraining, "authors", "file.safetensors", ()),
    (GFMModel, "authors", "file.pth", ()),
    (GFMForImageClassification, "authors", "file.pth", ("mask_token",)),
    (GFMForImageClassification, "timm", "file.safetensors", ("mask_token",)),
    (GFMForImageClassification, "torchvision", "file.pth", ("mask_token",)),
    (GFMModel, "mmseg", "file.pth", ("mask_token",)),
    (GFMBackbone, "mmseg", "file.safetensors", ("mask_token",)),
    (GFMForPreTraining, "swin", "file.pth", ("projector.0.weight", "projector.0.bias")),
]


@pytest.mark.parametrize(("model_class", "target", "file", "lost"), SOURCES)
def test_round_trip_through_every_layout(config, tmp_path, model_class, target, file, lost):
    """Out and in again: the same class, the same shape of everything, the same weights."""
    if model_class is GFMBackbone:
        config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    model = filled(model_class(config)).eval()
    write_checkpoint(model, tmp_path / file, target)
    # The map of the last stage (2 tokens) is smaller than the window: only these two layouts cut its table.
    told = {} if target in ("authors", "timm") else {"image_size": 64}
    back = convert_checkpoint(tmp_path / file, **told)
    assert type(back) is model_class
    for name in ("image_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "num_channels"):
        assert getattr(back.config, name) == getattr(config, name), name
    tables = ("layers.3.blocks.0.attention.relative_position_bias.relative_position_bias_table",)
    ours, theirs = model.state_dict(), back.state_dict()
    assert set(ours) - set(theirs) <= set(lost)
    for name in theirs:
        if not name.endswith(lost or ("nothing",)) and not name.endswith(tables):
            assert torch.equal(ours[name], theirs[name]), name
    pixel_values = torch.randn(2, 3, 64, 64)
    for first, second in zip(model(pixel_values).to_tuple(), back(pixel_values).to_tuple()):
        for one, other in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (first, second))):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_tables_of_smaller_windows_land_in_the_middle(config, tmp_path):
    model = filled(GFMModel(config))
    write_checkpoint(model, tmp_path / "file.pth", "authors")
    name = "encoder.layers.3.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    stored = torch.load(tmp_path / "file.pth")["model"]["encoder.layers.3.blocks.0.attn.relative_position_bias_table"]
    assert stored.shape == (9, 4)  # a 2 x 2 map
    table = convert_checkpoint(tmp_path / "file.pth").state_dict()[name].unflatten(0, (7, 7))
    assert torch.equal(table[2:5, 2:5], stored.unflatten(0, (3, 3)))
    assert (table != 0).sum() == stored.numel()


def test_everything_is_inferred_for_other_shapes(tmp_path):
    config = GFMConfig(
        image_size=48, patch_size=2, embed_dim=12, depths=(2, 2), num_heads=(3, 4), window_size=6, qkv_bias=False,
        num_channels=5, mask_patch_size=8, use_absolute_embeddings=True, distillation_stages=(1,), teacher_hidden_sizes=(7,),
    )  # fmt: skip
    write_checkpoint(filled(GFMForPreTraining(config)), tmp_path / "file.pth", "authors")
    back = convert_checkpoint(tmp_path / "file.pth").config
    for name in (
        "image_size",
        "patch_size",
        "embed_dim",
        "depths",
        "num_heads",
        "window_size",
        "qkv_bias",
        "num_channels",
    ):
        assert getattr(back, name) == getattr(config, name), name
    assert back.use_absolute_embeddings and back.distillation_stages == (1,) and back.teacher_hidden_sizes == (7,)


def test_without_a_projector_it_is_masked_image_modelling(config, tmp_path):
    """SimMIM's own files."""
    tensors, _ = translate(filled(GFMForPreTraining(config)), LAYOUTS["authors"])
    torch.save({"model": {k: v for k, v in tensors.items() if not k.startswith("projector")}}, tmp_path / "file.pth")
    model = convert_checkpoint(tmp_path / "file.pth")
    assert type(model) is GFMForPreTraining and model.config.distillation_stages == ()


def test_what_no_weight_tells_is_asked_for_by_name(config, tmp_path):
    write_checkpoint(GFMModel(config), tmp_path / "file.pth", "mmseg")
    with pytest.raises(CheckpointError, match=r"pass image_size, for instance 128 .*--set image_size=128"):
        convert_checkpoint(tmp_path / "file.pth")
    assert convert_checkpoint(tmp_path / "file.pth", image_size=64).config.image_size == 64


def test_what_is_assumed_is_said(config, tmp_path):
    write_checkpoint(GFMForPreTraining(config), tmp_path / "file.pth", "authors")
    conversion = read_model(tmp_path / "file.pth", mask_ratio=0.5)
    guesses = {"mask_patch_size": 32, "distillation_weight": 1.0, "distillation_stages": (3,)}
    assert conversion.assumed == guesses  # the last two stages have one width
    processor_for(conversion, {})
    assert conversion.assumed["image_mean"][0] == 0.485


def test_overrides_of_the_geometry_move_weights(config, tmp_path):
    model = filled(GFMModel(config))
    write_checkpoint(model, tmp_path / "file.pth", "authors")
    wider = convert_checkpoint(tmp_path / "file.pth", window_size=8, image_size=128)
    name = "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    assert wider.config.window_size == 8
    torch.testing.assert_close(wider.state_dict()[name], resize_position_table(model.state_dict()[name], 15**2))
    bands = convert_checkpoint(tmp_path / "file.pth", num_channels=4, band_names=["B08", "B04", "B03", "B02"])
    filters = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(bands.state_dict()[filters][:, 1:], model.state_dict()[filters])


@pytest.mark.parametrize("override", [{"embed_dim": 16}, {"depths": [2, 2, 2, 2]}, {"num_heads": (1, 1, 1, 1)}])
def test_overrides_against_the_weights_are_refused(config, tmp_path, override):
    write_checkpoint(GFMModel(config), tmp_path / "file.pth", "authors")
    with pytest.raises(CheckpointError, match=f"{next(iter(override))} is .* by your wish but .* by the weights"):
        convert_checkpoint(tmp_path / "file.pth", **override)


def test_heads_of_mmseg_stay_behind_with_a_reason(config, tmp_path):
    tensors, _ = translate(GFMModel(config), LAYOUTS["mmseg"])
    torch.save({"state_dict": tensors | {"decode_head.conv_seg.weight": torch.ones(2, 2)}}, tmp_path / "file.pth")
    conversion = read_model(tmp_path / "file.pth", image_size=64)
    assert "mmseg" in conversion.dropped["decode_head.conv_seg.weight"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.cpb_mlp.0.weight"], "Swin V2"),
        (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"], "ViT"),
        (["conv1.weight"], "any layout"),
    ],
)
def test_other_architectures_are_named(tmp_path, names, sentence):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_the_files(config, tmp_path, dtype):
    model = filled(GFMModel(config)).to(dtype)
    write_checkpoint(model, tmp_path / "file.pth", "authors")
    back = convert_checkpoint(tmp_path / "file.pth")
    assert back.dtype == dtype
    back.save_pretrained(tmp_path / "ours")
    assert GFMModel.from_pretrained(tmp_path / "ours", dtype="auto").dtype == dtype


def test_mixed_precision_becomes_single(config, tmp_path):
    tensors, _ = translate(GFMModel(config), LAYOUTS["authors"])
    tensors = {
        name: tensor.half() if tensor.ndim == 2 and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    torch.save({"model": tensors}, tmp_path / "file.pth")
    assert convert_checkpoint(tmp_path / "file.pth").dtype == torch.float32


def test_the_model_does_not_depend_on_the_file(config, tmp_path):
    write_checkpoint(filled(GFMModel(config)), tmp_path / "file.pth", "authors")
    model = convert_checkpoint(tmp_path / "file.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (tmp_path / "file.pth").open("r+b") as file:
        file.write(b"\xff" * (tmp_path / "file.pth").stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- folders ---------------------------------------------------------------------------------------------------------


STOCK = [
    (SwinModel, GFMModel),
    (SwinForImageClassification, GFMForImageClassification),
    (SwinForMaskedImageModeling, GFMForPreTraining),
]


@pytest.mark.parametrize(("stock_class", "model_class"), STOCK)
def test_stock_swin_to_gfm_to_both(tmp_path, stock_class, model_class):
    """A folder of transformers -> GFM -> saved -> loaded as GFM and as stock Swin, all with difference 0.0."""
    config = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, num_labels=5
    )
    stock = filled(stock_class(config)).eval()
    stock.save_pretrained(tmp_path / "stock")
    model = convert_checkpoint(tmp_path / "stock")
    assert type(model) is model_class
    model.save_pretrained(tmp_path / "gfm")
    write_checkpoint(model, tmp_path / "again", "swin")
    again = model_class.from_pretrained(tmp_path / "gfm")
    directly, written = stock_class.from_pretrained(tmp_path / "gfm"), stock_class.from_pretrained(tmp_path / "again")
    for name, tensor in stock.state_dict().items():
        for other in (directly, written):
            assert torch.equal(other.state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name


def test_our_own_folder_comes_back_as_its_class(config, tmp_path):
    filled(GFMForPreTraining(config)).save_pretrained(tmp_path)
    assert type(convert_checkpoint(tmp_path)) is GFMForPreTraining
    assert type(convert_checkpoint(tmp_path / "model.safetensors")) is GFMForPreTraining


def test_timm_folder_tells_size_and_statistics(config, tmp_path):
    write_checkpoint(
        GFMForImageClassification(GFMConfig.from_dict(config.to_dict(), image_size=128)),
        tmp_path / "model.safetensors",
        "timm",
    )
    stored = {"input_size": [3, 128, 128], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_x", "pretrained_cfg": stored}))
    conversion = read_model(tmp_path)
    assert conversion.model.config.image_size == 128
    assert processor_for(conversion, {}).image_mean == (0.1, 0.2, 0.3)


def test_several_files_are_no_guess(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="2 weight files .*name the one to convert"):
        convert_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert_checkpoint(tmp_path / "missing.pth")


def test_a_folder_is_held_to_its_configuration(config, tmp_path):
    """Missing, additional and contradicting weights are errors there too: nothing is drawn at random in silence."""
    filled(GFMForPreTraining(config)).save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    lacking = {name: tensor for name, tensor in whole.items() if "layers.2.blocks.0.attention.q_proj" not in name}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not complete: .*q_proj"):
        convert_checkpoint(tmp_path)
    save_file(whole | {"extra.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no place in a GFMForPreTraining: extra.weight"):
        convert_checkpoint(tmp_path)
    save_file(whole, tmp_path / "model.safetensors")
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"depths": [1, 1, 3, 1]}))
    with pytest.raises(CheckpointError, match="config.json says depths .* but the weights say"):
        convert_checkpoint(tmp_path)


def test_pickled_folders_go_through_the_same_reader(config, tmp_path):
    model = filled(GFMModel(config))
    model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    back = convert_checkpoint(tmp_path)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": os.system}))
    with pytest.raises(CheckpointError, match="posix.system|os.system|wants to run"):
        convert_checkpoint(tmp_path)


def test_parts_of_one_model_are_read_together(config, tmp_path):
    model = filled(GFMForImageClassification(config))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back = convert_checkpoint(tmp_path)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks parts of its weights"):
        convert_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "model_class", [GFMForSemanticSegmentation, GFMForChangeDetection, GFMForImageSuperResolution]
)
def test_task_models_of_ours_come_back_whole(config, tmp_path, model_class):
    config.decoder_channels = config.auxiliary_channels = 8
    model = filled(model_class(config))
    model.save_pretrained(tmp_path)
    back = convert_checkpoint(tmp_path)
    assert type(back) is model_class
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


# ---- processor -------------------------------------------------------------------------------------------------------


def test_processor_of_pictures_and_of_bands(config, tmp_path):
    save_file(translate(GFMModel(config), LAYOUTS["authors"])[0], tmp_path / "file.safetensors")
    processor = processor_for(read_model(tmp_path / "file.safetensors"), {})
    assert processor.band_names == ("R", "G", "B") and processor.image_mean[0] == 0.485
    reversed_bands = processor_for(read_model(tmp_path / "file.safetensors", band_names=["B02", "B03", "B04"]), {})
    assert reversed_bands.image_mean[0] == 0.406 and reversed_bands.band_names == ("B02", "B03", "B04")
    many = read_model(tmp_path / "file.safetensors", num_channels=4, rgb_channels=(2, 1, 0))
    with pytest.raises(CheckpointError, match="statistics of these 4 bands"):
        processor_for(many, {})
    assert processor_for(many, {"image_mean": [0.1] * 4, "image_std": [0.2] * 4}).image_std == (0.2,) * 4


def test_statistics_move_with_their_bands(config, tmp_path):
    config = GFMConfig.from_dict(config.to_dict(), band_names=("R", "G", "B"))
    filled(GFMModel(config)).save_pretrained(tmp_path)
    GFMImageProcessor(
        size=64, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], rescale_factor=1e-4
    ).save_pretrained(tmp_path)
    turned = processor_for(read_model(tmp_path, band_names=["B", "G", "R"]), {})
    assert turned.image_mean == (0.3, 0.2, 0.1) and turned.image_std == (0.6, 0.5, 0.4)
    assert turned.rescale_factor == 1e-4 and turned.band_names == ("B", "G", "R")
    assert processor_for(read_model(tmp_path), {}).image_mean == (0.1, 0.2, 0.3)
    with pytest.raises(CheckpointError, match="pass image_mean"):  # other bands than the ones they were measured on
        processor_for(read_model(tmp_path, num_channels=4, band_names=["NIR", "R", "G", "B"]), {})
    with pytest.raises(CheckpointError, match="correct --set"):
        processor_for(read_model(tmp_path), {"rescale_factor": "abc"})


@pytest.mark.parametrize(("field", "value"), [("window_size", 0), ("window_size", "zzz"), ("image_size", -3)])
def test_settings_that_cannot_be_are_named(config, tmp_path, field, value):
    write_checkpoint(GFMModel(config), tmp_path / "file.pth", "authors")
    with pytest.raises(CheckpointError, match=field):
        convert_checkpoint(tmp_path / "file.pth", **{field: value})


def test_names_of_classes_lead_both_ways(config, tmp_path):
    write_checkpoint(GFMForImageClassification(config), tmp_path / "file.pth", "authors")
    named = convert_checkpoint(tmp_path / "file.pth", id2label=["a", "b", "c", "d", "e"]).config
    assert named.id2label[4] == "e" and named.label2id == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def test_mistyped_paths_are_not_asked_for_over_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/missing.pth", "models/missing", "missing/model.pth"):
        with pytest.raises(CheckpointError, match="does not exist"):
            convert_checkpoint(name)
