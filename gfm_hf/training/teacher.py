"""The frozen network whose features the student stays close to."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, SwinModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from gfm_hf.model.swin_gfm import embed_pixels, run_stages


# `window_size` moves through the same modules in both.
SWIN_TYPES = ("swin", "gfm")


class GFMTeacher:
    """A frozen vision model, cut after the last distilled stage, that turns images into pooled features.

    It is deliberately no `nn.Module`: a student cannot swallow it, so it never enters an optimizer, a DDP wrap or a
    checkpoint. What lies behind the last distilled stage is neither run nor kept in memory.

    Attributes:
        name: Hub id or folder it was loaded from.
        stages: Distilled stages, 1-based. For Swin a stage ends after its merging; for other models it is an entry of
            their list of layers or stages.
        hidden_sizes: Length of the feature vector of each stage.
        image_size: Side in pixels to which images are resized, or None to take them as they come.

    Source: GFM section 3.3; the cut, the pooling without norm and the resize are the released code's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stages: Sequence[int],
        image_size: int | None,
        rgb_channels: Sequence[int] | None = None,
        rescale: tuple[torch.Tensor, torch.Tensor] | None = None,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        self.name, self.revision = name, revision
        self.stages = list(stages)
        self.image_size = image_size
        self._rgb_channels = None if rgb_channels is None else list(rgb_channels)
        self._rescale = rescale
        self._model = model.eval().requires_grad_(False)
        if not self.stages:
            raise ValueError("stages is empty but a teacher shows at least one; the paper uses [3].")
        if not isinstance(model, SwinModel) and hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0  # masked autoencoders hide patches even in eval mode
        self._layers = _cut_behind(model, max(self.stages), name)
        probe = torch.zeros(1, 3, image_size or 64, image_size or 64, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            self.hidden_sizes = [features.shape[1] for features in self._pooled_stages(probe)]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        stages: Sequence[int] = (3,),
        *,
        image_size: int | None = None,
        rgb_channels: Sequence[int] | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        **hub_arguments: Any,
    ) -> "GFMTeacher":
        """Load any vision model of the Hub, or of a folder, as a teacher.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            stages: Distilled stages, 1-based.
            image_size: Side in pixels the teacher works at; by default its own configuration's.
            rgb_channels: Indices of red, green and blue among the student's bands; None where the student has just
                these three.
            image_mean: With `image_std`: how the student's red, green and blue were normalised. Given these, images
                are brought to the teacher's own normalisation; without them they are passed on as they are.
            image_std: See `image_mean`.
            dtype: Weights and arithmetic of the teacher; bfloat16 is the largest lever where the student stays in
                float32.
            revision: Branch, tag or commit.
            **hub_arguments: `token`, `cache_dir`, `local_files_only`.

        Raises:
            ValueError: The model has no such stage, or no layers in which stages could be found.
            OSError: There is no such model.
        """
        hub_arguments["revision"] = revision
        config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        loader = SwinModel if config.model_type in SWIN_TYPES else AutoModel
        model = loader.from_pretrained(pretrained_model_name_or_path, dtype=dtype, **hub_arguments)
        if hasattr(config, "vision_config"):  # two towers, such as CLIP: only one of them looks at images
            model, config = model.vision_model, config.vision_config
        own_mean, own_std = _own_normalisation(pretrained_model_name_or_path, hub_arguments)
        rescale = None
        if image_mean is not None and image_std is not None:
            rescale = _between_normalisations(image_mean, image_std, own_mean, own_std)
        return cls(
            model,
            stages,
            image_size=image_size or _own_image_size(config),
            rgb_channels=rgb_channels,
            rescale=rescale,
            name=pretrained_model_name_or_path,
            revision=revision,
        )

    @staticmethod
    def fast_dtype(device: torch.device) -> torch.dtype:
        """bfloat16 where the device computes in it, else float32."""
        if device.type == "cpu":
            return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
        supported = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else torch.float32

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self._model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the arithmetic."""
        return next(self._model.parameters()).dtype

    def to(self, device: torch.device | str) -> "GFMTeacher":
        """Move the weights; returns itself."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Features of unmasked images.

        Args:
            pixel_values: (B, C, H, W), the student's own input.

        Returns:
            One (B, D) per stage: the mean over the stage's tokens, without norm, in the teacher's dtype.
        """
        images = pixel_values if self._rgb_channels is None else pixel_values[:, self._rgb_channels]
        if images.shape[1] != 3:
            raise ValueError(
                f"The teacher looks at red, green and blue but the images have {images.shape[1]} bands; pass "
                "rgb_channels, their indices among the bands."
            )
        if self._rescale is not None:
            scale, shift = (part.to(images.device, images.dtype) for part in self._rescale)
            images = images * scale + shift
        if self.image_size is not None and images.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=True)
        # The teacher's dtype is its own: the student's autocast must not reach it.
        with torch.autocast(images.device.type, enabled=False):
            return self._pooled_stages(images.to(self.device, self.dtype))

    def _pooled_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(self._model, SwinModel):
            outputs = run_stages(self._model, *embed_pixels(self._model, images))
            return [outputs[stage - 1].hidden_states.mean(dim=1) for stage in self.stages]
        seen: dict[int, torch.Tensor] = {}
        hooks = [
            self._layers[stage - 1].register_forward_hook(
                lambda _, __, output, stage=stage: seen.update(
                    {stage: output[0] if isinstance(output, tuple) else output}
                )
            )
            for stage in set(self.stages)
        ]
        try:
            self._model(images)
        finally:
            for hook in hooks:
                hook.remove()
        patch_tokens = _patch_tokens(self._model.config, images.shape[2:])
        return [_pool(seen[stage], patch_tokens) for stage in self.stages]


def _cut_behind(model: PreTrainedModel, last: int, name: str) -> nn.ModuleList:
    """Drop what lies behind stage `last`: layers, final norm, pooler; returns the list of layers that is left."""
    path = _find_layers(model, name)
    layers = cast(nn.ModuleList, model.get_submodule(path))
    if not 1 <= last <= len(layers):
        raise ValueError(
            f"The teacher {name} has stages 1 to {len(layers)} but stage {last} was asked for; choose "
            "distillation_stages it has."
        )
    model.set_submodule(path, layers[:last])
    owner: nn.Module = model
    for attribute in path.split("."):
        children = [child for child, _ in owner.named_children()]
        for child in children[children.index(attribute) + 1 :]:
            # Without weights it may be a rotary embedding, which runs before the layers.
            if any(True for _ in owner.get_submodule(child).parameters()):
                setattr(owner, child, nn.Identity())
        owner = owner.get_submodule(attribute)
    return cast(nn.ModuleList, owner)


def _find_layers(model: PreTrainedModel, name: str) -> str:
    """Path of the module list that holds the model's stages: the outermost one, as long as its configuration says."""
    config = model.config
    expected = {getattr(config, "num_hidden_layers", None), len(getattr(config, "depths", None) or ())}
    lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    fitting = [path for path, length in lists.items() if length > 1 and length in expected]
    if not fitting:
        raise ValueError(
            f"No list of {sorted(size for size in expected if size)} layers was found in the teacher {name} "
            f"({type(model).__name__}); use a ViT-, Swin-, ConvNeXt- or ResNet-like model."
        )
    return min(fitting, key=lambda path: path.count("."))


