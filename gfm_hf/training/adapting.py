"""What of a pretrained model is trained: everything, the head alone, or low-rank additions."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoImageProcessor
from transformers.utils import find_adapter_config_file

from gfm_hf.model import modeling_gfm
from gfm_hf.model.configuration_gfm import GFMConfig


# Queries, keys and values of every attention block; with them alone an adapter of rank 8 on Swin-B has 2.2 MiB.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj")


def freeze_backbone(model: nn.Module) -> None:
    """Train what stands behind the encoder alone: a linear probe, if that is a linear layer.

    Args:
        model: A GFM model with a head.
    """
    for parameter in model.get_submodule("swin").parameters():
        parameter.requires_grad_(False)


def add_lora(model: nn.Module, rank: int) -> Any:
    """Wrap a model so that its encoder learns by low-rank additions and its head as a whole.

    Args:
        model: A GFM model with a head.
        rank: Rank of the additions; their factor is 2, whatever the rank.

    Returns:
        A `peft.PeftModel`; its `save_pretrained` writes additions and head, `merge_and_unload` gives the plain model.

    Source: Hu et al. 2021.
    """
    from peft import LoraConfig, get_peft_model

    # peft wraps no container, only what stands in it.
    heads = [
        f"{name}.{child}" if child else name
        for name, module in model.named_children()
        if name != "swin"
        for child in (list(module) if isinstance(module, nn.ModuleDict) else [""])
    ]
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(LORA_TARGETS), modules_to_save=heads, lora_dropout=0.0
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trained parameters and all of them."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def save_adapter(model: Any, folder: Path) -> None:
    """Write an adapter and the configuration of the model it belongs to.

    The configuration says what the base's own does not: number of labels, window, bands.
    """
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)


def is_adapter(name_or_path: str, **hub_arguments: Any) -> bool:
    """Whether a folder or repository holds an adapter."""
    return find_adapter_config_file(name_or_path, **hub_arguments) is not None


def merge_adapter(name_or_path: str, output_dir: str | Path, **hub_arguments: Any) -> None:
    """Write the model that an adapter and its base make together, with its processor.

    Args:
        name_or_path: Folder or repository of an adapter that `save_adapter` wrote.
        output_dir: Folder of the model.
        **hub_arguments: `revision`, `cache_dir`, `token` of the adapter.
    """
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(name_or_path, **hub_arguments)
    model_class = getattr(modeling_gfm, (adapter.auto_mapping or {})["base_model_class"])
    config = GFMConfig.from_pretrained(name_or_path, **hub_arguments)
    elsewhere = {name: value for name, value in hub_arguments.items() if name != "revision"}  # that is the adapter's
    base = model_class.from_pretrained(
        adapter.base_model_name_or_path, config=config, ignore_mismatched_sizes=True, **elsewhere
    )
    PeftModel.from_pretrained(base, name_or_path, **hub_arguments).merge_and_unload().save_pretrained(output_dir)
    AutoImageProcessor.from_pretrained(name_or_path, **hub_arguments).save_pretrained(output_dir)
