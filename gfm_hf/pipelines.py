"""`transformers.pipeline` for the tasks that it does not know: change detection and super-resolution.

Importing this module registers both, so that `pipeline("change-detection", model=folder)` finds model and processor.

Of the stock tasks "image-classification" takes paths, PIL images and arrays (H, W, C) or (C, H, W) of any bands;
"image-segmentation" and "image-feature-extraction" take paths and PIL images and read them as RGB. For arrays and other
bands call processor, model and `post_process_semantic_segmentation` yourself.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from gfm_hf.model.modeling_gfm import GFMForChangeDetection, GFMForImageSuperResolution


# The stock class is annotated for pipelines without parameters, its own subclasses do not fit it either.
_Pipeline: Any = Pipeline


class _ImagePipeline(_Pipeline):
    """What both tasks share: an image processor, nothing of language, and images of any bands."""

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.image_processor is None:
            raise ValueError(
                f"the {self.task} pipeline has no image processor; pass image_processor=GFMImageProcessor(...)."
            )

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and processor; with gfm_hf imported, `pipeline(task, model=save_directory)` loads them.

        The stock method would also name this class in the configuration together with the model's, which transformers
        then looks for among its own classes and fails.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)


class ChangeDetectionPipeline(_ImagePipeline):
    """Find what changed between two dates.

    `pipeline("change-detection", model=...)((before, after))`, or a list of such pairs. An image is a path, an address,
    a PIL image, or an array (H, W, C) or (C, H, W) with the model's bands; both dates have one size.

    Args (of the constructor or of a call):
        threshold: Probability above which a pixel counts as changed, 0.5 by default.
        image_processor_kwargs: Passed on to the processor, for example `{"do_resize": False}` or `{"bands": [...]}`.

    Returns, for each pair:
        `mask`: PIL image in mode L of the input's size, 255 = changed; `change_fraction`: changed share of all pixels;
        `probabilities`: (H, W) float32 of any change.
    """

    def _sanitize_parameters(
        self, threshold: float | None = None, image_processor_kwargs: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        prepare = {} if image_processor_kwargs is None else {"image_processor_kwargs": image_processor_kwargs}
        return prepare, {}, {} if threshold is None else {"threshold": threshold}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Process one pair (before, after), or a list, generator or dataset of pairs.

        Raises:
            ValueError: The input is no pair, or images and model do not fit.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            raise ValueError("inputs is empty; pass a pair (before, after) or a list of pairs.")
        return super().__call__(inputs, **kwargs)

    def preprocess(self, input_: Any, image_processor_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Pair -> `pixel_values` (1, 2, C, H, W) and `target_sizes` (1, 2)."""
        if not isinstance(input_, (list, tuple)) or len(input_) != 2:
            raise ValueError(
                f"change detection got {_describe(input_)} but works on pairs; pass one tuple (before, after), or a list "
                f"of such tuples."
            )
        pair = tuple(_open(image) for image in input_)
        arguments = {"return_tensors": "pt", **(image_processor_kwargs or {})}
        inputs = self.image_processor([pair], **arguments).to(self.dtype)
        reading = {name: arguments[name] for name in ("bands", "input_data_format") if name in arguments}
        size = self.image_processor.image_size(pair[0], **reading)
        return {"pixel_values": inputs["pixel_values"], "target_sizes": torch.tensor([size])}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        logits = self.model(pixel_values=input_tensors["pixel_values"]).logits
        return {"logits": logits, "target_sizes": input_tensors["target_sizes"]}

    def postprocess(self, model_outputs: dict[str, Any], threshold: float = 0.5) -> dict[str, Any]:
        """Logits (1, K, h, w) -> mask, changed share and probabilities at the input's size."""
        found = self.image_processor.post_process_change_detection(
            model_outputs["logits"], model_outputs["target_sizes"], threshold
        )[0]
        mask = found["mask"].numpy()
        return {
            "mask": Image.fromarray(mask.astype(np.uint8) * 255),
            "change_fraction": float(mask.mean()),
            "probabilities": found["probabilities"].numpy(),
        }


class SuperResolutionPipeline(_ImagePipeline):
    """Enlarge images by the model's factor.

    `pipeline("super-resolution", model=...)(image)`, or a list of images: paths, addresses, PIL images, or arrays
    (H, W, C) or (C, H, W) with the model's bands. Images keep their size on the way in, whatever the processor's `size`.

    Args (of the constructor or of a call):
        result_dtype: NumPy type of the result; by default that of the files, see `post_process_super_resolution`.
        image_processor_kwargs: Passed on to the processor, for example `{"bands": [...]}`.

    Returns, for each image:
        A PIL image where the result has 8 bits and one or three bands, else an array (H, W, C).
    """

    def _sanitize_parameters(
        self, result_dtype: Any = None, image_processor_kwargs: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        prepare = {} if image_processor_kwargs is None else {"image_processor_kwargs": image_processor_kwargs}
        return prepare, {}, {} if result_dtype is None else {"result_dtype": result_dtype}

    def preprocess(self, input_: Any, image_processor_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Image -> `pixel_values` (1, C, H, W)."""
        arguments = {"return_tensors": "pt", "do_resize": False, **(image_processor_kwargs or {})}
        inputs = self.image_processor([_open(input_)], **arguments).to(self.dtype)
        return {"pixel_values": inputs["pixel_values"]}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        return {"reconstruction": self.model(pixel_values=input_tensors["pixel_values"]).reconstruction}

    def postprocess(self, model_outputs: dict[str, Any], result_dtype: Any = None) -> Image.Image | np.ndarray:
        """Reconstruction (1, C, h, w) -> picture, or array (h, w, C)."""
        process = self.image_processor.post_process_super_resolution
        array = process(model_outputs, dtype=result_dtype)[0]
        picture = array.dtype == np.uint8 and array.shape[2] in (1, 3)
        return process(model_outputs, dtype=result_dtype, output_type="pil")[0] if picture else array


def _open(image: Any) -> Any:
    """Path or address -> PIL image with the bands of the file; everything else as it is."""
    if isinstance(image, str) and not Path(image).is_file():
        return load_image(image)  # an address or base64; says so where it is neither
    if not isinstance(image, (str, Path)):
        return image
    try:
        picture = Image.open(image)
        picture.load()
    except OSError as error:
        raise ValueError(
            f"{image} cannot be opened as a picture ({error}); read rasters of other bands or depths with rasterio and "
            f"pass the array."
        ) from error
    return picture


def _describe(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"a {type(value).__name__}{size}"


PIPELINE_REGISTRY.register_pipeline(
    "change-detection", pipeline_class=ChangeDetectionPipeline, pt_model=GFMForChangeDetection, type="image"
)
PIPELINE_REGISTRY.register_pipeline(
    "super-resolution", pipeline_class=SuperResolutionPipeline, pt_model=GFMForImageSuperResolution, type="image"
)
