"""A fine-tuning script as a person calls it, and the tiny backbone it starts from."""

import json
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from gfm_hf import GFMConfig, GFMForPreTraining, GFMImageProcessor


class TaskScript:
    """A script with flags that make its runs tiny; a flag of None or False is left out, one of True has no value."""

    def __init__(self, script: ModuleType, **flags):
        self.script, self.flags = script, flags

    def argv(self, output, **flags):
        words = []
        for name, value in {"output_dir": output, **self.flags, **flags}.items():
            if value is not None and value is not False:
                values = [] if value is True else value if isinstance(value, list | tuple) else [value]
                words += [f"--{name}", *map(str, values)]
        return words

    def run(self, output, **flags):
        """Exit code of the command."""
        AcceleratorState._reset_state(True)
        return self.script.main(self.argv(output, **flags))

    def call(self, output, **flags):
        """What the script gives to Python."""
        AcceleratorState._reset_state(True)
        return self.script.run(self.script.parse_args(self.argv(output, **flags)))

    def prepared(self, output, **flags):
        """What a run would train with, caught where training would begin: model, optimizer, loader, schedule."""
        caught = SimpleNamespace()

        class Caught(self.script.TaskRun):
            def prepare(self, model, processor, data, optimizer, *more, **about):
                caught.model, caught.optimizer = model, optimizer
                super().prepare(model, processor, data, optimizer, *more, **about)

            def train(self, loader, plan, schedule, *more):
                caught.loader, caught.schedule = loader, schedule
                return False

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.script, "TaskRun", Caught)
            assert self.call(output, **flags) == {}  # the script ends there, as after a signal
        return caught


# Flags that every script has, none with its default value, and where they have to arrive.
SHARED_FLAGS = {
    "image_size": 12,
    "window_size": 2,
    "drop_path_rate": 0.25,
    "gradient_checkpointing": True,
    "layer_decay": 0.5,
    "weight_decay": 0.02,
}


def check_shared_flags(caught):
    """Where `SHARED_FLAGS` arrive, in a run with the backbone below: patch embedding, two blocks, what is behind."""
    config, blocks = caught.model.config, [stage.blocks[0] for stage in caught.model.swin.encoder.layers]
    assert (config.image_size, config.window_size, config.drop_path_rate) == (12, 2, 0.25)
    assert caught.loader.dataset.augmentation.image_size == 12
    assert [block.drop_path.drop_prob for block in blocks[1:]] == [0.25]
    assert all(block.window_size == 2 and block.gradient_checkpointing for block in blocks)
    groups = {group["name"]: group for group in caught.optimizer.param_groups}
    for level, scale in enumerate((0.125, 0.25, 0.5, 1)):
        decayed, undecayed = groups[f"layer_{level}_decay"], groups[f"layer_{level}_no_decay"]
        assert decayed["lr_scale"] == undecayed["lr_scale"] == scale
        assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.02, 0)


def write_constant_model(folder, model_class, backbone, answer, **config):
    """A trained model of two classes that gives the same one whatever it sees."""
    model = model_class.from_pretrained(backbone, num_labels=2, **config)
    last = model.classifier if hasattr(model, "classifier") else model.decode_head.main.classifier
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(2)[answer])
    model.save_pretrained(folder)
    GFMImageProcessor.from_pretrained(backbone).save_pretrained(folder)
    return folder


def results(output):
    return json.loads((output / "all_results.json").read_text())


def write_backbone(folder, image_size=32, **config):
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "mask_patch_size": 8}
    GFMForPreTraining(GFMConfig(image_size=image_size, **shape, **config)).save_pretrained(folder)
    GFMImageProcessor(size=image_size).save_pretrained(folder)
    return folder
