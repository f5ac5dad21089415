"""Writes the labelled sets of the table of five tasks, one Parquet file each, from a folder of small public imagery.

    python benchmarks/task_sets.py --imagery imagery --output_dir sets

The folder holds `scenes/`, `ucmerced/`, `aid/`, `change/`, `segmentation/` and `multispectral/`. Every file has a
column `split` (train, validation, test) and equals itself from run to run. Two sets need statistics of their own, which
lie beside them as JSON: `sentinel2_multilabel` (12 bands) and `sr_worldview` (one band).

Where several samples come from one scene, the scene is cut into parts first and into samples after that.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image, ImageDraw, ImageFilter

from gfm_hf.data.splits import cut_off, part_of_name
from gfm_hf.training.runs import InputError, command


SEED = 0
PARTS = ("train", "validation", "test")
IGNORE = 255
CHIP_PX = 128

# Dubai's id 5 means "unlabeled".
DUBAI_UNLABELLED = 5

# Pasted changes: pairs of each part.
PASTED_PAIRS = {"train": 600, "validation": 100, "test": 200}
UNCHANGED_SHARE = 0.1
PATCH_PX = (12, 48)

# Sentinel-2: bands of the L2A tiles, DN to reflectance, and what makes a chip.
SENTINEL2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
REFLECTANCE = 1e-4
SENTINEL2_CHIP_PX = 32
LEAST_COVER = 0.05
LAND_COVER = ("water", "trees", "flooded vegetation", "crops", "built", "bare", "snow", "cloud", "rangeland")

# WorldView delivers 11 bits.
WORLDVIEW_TOP = 2047
WORLDVIEW_TILE_PX = 40
# Both images are registered to half a multispectral pixel; so much may they be off, in panchromatic px.
MOST_SHIFT_PX = 3

# Rows, their features, and what an image processor has to know of the images where the checkpoint's does not do.
LabelledSet = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any] | None]

IMAGE = datasets.Image()
TEXT = datasets.Value("string")


def read(*files: Path) -> tuple[list[dict[str, Any]], datasets.Features]:
    """Rows of Parquet files, images still encoded, and their features.

    Raises:
        InputError: A file is not there.
    """
    for file in files:
        if not file.exists():
            raise InputError(f"{file} is missing; pass the folder of the imagery to --imagery.")
    tables = [pyarrow.parquet.read_table(file) for file in files]
    features = datasets.Features.from_arrow_schema(tables[0].schema)
    return [row for table in tables for row in table.to_pylist()], features


def write(path: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    """Write rows with their features, and say how many each part has."""
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    counts = ", ".join(f"{sum(row['split'] == part for row in rows)} {part}" for part in PARTS)
    print(f"{path.name}: {counts}")


def pixels_of(cell: dict[str, Any]) -> np.ndarray:
    """Decode a cell: (H, W, 3) of a picture, (H, W) of a mask, ids of a palette as they are."""
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def png(pixels: np.ndarray) -> dict[str, Any]:
    """Encode (H, W) or (H, W, 3) uint8 without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def with_own_parts(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose `split` has our names."""
    return row | {"split": part_of_name(row["split"])}


def ucmerced(imagery: Path) -> LabelledSet:
    """UC Merced, 21 classes, with the parts of the file (60/20/20)."""
    rows, features = read(imagery / "ucmerced" / "ucmerced_128.parquet")
    kept = {name: features[name] for name in ("image", "label", "name", "split")}
    return [with_own_parts(row) for row in rows], kept, None


def aid(imagery: Path) -> LabelledSet:
    """AID, 30 classes: the labelled pretraining scenes, a tenth of each class for validation, and the test file.

    Both files hold crops of the same large pictures, neighbours but never the same ground: accuracy is optimistic.
    """
    rows, features = read(*scene_files(imagery))
    rows = [row for row in rows if row["label"] >= 0]
    (held_out, _) = cut_off(np.array([row["label"] for row in rows]), [0.1], SEED)
    chosen = set(held_out.tolist())
    rows = [row | {"split": "validation" if place in chosen else "train"} for place, row in enumerate(rows)]
    test, test_features = read(imagery / "aid" / "aid_test_128.parquet")
    if test_features["label"].names != features["label"].names:
        raise InputError("scenes/ and aid/ name different classes; take both from one version of the imagery.")
    rows += [row | {"split": "test"} for row in test]
    return rows, {"image": IMAGE, "label": features["label"], "name": TEXT, "split": TEXT}, None


def scene_files(imagery: Path) -> list[Path]:
    """The files of the pretraining pictures."""
    files = sorted((imagery / "scenes").glob("*.parquet"))
    if not files:
        raise InputError(f"{imagery / 'scenes'} holds no Parquet file; pass the folder of the imagery to --imagery.")
    return files


CHANGE_FEATURES = {"image1": IMAGE, "image2": IMAGE, "mask": IMAGE, "split": TEXT, "name": TEXT}


def change_quarters(imagery: Path) -> LabelledSet:
    """Real changes: pairs of 256 px in quarters, pairs of 128 px as they are.

    `name` is `SOURCE/PAIR/QUARTER`: what stands before the last slash is the pair. The pair decides the part.
    """
    chips = []
    for file in ("pairs_256.parquet", "pairs_128.parquet"):
        for row in read(imagery / "change" / file)[0]:
            images = {"image1": row["image_a"], "image2": row["image_b"], "mask": row["mask"]}
            arrays = {name: pixels_of(cell) for name, cell in images.items()}
            part, pair = part_of_name(row["split"]), f"{row['source']}/{file[6:9]}-{row['name']}"
            for place, (top, left) in enumerate(windows(arrays["mask"].shape, CHIP_PX, CHIP_PX)):
                cut = {name: png(array[top : top + CHIP_PX, left : left + CHIP_PX]) for name, array in arrays.items()}
                chips.append(cut | {"split": part, "name": f"{pair}/{place}"})
    return chips, dict(CHANGE_FEATURES), None


def windows(shape: tuple[int, ...], size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Top and left of every window that lies whole inside (H, W)."""
    for top in range(0, shape[0] - size + 1, stride):
        for left in range(0, shape[1] - size + 1, stride):
            yield top, left


def change_pasted(imagery: Path) -> LabelledSet:
    """Made changes, not real ones: patches of other scenes pasted into real scenes.

    `image1` is an AID scene. `image2` is the same scene with one to three patches of other scenes, then under another
    light (gain and offset per band, noise). About a tenth of the pairs has no patch. What is hard about real pairs
    (season, shadow, viewing angle, registration) is missing: a score here says how well a model learns to compare, not
    how well it maps real change. No scene, be it background or patch, occurs in two parts.
    """
    rng = np.random.default_rng(SEED)
    scenes = [row for row in read(*scene_files(imagery))[0] if row["source"] == "AID"]
    order = rng.permutation(len(scenes))
    wanted = sum(PASTED_PAIRS.values())
    if len(scenes) < 2 * wanted:
        raise InputError(f"scenes/ holds {len(scenes)} AID pictures but {2 * wanted} are needed.")
    pairs: list[dict[str, Any]] = []
    begin = 0
    for part, count in PASTED_PAIRS.items():
        end = begin + len(scenes) * count // wanted
        pool, begin = order[begin:end], end
        for background in pool[:count]:
            donors = rng.choice(pool[count:], 3, replace=False)
            before = pixels_of(scenes[background]["image"])
            after, mask = with_patches(before, [pixels_of(scenes[donor]["image"]) for donor in donors], rng)
            cells = {"image1": png(before), "image2": png(under_other_light(after, rng)), "mask": png(mask)}
            pairs.append(cells | {"split": part, "name": f"pasted/{scenes[background]['name']}/0"})
    return pairs, dict(CHANGE_FEATURES), None


def with_patches(
    scene: np.ndarray, donors: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste one to three patches into a scene, or none.

    Args:
        scene: (H, W, 3) uint8.
        donors: At least three scenes of the same size.
        rng: Draws number, shapes and places.

    Returns:
        (H, W, 3) uint8, and (H, W) uint8 with 255 inside the shapes; edges are feathered, the mask is not.
    """
    height, width = scene.shape[:2]
    result, mask = scene.astype(np.float64), np.zeros((height, width), dtype=np.uint8)
    count = 0 if rng.random() < UNCHANGED_SHARE else int(rng.integers(1, 4))
    for donor in donors[:count]:
        shape = Image.new("L", (width, height))
        ImageDraw.Draw(shape).polygon(outline(height, width, rng), fill=255)
        soft = shape.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.0))))
        alpha = np.asarray(soft)[..., None] / 255.0
        result = result * (1 - alpha) + donor * alpha
        mask = np.maximum(mask, np.asarray(shape))
    return result.round().astype(np.uint8), mask


def outline(height: int, width: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A turned rectangle or an irregular shape of 12 to 48 px, its middle inside the scene."""
    sides = rng.uniform(*PATCH_PX, 2)
    centre = rng.uniform([0, 0], [width, height])
    if rng.random() < 0.5:
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * sides / 2
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 10))
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1, (10, 1)) * sides / 2
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return [(float(x), float(y)) for x, y in points @ rotation + centre]


