"""How a stored checkpoint becomes a model: as it is, in another geometry, from stock Swin, or below an adapter."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, SwinConfig, SwinModel
from transformers.utils import CONFIG_NAME, find_adapter_config_file, logging

from .weights_gfm import fit_state_dict


logger = logging.get_logger(__name__)

# Where and how to fetch a file: the part of `from_pretrained`'s arguments that the configuration needs too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class GFMLoading(PreTrainedModel):
    """`from_pretrained` of all GFM models."""

    # Who reads a stock Swin checkpoint: heads of the same shape come along.
    _stock_class: type = SwinModel
    config_class: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a GFM checkpoint or a stock Swin one, with the stored geometry or another.

        Where `window_size` or `num_channels` (as keyword or in `config`) differ from the stored ones, position tables
        are resampled by the authors' scheme and the filters of red, green and blue move to where `rgb_channels` says;
        nothing is re-initialised in silence. The folder or repository of an adapter brings its base, and its own
        configuration wins over the base's. All other arguments are `PreTrainedModel.from_pretrained`'s.

        Raises:
            ValueError: Bands would have to move, but it is not known which are red, green and blue.
        """
        arguments = {"ignore_mismatched_sizes": ignore_mismatched_sizes, **kwargs}
        adapter = _find_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is None:
            loaded = cls._load(pretrained_model_name_or_path, *model_args, config=config, **arguments)
        else:
            loaded = cls._load_adapted(adapter, *model_args, **arguments)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_unused()  # loading makes every parameter anew
        return loaded

    @classmethod
    def _load(cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any, **kwargs: Any) -> Any:
        """Load as it is stored, or fit the stored weights into another geometry."""
        arguments = kwargs
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        try:
            stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
        except (OSError, TypeError):  # an adapter's folder, or no path at all: transformers knows what to do or say
            stored = {}
        if stored.get("model_type") not in ("swin", "gfm"):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **arguments)
        wanted = {name: kwargs[name] for name in kwargs if name in _config_fields(cls.config_class)}
        donor_config = (SwinConfig if stored["model_type"] == "swin" else cls.config_class).from_dict(dict(stored))
        new_config = config
        if not isinstance(config, PreTrainedConfig):
            new_config = cls.config_class.from_dict(swin_fields(stored, cls.config_class), **wanted)
        if stored["model_type"] == "gfm" and not _moves_weights(donor_config, new_config):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **arguments)

        arguments = {name: value for name, value in arguments.items() if name not in wanted}
        config = new_config
        return cls._from_donor(pretrained_model_name_or_path, donor_config, config, *model_args, **arguments)

    @classmethod
    def _load_adapted(cls, adapter: "_Adapter", *model_args: Any, **kwargs: Any) -> Any:
        """Load the base with the adapter's configuration, which knows the labels, then the adapter."""
        if Path(adapter.base).is_absolute() and not Path(adapter.base).exists():
            raise OSError(
                f"{adapter.name_or_path} is an adapter for {adapter.base}, which is not on this machine; write the base's "
                "name or place into base_model_name_or_path of its adapter_config.json."
            )
        wanted = {name: kwargs.pop(name) for name in _config_fields(cls.config_class) if name in kwargs}
        config = cls.config_class.from_pretrained(adapter.name_or_path, **adapter.hub_arguments, **wanted)
        # A revision or sub-folder is one of the adapter's repository.
        elsewhere = ("revision", "subfolder", "adapter_kwargs")
        arguments = {name: value for name, value in kwargs.items() if name not in elsewhere}
        arguments["ignore_mismatched_sizes"] = True
        loaded = cls._load(adapter.base, *model_args, config=config, **arguments)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        told = {
            name: adapter.hub_arguments[name]
            for name in ("revision", "subfolder", "token")
            if name in adapter.hub_arguments
        }
        local = bool(adapter.hub_arguments.get("local_files_only"))
        model.load_adapter(adapter.name_or_path, adapter_kwargs=told, local_files_only=local)
        model.eval()
        return loaded

    @classmethod
    def _from_donor(
        cls, name_or_path: Any, donor_config: PreTrainedConfig, config: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load the stored weights in their own geometry, then fit them into a new model."""
        ignore_mismatched_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        wants_info = kwargs.pop("output_loading_info", False)
        arguments: dict[str, Any] = {"config": donor_config, "output_loading_info": True, **kwargs}
        donor_class: Any = cls
        if donor_config.model_type == "swin":
            donor_class = cls._stock_class
            if donor_class is SwinModel:
                arguments["use_mask_token"] = True
        donor, info = donor_class.from_pretrained(name_or_path, **arguments)
        found = {name: value for name, value in donor.state_dict().items() if name not in info["missing_keys"]}
        if isinstance(donor, SwinModel) and not issubclass(cls, SwinModel):
            found = {f"{cls.base_model_prefix}.{name}": value for name, value in found.items()}

        config._attn_implementation = donor.config._attn_implementation
        model = cls(config, *model_args).to(donor.device, donor.dtype)
        stock_rgb = (0, 1, 2) if donor_config.num_channels == 3 else None
        fitted = fit_state_dict(found, model, getattr(donor_config, "rgb_channels", stock_rgb))
        mismatched = []
        if ignore_mismatched_sizes:
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            mismatched = [name for name in fitted if name in shapes and fitted[name].shape != shapes[name]]
        missing, unexpected = model.load_state_dict(
            {name: value for name, value in fitted.items() if name not in mismatched}, strict=False
        )
        if unexpected:
            logger.warning(f"In {name_or_path} but not in this model, left out: {', '.join(sorted(unexpected))}.")
        if set(missing) - {"embeddings.mask_token", "swin.embeddings.mask_token"}:
            logger.warning(f"Not in {name_or_path}, newly initialised: {', '.join(sorted(missing))}.")
        model.name_or_path = str(name_or_path)
        info = {
            **info,
            "missing_keys": set(missing),
            "unexpected_keys": set(unexpected),
            "mismatched_keys": mismatched,
        }
        return (model.eval(), info) if wants_info else model.eval()


def _config_fields(config_class: type) -> set[str]:
    names = {field.name for field in fields(config_class)} | {"num_labels", "out_features", "out_indices"}
    return names - {"dtype"}  # how to load, not what


def swin_fields(stored: dict[str, Any], config_class: type) -> dict[str, Any]:
    """The part of a stored configuration that a GFM configuration takes over."""
    taken = {name: value for name, value in stored.items() if name in _config_fields(config_class)}
    if isinstance(taken.get("image_size"), list | tuple):
        taken["image_size"] = taken["image_size"][0]
    return taken


def _moves_weights(stored: PreTrainedConfig, wanted: PreTrainedConfig) -> bool:
    names = ("window_size", "num_channels", "rgb_channels")
    return any(getattr(wanted, name) != getattr(stored, name) for name in names)


@dataclass(frozen=True)
class _Adapter:
    """Where an adapter lies, what it adapts, and how its repository is reached."""

    name_or_path: str
    base: str
    hub_arguments: dict[str, Any]


def _find_adapter(name_or_path: Any, arguments: Mapping[str, Any]) -> _Adapter | None:
    """An adapter with a configuration of ours beside it; None where transformers can do alone.

    Alone it takes a folder with a configuration for a whole model, and from the Hub the base's configuration, which
    does not know the adapter's labels.
    """
    # An Auto class has looked already: from the Hub it hands on the base's name and revision.
    told = dict(arguments.get("adapter_kwargs") or {})
    name = told.pop("_adapter_model_path", None) or name_or_path
    if name is None:
        return None
    hub_arguments = {key: arguments[key] for key in HUB_ARGUMENTS if arguments.get(key) is not None} | told
    found = find_adapter_config_file(str(name), **hub_arguments)
    if found is None:
        return None
    if Path(name).is_dir():
        folder = Path(found).parent
        whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
        if whole or not (folder / CONFIG_NAME).is_file():
            return None
    try:
        stored, _ = PreTrainedConfig.get_config_dict(name, **hub_arguments)
    except OSError:
        return None
    if stored.get("model_type") != "gfm":
        return None
    return _Adapter(str(name), json.loads(Path(found).read_text())["base_model_name_or_path"], hub_arguments)