def _patch_tokens(config: PreTrainedConfig, size: torch.Size) -> int | None:
    """How many of a layer's tokens stand for patches of the image; class and register tokens come before them."""
    patch = getattr(config, "patch_size", None)
    return (size[0] // patch) * (size[1] // patch) if isinstance(patch, int) else None


def _pool(output: torch.Tensor, patch_tokens: int | None) -> torch.Tensor:
    """Mean over places: (B, D, h, w) or (B, N, D) -> (B, D)."""
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    return output[:, -patch_tokens:].mean(dim=1) if patch_tokens else output.mean(dim=1)


def _own_image_size(config: PreTrainedConfig) -> int | None:
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def _own_normalisation(name: str, hub_arguments: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation the teacher was trained with; ImageNet's where it does not say."""
    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(name, **hub_arguments)
    except OSError:
        stored = {}
    return stored.get("image_mean", IMAGENET_DEFAULT_MEAN), stored.get("image_std", IMAGENET_DEFAULT_STD)


def _between_normalisations(
    mean: Sequence[float], std: Sequence[float], own_mean: Sequence[float], own_std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift, (1, 3, 1, 1) each, from one normalisation to another; None where they agree."""
    if list(mean) == list(own_mean) and list(std) == list(own_std):
        return None
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(part).view(1, 3, 1, 1) for part in (mean, std, own_mean, own_std)
    )
    return old_std / new_std, (old_mean - new_mean) / new_std
