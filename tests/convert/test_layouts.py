"""Names and orders of other code, against what its documentation and sources say, written out here by hand."""

import pytest
import torch
from torch import nn

from gfm_hf import GFMBackbone, GFMConfig, GFMForImageClassification, GFMForPreTraining, GFMModel
from gfm_hf.convert.layouts import LAYOUTS, recognise
from gfm_hf.convert.outward import translate


# Modules of a model with two stages of one block; every name is followed by .weight and .bias unless it says more.
BLOCK = {
    "release": ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"],
    "mmseg": ["norm1", "attn.w_msa.qkv", "attn.w_msa.proj", "norm2", "ffn.layers.0.0", "ffn.layers.1"],
    "torchvision": ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.3"],
}
TABLE = "relative_position_bias_table"
MODULES = {
    "timm": (
        ["patch_embed.proj", "patch_embed.norm", "layers.1.downsample.norm", "norm", "head.fc"],
        [f"layers.{stage}.blocks.0.{name}" for stage in (0, 1) for name in BLOCK["release"]],
        ["layers.1.downsample.reduction.weight", *(f"layers.{stage}.blocks.0.attn.{TABLE}" for stage in (0, 1))],
    ),
    "torchvision": (
        ["features.0.0", "features.0.2", "features.2.norm", "norm", "head"],
        [f"features.{place}.0.{name}" for place in (1, 3) for name in BLOCK["torchvision"]],
        [
            "features.2.reduction.weight",
            *(f"features.{place}.0.attn.{name}" for place in (1, 3) for name in (TABLE, "relative_position_index")),
        ],
    ),
    "authors": (
        ["patch_embed.proj", "patch_embed.norm", "layers.0.downsample.norm", "norm", "head"],
        [f"layers.{stage}.blocks.0.{name}" for stage in (0, 1) for name in BLOCK["release"]],
        [
            "layers.0.downsample.reduction.weight",
            *(
                f"layers.{stage}.blocks.0.attn.{name}"
                for stage in (0, 1)
                for name in (TABLE, "relative_position_index")
            ),
        ],
    ),
    "mmseg": (
        [
            f"backbone.{name}"
            for name in ("patch_embed.projection", "patch_embed.norm", "stages.0.downsample.norm", "norm")
        ],
        [f"backbone.stages.{stage}.blocks.0.{name}" for stage in (0, 1) for name in BLOCK["mmseg"]],
        [
            "backbone.stages.0.downsample.reduction.weight",
            *(
                f"backbone.stages.{stage}.blocks.0.attn.w_msa.{name}"
                for stage in (0, 1)
                for name in (TABLE, "relative_position_index")
            ),
        ],
    ),
}


@pytest.fixture
def config():
    return GFMConfig(image_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_labels=3)


@pytest.mark.parametrize("target", MODULES)
def test_names_are_those_of_the_other_code(config, target):
    model = GFMForImageClassification(config)
    tensors, _ = translate(model, LAYOUTS[target])
    with_bias, block, alone = MODULES[target]
    expected = {f"{name}.{kind}" for name in [*with_bias, *block] for kind in ("weight", "bias")} | set(alone)
    assert set(tensors) == expected


@pytest.mark.parametrize("target", ["timm", "torchvision", "authors", "mmseg"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder."])
def test_files_are_recognised_under_any_prefix(config, target, prefix):
    tensors, _ = translate(GFMForImageClassification(config), LAYOUTS[target])
    trunk = LAYOUTS[target].trunk if target == "mmseg" else ""
    spelling = recognise([prefix + name for name in tensors])
    assert spelling.layout.name == target and spelling.trunk == prefix + trunk


def test_the_student_is_chosen_not_its_teacher(config):
    names, _ = translate(GFMForPreTraining(config), LAYOUTS["authors"])
    teacher = ["teacher." + name.removeprefix("encoder.") for name in names if name.startswith("encoder.")]
    assert recognise([*teacher, *names]).trunk == "encoder."


def test_unknown_names_are_no_layout():
    assert recognise(["conv1.weight", "layer1.0.conv1.weight"]) is None and recognise([]) is None


class UnfoldMerging(nn.Module):
    """Patch merging as mmseg and terratorch compute it."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, feature_map):
        unfolded = nn.functional.unfold(feature_map, kernel_size=2, stride=2).transpose(1, 2)
        return self.reduction(self.norm(unfolded))


def test_merging_of_mmseg_gives_the_same_tokens(config):
    """The order of the 2 x 2 inputs, through torch's own unfold."""
    model = GFMModel(config)
    ours = model.encoder.layers[0].downsample
    nn.init.normal_(ours.norm.weight)
    nn.init.normal_(ours.norm.bias)
    tensors, _ = translate(model, LAYOUTS["mmseg"])
    theirs = UnfoldMerging(config.embed_dim)
    start = "backbone.stages.0.downsample."
    theirs.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    tokens = torch.randn(2, 6 * 4, config.embed_dim)
    merged = ours(tokens, (6, 4))
    expected = theirs(tokens.transpose(1, 2).unflatten(2, (6, 4)))
    torch.testing.assert_close(merged, expected)
    for name in ("norm.weight", "reduction.weight"):  # and back
        full = f"encoder.layers.0.downsample.{name}"
        assert torch.equal(LAYOUTS["mmseg"].to_ours(full, tensors[start + name]), model.state_dict()[full])


def test_mmseg_and_terratorch_keep_the_norms_of_the_maps(config):
    config.out_features = ["stage1", "stage2"]
    backbone = GFMBackbone(config)
    tensors, dropped = translate(backbone, LAYOUTS["mmseg"])
    assert {"backbone.norm0.weight", "backbone.norm1.bias"} <= set(tensors)
    assert set(dropped) == {"swin.embeddings.mask_token"}
    places = {"backbone.norm0.": "stages.0.norm.", "backbone.norm1.": "stages.1.norm.", "backbone.": ""}
    inside = []
    for name in tensors:
        start = next(prefix for prefix in places if name.startswith(prefix))
        inside.append(places[start] + name.removeprefix(start))
    assert recognise(inside).layout.name == "terratorch"


def test_derived_buffers_are_torchs_own(config):
    """The position index, against the definition: row of the table for each pair of tokens."""
    config = GFMConfig.from_dict(config.to_dict(), depths=(2, 1))
    tensors, _ = translate(GFMModel(config), LAYOUTS["authors"])
    index = tensors["encoder.layers.0.blocks.0.attn.relative_position_index"]
    window, side = 4, 8
    for first, second in ((0, 0), (0, 15), (15, 0), (5, 2)):
        down, right = first // 4 - second // 4, first % 4 - second % 4
        assert index[first, second] == (down + window - 1) * (2 * window - 1) + right + window - 1
    mask = tensors["encoder.layers.0.blocks.1.attn_mask"]
    assert mask.shape == ((side // window) ** 2, 16, 16) and set(mask.unique().tolist()) == {0.0, -100.0}
    assert (mask[0] == 0).all() and not (mask[3] == 0).all()
    assert "encoder.layers.1.blocks.0.attn_mask" not in tensors
