"""The authors' four weight files through the converter: their recorded losses, features and logits, and back."""

import collections
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gfm_hf import GFMForImageClassification, GFMForPreTraining, GFMTeacher, convert_checkpoint
from gfm_hf.convert import adam_state, read_model, write_checkpoint
from gfm_hf.convert.reading import open_checkpoint
from gfm_hf.training.optim import parameter_groups

from . import authors


FILES = {
    "train_ckpt_epoch_0.pth": GFMForPreTraining,
    "bare_student.pth": GFMForPreTraining,
    "teacher_22k.pth": GFMForImageClassification,
    "finetuned_ckpt_epoch_max.pth": GFMForImageClassification,
}


@pytest.fixture(scope="module")
def expected(parity_dir):
    return json.loads((parity_dir / "train_ckpt_expected.json").read_text())


@pytest.fixture(scope="module")
def record(expected):
    found = expected["train_ckpt"]
    return found | {"config": found["config"] | {"patch_size": 4}}


@pytest.fixture(scope="module")
def expected_tensors(parity_dir):
    return load_file(parity_dir / "train_ckpt_expected.safetensors")


def images(name, shape):
    return authors.rule_input(name, tuple(shape)).double()


@pytest.mark.parametrize("file", FILES)
def test_every_weight_is_accounted_for(parity_dir, file):
    conversion = read_model(parity_dir / file)
    assert type(conversion.model) is FILES[file]
    stored = open_checkpoint(parity_dir / file).tensors
    buffers = {name for name in stored if name.endswith(("relative_position_index", "attn_mask"))}
    teacher = {name for name in stored if name.startswith("teacher.")}
    assert set(conversion.derived) == buffers and set(conversion.dropped) == teacher - buffers


def as_torch_reads(path):
    """The whole file by torch's own reader, with a stand-in for the configuration's type."""
    with torch.serialization.safe_globals([(collections.OrderedDict, "yacs.config.CfgNode")]):
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize("file", FILES)
def test_our_reader_reads_what_torchs_does(parity_dir, file):
    checkpoint, theirs = open_checkpoint(parity_dir / file), as_torch_reads(parity_dir / file)
    assert set(checkpoint.tensors) == set(theirs["model"])
    for name, tensor in theirs["model"].items():
        ours = checkpoint.read(name)
        assert ours.dtype == tensor.dtype and torch.equal(ours, tensor), name
    if "config" in theirs:
        assert checkpoint.config["DATA"]["IMG_SIZE"] == theirs["config"]["DATA"]["IMG_SIZE"]
        moments = theirs["optimizer"]["state"]
        assert set(checkpoint.optimizer) == set(moments)
        assert all(torch.equal(checkpoint.optimizer[i]["exp_avg"](), moments[i]["exp_avg"]) for i in moments)


@pytest.mark.parametrize("file", FILES)
def test_way_back_is_bit_equal(parity_dir, file, tmp_path):
    """Convert, save, load, convert back: every tensor of the authors' file but the teacher's, buffers included."""
    convert_checkpoint(parity_dir / file).save_pretrained(tmp_path / "ours")
    reloaded = FILES[file].from_pretrained(tmp_path / "ours")
    write_checkpoint(reloaded, tmp_path / "back.pth", "authors")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    stored = {
        name: tensor
        for name, tensor in as_torch_reads(parity_dir / file)["model"].items()
        if not name.startswith("teacher.")
    }
    assert set(back) == set(stored)
    for name, tensor in stored.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_embedded_configuration_is_used_and_overrides_win(parity_dir):
    config = convert_checkpoint(parity_dir / "train_ckpt_epoch_0.pth").config
    assert (config.image_size, config.window_size, config.mask_patch_size, config.mask_ratio) == (192, 6, 32, 0.6)
    assert config.distillation_stages == (3,) and config.teacher_hidden_sizes == (32,)
    config = convert_checkpoint(parity_dir / "train_ckpt_epoch_0.pth", mask_ratio=0.75, gsd=1.5).config
    assert config.mask_ratio == 0.75 and config.gsd == 1.5


