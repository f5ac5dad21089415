"""GFM models: trunk + decoder + loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinImageClassifierOutput,
    SwinModelOutput,
    SwinPreTrainedModel,
    SwinRelativePositionBias,
)
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_gfm import AUTO_MAP, GFMConfig
from .decoders_gfm import Correction, FeatureProjector, MapDecoder, PixelDecoder, Projection, Upscaler
from .loading_gfm import GFMLoading
from .losses_gfm import (
    classification_loss,
    feature_distillation_loss,
    masked_reconstruction_loss,
    pixel_mask,
    segmentation_loss,
)
from .swin_gfm import StageOutput, embed_pixels, run_stages, to_map


logger = logging.get_logger(__name__)

MASK_TOKEN = "swin.embeddings.mask_token"
FINAL_NORM = ("swin.layernorm.weight", "swin.layernorm.bias")


@dataclass
class GFMForPreTrainingOutput(ModelOutput):
    """Output of `GFMForPreTraining`.

    Attributes:
        loss: `reconstruction_loss + distillation_weight * distillation_loss`; a term whose input was not given is
            left out, and without any term the loss is None.
        reconstruction_loss: Mean absolute error over hidden pixels; None without `bool_masked_pos`.
        distillation_loss: Minus the mean cosine, in [-1, 1], averaged over the distilled stages; None without
            `teacher_features`.
        reconstruction: (B, C, H, W), in the units of `pixel_values`.
        hidden_states: Tokens (B, N, D) of the stem and after every stage, on request.
        reshaped_hidden_states: The same as maps (B, D, h, w), on request.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None


class GFMPreTrainedModel(GFMLoading, SwinPreTrainedModel):
    """Initialisation, loading and saving that all GFM models share."""

    config_class = GFMConfig
    config: GFMConfig
    # transformers' own prefix: stock Swin classes find the trunk in a GFM checkpoint.
    base_model_prefix = "swin"
    # What a task's forward never reaches.
    _unused_parameters: tuple[str, ...] = ()
    # An encoder taken out of a pretraining checkpoint leaves these behind by design.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^projector\.", r"^classifier\.", r"^hidden_states_norms\."]
    # The trunk collects its outputs itself; hooks on modules that never run as a whole would see nothing.
    _can_record_outputs: dict[str, Any] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial weights distributed as the authors'.

        Linear layers, position tables and the mask token are normal with standard deviation `initializer_range`; patch
        filters, pixel decoder and projector keep torch's uniform default. The authors truncate the normal distribution
        at a hundred deviations, which never acts except that rounding turns two or three weights into exactly -2.0;
        those are left out.
        """
        std = self.config.initializer_range
        if isinstance(module, Correction):
            init.zeros_(module.weight)
            init.zeros_(cast(torch.Tensor, module.bias))
        elif isinstance(module, (nn.Conv2d, Projection)):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            for ones in (module.weight, module.running_var):
                init.ones_(cast(torch.Tensor, ones))
            for zeros in (module.bias, module.running_mean, module.num_batches_tracked):
                init.zeros_(cast(torch.Tensor, zeros))
        elif isinstance(module, SwinEmbeddings):
            for parameter in (module.mask_token, module.position_embeddings):
                if parameter is not None:
                    init.normal_(parameter, std=std)

    def post_init(self) -> None:
        """Initialise, and take out of training what the class's forward never reaches."""
        super().post_init()
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Gradients that never come would be waited for when several processes train."""
        for name in self._unused_parameters:
            self.get_parameter(name).requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """The patch filters: what they return is a tensor, which peft needs beside gradient checkpointing."""
        trunk = cast(Any, getattr(self, self.base_model_prefix, self))
        return trunk.embeddings.patch_embeddings.projection

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and the code that loads them, with every door in `auto_map`.

        transformers would list the saved class alone, so that a pretraining checkpoint had no `AutoModel`.
        """
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)


