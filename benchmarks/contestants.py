"""The pretraining steps that are compared: models, optimizers, and one full step of each.

Three families share their weights within a family: the authors' step, transformers' own modules, and ours. A variant
is a family with a precision and a teacher.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from authors_step import AuthorsStep, authors_names
from torch import nn
from transformers import SwinConfig, SwinForMaskedImageModeling, SwinModel

from gfm_hf import GFMConfig, GFMForPreTraining, GFMTeacher
from gfm_hf.data.masking import expand_to_tokens, hidden_cells
from gfm_hf.model.losses_gfm import feature_distillation_loss
from gfm_hf.model.swin_gfm import embed_pixels, run_stages
from gfm_hf.training.optim import parameter_groups


TEACHER_PX = 224
MAX_GRAD_NORM = 5.0
# Small enough that a few dozen steps on one batch leave the weights where they are.
LEARNING_RATE = 1e-6

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 4, 8)},
    "swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


class Batch(NamedTuple):
    """Images (B, 3, 192, 192) and which tokens are hidden, (B, 48, 48) bool."""

    pixel_values: torch.Tensor
    bool_masked_pos: torch.Tensor


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Attributes:
        name: What the table says.
        family: "authors", "stock" or "ours".
        bf16: Whether the student's arithmetic runs under bfloat16 autocast.
        teacher: "trainable" or "frozen" sub-module (authors), its dtype (stock, ours), or None.
    """

    name: str
    family: str
    bf16: bool
    teacher: str | None


VARIANTS = (
    Variant("authors fp32", "authors", False, "trainable"),
    Variant("authors fp32, teacher frozen", "authors", False, "frozen"),
    Variant("authors bf16", "authors", True, "trainable"),
    Variant("stock fp32", "stock", False, "float32"),
    Variant("stock bf16", "stock", True, "float32"),
    Variant("ours fp32", "ours", False, "float32"),
    Variant("ours fp32, bf16 teacher", "ours", False, "bfloat16"),
    Variant("ours bf16, bf16 teacher", "ours", True, "bfloat16"),
    Variant("ours fp32, student only", "ours", False, None),
    Variant("ours bf16, student only", "ours", True, None),
)


def configs(model: str) -> tuple[GFMConfig, SwinConfig]:
    """Student (192 px, window 6) and teacher (224 px, window 7) of the same widths and depths."""
    common = {**SHAPES[model], "drop_path_rate": 0.0}
    return GFMConfig(**common), SwinConfig(image_size=TEACHER_PX, window_size=7, **common)


def make_batch(config: GFMConfig, size: int, device: str = "cpu") -> Batch:
    """Noise images and the masks that training would draw."""
    cells = config.image_size // config.mask_patch_size
    factor = config.mask_patch_size // config.patch_size
    masks = torch.stack([hidden_cells(index, 0, 0, cells, config.mask_ratio) for index in range(size)])
    side = config.image_size // config.patch_size
    tokens = expand_to_tokens(masks, cells, factor).view(size, side, side)
    images = torch.randn(size, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    return Batch(images.to(device), tokens.to(device))


class Authors:
    """The restated step, with AdamW as a loop over the parameters."""

    def __init__(self, config: GFMConfig, teacher_config: SwinConfig, device: str = "cpu") -> None:
        self.model = AuthorsStep(config, teacher_config).train().to(device)
        self.optimizer = torch.optim.AdamW(
            _by_axes(self.model.named_parameters()), lr=LEARNING_RATE, foreach=False, fused=False
        )

    def loss(self, batch: Batch, variant: Variant) -> torch.Tensor:
        """Forward of one batch; autocast, where wanted, covers the teacher as well."""
        self.model.teacher.requires_grad_(variant.teacher == "trainable")
        with _autocast(batch, variant):
            return self.model(batch.pixel_values, batch.bool_masked_pos)


class Stock:
    """transformers' modules in the loop a user would write around them: the whole teacher runs, without graph.

    The optimizer is the same fused one as ours, so that the ratio is between the modules alone.
    """

    def __init__(self, config: GFMConfig, teacher_config: SwinConfig, device: str = "cpu") -> None:
        swin_fields = ("image_size", "embed_dim", "depths", "num_heads", "window_size", "drop_path_rate")
        stock_config = SwinConfig(**{name: getattr(config, name) for name in swin_fields}, encoder_stride=32)
        self.model: nn.Module = SwinForMaskedImageModeling(stock_config)
        student_size = config.stage_hidden_sizes[3]
        self.projector = self.model.projector = nn.Linear(student_size, student_size)
        self.model.train().to(device)
        self.teacher = SwinModel(teacher_config, add_pooling_layer=False).requires_grad_(False).eval().to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.05), lr=LEARNING_RATE, fused=True)

    def loss(self, batch: Batch, variant: Variant) -> torch.Tensor:
        """Forward of one batch."""
        images, masks = batch.pixel_values, batch.bool_masked_pos.flatten(1)
        with _autocast(batch, variant):
            resized = nn.functional.interpolate(
                images, size=(TEACHER_PX, TEACHER_PX), mode="bilinear", align_corners=True
            )
            with torch.no_grad():
                target = self.teacher(resized, output_hidden_states=True).hidden_states[3].mean(dim=1)
            outputs = self.model(images, bool_masked_pos=masks, output_hidden_states=True)
            projected = self.projector(outputs.hidden_states[3].mean(dim=1))
            return outputs.loss + feature_distillation_loss(projected, target)


