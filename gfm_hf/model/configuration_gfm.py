"""Every number that shapes a GFM model."""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import SwinConfig


# Names under which the red, green and blue bands of common sensors travel.
RGB_BAND_NAMES = (("R", "RED", "B04", "B4"), ("G", "GREEN", "B03", "B3"), ("B", "BLUE", "B02", "B2"))

# Stored for readers of config.json; computed anew when it is loaded.
DERIVED = ("hidden_size", "num_layers", "stage_names")

# The doors of a saved folder for people who load it with `trust_remote_code=True`. transformers has no class for change
# detection; `get_class_from_dynamic_module(AUTO_MAP["AutoModelForChangeDetection"], folder)` opens that one.
AUTO_MAP = {
    "AutoConfig": "configuration_gfm.GFMConfig",
    "AutoModel": "modeling_gfm.GFMModel",
    "AutoBackbone": "modeling_gfm.GFMBackbone",
    "AutoModelForPreTraining": "modeling_gfm.GFMForPreTraining",
    "AutoModelForMaskedImageModeling": "modeling_gfm.GFMForPreTraining",
    "AutoModelForImageClassification": "modeling_gfm.GFMForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_gfm.GFMForSemanticSegmentation",
    "AutoModelForImageToImage": "modeling_gfm.GFMForImageSuperResolution",
    "AutoModelForChangeDetection": "modeling_gfm.GFMForChangeDetection",
}


