"""What is special of Vaihingen: areas, tiles as MMSegmentation cuts them, colours to ids, eroded and full masks."""

import io
import math
import re
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scripts import Script, contents, encoded, rewrite

from gfm_hf.data.tasks import open_task


TOP, FULL, ERODED = (
    f"ISPRS_semantic_labeling_Vaihingen{part}.zip"
    for part in ("", "_ground_truth_COMPLETE", "_ground_truth_eroded_COMPLETE")
)
AREA = "top_mosaic_09cm_area{}"
# Width and height of the published areas, px.
SIZES = {
    "train": {
        1: (1919, 2569), 3: (2006, 3007), 5: (1887, 2557), 7: (1887, 2557), 11: (1893, 2566), 13: (2818, 2558),
        15: (1919, 2565), 17: (2336, 1281), 21: (1903, 2546), 23: (1903, 2546), 26: (2995, 1783), 28: (1917, 2567),
        30: (1934, 2563), 32: (1980, 2555), 34: (1388, 2555), 37: (1996, 1995),
    },
    "test": {
        2: (2428, 2767), 4: (1887, 2557), 6: (1887, 2557), 8: (1887, 2557), 10: (1887, 2557), 12: (1922, 2575),
        14: (1919, 2565), 16: (1919, 2565), 20: (1866, 2315), 22: (1903, 2546), 24: (1903, 2546), 27: (1917, 3313),
        29: (1917, 2563), 31: (1980, 2555), 33: (1581, 2555), 35: (2805, 1884), 38: (3816, 2550),
    },
}  # fmt: skip
# Colour -> id, written out once more.
IDS = {
    (255, 255, 255): 0, (0, 0, 255): 1, (0, 255, 255): 2, (0, 255, 0): 3, (255, 255, 0): 4, (255, 0, 0): 5,
    (0, 0, 0): 255,
}  # fmt: skip


