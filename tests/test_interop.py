"""Other people's tools on our models: PEFT here, whose package installs; the names of the others in convert/test_layouts."""

import peft
import pytest
import torch

from gfm_hf import GFMForImageClassification, GFMForPreTraining, GFMModel, convert_checkpoint
from gfm_hf.convert import write_checkpoint


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


def trained(model, images):
    """One step, so that the adapter is not the identity any more."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # the first step moves only one of the two factors
        model(pixel_values=images, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    return model.eval()


def test_lora_is_trained_saved_alone_and_merged(tiny_config, images, tmp_path):
    tiny_config.num_labels = 3
    base = GFMForImageClassification(tiny_config)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA, modules_to_save=["classifier"]))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len([name for name in names if "lora_A" in name]) == 4 * sum(tiny_config.depths)
    logits = trained(model, images)(pixel_values=images).logits
    model.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))

    fresh = GFMForImageClassification.from_pretrained(tmp_path / "base").eval()
    plain = fresh(images).logits
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(pixel_values=images).logits, logits, rtol=0, atol=1e-6)
    assert not torch.allclose(plain, logits, atol=1e-3)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(images).logits, logits, rtol=0, atol=1e-5)


def test_an_adapter_folder_alone_brings_its_base(tiny_config, images, tmp_path):
    """`from_pretrained` of the class on the adapter's folder: base and adapter together."""
    base = GFMForImageClassification(tiny_config)
    base.save_pretrained(tmp_path / "base")
    base = GFMForImageClassification.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA, modules_to_save=["classifier"]))
    logits = trained(model, images)(pixel_values=images).logits
    model.save_pretrained(tmp_path / "adapter")
    loaded = GFMForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(images).logits, logits, rtol=0, atol=1e-6)


def test_merged_weights_go_to_other_libraries(tiny_config, images, tmp_path):
    base = GFMForImageClassification(tiny_config)
    merged = trained(peft.get_peft_model(base, peft.LoraConfig(**LORA)), images).merge_and_unload()
    write_checkpoint(merged, tmp_path / "timm.pth", "timm")
    back = convert_checkpoint(tmp_path / "timm.pth")
    torch.testing.assert_close(back(images).logits, merged(images).logits, rtol=0, atol=1e-6)


def test_lora_on_the_bare_encoder_and_with_gradient_checkpointing(tiny_config, images):
    model = peft.get_peft_model(GFMModel(tiny_config), peft.LoraConfig(**LORA))
    model.base_model.model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()(pixel_values=images).pooler_output.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)


def test_terratorchs_reader_finds_its_names(tiny_config, tmp_path):
    """`gfm_swin_base(ckpt_data=...)` keeps `model`'s names below `encoder.`, without mask token and masks."""
    write_checkpoint(GFMForPreTraining(tiny_config), tmp_path / "theirs.pth", "authors")
    stored = torch.load(tmp_path / "theirs.pth", weights_only=True)
    kept = [name.removeprefix("encoder.") for name in stored["model"] if name.startswith("encoder.")]
    kept = [name for name in kept if name != "mask_token" and not name.endswith("attn_mask")]
    assert {name.partition(".")[0] for name in kept} == {"patch_embed", "layers", "norm"}