class Ours:
    """What `run_continual_pretraining.py` runs: cut teacher outside the model, fused AdamW."""

    def __init__(
        self,
        config: GFMConfig,
        teacher_config: SwinConfig,
        device: str = "cpu",
        teachers: Iterable[str | None] = ("float32", "bfloat16"),
        attn_implementation: str | None = None,
    ) -> None:
        self.model: nn.Module = GFMForPreTraining(config).train().to(device)
        # The training script's own default.
        self.model.set_attn_implementation(attn_implementation or ("eager" if device == "cpu" else "sdpa"))
        network = SwinModel(teacher_config, add_pooling_layer=False)
        self.teachers = {name: _teacher(network, name).to(device) for name in teachers if name}
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.05), lr=LEARNING_RATE, fused=True)

    def loss(self, batch: Batch, variant: Variant) -> torch.Tensor:
        """Forward of one batch; the teacher's dtype is its own."""
        features = self.teachers[variant.teacher](batch.pixel_values) if variant.teacher else None
        with _autocast(batch, variant):
            return self.model(batch.pixel_values, batch.bool_masked_pos, features).loss


Family = Authors | Stock | Ours
FAMILIES: dict[str, Callable[..., Family]] = {"authors": Authors, "stock": Stock, "ours": Ours}


def full_step(family: Family, variant: Variant, batch: Batch) -> None:
    """Forward, backward, clipping, update."""
    family.loss(batch, variant).backward()
    nn.utils.clip_grad_norm_(family.model.parameters(), MAX_GRAD_NORM)
    family.optimizer.step()
    family.optimizer.zero_grad()


def build_families(
    model: str, names: Iterable[str], attn_implementation: str | None = None, seed: int = 0
) -> dict[str, Family]:
    """Build the families with the same random weights.

    Every bias, norm and position table is disturbed, so that an agreement means something.
    """
    torch.manual_seed(seed)
    config, teacher_config = configs(model)
    network = SwinModel(teacher_config, add_pooling_layer=False)
    source = GFMForPreTraining(config)
    for module in (network, source):
        _disturb(module)
    families: dict[str, Family] = {}
    for name in names:
        if name == "ours":
            families[name] = ours = Ours(config, teacher_config, attn_implementation=attn_implementation)
            ours.model.load_state_dict(source.state_dict())
            ours.teachers = {dtype: _teacher(network, dtype) for dtype in ours.teachers}
        elif name == "stock":
            families[name] = stock = Stock(config, teacher_config)
            state = {key.replace("projector.0", "projector"): value for key, value in source.state_dict().items()}
            stock.model.load_state_dict(state)
            stock.teacher.load_state_dict(network.state_dict())
        else:
            families[name] = authors = Authors(config, teacher_config)
            authors.model.load_state_dict(_authors_state(source, network))
    return families


def agreement(families: dict[str, Family], batch: Batch) -> dict[str, float]:
    """How far ours in float32 is from the authors' step, before any update.

    Returns:
        `features`, the largest error of the teacher's and the student's pooled features relative to the largest value;
        `loss`, the absolute error; `gradient`, the worst error of a tensor relative to its norm.
    """
    authors, ours = families["authors"], families["ours"]
    assert isinstance(authors, Authors) and isinstance(ours, Ours)
    losses = [family.loss(batch, _float32(name)) for name, family in (("authors", authors), ("ours", ours))]
    for loss in losses:
        loss.backward()
    expected = {name: value.grad for name, value in authors.model.named_parameters() if value.grad is not None}
    found = authors_names((name, value.grad) for name, value in ours.model.named_parameters())
    assert found.keys() == expected.keys()
    gradient = max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)
    for family in (authors, ours):
        family.optimizer.zero_grad()
    return {
        "features": _feature_error(authors, ours, batch),
        "loss": abs(losses[0].item() - losses[1].item()),
        "gradient": gradient,
    }


@torch.no_grad()
def _feature_error(authors: Authors, ours: Ours, batch: Batch) -> float:
    expected = [
        authors.model.teacher_feature(batch.pixel_values),
        authors.model.student(batch.pixel_values, batch.bool_masked_pos, last_stage=3)[2].mean(dim=1),
    ]
    swin = cast(SwinModel, ours.model.swin)
    stages = run_stages(swin, *embed_pixels(swin, *batch), last_stage=3)
    found = [ours.teachers["float32"](batch.pixel_values)[0], stages[2].hidden_states.mean(dim=1)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected))


def _float32(family: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.family == family and not variant.bf16)


def _autocast(batch: Batch, variant: Variant) -> torch.autocast:
    return torch.autocast(batch.pixel_values.device.type, dtype=torch.bfloat16, enabled=variant.bf16)


def _teacher(network: SwinModel, dtype: str) -> GFMTeacher:
    """A teacher with a copy of the network's weights."""
    return GFMTeacher(deepcopy(network).to(getattr(torch, dtype)), [3], TEACHER_PX)


def _by_axes(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """The authors' groups: no decay for vectors and the mask token; position tables are decayed."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": 0.05}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in named:
        groups[parameter.ndim == 1 or name.endswith("mask_token")]["params"].append(parameter)
    return groups


def _authors_state(source: nn.Module, network: nn.Module) -> dict[str, torch.Tensor]:
    teacher = {f"teacher.{name}": value for name, value in authors_names(network.state_dict().items()).items()}
    return {**authors_names(source.state_dict().items()), **teacher}


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith(("table", "mask_token")):
            parameter.add_(0.1 * torch.randn_like(parameter))
