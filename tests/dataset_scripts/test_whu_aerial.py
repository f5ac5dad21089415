"""What is special of WHU aerial: names in several cases, two archives, nesting, labels from 128 on, counts."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scripts import Script, contents, encoded, rewrite

from gfm_hf.data.tasks import open_task


OLD_NAME = "3. The cropped image tiles and raster labels.zip"
NEW_NAME = "1.1 The cropped aerial image tiles and raster labels.zip"
ROOT = "3. The cropped aerial image tiles and raster labels/3. The cropped image tiles and raster labels/"


@pytest.fixture(scope="session")
def whu(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("whu_aerial", tmp_path_factory.mktemp("whu_aerial"))


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF")
    return buffer.getvalue()


# -- Rows -------------------------------------------------------------------------------------------------------------


def test_tiles(whu):
    """Published bytes, label of the same stem as 0 and 1, whatever folders and suffixes are called."""
    places = {"train": ("train/image", "train/label", "tif"), "validation": ("val/Image", "val/Mask", "png")}
    places["test"] = ("test/images", "test/Label", "TIF")
    loaded = datasets.load_dataset(str(whu.built))
    modes = set()
    with zipfile.ZipFile(whu.raw / OLD_NAME) as archive:
        for split, part in loaded.items():
            images, labels, suffix = places[split]
            raw = part.cast_column("image", datasets.Image(decode=False))
            assert part["name"][:] == [f"{split}/{i}" for i in range({"train": 10, "validation": 3, "test": 4}[split])]
            for row in raw:
                stem = row["name"].removeprefix(f"{split}/")
                assert row["image"]["bytes"] == archive.read(f"{ROOT}{images}/{stem}.{suffix}")
                label = Image.open(io.BytesIO(archive.read(f"{ROOT}{labels}/{stem}.{suffix}")))
                modes.add(label.mode)
                expected = np.asarray(label.convert("RGB"))[..., 0] // 255
                assert row["mask"].mode == "L" and np.array_equal(row["mask"], expected)
                assert 0 < expected.mean() < 1
    assert modes == {"L", "1", "RGB", "RGBA"}


def test_labels_are_cut_at_128(whu, tmp_path):
    levels = np.array([[0, 1, 127, 128], [129, 254, 255, 0]], np.uint8)
    raw = whu.copy_of_raw(tmp_path)
    for kind, pixels in (("label", levels), ("image", np.zeros((2, 4, 3), np.uint8))):
        name = f"{ROOT}train/{kind}/0.tif"
        rewrite(raw / OLD_NAME, lambda e, n=name, p=pixels: [(k, tiff(p) if k == n else c) for k, c in e])
    assert whu.run(data_dir=raw, output_dir=tmp_path / "out")[0] == 0
    row = datasets.load_dataset(str(tmp_path / "out"), split="train")[0]
    assert np.asarray(row["mask"]).tolist() == [[0, 0, 0, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("how", ["other archive", "archive alone", "plain folder", "capitals"])
def test_other_names(whu, how, tmp_path):
    """The newer archive, an archive of any name, the unpacked set without its nesting, and with capitals."""
    raw = tmp_path / "raw"
    raw.mkdir()
    if how == "other archive":
        shutil.copy(whu.raw / OLD_NAME, raw / NEW_NAME)
    elif how == "archive alone":
        raw = Path(shutil.copy(whu.raw / OLD_NAME, raw / "whu.zip"))
    else:
        shutil.unpack_archive(whu.raw / OLD_NAME, tmp_path / "unpacked")
        shutil.move(tmp_path / "unpacked" / ROOT, raw / "WHU")
        for path in sorted((raw / "WHU").glob("*/*")) if how == "capitals" else ():
            path.rename(path.with_name(path.name.upper()))
    code, said = whu.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 0, said
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: encoded(part) for split, part in loaded.items()} == whu.rows("default")


def test_segmentation_reads_it(whu):
    data = open_task("segmentation", dataset_name=str(whu.built))
    assert data.num_labels == 2 and (len(data.train), len(data.validation), len(data.test)) == (10, 3, 4)
    assert np.array_equal(data.test[1].label_map, datasets.load_dataset(str(whu.built), split="test")[1]["mask"])


def test_counts_of_the_published_set(whu, tmp_path):
    """4,736, 1,036 and 2,416 names are exact; one less is named, one without its label too."""
    with zipfile.ZipFile(tmp_path / OLD_NAME, "w") as archive:
        for folder, count in {"train": 4736, "val": 1036, "test": 2416}.items():
            for number in range(count):
                for kind in ("image", "label"):
                    archive.writestr(f"a/b/{folder}/{kind}/{number}.tif", b"")
    recipe = whu.module.RECIPE
    files = recipe.open(str(tmp_path), None, exact=True)
    plan = recipe.splits(recipe.configs[0], files)
    assert {split: len(items) for split, items in plan.items()} == {"train": 4736, "validation": 1036, "test": 2416}
    assert not files.notes
    files.entries.pop("a/b/val/label/7.tif")
    with pytest.raises(whu.module.InputError, match=r"val/image/7\.tif has no counterpart among the labels.*--accept"):
        recipe.splits(recipe.configs[0], files)
    files.accept = True
    with pytest.raises(whu.module.InputError, match="pictures of validation: found 1,035, expected 1,036"):
        recipe.splits(recipe.configs[0], files)


# -- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("copy/train/Image/3.png", b"", r"train/image/3 is there twice, as .* and copy/train/Image/3\.png"),
        (f"{ROOT}train/Mask/3.tif", b"", r"train/label/3 is there twice"),
        (f"{ROOT}train/label/3.tif", tiff(np.ones((16, 16), np.uint8)), r"label/3\.tif ends at 1, but published"),
        (f"{ROOT}train/label/3.tif", tiff(np.zeros((16, 8), np.uint8)), r"have the sizes 16 x 16 and 8 x 16"),
        (f"{ROOT}train/image/3.tif", tiff(np.zeros((16, 16), np.uint8)), r"image/3\.tif has the mode L, expected RGB"),
    ],
    ids=["picture twice", "label twice", "ids", "sizes", "grey picture"],
)
def test_refused_whatever_is_accepted(whu, name, content, says, tmp_path):
    raw = whu.copy_of_raw(tmp_path)
    rewrite(raw / OLD_NAME, lambda entries: [*((n, c) for n, c in entries if n != name), (name, content)])
    code, said = whu.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(says, said), said
    assert not (tmp_path / "out" / "README.md").exists()


def test_both_archives_at_once(whu, tmp_path):
    raw = whu.copy_of_raw(tmp_path)
    shutil.copy(raw / OLD_NAME, raw / NEW_NAME)
    code, said = whu.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "twice" in said


def test_it_is_not_downloaded_and_pushed_privately_only(whu, tmp_path):
    with pytest.raises(whu.module.InputError, match="by hand") as refusal:
        whu.module.RECIPE.open(None, None)
    assert NEW_NAME in str(refusal.value)
    code, said = whu.run("--push_to_hub", "owner/whu", output_dir=tmp_path / "out")
    assert code == 2 and "no licence was found" in said and not (tmp_path / "out").exists()
    assert "README.md" in contents(whu.built)
