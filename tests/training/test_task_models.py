"""Flags of the model -> what is built of a checkpoint, and how its processor reads."""

import argparse

import numpy as np
import pytest
import torch

from gfm_hf import (
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
    GFMImageProcessor,
)
from gfm_hf.training.runs import InputError
from gfm_hf.training.task_arguments import add_data_arguments, add_mask_arguments, add_model_arguments
from gfm_hf.training.task_models import build_task_model, labels_of, load_mask_processor, load_processor


CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    tiny_config.auxiliary_channels, tiny_config.decoder_channels = 8, 8
    GFMForPreTraining(tiny_config).save_pretrained(tmp_path)
    GFMImageProcessor(size=64).save_pretrained(tmp_path)
    return tmp_path


def flags(checkpoint, *words):
    parser = argparse.ArgumentParser()
    add_mask_arguments(add_data_arguments(parser), one="change")
    add_model_arguments(parser)
    return parser.parse_args(["--model_name_or_path", str(checkpoint), *map(str, words)])


def blocks_of(model):
    return [block for stage in model.get_submodule("swin").encoder.layers for block in stage.blocks]


START = pytest.mark.parametrize("start", [(), ("--random_init",)], ids=["pretrained", "random"])


@START
def test_drop_path_grows_to_the_rate_of_the_flag(checkpoint, start):
    for words, last in (((), 0.1), (("--drop_path_rate", 0.4), 0.4), (("--drop_path_rate", 0), 0)):
        model = build_task_model(GFMForImageClassification, flags(checkpoint, *start, *words), CPU)
        rates = [getattr(block.drop_path, "drop_prob", 0) for block in blocks_of(model)]
        assert rates == pytest.approx([last * place / 4 for place in range(5)])
        assert model.config.drop_path_rate == last


@START
def test_another_window_and_size(checkpoint, start):
    words = ("--window_size", 2, "--image_size", 32)
    for given, (window, size) in (((), (4, 64)), (words, (2, 32))):
        model = build_task_model(GFMForImageClassification, flags(checkpoint, *start, *given), CPU)
        assert (model.config.window_size, model.config.image_size) == (window, size)
        tables = [p for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")]
        assert tables and all(len(table) == (2 * window - 1) ** 2 for table in tables)
        assert model.eval()(torch.randn(1, 3, size, size)).logits.shape == (1, 2)


@START
def test_fields_of_the_task_reach_the_heads(checkpoint, start):
    fields = {
        "decoder_channels": 12,
        "class_weights": [1.0, 2.0, 3.0],
        "dice_loss_weight": 0.5,
        **labels_of(("a", "b", "c")),
    }
    model = build_task_model(GFMForSemanticSegmentation, flags(checkpoint, *start), CPU, **fields)
    assert model.decode_head.main.classifier.weight.shape[:2] == (3, 12)
    assert list(model.config.class_weights) == [1, 2, 3] and model.config.dice_loss_weight == 0.5
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id["c"] == 2
    widths = [
        build_task_model(GFMForChangeDetection, flags(checkpoint, *start), CPU, change_fusion=fusion)
        .decode_head.main.lateral_convs[0]
        .conv.in_channels
        for fusion in ("difference", "concat")
    ]
    assert widths[1] == 2 * widths[0]


def forwards_of_blocks(model):
    """How often the blocks run in one training step."""
    counts = []
    for block in blocks_of(model):
        block.layernorm_before.register_forward_hook(lambda *_: counts.append(1))
    model.train()(torch.randn(1, 3, 64, 64), labels=torch.tensor([1])).loss.backward()
    return len(counts)


def test_checkpointing_computes_every_block_twice(checkpoint):
    plain = build_task_model(GFMForImageClassification, flags(checkpoint), CPU)
    checkpointed = build_task_model(GFMForImageClassification, flags(checkpoint, "--gradient_checkpointing"), CPU)
    assert forwards_of_blocks(checkpointed) == 2 * forwards_of_blocks(plain) == 10


def test_attention_is_eager_on_a_cpu_unless_told_otherwise(checkpoint):
    found = [
        build_task_model(GFMForImageClassification, flags(checkpoint, *words), device).config._attn_implementation
        for words, device in (
            ((), CPU),
            ((), torch.device("cuda")),
            (("--attn_implementation", "sdpa"), CPU),
            (("--attn_implementation", "eager"), torch.device("cuda")),
        )
    ]
    assert found == ["eager", "sdpa", "sdpa", "eager"]


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_trained(checkpoint):
    everything = trained(build_task_model(GFMForImageClassification, flags(checkpoint), CPU))
    head = trained(build_task_model(GFMForImageClassification, flags(checkpoint, "--freeze_backbone"), CPU))
    assert head == {"classifier.weight", "classifier.bias"} < everything
    for rank in (2, 3):
        adapted = build_task_model(GFMForImageClassification, flags(checkpoint, "--lora_r", rank), CPU)
        additions = [p for name, p in adapted.named_parameters() if "lora_A" in name]
        assert additions and all(len(addition) == rank for addition in additions)
    with pytest.raises(InputError, match="contradict"):
        build_task_model(GFMForImageClassification, flags(checkpoint, "--lora_r", 2, "--freeze_backbone"), CPU)


def test_a_random_start_is_not_the_checkpoint(checkpoint):
    stored = GFMForPreTraining.from_pretrained(checkpoint)
    for words, same in (((), True), (("--random_init",), False)):
        model = build_task_model(GFMForImageClassification, flags(checkpoint, *words), CPU)
        filters = [m.swin.embeddings.patch_embeddings.projection.weight for m in (model, stored)]
        assert torch.equal(*filters) == same


def test_the_processor_takes_the_size_and_the_masks_of_the_flags(checkpoint):
    assert load_processor(flags(checkpoint)).size["height"] == 64
    words = ("--image_size", 32, "--palette", "000000", "ff0000", "--palette_tolerance", 9)
    processor = load_mask_processor(flags(checkpoint, *words))
    assert dict(processor.size) == {"height": 32, "width": 32}
    mask = np.array([(0, 0, 0), (250, 8, 0), (255, 0, 0), (0, 9, 0)], dtype=np.uint8).reshape(2, 2, 3)
    assert processor.read_label_map(mask).tolist() == [[0, 1], [1, 0]]
    soft = load_mask_processor(flags(checkpoint, "--mask_threshold", 60))
    assert soft.read_label_map(np.array([[59, 60]], dtype=np.uint8)).tolist() == [[0, 1]]


def test_pixels_without_measurement_are_zero_behind_the_processor(checkpoint):
    image = np.full((3, 64, 64), 200, np.float32)
    image[:, :9] = np.nan
    processor = load_processor(flags(checkpoint, "--nodata", 7))
    values = processor(images=image, input_data_format="channels_first", return_tensors="pt").pixel_values[0]
    assert values[:, :9].abs().max() < 1e-6 < 0.5 < values[:, 9:].abs().min()
