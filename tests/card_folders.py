"""Folders that cards are made from, as JSON alone."""

import json

import numpy as np
import yaml
from huggingface_hub import ModelCard


FACTS = {
    "images": "folder scenes, 40 images",
    "steps": 12,
    "eval_loss": 0.123456,
    "eval_reconstruction_loss": np.float64(0.5),  # as an evaluation returns it
    "energy_kwh": 1.5,
    "co2_kg": 0.855,
    "energy_method": "paper formula",
    "hardware": "1 x a card",
    "country_iso_code": "USA",
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "someone/backbone",
    "auto_mapping": {"base_model_class": "GFMForImageClassification"},
}


def write_configs(path, processor=None, **config):
    path.mkdir(exist_ok=True)
    config = {
        "model_type": "gfm",
        "architectures": ["GFMForPreTraining"],
        "hidden_size": 64,
        "image_size": 64,
    } | config
    processor = {
        "image_processor_type": "GFMImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "rescale_factor": 1e-4,
    } | (processor or {})
    (path / "config.json").write_text(json.dumps({"num_channels": 3, "patch_size": 4} | config))
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def readme(folder):
    return (folder / "README.md").read_bytes().decode()


def metadata(folder):
    return yaml.safe_load(readme(folder).split("---\n")[1])