@pytest.fixture(scope="session")
def vaihingen(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("vaihingen", tmp_path_factory.mktemp("vaihingen"))


def pixels_of(raw: Path, archive: str, name: str) -> np.ndarray:
    with zipfile.ZipFile(raw / archive) as opened:
        return np.asarray(Image.open(io.BytesIO(opened.read(name))))


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


# -- Tiles ------------------------------------------------------------------------------------------------------------


def converter_tiles(width: int, height: int, clip: int = 512, stride: int = 256) -> set[tuple[int, int]]:
    """Corners as MMSegmentation's converter comes to them: more positions than tiles, moved inside, written over."""
    corners = set()
    for y in range(math.ceil((height - clip) / stride) + 1):
        for x in range(math.ceil((width - clip) / stride) + 1):
            corners.add((min(x * clip, width - clip), min(y * clip, height - clip)))
    return corners


def test_the_published_areas_give_344_and_398_tiles(vaihingen):
    cut = vaihingen.module.tile_corners
    assert {split: sum(len(cut(*size)) for size in areas.values()) for split, areas in SIZES.items()} == {
        "train": 344,
        "test": 398,
    }
    assert {split: tuple(areas) for split, areas in SIZES.items()} == vaihingen.module.AREAS
    for width, height in [*SIZES["train"].values(), *SIZES["test"].values(), (512, 512), (513, 1024), (1024, 1025)]:
        corners = cut(width, height)
        assert set(corners) == converter_tiles(width, height) and len(set(corners)) == len(corners)


def test_the_published_set_is_exact(vaihingen, tmp_path):
    """Empty pictures of the published sizes: no count is objected to, and the harmless area 9 is left out."""
    for split in (*SIZES.values(), {9: (512, 512)}):
        for area, size in split.items():
            (tmp_path / "top").mkdir(exist_ok=True)
            Image.new("1", size).save(tmp_path / "top" / f"{AREA.format(area)}.tif", compression="group4")
            (tmp_path / f"{AREA.format(area)}_noBoundary.tif").touch()
    recipe = vaihingen.module.RECIPE
    files = recipe.open(str(tmp_path), None, exact=True)
    plan = recipe.splits(recipe.configs[0], files)
    assert {split: len(items) for split, items in plan.items()} == {"train": 344, "test": 398} and not files.notes
    assert plan["train"][0].key == "area1_0_0_512_512.png"
    assert plan["train"][23].key == "area1_1407_2057_1919_2569.png"
    (tmp_path / "top" / f"{AREA.format(38)}.tif").unlink()
    files = recipe.open(str(tmp_path), None, accept=True, exact=True)
    with pytest.raises(vaihingen.module.InputError, match="areas of test: found 16, expected 17"):
        recipe.splits(recipe.configs[0], files)


@pytest.mark.parametrize("config, archive, suffix", [("eroded", ERODED, "_noBoundary"), ("full", FULL, "")])
def test_tiles(vaihingen, config, archive, suffix):
    """Each tile is that window of picture and mask; colours have become ids."""
    loaded = datasets.load_dataset(str(vaihingen.built), config)
    assert {split: sorted(set(part["area"])) for split, part in loaded.items()} == {
        "train": [1, 3, 5, 7],
        "test": [2, 4, 6, 38],
    }
    assert loaded["train"]["name"][:5] == [
        "area1_0_0_512_512.png", "area1_88_0_600_512.png", "area1_0_8_512_520.png", "area1_88_8_600_520.png",
        "area3_0_0_512_512.png",
    ]  # fmt: skip
    seen = set()
    for part in loaded.values():
        for row in part:
            name, x0, y0 = AREA.format(row["area"]), row["x0"], row["y0"]
            here = slice(y0, y0 + 512), slice(x0, x0 + 512)
            assert row["image"].format == row["mask"].format == "PNG" and row["mask"].mode == "L"
            assert np.array_equal(row["image"], pixels_of(vaihingen.raw, TOP, f"top/{name}.tif")[here])
            colours = pixels_of(vaihingen.raw, archive, f"{name}{suffix}.tif")[here]
            mask = np.asarray(row["mask"])
            for colour, number in IDS.items():
                assert np.array_equal(mask == number, (colours == colour).all(axis=2)), (name, colour)
            seen |= set(np.unique(mask).tolist())
    assert seen == {0, 1, 2, 3, 4, 5} | ({255} if config == "eroded" else set())


def test_segmentation_reads_it(vaihingen):
    data = open_task("segmentation", dataset_name=str(vaihingen.built), dataset_config_name="eroded")
    assert data.num_labels == 6 and len(data.test) == 5
    row = datasets.load_dataset(str(vaihingen.built), "eroded", split="test")[0]
    assert np.array_equal(data.test[0].label_map, row["mask"]) and 255 in np.asarray(row["mask"])


def test_one_ground_truth_is_enough_for_its_configuration(vaihingen, tmp_path):
    raw = vaihingen.copy_of_raw(tmp_path)
    (raw / ERODED).unlink()
    code, said = vaihingen.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and f"the masks of eroded are missing: add {ERODED}, or pass --config full" in said
    assert not (tmp_path / "out").exists()
    assert vaihingen.run("--config", "full", data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    loaded = datasets.load_dataset(str(tmp_path / "out"), "full")
    assert {split: encoded(part) for split, part in loaded.items()} == vaihingen.rows("full")
    code, said = vaihingen.run("--config", "full", data_dir=raw / TOP, output_dir=tmp_path / "top")
    assert code == 2 and f"add {FULL}" in said  # what the participants got is no ground truth of all areas


def test_an_area_is_decoded_once(vaihingen, monkeypatch):
    """Its tiles come one after the other."""
    recipe, read = vaihingen.module.RECIPE, []
    files = recipe.open(str(vaihingen.raw), None, accept=True)
    items = recipe.splits(recipe.configs[0], files)["train"]
    plain = vaihingen.module.Files.read
    monkeypatch.setattr(vaihingen.module.Files, "read", lambda self, name: read.append(name) or plain(self, name))
    vaihingen.module._last.clear()
    for item in items:
        recipe.row(files, item)
    assert len(read) == len(set(read)) == 2 * 4 and len(vaihingen.module._last) == 2


def test_areas_of_two_copies_are_not_confused(vaihingen, tmp_path):
    """One name, two folders, one process."""
    recipe, raw = vaihingen.module.RECIPE, vaihingen.copy_of_raw(tmp_path)
    rewrite(raw / FULL, put(f"{AREA.format(3)}.tif", WHITE))
    masks = []
    for folder in (vaihingen.raw, raw):
        files = recipe.open(str(folder), None, accept=True)
        (item,) = (x for x in recipe.splits(recipe.configs[1], files)["train"] if x.known[0] == 3)
        masks.append(np.asarray(Image.open(io.BytesIO(recipe.row(files, item)["mask"]["bytes"]))))
    assert masks[0].any() and not masks[1].any()


# -- Refusals ---------------------------------------------------------------------------------------------------------


def put(name: str, pixels: np.ndarray):
    """Put a file in, in place of one of the same name."""
    return lambda entries: [*((n, c) for n, c in entries if n != name), (name, tiff(pixels))]


def spotted(colour: tuple[int, int, int]) -> np.ndarray:
    pixels = np.full((512, 512, 3), 255, np.uint8)
    pixels[100:110, 200:220] = colour
    pixels[0, 0] = (1, 2, 3)
    return pixels


WHITE = np.full((512, 512, 3), 255, np.uint8)


@pytest.mark.parametrize(
    "config, archive, change, says",
    [
        ("eroded", ERODED, put(f"{AREA.format(3)}_noBoundary.tif", spotted((252, 255, 0))), r"201 px of 2 colours"),
        (
            "full",
            FULL,
            put(f"{AREA.format(3)}.tif", spotted((0, 0, 0))),
            r"no class, such as \(0, 0, 0\); published f",
        ),
        ("full", FULL, put(f"{AREA.format(3)}.tif", WHITE[:, :500]), r"have the sizes 512 x 512 and 500 x 512"),
        ("full", FULL, put(f"{AREA.format(3)}.tif", WHITE[..., 0]), r"area3\.tif has the mode L, expected RGB"),
        ("full", FULL, put(f"copy/{AREA.format(3)}.tif", WHITE), r"area 3 is there twice, as .* and copy/"),
        ("full", TOP, put(f"top/{AREA.format(3)}.tif", WHITE[:500]), r"area3\.tif is 512 x 500 px, less than a tile"),
    ],
    ids=["colours", "black in full masks", "sizes", "grey mask", "twice", "too small"],
)
def test_refused_whatever_is_accepted(vaihingen, config, archive, change, says, tmp_path):
    raw = vaihingen.copy_of_raw(tmp_path)
    rewrite(raw / archive, change)
    code, said = vaihingen.run("--config", config, data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(says, said), said
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    "archive, change, says",
    [
        (FULL, lambda e: [(n, c) for n, c in e if "area3." not in n], f"top/{AREA.format(3)}.tif has no mask"),
        (TOP, put(f"top/{AREA.format(99)}.tif", WHITE), "area99.tif is no area of this set, which has 33"),
    ],
    ids=["mask missing", "strange area"],
)
def test_named_and_left_out(vaihingen, archive, change, says, tmp_path):
    raw = vaihingen.copy_of_raw(tmp_path)
    rewrite(raw / archive, change)
    assert vaihingen.run("--config", "full", data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    assert says in (tmp_path / "out" / "README.md").read_text()
    loaded = datasets.load_dataset(str(tmp_path / "out"), "full")
    areas = {area for part in loaded.values() for area in part["area"]}
    assert areas == {1, 5, 7, 2, 4, 6, 38} | ({3} if archive == TOP else set())


def test_it_is_not_pushed_but_as_a_manifest(vaihingen, tmp_path):
    for flags in ([], ["--private"]):
        code, said = vaihingen.run("--push_to_hub", "owner/vaihingen", *flags, output_dir=tmp_path / "out")
        assert code == 2 and "for research" in said and "--manifest_only" in said and not (tmp_path / "out").exists()
    assert vaihingen.run("--manifest_only", "--config", "full", output_dir=tmp_path / "manifest")[0] == 0
    rows = datasets.load_dataset(str(tmp_path / "manifest"), "full", split="train")
    assert rows.column_names == ["sha256", "area", "x0", "y0", "name"] and len(rows) == 8
    assert set(contents(tmp_path / "manifest")) == {"README.md"} | {
        f"full/{split}-00000-of-00001.parquet" for split in ("train", "test")
    }
