"""Any picture, raster array or tensor -> normalised `pixel_values`; masks -> `labels`; outputs -> maps and pictures.

Wrong band order and wrong value scale are the usual mistakes with remote-sensing models, and both give plausible
but wrong features. So bands are matched by name or by exact count, the channel axis is never guessed when two axes
fit, and values far from the model's statistics are refused.

Shapes: B images, C bands of the model, K classes, H rows, W columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from .label_maps_gfm import (
    MapSettings,
    change_probability,
    checked_threshold,
    fit_ids,
    logits_of,
    picture_of,
    raw_values,
    read_ids,
    read_maps,
    resized_logits,
)
from .value_checks_gfm import check_finite, check_scale


logger = logging.get_logger(__name__)

RESAMPLE_MODES = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
# Red, green and blue under the names of common sensors, as in the model's configuration. Repeated here because this
# file alone, without the configuration's code, has to be enough to load a processor.
RGB_BAND_NAMES = (("R", "RED", "B04", "B4"), ("G", "GREEN", "B03", "B3"), ("B", "BLUE", "B02", "B2"))
# Keys that the library itself writes into preprocessor_config.json next to ours.
SERVICE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


class GFMImageProcessorKwargs(TypedDict, total=False):
    """Settings that `from_pretrained` and every call may override; see `GFMImageProcessor` for their meaning."""

    do_resize: bool | None
    size: int | dict[str, int] | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    band_names: Sequence[str] | None
    check_values: bool | None
    ignore_index: int | None
    do_reduce_labels: bool | None
    palette: Sequence[Sequence[int]] | None
    palette_tolerance: int | None
    mask_threshold: float | None
    num_labels: int | None
    nodata: float | str | None


@dataclass
class _Settings(MapSettings):
    """One consistent set of the settings; building it checks and unifies them."""

    do_resize: bool
    size: Any
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Any
    image_std: Any
    band_names: Any
    check_values: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size = _size_dict(self.size)
        self.resample = int(self.resample)
        if self.resample not in RESAMPLE_MODES:
            raise ValueError(
                f"resample is {self.resample} but only 2 (bilinear) and 3 (bicubic) work; pass one of them."
            )
        if not (np.isfinite(self.rescale_factor) and self.rescale_factor > 0):
            raise ValueError(
                f"rescale_factor is {self.rescale_factor} but must be above 0; pass 1/255 for 8-bit images."
            )
        if self.band_names is not None:
            self.band_names = _names("band_names", self.band_names)
        self._check_statistics()

    def _check_statistics(self) -> None:
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is None and (self.do_normalize or self.band_names is None):
                raise ValueError(f"{name} is None but do_normalize needs it; pass one number per band.")
            if values is None:
                continue
            if np.ndim(values) != 1 or not np.isfinite(values).all():
                raise ValueError(
                    f"{name} is {values!r} but must hold one finite number per band, such as [0.5, 0.5, 0.5]."
                )
            setattr(self, name, tuple(float(value) for value in values))
            if len(values) != self.num_bands:
                counted = "image_mean" if self.band_names is None else f"band_names {list(self.band_names)}"
                raise ValueError(
                    f"{name} has {len(values)} values but {counted} has {self.num_bands}; "
                    f"pass image_mean, image_std and band_names (or band_names=None) of equal length."
                )
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"image_std is {list(self.image_std)} but must be above 0; leave constant bands out.")

    @property
    def num_bands(self) -> int:
        return len(self.image_mean if self.band_names is None else self.band_names)

    @property
    def factor(self) -> float:
        return self.rescale_factor if self.do_rescale else 1.0

    @property
    def file_type(self) -> str:
        """Type of the files whose values `factor` brings to the statistics' unit."""
        if abs(self.factor * 255 - 1) < 1e-3:
            return "uint8"
        return "uint16" if self.factor < 1 else "float32"

    def label(self, band: int) -> str:
        return str(band) if self.band_names is None else self.band_names[band]


