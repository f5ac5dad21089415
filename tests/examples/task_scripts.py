"""A fine-tuning script as a person calls it, and the tiny backbone it starts from."""

import json
from types import ModuleType

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


def results(output):
    return json.loads((output / "all_results.json").read_text())


def write_backbone(folder, image_size=32, **config):
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "mask_patch_size": 8}
    GFMForPreTraining(GFMConfig(image_size=image_size, **shape, **config)).save_pretrained(folder)
    GFMImageProcessor(size=image_size).save_pretrained(folder)
    return folder
