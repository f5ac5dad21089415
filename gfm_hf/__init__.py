"""Continual pretraining of geospatial foundation models, in the Hugging Face way.

Importing this package registers configuration, models and processor with transformers' Auto classes.
"""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.models.auto import (
    AutoModelForImageToImage,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

import gfm_hf.pipelines  # noqa: F401  # registers change detection and super-resolution
from gfm_hf.convert import convert_checkpoint
from gfm_hf.model.configuration_gfm import GFMConfig
from gfm_hf.model.image_processing_gfm import GFMImageProcessor
from gfm_hf.model.modeling_gfm import (
    GFMBackbone,
    GFMForChangeDetection,
    GFMForImageClassification,
    GFMForImageSuperResolution,
    GFMForPreTraining,
    GFMForSemanticSegmentation,
    GFMModel,
)
from gfm_hf.training.teacher import GFMTeacher


__version__ = "0.1.0"

__all__ = [
    "GFMBackbone",
    "GFMConfig",
    "GFMForChangeDetection",
    "GFMForImageClassification",
    "GFMForImageSuperResolution",
    "GFMForPreTraining",
    "GFMForSemanticSegmentation",
    "GFMImageProcessor",
    "GFMModel",
    "GFMTeacher",
    "convert_checkpoint",
]

AutoConfig.register("gfm", GFMConfig)
AutoModel.register(GFMConfig, GFMModel)
AutoBackbone.register(GFMConfig, GFMBackbone)
AutoModelForPreTraining.register(GFMConfig, GFMForPreTraining)
AutoModelForMaskedImageModeling.register(GFMConfig, GFMForPreTraining)
AutoModelForImageClassification.register(GFMConfig, GFMForImageClassification)
AutoModelForSemanticSegmentation.register(GFMConfig, GFMForSemanticSegmentation)
AutoModelForImageToImage.register(GFMConfig, GFMForImageSuperResolution)
# One processor for every backend: it needs no torchvision and looks the same where there is one.
AutoImageProcessor.register(
    GFMConfig, image_processor_classes={"pil": GFMImageProcessor, "torchvision": GFMImageProcessor}
)