class GFMImageProcessor(BaseImageProcessor):
    """Turn images of any kind into the `pixel_values` of a GFM model.

    A picture passes through: bands by name, resize, rescale (`value * rescale_factor`), normalise
    (`(value - image_mean) / image_std`). Every argument can be overridden for one call.

    Args:
        do_resize: Resize to `size`. The models take any size, so False is fine for images of equal size.
        size: Height and width in pixels: `{"height": H, "width": W}`, or one number for both. 192 is the paper's size.
        resample: 2 (bilinear) or 3 (bicubic), both with antialiasing, for any number of bands and any type.
        do_rescale: Multiply by `rescale_factor`; pass False for floats that are already in the unit of the statistics.
        rescale_factor: 1/255 for 8-bit pictures, 1e-4 for reflectance stored as integers of 0 to 10000.
        do_normalize: Subtract `image_mean` and divide by `image_std`.
        image_mean: One number per band, in units after `rescale_factor`. None is allowed with `do_normalize=False`.
        image_std: As `image_mean`.
        band_names: Names of the model's bands in the model's order, or None where only their number is known.
        check_values: Refuse images whose values cannot match the statistics (wrong factor, nodata fill).
        ignore_index: Label of pixels about which nothing is known; the models' `semantic_loss_ignore_index`.
        do_reduce_labels: In label maps 0 becomes `ignore_index` and every other id one less.
        palette: RGB colours of colour-coded label maps, the colour of id 0 first. With a colour that marks unknown
            pixels in first place and `do_reduce_labels`, these are ignored and ids start at the second.
        palette_tolerance: For colour-coded maps that went through JPEG: largest difference a channel (0 to 255) at
            which a colour is taken for the nearest of the palette. Other unknown colours are refused.
        mask_threshold: For two-class masks of 0 and 255 or with soft edges: a pixel from this value on is 1, any other
            0; 128 for 8 bits. Masks that hold 0 and 1 already stay. None: values are ids, and 255 is `ignore_index`.
        num_labels: Number of classes K; ids outside 0..K-1 other than `ignore_index` are refused.
        nodata: Value of image pixels that hold no data: a pixel with NaN in any band, or this number in all of the
            model's bands. They are filled with `image_mean` (0 after normalisation) and their labels are ignored. "nan"
            for NaN alone. None: NaN is refused.

    Raises:
        ValueError: The settings contradict each other.
        TypeError: A keyword is unknown.

    Source: GFM's pretraining transform (192 px, bilinear, ImageNet mean and std); SimMIM data/data_simmim.py.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = GFMImageProcessorKwargs  # type: ignore[assignment]  # has keys the library does not know
    # Defaults live on the class too: to_dict drops a None unless the class default is something else, and a model
    # without band names must not come back as an RGB model.
    do_resize = True
    size = 192
    resample = int(Image.Resampling.BILINEAR)
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = tuple(IMAGENET_DEFAULT_MEAN)
    image_std = tuple(IMAGENET_DEFAULT_STD)
    band_names = ("R", "G", "B")
    check_values = True
    ignore_index = 255
    do_reduce_labels = False
    palette = None
    palette_tolerance = 0
    mask_threshold = None
    num_labels = None
    nodata = None

    def __init__(
        self,
        do_resize: bool = do_resize,
        size: int | Mapping[str, int] = size,
        resample: int = resample,
        do_rescale: bool = do_rescale,
        rescale_factor: float = rescale_factor,
        do_normalize: bool = do_normalize,
        image_mean: Sequence[float] | None = image_mean,
        image_std: Sequence[float] | None = image_std,
        band_names: Sequence[str] | None = band_names,
        check_values: bool = check_values,
        ignore_index: int = ignore_index,
        do_reduce_labels: bool = do_reduce_labels,
        palette: Sequence[Sequence[int]] | None = palette,
        palette_tolerance: int = palette_tolerance,
        mask_threshold: float | None = mask_threshold,
        num_labels: int | None = num_labels,
        nodata: float | str | None = nodata,
        **kwargs: Any,
    ) -> None:
        # A misspelt setting would otherwise be stored, saved and never used.
        unknown = sorted(key for key in kwargs if key not in SERVICE_KEYS and not key.startswith("_"))
        if unknown:
            known = sorted(GFMImageProcessorKwargs.__annotations__)
            raise TypeError(f"GFMImageProcessor has no setting {unknown}; use some of {known}.")
        super().__init__(**kwargs)
        settings = _Settings(
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            band_names=band_names,
            check_values=check_values,
            ignore_index=ignore_index,
            do_reduce_labels=do_reduce_labels,
            palette=palette,
            palette_tolerance=palette_tolerance,
            mask_threshold=mask_threshold,
            num_labels=num_labels,
            nodata=nodata,
        )
        for name, value in asdict(settings).items():
            setattr(self, name, value)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        bands: Sequence[str] | None = None,
        input_data_format: str | None = None,
        maps_are_ids: bool = False,
        return_tensors: str | None = None,
        **overrides: Unpack[GFMImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare one image or a batch, with label maps where there are any.

        Args:
            images: A PIL image (any mode; turned upright by its EXIF tag), a NumPy array or torch tensor (C, H, W),
                (H, W, C), or (H, W) for one band, a list of these, or a batch array with a leading axis. Integers
                or floats; tensors stay on their device. In a list of pairs `[(before, after), ...]` each is two images
                of equal size; a pair alone is `[(before, after)]`, because a tuple of two images is a batch.
            segmentation_maps: One mask per image or per pair, of the image's height and width: a PIL image (mode P
                keeps its indices as ids), or an array (H, W) of ids or (H, W, 3) of colours.
            bands: Names of the bands the images have, in their order. The model's bands are picked by name. Without
                it, arrays must have the model's bands in the model's order; a swap of equally many bands (BGR for
                RGB) cannot be seen. PIL colour pictures are R, G, B by definition and follow the model's order.
            input_data_format: `"channels_first"` or `"channels_last"` for arrays; by default the one axis, first or
                last, that has the expected number of bands.
            maps_are_ids: The maps come from `read_label_map`: they are not interpreted by palette, threshold or
                `do_reduce_labels` a second time.
            return_tensors: `"pt"`, `"np"`, or None for a list of arrays.
            **overrides: Settings of `__init__` for this call; None means the stored one.

        Returns:
            `pixel_values`: (B, C, H, W) float32, or (B, 2, C, H, W) for pairs; with maps also `labels`: (B, H, W) int64,
            resized to the images' new size without mixing ids. With `return_tensors=None` lists of arrays.

        Raises:
            ValueError: Bands are missing, the channel axis is unclear, values are NaN, infinite or far from the
                statistics, sizes differ without resizing or inside a pair, or a map does not fit its image.
            TypeError: A keyword is unknown.
        """
        settings = self._settings(overrides)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r} but must be 'pt', 'np' or None; pass one of them.")
        singles, names, paired = _single_images(_image_list(images))
        prepared = self._prepare(singles, names, settings, bands, input_data_format)
        if paired:
            _check_pairs(prepared, names)
        batches: list[torch.Tensor] = []
        holes: list[torch.Tensor | None] = []
        for batch in _equal_batches(prepared):
            values, missing = _transform(batch, settings, names[len(holes) : len(holes) + len(batch)])
            batches.append(values)
            holes.extend([None] * len(batch) if missing is None else list(missing))
        data = {"pixel_values": _collect(batches, paired, return_tensors)}
        if segmentation_maps is not None:
            step = 2 if paired else 1
            sizes = [tuple(image.shape[1:]) for image in prepared[::step]]
            labels = read_maps(segmentation_maps, sizes, names[::step], settings, maps_are_ids)
            groups = [holes[start : start + step] for start in range(0, len(holes), step)]
            size = (settings.size["height"], settings.size["width"]) if settings.do_resize else None
            labels = [
                fit_ids(ids, group, settings.ignore_index, size) for ids, group in zip(labels, groups, strict=True)
            ]
            data["labels"] = _collect_labels(labels, batches[0].device, return_tensors)
        return BatchFeature(data=data)

    def read_label_map(self, segmentation_map: Any, name: str = "label map 0") -> np.ndarray:
        """Turn one mask into class ids, at its own size.

        For code that crops or turns image and map together: on ids this is safe, with `ignore_index` to fill borders.
        Pass the result on with `maps_are_ids=True`.

        Args:
            segmentation_map: As one of `segmentation_maps` in `preprocess`.
            name: What an error calls it.

        Returns:
            (H, W) int64.

        Raises:
            ValueError: The mask has another shape, unknown colours, fractions or ids that no class has.
        """
        return read_ids(segmentation_map, self._settings({}), name)

    def image_size(
        self, image: Any, bands: Sequence[str] | None = None, input_data_format: str | None = None
    ) -> tuple[int, int]:
        """Height and width of one image as `preprocess` reads it, for `target_sizes`: (int, int) in pixels.

        Args:
            image: One image, as in `preprocess`.
            bands: As in `preprocess`.
            input_data_format: As in `preprocess`.

        Raises:
            ValueError: The image is none, or its channel axis is unclear.
        """
        height, width = self._prepare([image], ["image 0"], self._settings({}), bands, input_data_format)[0].shape[1:]
        return int(height), int(width)

    def denormalize(self, pixel_values: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Undo the normalisation, for pictures and for comparing outputs in physical units.

        Args:
            pixel_values: (..., C, H, W), as `preprocess` returns them or as a model reconstructs them.

        Returns:
            (..., C, H, W) float32 in units after `rescale_factor`: 0..1 for 8-bit pictures, else reflectance or
            whatever unit `image_mean` has. Not clipped.

        Raises:
            ValueError: The number of bands is not the processor's.
        """
        settings = self._settings({})
        values = torch.as_tensor(pixel_values, dtype=torch.float32)
        if values.ndim < 3 or values.shape[-3] != settings.num_bands:
            raise ValueError(
                f"pixel_values has shape {tuple(values.shape)} but (..., {settings.num_bands}, H, W) was expected; "
                f"pass channels-first values with all bands of the model."
            )
        if not settings.do_normalize:
            return values.clone()
        return values * _per_band(settings.image_std, values) + _per_band(settings.image_mean, values)

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None) -> list[torch.Tensor]:
        """Turn a segmentation model's output into maps.

        Args:
            outputs: With `logits` (B, K, H, W), or these themselves.
            target_sizes: B pairs (height, width) of the original images; logits are resized before the decision. None
                keeps the model's size.

        Returns:
            B tensors (H, W) int64.

        Raises:
            ValueError: There is not one size per image.
        """
        return [logits.argmax(dim=0) for logits in resized_logits(logits_of(outputs), target_sizes)]

    def post_process_change_detection(
        self, outputs: Any, target_sizes: Any = None, threshold: float = 0.5
    ) -> list[dict[str, torch.Tensor]]:
        """Turn a change detection model's output into maps.

        Args:
            outputs: With `logits` (B, K, H, W), or these themselves; class 0 is "no change".
            target_sizes: As in `post_process_semantic_segmentation`.
            threshold: Probability above which a pixel counts as changed; lower finds more, and more that is none.

        Returns:
            B dictionaries: `mask` (H, W) bool and `probabilities` (H, W) float32 of any change.

        Raises:
            ValueError: There is not one size per image, or the threshold is no probability.
        """
        checked_threshold(threshold)
        changes = [change_probability(logits) for logits in resized_logits(logits_of(outputs), target_sizes)]
        return [{"mask": change > threshold, "probabilities": change} for change in changes]

    def post_process_super_resolution(
        self, outputs: Any, dtype: Any = None, output_type: str = "np"
    ) -> list[np.ndarray] | list[Image.Image]:
        """Turn a super-resolution model's output into images in the unit and type of the files.

        Args:
            outputs: With `reconstruction` (B, C, H, W), or this itself.
            dtype: NumPy type of the result, its range clips the values; by default uint8 where `rescale_factor` is 1/255,
                uint16 where it is another below 1, and float32 without rescaling.
            output_type: `"np"` for arrays, `"pil"` for 8-bit pictures of one or three bands.

        Returns:
            B arrays (H, W, C), or PIL images in the order R, G, B.

        Raises:
            ValueError: The number of bands is not the processor's, or the result is no picture.
        """
        if output_type not in ("np", "pil"):
            raise ValueError(f"output_type is {output_type!r} but must be 'np' or 'pil'; pass one of them.")
        settings = self._settings({})
        values = outputs if isinstance(outputs, torch.Tensor) else outputs["reconstruction"]
        values = self.denormalize(values.detach().float()) / settings.factor
        arrays = list(raw_values(values, np.dtype(settings.file_type if dtype is None else dtype)))
        return (
            arrays
            if output_type == "np"
            else [picture_of(array, _colour_order(settings.band_names)) for array in arrays]
        )

    def _settings(self, overrides: Mapping[str, Any]) -> _Settings:
        """Join the stored settings and those of one call."""
        unknown = sorted(set(overrides) - set(GFMImageProcessorKwargs.__annotations__))
        if unknown:
            known = ["bands", "input_data_format", "return_tensors", *sorted(GFMImageProcessorKwargs.__annotations__)]
            raise TypeError(f"GFMImageProcessor got unknown keywords {unknown}; use some of {known}.")
        stored = {name: getattr(self, name) for name in GFMImageProcessorKwargs.__annotations__}
        return _Settings(**{**stored, **{name: value for name, value in overrides.items() if value is not None}})

    def _prepare(
        self,
        images: list[Any],
        names: list[str],
        settings: _Settings,
        bands: Sequence[str] | None,
        layout: str | None,
    ) -> list[torch.Tensor]:
        """Bring every image to (C, H, W) with the model's bands in the model's order, values untouched."""
        layout = _layout(layout)
        if bands is None:
            _warn_assumed_order(images, settings.band_names)
            expected, order = settings.num_bands, None
        else:
            bands = _names("bands", bands)
            expected, order = len(bands), _band_order(bands, settings.band_names)
        picture_order = None if bands is not None else _colour_order(settings.band_names)
        prepared = []
        for image, name in zip(images, names, strict=True):
            if isinstance(image, Image.Image):
                array = _picture_array(image, name, expected, bands is not None, picture_order)
                tensor = _channels_first(_array_tensor(array, name), name, expected, "channels_last")
            else:
                tensor = _channels_first(_array_tensor(image, name), name, expected, layout)
            # Views of single bands: unlike indexing this works for unsigned 16-bit tensors too.
            prepared.append(tensor if order is None else torch.stack([tensor[band] for band in order]))
        return prepared


def _size_dict(size: Any) -> dict[str, int]:
    """Bring `size` to {"height", "width"}."""
    sizes = {"height": size, "width": size} if isinstance(size, int) else size
    sizes = dict(sizes) if isinstance(sizes, Mapping) else {}
    if set(sizes) != {"height", "width"} or not all(isinstance(px, int) and px > 0 for px in sizes.values()):
        raise ValueError(
            f"size is {size!r} but must be one number or {{'height': H, 'width': W}} in pixels; pass size=192."
        )
    return sizes


def _names(argument: str, names: Any) -> tuple[str, ...]:
    """Check a list of band names."""
    listed = isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 0
    if not listed or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise ValueError(
            f"{argument} is {names!r} but must be a list of different names; pass for example ['R', 'G', 'B']."
        )
    return tuple(names)


def _layout(input_data_format: Any) -> str | None:
    """Check `input_data_format`; the library's enum and its string are both accepted."""
    layout = getattr(input_data_format, "value", input_data_format)
    if layout not in (None, "channels_first", "channels_last"):
        raise ValueError(
            f"input_data_format is {layout!r} but only 'channels_first' and 'channels_last' exist; pass one of them."
        )
    return layout


def _band_order(bands: tuple[str, ...], band_names: tuple[str, ...] | None) -> list[int] | None:
    """Where the model's bands stand among the image's; None where nothing has to move."""
    if band_names is None:
        raise ValueError(
            f"bands={list(bands)} was passed but the processor has no band_names; set band_names to the model's bands."
        )
    missing = [name for name in band_names if name not in bands]
    if missing:
        raise ValueError(
            f"bands lacks {missing} (it has {list(bands)}) but the model needs {list(band_names)}; "
            f"rename the image's bands or add the missing ones."
        )
    return None if bands == band_names else [bands.index(name) for name in band_names]


def _colour_order(band_names: tuple[str, ...] | None) -> list[int] | None:
    """Which of R, G, B (0, 1, 2) each band of the model is, or None if the bands are not just these three colours."""
    colours = {alias: colour for colour, aliases in enumerate(RGB_BAND_NAMES) for alias in aliases}
    order = [colours.get(name.upper(), -1) for name in band_names or ()]
    return order if sorted(order) == [0, 1, 2] else None


def _warn_assumed_order(images: list[Any], band_names: tuple[str, ...] | None) -> None:
    """Say once which order is taken for granted, unless the images name their bands or it is the everyday R, G, B."""
    if band_names is None or len(band_names) == 1 or "".join(name[0] for name in band_names).upper() == "RGB":
        return
    if _colour_order(band_names) is not None and all(isinstance(image, Image.Image) for image in images):
        return
    logger.warning_once(
        f"Images without `bands` are taken to have the model's bands in the order {list(band_names)}; "
        f"pass bands=[names of the image's bands] to have them matched by name."
    )


def _image_list(images: Any) -> list[Any]:
    """One image, a batch array or a list -> list of single images."""
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if len(images) == 0:
        raise ValueError("images is empty; pass at least one image.")
    return list(images)


def _single_images(images: list[Any]) -> tuple[list[Any], list[str], bool]:
    """Images or pairs -> single images, what errors call them, and whether they are pairs.

    Of N pairs come 2 N images: before and after of the first, then of the second, and so on.
    """
    groups = [isinstance(image, (list, tuple)) for image in images]
    if not any(groups):
        return images, [_name(image, index) for index, image in enumerate(images)], False
    for index, image in enumerate(images):
        if not groups[index] or len(image) != 2:
            found = f"a {type(image).__name__}" + (f" of {len(image)}" if groups[index] else "")
            raise ValueError(
                f"image {index} is {found} but a pair (before, after) was expected, as image {groups.index(True)} seems to "
                f"be one; pass either pairs or single images, and turn lists of numbers into np.asarray(...) first."
            )
    singles = [image for pair in images for image in pair]
    dates = ("before", "after")
    return singles, [f"{_name(image, place // 2)}, {dates[place % 2]}," for place, image in enumerate(singles)], True


def _name(image: Any, index: int) -> str:
    """What an error calls an image: its place in the call, and its file where PIL knows it."""
    file = getattr(image, "filename", "")
    return f"image {index} ({file})" if file else f"image {index}"


def _check_pairs(images: list[torch.Tensor], names: list[str]) -> None:
    """Refuse pairs (C, H, W) of unequal size: their pixels cannot show the same ground."""
    for before, after, name in zip(images[::2], images[1::2], names[::2], strict=True):
        if before.shape[1:] != after.shape[1:]:
            raise ValueError(
                f"{name} has size {tuple(before.shape[1:])} but the one after {tuple(after.shape[1:])} (height, width); "
                f"crop or resample both dates to the same ground first."
            )


def _picture_array(
    image: Image.Image, name: str, expected: int, named: bool, picture_order: list[int] | None
) -> np.ndarray:
    """PIL image of any mode -> (H, W) or (H, W, expected) array."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Deep grey: PIL would clip these to 8 bits. Repeated like 8-bit grey; the value check judges the scale.
        array = np.asarray(image)
        return np.stack([array] * 3, axis=-1) if expected == 3 and not named else array
    if not named and expected in (1, 3):
        array = np.asarray(_plain_mode(image, "L" if expected == 1 else "RGB"))
        return array if expected == 1 or picture_order is None else array[..., picture_order]
    if named and expected == 3 and len(image.getbands()) != 1:
        image = _plain_mode(image, "RGB")
    if not named or len(image.getbands()) != expected:
        raise ValueError(
            f"{name} is a PIL picture of mode {image.mode} but {expected} bands are expected; "
            f"pass an array with these bands, or name the picture's own bands with bands=[...]."
        )
    return np.asarray(image)


def _plain_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to "L" or "RGB"; palettes and pre-multiplied alpha need a step in between."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _array_tensor(image: Any, name: str) -> torch.Tensor:
    """NumPy array or tensor -> tensor of the same values; no copy where memory allows."""
    if isinstance(image, np.ndarray) and image.dtype.kind in "uif":
        # torch wants native byte order, positive strides and writable memory.
        native = image.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(image, dtype=native, requirements=["C", "W"]))
    if isinstance(image, torch.Tensor) and image.dtype != torch.bool and not image.is_complex():
        return image.detach()
    kind = f"{type(image).__name__} of {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
    raise ValueError(
        f"{name} is a {kind} but must be a PIL image or a NumPy or torch array of real numbers; "
        f"open files with PIL.Image.open or rasterio and turn lists of numbers into np.asarray(...) first."
    )


def _channels_first(image: torch.Tensor, name: str, expected: int, layout: str | None) -> torch.Tensor:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W), C = expected; refuses to guess."""
    shape = tuple(image.shape)
    if image.ndim == 2 and expected == 1:
        image, layout = image[None], "channels_first"
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(
            f"{name} has shape {shape} but (C, H, W) or (H, W, C) with {expected} bands was expected; "
            f"reshape it, and pass batches as one array of 4 axes."
        )
    if layout is None and image.shape[0] == expected and image.shape[2] == expected:
        raise ValueError(
            f"{name} has shape {shape}, where the first and the last axis could both be the {expected} bands; "
            f"pass input_data_format='channels_first' or 'channels_last'."
        )
    if layout == "channels_last" or (layout is None and image.shape[0] != expected):
        image = image.permute(2, 0, 1)
    if image.shape[0] != expected:
        raise ValueError(
            f"{name} has shape {shape} but {expected} bands were expected on the "
            f"{'first or last axis' if layout is None else layout + ' axis'}; pass bands=[names of the image's bands] "
            f"to pick the model's bands from it."
        )
    return image


def _equal_batches(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """Stack all images at once if they are alike, else one batch each. Always copies, so in-place steps are safe."""
    kinds = {(image.shape, image.dtype, image.device) for image in images}
    return [torch.stack(images)] if len(kinds) == 1 else [torch.stack([image]) for image in images]


def _transform(batch: torch.Tensor, settings: _Settings, names: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, C, H, W) of any type -> resized, rescaled and normalised float32.

    Args:
        batch: Raw values; owned by the caller, may be overwritten.
        settings: Settings of this call.
        names: What errors call the images.

    Returns:
        (B, C, H, W) float32, and (B, H, W) bool at the size before the resize, True = no data; None without `nodata`.
    """
    values = batch.to(torch.float32)
    missing = None
    if settings.nodata is not None:
        missing = _missing(values, settings.nodata)
        values = _fill(values, missing, settings)
    if batch.is_floating_point():
        check_finite(values, names)
    if settings.check_values and settings.image_mean is not None and (settings.do_rescale or settings.do_normalize):
        check_scale(values, batch.dtype, settings)
    if settings.do_resize:
        values = _resize(values, batch.dtype, settings)
    scale = torch.full((settings.num_bands,), settings.factor, dtype=torch.float64)
    shift = torch.zeros_like(scale)
    if settings.do_normalize:
        std = torch.tensor(settings.image_std, dtype=torch.float64)
        scale, shift = scale / std, -torch.tensor(settings.image_mean, dtype=torch.float64) / std
    return values.mul_(_per_band(scale, values)).add_(_per_band(shift, values)), missing


def _missing(values: torch.Tensor, nodata: Any) -> torch.Tensor:
    """Find pixels without data in (B, C, H, W): NaN in any band, or the number in all of them.

    A dark pixel may well have 0 in one band; a lone -9999 in one band is left to the value check.
    """
    missing = values.isnan().any(dim=1)
    return missing if nodata == "nan" else missing | (values == torch.tensor(nodata, dtype=values.dtype)).all(dim=1)


def _fill(values: torch.Tensor, missing: torch.Tensor, settings: _Settings) -> torch.Tensor:
    """Put the bands' means, in the raw unit, where (B, H, W) bool is True; 0 where no means are known."""
    mean = torch.zeros(settings.num_bands) if settings.image_mean is None else torch.tensor(settings.image_mean)
    return torch.where(missing[:, None], _per_band(mean / settings.factor, values), values)


def _per_band(numbers: Any, like: torch.Tensor) -> torch.Tensor:
    """One number per band, shaped (C, 1, 1) to broadcast over (..., C, H, W)."""
    return torch.as_tensor(numbers).to(device=like.device, dtype=like.dtype).view(-1, 1, 1)


def _resize(values: torch.Tensor, dtype: torch.dtype, settings: _Settings) -> torch.Tensor:
    """Resize (B, C, H, W) with antialiasing, as PIL does but for any number of bands and any type.

    Like PIL it goes along the rows first and keeps integer images inside their type's range after either pass;
    clamping only once differs by up to 10 levels at hard edges (bicubic overshoot).
    """
    height, width = settings.size["height"], settings.size["width"]
    mode = RESAMPLE_MODES[settings.resample]
    for target in ((values.shape[-2], width), (height, width)):
        if tuple(values.shape[-2:]) == target:
            continue
        values = torch.nn.functional.interpolate(values, target, mode=mode, antialias=True, align_corners=False)
        if not dtype.is_floating_point:
            values.clamp_(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return values


def _collect(batches: list[torch.Tensor], paired: bool, return_tensors: str | None) -> Any:
    """Join the finished batches in the form that was asked for; two images in turn make a pair."""
    if return_tensors is None:
        images = [image for batch in batches for image in batch.cpu().numpy()]
        return [np.stack(pair) for pair in zip(images[::2], images[1::2], strict=True)] if paired else images
    sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
    if len(sizes) > 1:
        raise ValueError(
            f"images have different sizes {sizes} (height, width) and cannot form one batch without resizing; "
            f"pass do_resize=True, crop them to one size, or use return_tensors=None."
        )
    values = batches[0] if len(batches) == 1 else torch.cat(batches)
    values = values.unflatten(0, (-1, 2)) if paired else values
    return values if return_tensors == "pt" else values.cpu().numpy()


def _collect_labels(labels: list[np.ndarray], device: torch.device, return_tensors: str | None) -> Any:
    """Join label maps of equal size in the form that was asked for; tensors go where the images are."""
    if return_tensors is None:
        return labels
    joined = np.stack(labels)
    return torch.from_numpy(joined).to(device) if return_tensors == "pt" else joined


GFMImageProcessor.register_for_auto_class()