def under_other_light(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another gain and offset for each band, and a little noise."""
    gain, offset = rng.uniform(0.85, 1.15, 3), rng.uniform(-12, 12, 3)
    noise = rng.normal(0, 2, scene.shape)
    return (scene * gain + offset + noise).round().clip(0, 255).astype(np.uint8)


def dubai(imagery: Path) -> LabelledSet:
    """Dubai, 5 classes, 256 px; what is unlabelled there is ignored (255) here."""
    return segmentation(imagery / "segmentation" / "dubai_256.parquet", DUBAI_UNLABELLED)


def roads(imagery: Path) -> LabelledSet:
    """Roads, 2 classes, 256 px."""
    return segmentation(imagery / "segmentation" / "roads_256.parquet", None)


def segmentation(file: Path, ignored: int | None) -> LabelledSet:
    """Images as they are, masks as grey PNG of ids: converting a palette would turn ids into colours."""
    rows = []
    for row in read(file)[0]:
        ids = pixels_of(row["mask"])
        if ignored is not None:
            ids = np.where(ids == ignored, IGNORE, ids).astype(np.uint8)
        rows.append({"image": row["image"], "mask": png(ids), "split": part_of_name(row["split"])})
    return rows, {"image": IMAGE, "mask": IMAGE, "split": TEXT}, None


def sr_ucmerced(imagery: Path) -> LabelledSet:
    """Pictures of UC Merced alone; the training script lowers them."""
    rows, features, _ = ucmerced(imagery)
    return rows, {name: features[name] for name in ("image", "split")}, None


def sr_worldview(imagery: Path) -> LabelledSet:
    """WorldView: one-band images at 1 m, and the panchromatic image at 0.5 m as target.

    There is no panchromatic image at 1 m. `image` is the linear mixture of the four multispectral bands, plus a
    constant, that comes closest to the panchromatic image averaged to 1 m: one mixture for both scenes, fitted on the
    training part. `target` is the panchromatic image itself, moved by whole pixels (found on the training part, for
    each scene) to lie over it. So the step is not enlarging alone: what the bands do not say of the panchromatic
    radiometry is asked of the model too, and bicubic interpolation pays for it.

    Both keep their 11 bits (uint16); the JSON's `rescale_factor` 1 / 2047 makes them 0 to 1. Of each scene the columns
    from the left train, then validate, then test; tiles of the training part overlap, those of the others do not.
    """
    pairs = []
    for number in (1, 2):
        bands, panchromatic = (read_raster(imagery, f"worldview_{kind}{number}") for kind in ("ms", "pan"))
        pairs.append((bands, panchromatic[0]))
    # Room for the shift on all sides; validation and test are one tile wide each.
    border = (MOST_SHIFT_PX + 1) // 2
    inner = pairs[0][0].shape[2] - 2 * border
    ends = np.array([0, inner - 2 * WORLDVIEW_TILE_PX, inner - WORLDVIEW_TILE_PX, inner])
    registered = [registered_pair(bands, high, border, int(ends[1])) for bands, high in pairs]
    weights = mixture([(bands[:, :, : ends[1]], high[:, : 2 * ends[1]]) for bands, high, _ in registered])
    rows: list[dict[str, Any]] = []
    for number, (bands, high, _) in enumerate(registered, start=1):
        low = np.tensordot(weights[:-1], bands, axes=1) + weights[-1]
        low = low.round().clip(0, WORLDVIEW_TOP).astype(np.uint16)
        for part, first, last in zip(PARTS, ends, ends[1:]):
            stride = 8 if part == "train" else WORLDVIEW_TILE_PX
            for top, left in windows((inner, last - first), WORLDVIEW_TILE_PX, stride):
                tile = cut(low, top, first + left, WORLDVIEW_TILE_PX)
                target = cut(high, 2 * top, 2 * (first + left), 2 * WORLDVIEW_TILE_PX).astype(np.uint16)
                rows.append({"image": tile[None], "target": target[None], "split": part, "name": f"scene {number}"})
    train = np.stack([row["image"] for row in rows if row["split"] == "train"])
    facts = statistics(train, 1 / WORLDVIEW_TOP) | {
        "mixture": weights.tolist(),
        "shift_px": [shift for _, _, shift in registered],
    }
    size = WORLDVIEW_TILE_PX
    features = {
        "image": datasets.Array3D((1, size, size), "uint16"),
        "target": datasets.Array3D((1, 2 * size, 2 * size), "uint16"),
        "split": TEXT,
        "name": TEXT,
    }
    return rows, features, facts


def cut(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """A square of an image (..., H, W)."""
    return image[..., top : top + size, left : left + size]


def halved(image: np.ndarray) -> np.ndarray:
    """(2 H, 2 W) -> (H, W), means of 2 x 2 pixels."""
    height, width = image.shape
    return image.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def registered_pair(
    bands: np.ndarray, high: np.ndarray, border: int, train_columns: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Find the shift under which both images of a scene agree best, and cut both to what they then share.

    Args:
        bands: (C, H, W), the coarse image.
        high: (2 H, 2 W), the fine one.
        border: Coarse pixels to cut on each side.
        train_columns: Coarse columns of the cut image to look at.

    Returns:
        (C, h, w), (2 h, 2 w) and the shift (down, right) in fine pixels.
    """
    height, width = (length - 2 * border for length in bands.shape[1:])
    bands = bands[:, border : border + height, border : border + width]
    steps = range(-MOST_SHIFT_PX, MOST_SHIFT_PX + 1)

    def moved(shift: tuple[int, int]) -> np.ndarray:
        top, left = (2 * border + step for step in shift)
        return high[top : top + 2 * height, left : left + 2 * width]

    def agreement(shift: tuple[int, int]) -> float:
        coarse = halved(moved(shift))[:, :train_columns].ravel()
        design = np.vstack([bands[:, :, :train_columns].reshape(len(bands), -1), np.ones(coarse.size)]).T
        return -float(np.square(coarse - design @ np.linalg.lstsq(design, coarse, rcond=None)[0]).sum())

    shift = max(((down, right) for down in steps for right in steps), key=agreement)
    return bands, moved(shift), shift


def mixture(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Least squares from (C, H, W) bands to halved (2 H, 2 W) images: C weights and a constant."""
    design = np.hstack([bands.reshape(len(bands), -1) for bands, _ in pairs])
    design = np.vstack([design, np.ones(design.shape[1])]).T
    wanted = np.concatenate([halved(high).ravel() for _, high in pairs])
    return np.linalg.lstsq(design, wanted, rcond=None)[0]


def sentinel2_multilabel(imagery: Path) -> LabelledSet:
    """Sentinel-2 L2A: chips of 12 bands and 32 px, with the land cover that makes up 5 % or more of each.

    Four tiles of 128 px. Half of a tile trains, a quarter validates, a quarter tests, cut along rows or columns:
    whichever keeps more of its classes in all parts. Inside a part chips overlap, so those of a part are far fewer
    than they look. Names of the classes are an inference of the source, their borders a global map's.
    """
    size = SENTINEL2_CHIP_PX
    rows: list[dict[str, Any]] = []
    tiles = sorted((imagery / "multispectral").glob("lulc_*.tif"))
    if not tiles:
        raise InputError(
            f"{imagery / 'multispectral'} holds no lulc_*.tif; pass the folder of the imagery to --imagery."
        )
    for file in tiles:
        cell = file.stem.removeprefix("lulc_")
        bands, cover = read_raster(imagery, f"s2l2a_{cell}"), read_raster(imagery, file.stem)[0]
        choices = [chips(bands, cover, cell, by_rows) for by_rows in (True, False)]
        best = max(choices, key=shared_classes)
        rows += best
    train = np.stack([row["image"] for row in rows if row["split"] == "train"])
    facts = statistics(train, REFLECTANCE) | {"band_names": list(SENTINEL2_BANDS)}
    features = {
        "image": datasets.Array3D((len(SENTINEL2_BANDS), size, size), "int16"),
        "labels": datasets.List(TEXT),
        "split": TEXT,
        "name": TEXT,
    }
    return rows, features, facts


def chips(bands: np.ndarray, cover: np.ndarray, cell: str, by_rows: bool) -> list[dict[str, Any]]:
    """Chips of one tile, cut into parts from top to bottom or from left to right.

    Args:
        bands: (C, S, S) DN.
        cover: (S, S) ids from 1.
        cell: Name of the tile.
        by_rows: Whether parts are bands of rows.
    """
    size, side, found = SENTINEL2_CHIP_PX, len(cover), []
    ends = (0, side // 2, 3 * side // 4, side)
    for part, first, last in zip(PARTS, ends, ends[1:]):
        stride = size // 4 if part == "train" else size // 2
        for across, along in windows((last - first, side), size, stride):
            top, left = (first + across, along) if by_rows else (along, first + across)
            ids, counts = np.unique(cut(cover, top, left, size), return_counts=True)
            labels = [LAND_COVER[int(i) - 1] for i in ids[counts >= LEAST_COVER * size**2]]
            image = cut(bands, top, left, size).astype(np.int16)
            found.append({"image": image, "labels": labels, "split": part, "name": f"{cell}/{top}/{left}"})
    return found


def shared_classes(rows: list[dict[str, Any]]) -> int:
    """How many classes occur in all three parts."""
    present = [{one for row in rows if row["split"] == part for one in row["labels"]} for part in PARTS]
    return len(set.intersection(*present))


def read_raster(imagery: Path, name: str) -> np.ndarray:
    """(C, H, W) of a GeoTIFF of `multispectral/`, as float64."""
    import rasterio

    file = imagery / "multispectral" / f"{name}.tif"
    if not file.exists():
        raise InputError(f"{file} is missing; pass the folder of the imagery to --imagery.")
    with rasterio.open(file) as raster:
        return raster.read().astype(np.float64)


def statistics(images: np.ndarray, factor: float) -> dict[str, Any]:
    """What an image processor needs of (N, C, H, W) values: the factor, and mean and deviation of each band after it."""
    scaled = images.astype(np.float64) * factor
    mean, deviation = scaled.mean(axis=(0, 2, 3)), scaled.std(axis=(0, 2, 3))
    return {"rescale_factor": factor, "image_mean": mean.tolist(), "image_std": deviation.tolist()}


SETS = {
    "ucmerced": ucmerced,
    "aid": aid,
    "change_quarters": change_quarters,
    "change_pasted": change_pasted,
    "dubai": dubai,
    "roads": roads,
    "sr_ucmerced": sr_ucmerced,
    "sr_worldview": sr_worldview,
    "sentinel2_multilabel": sentinel2_multilabel,
}


@command
def main(argv: list[str] | None = None) -> None:
    """Write the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagery", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        rows, features, facts = SETS[name](args.imagery)
        write(args.output_dir / f"{name}.parquet", rows, features)
        if facts:
            (args.output_dir / f"{name}.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    raise SystemExit(main())