@strict
class GFMConfig(SwinConfig):
    r"""Configuration of a GFM model: SwinConfig's fields plus the pretraining objective and the bands.

    The defaults are the paper's student: Swin-B, 192 px, window 6, 32 px mask cells, 60 % hidden, distillation after
    the third stage with weight 1.

    Args:
        image_size (`int`): Side of the training crops in pixels. Models run at any size from one patch up.
        window_size (`int`): Tokens a side of an attention window; maps smaller than it use the map as window.
        drop_path_rate (`float`): Stochastic depth of the last block, on both residual branches; 0 in pretraining.
        layer_norm_eps (`float`): Only 1e-5: Swin's patch and merging norms know no other value.
        mask_patch_size (`int`): Side of a mask cell in pixels, a multiple of `patch_size`.
        mask_ratio (`float`): Share of hidden cells, in (0, 1); the count is rounded up.
        distillation_weight (`float`): The paper's alpha.
        distillation_stages (`tuple[int]`): Stages (1-based, after their merging) whose pooled tokens are distilled; by
            default the third, empty for masked image modelling alone.
        teacher_hidden_sizes (`tuple[int]`): Length of the teacher's feature vector for each distilled stage; by
            default the student's own.
        teacher (`dict`): Name and revision of the teacher, provenance only.
        band_names (`tuple[str]`): Names of the input channels, in order.
        rgb_channels (`tuple[int, int, int]`): Indices of red, green and blue among the channels. Derived from
            `band_names`, or (0, 1, 2) for three unnamed channels.
        gsd (`float`): Ground sampling distance of the training images in metres.
        decoder_channels (`int`): Channels inside the UPerNet head of segmentation and change detection.
        pool_scales (`tuple[int]`): Cells a side to which its pyramid pools the last map.
        auxiliary_loss_weight (`float`): Weight of the loss of a second head on the third stage, which only training has;
            0 leaves that head out.
        auxiliary_channels (`int`): Channels inside the second head.
        semantic_loss_ignore_index (`int`): Label of pixels that count neither for loss nor for metrics.
        class_weights (`tuple[float]`): Weight of each class in the cross-entropy of maps; by default all alike.
        dice_loss_weight (`float`): Weight of a soft Dice term beside the cross-entropy of maps.
        change_fusion (`str`): What of two dates' maps goes on: "difference", the absolute one, or "concat".
        upscale (`int`): Factor of super-resolution: 2, 3 or 4.
        upscale_residual (`bool`): Whether super-resolution adds what it learns to the interpolated input.

    Raises:
        ValueError: Two fields contradict each other.

    Source: GFM sections 3.2-3.3 and the authors' pretraining configuration; dense heads: mmsegmentation's UPerNet.
    """

    model_type = "gfm"

    image_size: int = 192
    patch_size: int = 4
    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 6
    drop_path_rate: float | int = 0.0
    mask_patch_size: int = 32
    mask_ratio: float | int = 0.6
    distillation_weight: float | int = 1.0
    distillation_stages: list[int] | tuple[int, ...] | None = None
    teacher_hidden_sizes: list[int] | tuple[int, ...] | None = None
    teacher: dict[str, Any] | None = None
    band_names: list[str] | tuple[str, ...] | None = None
    rgb_channels: list[int] | tuple[int, ...] | None = None
    gsd: float | int | None = None
    decoder_channels: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_loss_weight: float | int = 0.4
    auxiliary_channels: int = 256
    semantic_loss_ignore_index: int = 255
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    dice_loss_weight: float | int = 0.0
    change_fusion: str = "difference"
    upscale: int = 4
    upscale_residual: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.distillation_stages is None:
            self.distillation_stages = (min(3, len(self.depths)),)
        if self.rgb_channels is None:
            self.rgb_channels = self._find_rgb_channels()
        self._check()
        # JSON knows no tuples; a loaded configuration has to equal the one that was saved.
        for name in (
            "depths",
            "num_heads",
            "distillation_stages",
            "teacher_hidden_sizes",
            "band_names",
            "rgb_channels",
            "pool_scales",
            "class_weights",
        ):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        self.encoder_stride = self.patch_size * 2 ** (len(self.depths) - 1)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a dictionary; overrides take part in the derivation and the checks.

        The base class sets overrides on the finished object, which would leave `hidden_size`, `stage_names` or
        `rgb_channels` behind.
        """
        own = {field.name for field in fields(cls)} | {"out_features", "out_indices"}
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        merged = {name: value for name, value in {**config_dict, **overrides}.items() if name not in DERIVED}
        # Names and indices of the backbone's maps say the same thing twice; an override of one settles both.
        for name, twin in (("out_features", "out_indices"), ("out_indices", "out_features")):
            if name in overrides and twin not in overrides:
                merged.pop(twin, None)
        # Names of classes come as a mapping or in a row; the way back follows from them.
        if "id2label" in overrides and "label2id" not in overrides:
            names = overrides["id2label"]
            names = names if isinstance(names, dict) else dict(enumerate(names))
            overrides["id2label"] = {int(index): name for index, name in names.items()}
            overrides["label2id"] = {name: index for index, name in overrides["id2label"].items()}
            merged |= {name: overrides[name] for name in ("id2label", "label2id")}
        # Stored band facts belong to the stored bands: with other bands they would put filters in the wrong place.
        if overrides.get("num_channels", config_dict.get("num_channels", 3)) != config_dict.get("num_channels", 3):
            for name in ("band_names", "rgb_channels"):
                merged[name] = overrides.get(name)
        if "band_names" in overrides and "rgb_channels" not in overrides:
            merged["rgb_channels"] = None  # derived anew from the new names
        return super().from_dict(merged, **kwargs)

    @property
    def stage_hidden_sizes(self) -> list[int]:
        """Channels of the stem and of every stage's output, after its merging: `hidden_states[i]`'s last axis."""
        last = len(self.depths) - 1
        return [self.embed_dim] + [self.embed_dim * 2 ** min(stage + 1, last) for stage in range(len(self.depths))]

    def _find_rgb_channels(self) -> tuple[int, ...] | None:
        if self.band_names is None:
            return (0, 1, 2) if self.num_channels == 3 else None
        names = [name.upper() for name in self.band_names]
        found = [next((names.index(alias) for alias in aliases if alias in names), None) for aliases in RGB_BAND_NAMES]
        return None if None in found else tuple(index for index in found if index is not None)

    def _check(self) -> None:
        for name in ("image_size", "patch_size", "num_channels", "embed_dim", "window_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but has to be 1 or more.")
        if self.layer_norm_eps != 1e-5:
            raise ValueError(
                f"layer_norm_eps is {self.layer_norm_eps} but Swin's patch and merging norms only know 1e-5; use 1e-5."
            )
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} stages but num_heads has {len(self.num_heads)}; give one of each a stage."
            )
        for stage, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"Stage {stage + 1} has {self.embed_dim * 2**stage} channels, which {heads} heads do not divide; "
                    "change embed_dim or num_heads."
                )
        if self.mask_patch_size % self.patch_size:
            raise ValueError(
                f"mask_patch_size {self.mask_patch_size} is no multiple of patch_size {self.patch_size}; "
                f"use {max(self.mask_patch_size // self.patch_size, 1) * self.patch_size}."
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio} but has to lie in (0, 1); the paper uses 0.6.")
        self._check_distillation()
        self._check_bands()
        self._check_heads()

    def _check_heads(self) -> None:
        if self.change_fusion not in ("difference", "concat"):
            raise ValueError(f'change_fusion is {self.change_fusion!r}; use "difference" (the paper\'s) or "concat".')
        if self.upscale not in (2, 3, 4):
            raise ValueError(f"upscale is {self.upscale}; use 2, 3 or 4.")

    def _check_distillation(self) -> None:
        stages = tuple(self.distillation_stages or ())
        if not all(1 <= stage <= len(self.depths) for stage in stages):
            raise ValueError(
                f"distillation_stages is {list(stages)} but the model has stages 1 to {len(self.depths)}; "
                "the paper uses [3]."
            )
        if self.teacher_hidden_sizes is not None and len(self.teacher_hidden_sizes) != len(stages):
            raise ValueError(
                f"teacher_hidden_sizes has {len(self.teacher_hidden_sizes)} entries for {len(stages)} distillation "
                "stages; give one size per stage."
            )

    def _check_bands(self) -> None:
        if self.band_names is not None and len(self.band_names) != self.num_channels:
            raise ValueError(
                f"band_names has {len(self.band_names)} names but num_channels is {self.num_channels}; "
                "name every channel or leave band_names out."
            )
        if self.rgb_channels is None:
            return
        valid = len(self.rgb_channels) == 3 and all(0 <= channel < self.num_channels for channel in self.rgb_channels)
        if not valid:
            raise ValueError(
                f"rgb_channels is {list(self.rgb_channels)} but has to hold three indices below num_channels "
                f"{self.num_channels}, in the order red, green, blue."
            )


GFMConfig.register_for_auto_class()