class GFMModel(GFMPreTrainedModel, SwinModel):
    """The bare encoder: stock Swin's modules and weights under a forward of its own.

    Runs at any image size from one patch up. A mask token is always part of the model.
    """

    def __init__(self, config: GFMConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer, use_mask_token=True)
        # Stock Swin's encoder initialises itself, with zeros here.
        for module in self.modules():
            if isinstance(module, SwinRelativePositionBias):
                init.normal_(module.relative_position_bias_table, std=config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SwinModelOutput:
        """Encode a batch of images.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            bool_masked_pos: (B, N) or (B, ceil(H/4), ceil(W/4)) bool, True = hidden, row by row.
            output_hidden_states: Whether to return the tokens of every stage.
            output_attentions: Not offered.

        Returns:
            `last_hidden_state` (B, N/64, D) after the final norm, `pooler_output` (B, D) their mean,
            `hidden_states` (stem, then after every stage and its merging) and `reshaped_hidden_states` on request.

        Raises:
            ValueError: Wrong number of bands, wrong mask size, or attentions asked for.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        tokens, size = embed_pixels(self, pixel_values, bool_masked_pos)
        stages = run_stages(self, tokens, size)
        last_hidden_state = self.layernorm(stages[-1].hidden_states)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states, maps = _collect(tokens, size, stages) if wanted else (None, None)
        return SwinModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else last_hidden_state.mean(dim=1),
            hidden_states=hidden_states,
            reshaped_hidden_states=maps,
        )


class GFMBackbone(BackboneMixin, GFMPreTrainedModel):
    """Feature maps for dense heads: the stages' maps before merging, each behind a LayerNorm of its own.

    Load it with `GFMBackbone.from_pretrained(path, out_features=["stage1", ..., "stage4"])`.
    """

    # The norms come with the head that is trained on top; the final norm belongs to other heads.
    _keys_to_ignore_on_load_missing = [r"swin\.layernorm\..*"]
    _unused_parameters = (MASK_TOKEN, *FINAL_NORM)

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.num_features = [config.embed_dim] + [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.swin = GFMModel(config, add_pooling_layer=False)
        self.hidden_states_norms = _stage_norms(dict(zip(self.out_features, self.channels)))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """Extract the maps named by `out_features`.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            output_hidden_states: Whether to return the maps of all stages, without norm.
            output_attentions: Not offered.

        Returns:
            `feature_maps`: tuple of (B, D_i, H_i, W_i), finest first.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        outputs = _before_merging(self.swin, pixel_values)
        feature_maps = _normed_maps(self.hidden_states_norms, self.stage_names, outputs)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps = tuple(to_map(output, output_size) for output, output_size in outputs) if wanted else None
        return BackboneOutput(feature_maps=cast(Any, feature_maps), hidden_states=cast(Any, maps))


class GFMForPreTraining(GFMPreTrainedModel):
    """The student of continual pretraining: rebuild the hidden pixels, stay close to a teacher's features.

    The model knows nothing of the teacher; its features come in as an argument.

    Source: GFM section 3, equations 2 and 3; the authors' released code where it differs from the text.
    """

    _stock_class = SwinForMaskedImageModeling

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.swin = GFMModel(config, add_pooling_layer=False)
        self.decoder = PixelDecoder(config.hidden_size, config.num_channels, config.encoder_stride)
        student_sizes = [config.stage_hidden_sizes[stage] for stage in config.distillation_stages or ()]
        self.projector = FeatureProjector(student_sizes, config.teacher_hidden_sizes or student_sizes)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        teacher_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> GFMForPreTrainingOutput:
        """One forward of the objective.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            bool_masked_pos: (B, N) or (B, ceil(H/4), ceil(W/4)) bool, True = hidden. Without it there is no
                reconstruction loss.
            teacher_features: (B, D), or a list with one per distilled stage: pooled features of the unmasked images.
                Without them this is masked image modelling alone.
            output_hidden_states: Whether to return the tokens of every stage.
            output_attentions: Not offered.

        Raises:
            ValueError: Shapes of bands, mask or teacher features do not fit the model.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        tokens, size = embed_pixels(self.swin, pixel_values, bool_masked_pos)
        stages = run_stages(self.swin, tokens, size)
        height, width = pixel_values.shape[2:]
        last_map = to_map(self.swin.layernorm(stages[-1].hidden_states), stages[-1].size)
        reconstruction = self.decoder(last_map)[:, :, :height, :width]

        reconstruction_loss = None
        if bool_masked_pos is not None:
            mask = pixel_mask(bool_masked_pos, size, self.config.patch_size)[:, :, :height, :width]
            reconstruction_loss = masked_reconstruction_loss(reconstruction, pixel_values, mask)
        distillation_loss = None if teacher_features is None else self._distill(stages, teacher_features)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states, maps = _collect(tokens, size, stages) if wanted else (None, None)
        return GFMForPreTrainingOutput(
            loss=_weighted_sum(reconstruction_loss, distillation_loss, self.config.distillation_weight),
            reconstruction_loss=reconstruction_loss,
            distillation_loss=distillation_loss,
            reconstruction=reconstruction,
            hidden_states=hidden_states,
            reshaped_hidden_states=maps,
        )

    def _distill(
        self, stages: list[StageOutput], teacher_features: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if isinstance(teacher_features, torch.Tensor):
            teacher_features = [teacher_features]
        distilled = list(self.config.distillation_stages or ())
        if len(teacher_features) != len(distilled):
            raise ValueError(
                f"teacher_features has {len(teacher_features)} tensors but the model distils stages {distilled}; give "
                "one tensor (batch, features) per stage, in that order."
            )
        # The mean runs over all tokens, hidden ones too, and before any norm.
        pooled = [stages[stage - 1].hidden_states.mean(dim=1) for stage in distilled]
        losses = []
        for projected, target in zip(self.projector(pooled), teacher_features):
            if projected.shape != target.shape:
                raise ValueError(
                    f"teacher_features has shape {tuple(target.shape)} but {tuple(projected.shape)} was expected; set "
                    "teacher_hidden_sizes in the config to the teacher's feature sizes."
                )
            losses.append(feature_distillation_loss(projected, target))
        return torch.stack(losses).mean()


class GFMForImageClassification(GFMPreTrainedModel):
    """A linear classifier on the mean of the last tokens, for one label or several per image.

    Parameters are named as in transformers' Swin (`classifier`).

    Source: GFM section 4, the authors' fine-tuning code.
    """

    _stock_class = SwinForImageClassification
    _unused_parameters = (MASK_TOKEN,)

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.swin = GFMModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SwinImageClassifierOutput:
        """Classify a batch of images.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            labels: (B,) class indices, or (B, K) float: multi-hot with `problem_type="multi_label_classification"`,
                else probabilities. Without a `problem_type` floats are taken for multi-hot labels.
            output_hidden_states: Whether to return the tokens of every stage.
            output_attentions: Not offered.

        Returns:
            `logits` (B, K), and `loss` where labels were given.

        Raises:
            ValueError: Shapes of bands or labels do not fit the model.
        """
        outputs = self.swin(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SwinImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
        )


class GFMForSemanticSegmentation(GFMPreTrainedModel):
    """UPerNet on the maps of all stages: a class for every pixel.

    Source: GFM section 4 (WHU Aerial, Vaihingen); mmsegmentation's UPerNet with Swin.
    """

    _keys_to_ignore_on_load_missing = [r"swin\.layernorm\..*"]
    _unused_parameters = (MASK_TOKEN, *FINAL_NORM)

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.swin = GFMModel(config, add_pooling_layer=False)
        channels = _map_channels(config)
        self.hidden_states_norms = _stage_norms(channels)
        self.decode_head = _map_decoder(config, list(channels.values()))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Classify every pixel of a batch of images.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            labels: (B, H, W) class ids; `config.semantic_loss_ignore_index` where nothing is known.
            output_hidden_states: Whether to return the maps of all stages, without norm.
            output_attentions: Not offered.

        Returns:
            `logits` (B, K, H, W), and `loss` where labels were given.

        Raises:
            ValueError: Shapes of bands or labels do not fit the model.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        outputs = _before_merging(self.swin, pixel_values)
        maps = _normed_maps(self.hidden_states_norms, _stage_names(self.config), outputs)
        loss, logits = _decode_maps(self, maps, pixel_values.shape[2:], labels)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(to_map(*output) for output in outputs) if wanted else None
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=cast(Any, hidden_states))


class GFMForChangeDetection(GFMPreTrainedModel):
    """Two dates through one encoder; what differs between their maps goes to UPerNet.

    Source: GFM section 4 (OSCD, DSIFN); the absolute difference is that of SeCo, whose line the paper follows.
    """

    _keys_to_ignore_on_load_missing = [r"swin\.layernorm\..*"]
    _unused_parameters = (MASK_TOKEN, *FINAL_NORM)

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.swin = GFMModel(config, add_pooling_layer=False)
        channels = _map_channels(config)
        self.hidden_states_norms = _stage_norms(channels)
        factor = 2 if config.change_fusion == "concat" else 1
        self.decode_head = _map_decoder(config, [factor * count for count in channels.values()])
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Find what changed between two dates.

        Args:
            pixel_values: (B, 2, C, H, W) float, normalised; index 0 is the date before, 1 the one after.
            labels: (B, H, W) class ids, 1 = changed with two classes; `config.semantic_loss_ignore_index` where nothing
                is known.
            output_hidden_states: Whether to return the maps of both dates, (2 B, D, h, w), before and after in turn.
            output_attentions: Not offered.

        Returns:
            `logits` (B, K, H, W), and `loss` where labels were given.

        Raises:
            ValueError: Shapes of dates, bands or labels do not fit the model.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)} but a pair is (batch, 2, bands, rows, columns); "
                "stack the date before and the one after on axis 1."
            )
        outputs = _before_merging(self.swin, pixel_values.flatten(0, 1))
        both = _normed_maps(self.hidden_states_norms, _stage_names(self.config), outputs)
        maps = tuple(self._fuse(feature_map.unflatten(0, (-1, 2))) for feature_map in both)
        loss, logits = _decode_maps(self, maps, pixel_values.shape[3:], labels)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(to_map(*output) for output in outputs) if wanted else None
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=cast(Any, hidden_states))

    def _fuse(self, dates: torch.Tensor) -> torch.Tensor:
        """(B, 2, D, h, w) -> (B, D or 2 D, h, w)."""
        if self.config.change_fusion == "concat":
            return dates.flatten(1, 2)
        return (dates[:, 1] - dates[:, 0]).abs()


@dataclass
class GFMSuperResolutionOutput(ModelOutput):
    """Output of `GFMForImageSuperResolution`.

    Attributes:
        loss: Mean absolute error; None without labels.
        reconstruction: (B, C, scale * H, scale * W), in the units of `pixel_values`.
        hidden_states: Tokens (B, N, D) of the stem and after every stage, on request.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class GFMForImageSuperResolution(GFMPreTrainedModel):
    """The pixel decoder of pretraining back to the input's size, then convolutions to `config.upscale` times that.

    The decoder of a pretraining checkpoint comes along. With `config.upscale_residual` the upscaler sees the decoded
    image plus the input, and learns what bicubic interpolation lacks; it starts as that interpolation.

    Source: GFM section 4 (SpaceNet-2) and its supplement, "residual from input to output".
    """

    _unused_parameters = (MASK_TOKEN,)

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        self.swin = GFMModel(config, add_pooling_layer=False)
        self.decoder = PixelDecoder(config.hidden_size, config.num_channels, config.encoder_stride)
        self.upscaler = Upscaler(config.num_channels, config.upscale, config.upscale_residual)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> GFMSuperResolutionOutput:
        """Enlarge a batch of images.

        Args:
            pixel_values: (B, C, H, W) float, normalised.
            labels: (B, C, scale * H, scale * W), the true images in the same units.
            output_hidden_states: Whether to return the tokens of every stage.
            output_attentions: Not offered.

        Raises:
            ValueError: Shapes of bands or labels do not fit the model.
        """
        _refuse_attentions(output_attentions or self.config.output_attentions)
        tokens, size = embed_pixels(self.swin, pixel_values)
        stages = run_stages(self.swin, tokens, size)
        height, width = pixel_values.shape[2:]
        last_map = to_map(self.swin.layernorm(stages[-1].hidden_states), stages[-1].size)
        decoded = self.decoder(last_map)[:, :, :height, :width]
        if self.config.upscale_residual:
            interpolated = nn.functional.interpolate(pixel_values, scale_factor=self.config.upscale, mode="bicubic")
            reconstruction = interpolated + self.upscaler(decoded + pixel_values)
        else:
            reconstruction = self.upscaler(decoded)
        loss = None
        if labels is not None:
            if labels.shape != reconstruction.shape:
                raise ValueError(
                    f"labels has shape {tuple(labels.shape)} but {tuple(reconstruction.shape)} was expected; give images "
                    f"of {self.config.upscale} times the sides."
                )
            dtype = torch.promote_types(reconstruction.dtype, torch.float32)
            loss = nn.functional.l1_loss(reconstruction.to(dtype), labels.to(dtype))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = _collect(tokens, size, stages)[0] if wanted else None
        return GFMSuperResolutionOutput(loss=loss, reconstruction=reconstruction, hidden_states=hidden_states)


# ---- what the dense heads share --------------------------------------------------------------------------------------


def _stage_names(config: GFMConfig) -> list[str]:
    return ["stem", *(f"stage{stage}" for stage in range(1, len(config.depths) + 1))]


def _map_channels(config: GFMConfig) -> dict[str, int]:
    """Channels of every stage's map before merging, finest first."""
    return {f"stage{stage + 1}": config.embed_dim * 2**stage for stage in range(len(config.depths))}


def _stage_norms(channels: dict[str, int]) -> nn.ModuleDict:
    return nn.ModuleDict({stage: nn.LayerNorm(count) for stage, count in channels.items()})


def _before_merging(trunk: GFMModel, pixel_values: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Tokens and map size of the stem and of every stage before its merging."""
    tokens, size = embed_pixels(trunk, pixel_values)
    stages = run_stages(trunk, tokens, size)
    return [(tokens, size)] + [(stage.feature_tokens, stage.feature_size) for stage in stages]


def _normed_maps(
    norms: nn.ModuleDict, names: Sequence[str], outputs: Sequence[tuple[torch.Tensor, tuple[int, int]]]
) -> tuple[torch.Tensor, ...]:
    """Maps (B, D, h, w) of the stages that have a norm, behind it."""
    return tuple(to_map(norms[name](tokens), size) for name, (tokens, size) in zip(names, outputs) if name in norms)


def _map_decoder(config: GFMConfig, channels: Sequence[int]) -> MapDecoder:
    auxiliary_channels = config.auxiliary_channels if config.auxiliary_loss_weight else 0
    return MapDecoder(
        channels, cast(int, config.num_labels), config.decoder_channels, config.pool_scales, auxiliary_channels
    )


def _decode_maps(
    model: Any, maps: Sequence[torch.Tensor], size: Sequence[int], labels: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Loss (None without labels) and logits (B, K, H, W)."""
    config = model.config

    def full_size(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return segmentation_loss(
            logits,
            cast(torch.Tensor, labels),
            config.semantic_loss_ignore_index,
            config.class_weights,
            config.dice_loss_weight,
        )

    logits, auxiliary = model.decode_head(maps)
    logits = full_size(logits)
    if labels is None:
        return None, logits
    loss = loss_of(logits)
    if auxiliary is not None:
        loss = loss + config.auxiliary_loss_weight * loss_of(full_size(auxiliary))
    return loss, logits


def _weighted_sum(
    reconstruction: torch.Tensor | None, distillation: torch.Tensor | None, weight: float
) -> torch.Tensor | None:
    if distillation is None:
        return reconstruction
    return weight * distillation if reconstruction is None else reconstruction + weight * distillation


def _collect(
    tokens: torch.Tensor, size: tuple[int, int], stages: list[StageOutput]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Tokens of the stem and after every stage, and the same as maps."""
    outputs = [(tokens, size)] + [(stage.hidden_states, stage.size) for stage in stages]
    return tuple(output for output, _ in outputs), tuple(to_map(*output) for output in outputs)


def _refuse_attentions(output_attentions: bool | None) -> None:
    if output_attentions:
        raise ValueError("GFM models do not return attention weights; leave output_attentions out.")


GFMModel.register_for_auto_class("AutoModel")
GFMBackbone.register_for_auto_class("AutoBackbone")
GFMForPreTraining.register_for_auto_class("AutoModelForPreTraining")
GFMForImageClassification.register_for_auto_class("AutoModelForImageClassification")
GFMForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
GFMForImageSuperResolution.register_for_auto_class("AutoModelForImageToImage")
# `register_for_auto_class` only takes names of classes that exist; this one says that the code is to be saved along.
cast(Any, GFMForChangeDetection)._auto_class = "AutoModelForChangeDetection"