@pytest.mark.parametrize("file", ["train_ckpt_epoch_0.pth", "bare_student.pth"])
def test_student_features(parity_dir, record, expected_tensors, file):
    model = convert_checkpoint(parity_dir / file).double()
    pixel_values = images("ckpt.eval", (2, 3, 192, 192))
    masks = authors.token_mask(torch.tensor(record["masks_coarse"][0]), record["config"])
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True)
        masked = model(pixel_values, masks, output_hidden_states=True)
    features = authors.student_features(model, pixel_values, output)
    authors.assert_close(features.zs, record["pooled_zs"], rtol=1e-9, atol=1e-9)
    authors.assert_close(features.zs_proj, record["projector_of_zs"], rtol=1e-9, atol=1e-9)
    authors.assert_close(features.r.mean(dim=(2, 3)), record["pooled_final_norm"], rtol=1e-9, atol=1e-9)
    stored = {name.removeprefix("ckpt.eval."): tensor.double() for name, tensor in expected_tensors.items()}
    masked_r = authors.student_features(model, pixel_values, masked).r
    for ours, name in ((features.r, "r"), (masked_r, "masked_r"), (features.zs, "zs")):
        authors.assert_close(ours, stored[name], rtol=0, atol=2e-7, what=name)
    for stage, tokens in enumerate(features.stages):
        authors.assert_close(tokens[:1], stored[f"layers.{stage}"], rtol=0, atol=2e-6, what=f"stage {stage}")


def test_pretraining_goes_on_as_the_authors_did(parity_dir, record):
    """Epochs 1 and 2 after their `load_checkpoint`, moments of the optimizer included."""
    settings, recorded = record["train"], record["resumed_epochs_1_2_float32"]
    model = convert_checkpoint(parity_dir / "train_ckpt_epoch_0.pth").train()
    teacher = GFMTeacher(convert_checkpoint(parity_dir / "teacher_22k.pth").swin, [3], 224)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings["WEIGHT_DECAY"], decay_position_tables=True), lr=0.0
    )
    moments = adam_state(parity_dir / "train_ckpt_epoch_0.pth", model)
    optimizer.state.update({parameter: moments[name] for name, parameter in model.named_parameters()})
    losses = []
    for step, rate in enumerate(recorded["lr_used"], start=4):
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixel_values = authors.rule_input(f"ckpt.input.{step}", (2, 3, 192, 192))
        masks = authors.token_mask(torch.tensor(record["masks_coarse"][step]), record["config"])
        output = model(pixel_values, masks, teacher(pixel_values))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["CLIP_GRAD"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    np.testing.assert_allclose(losses, recorded["losses"], atol=5e-6)


def test_release_file_is_the_teacher_and_a_classifier(parity_dir, expected):
    record = expected["teacher_22k"]
    model = convert_checkpoint(parity_dir / "teacher_22k.pth").double()
    assert model.config.num_labels == 50 and model.config.image_size == 224 and model.config.window_size == 7
    pixel_values = images(record["input_rule_name"], record["input_shape"])
    with torch.no_grad():
        authors.assert_close(model(pixel_values).logits, record["logits"], rtol=1e-9, atol=1e-9)
        authors.assert_close(model.swin(pixel_values).pooler_output, record["pooled_after_norm"], rtol=1e-9, atol=1e-9)
        zt = GFMTeacher(model.swin, [3], 224)(pixel_values)[0]
    authors.assert_close(zt, record["zt"], rtol=1e-9, atol=1e-9)


def test_fine_tuned_classifier(parity_dir):
    trajectory = json.loads((parity_dir / "finetune.json").read_text())["finetune_trajectory"]
    model = convert_checkpoint(parity_dir / "finetuned_ckpt_epoch_max.pth")
    pixel_values = authors.rule_input("ft128.input", (6, 3, 128, 128))
    with torch.no_grad():
        logits = model(pixel_values).logits
    authors.assert_close(logits, trajectory["logits_after_8_steps_on_ft128.input"], rtol=0, atol=3e-5)
