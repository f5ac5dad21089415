"""What is special of DSIFN: pairs by folder and stem, kinds of masks, the copy that leaks, and real pairs."""

import io
import re
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scripts import Script, encoded, rewrite

from gfm_hf.data.tasks import open_task


REAL = Path(__file__).parents[3] / "shared" / "imagery" / "change" / "pairs_256.parquet"


@pytest.fixture(scope="session")
def dsifn(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("dsifn", tmp_path_factory.mktemp("dsifn"))


@pytest.fixture(scope="session")
def unpacked(dsifn: Script) -> dict[str, bytes]:
    with zipfile.ZipFile(dsifn.raw) as archive:
        return {name.removeprefix("dataset/"): archive.read(name) for name in archive.namelist()}


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


# -- Rows -------------------------------------------------------------------------------------------------------------


def test_pairs(dsifn, unpacked):
    """Published bytes of both dates, the 512 px mask of the same folder and stem as 0 and 1."""
    loaded = datasets.load_dataset(str(dsifn.built))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 8, "validation": 4, "test": 3}
    kinds = set()
    for split, part in loaded.items():
        raw = part.cast_column("image1", datasets.Image(decode=False)).cast_column(
            "image2", datasets.Image(decode=False)
        )
        folder = {"validation": "val"}.get(split, split)
        assert part["name"][:] == sorted(
            f"{folder}/{Path(name).stem}"
            for name in unpacked
            if name.startswith(f"{folder}/t1/") and "Thumbs" not in name
        )
        for row, stored in zip(part, raw):
            stem = row["name"].removeprefix(f"{folder}/")
            for date in (1, 2):
                assert stored[f"image{date}"]["bytes"] == unpacked[f"{folder}/t{date}/{stem}.jpg"]
            (mask,) = (content for name, content in unpacked.items() if name.startswith(f"{folder}/mask/{stem}."))
            published = Image.open(io.BytesIO(mask))
            values = np.asarray(published)
            kinds.add((published.format, published.mode, int(values.max()) if published.format != "JPEG" else 255))
            values = values[..., 0] if values.ndim == 3 else values
            expected = values > (127 if published.format == "JPEG" else 0)
            assert row["mask"].mode == "L" and np.array_equal(row["mask"], expected.astype(np.uint8)), row["name"]
    assert {value for part in loaded.values() for row in part for value in np.unique(row["mask"])} == {0, 1}
    assert kinds == {
        ("PNG", "L", 1), ("PNG", "RGB", 1), ("PNG", "RGBA", 255), ("TIFF", "L", 255), ("TIFF", "I;16", 1),
        ("JPEG", "L", 255), ("PNG", "L", 0),
    }  # fmt: skip


def test_one_stem_in_three_splits(dsifn):
    loaded = datasets.load_dataset(str(dsifn.built))
    rows = {name: row for part in loaded.values() for name, row in zip(part["name"], encoded(part))}
    pictures = {rows[f"{folder}/0_0"]["image1"] for folder in ("train", "val", "test")}
    assert len(rows) == 15 and len(pictures) == 3


def test_change_detection_reads_it(dsifn):
    data = open_task("change", dataset_name=str(dsifn.built))
    assert data.num_labels == 2 and (len(data.train), len(data.validation), len(data.test)) == (8, 4, 3)
    assert set(np.unique(np.stack([sample.label_map for sample in map(data.train.__getitem__, range(8))]))) == {0, 1}


def test_counts_of_the_published_set(dsifn, tmp_path):
    """All names of 3,600, 340 and 48 pairs; the pictures are the same few."""
    picture, mask = png(np.zeros((8, 8, 3), np.uint8), "JPEG"), png(np.eye(8, dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for folder, count in {"train": 3600, "val": 340, "test": 48}.items():
            for number in range(count):
                for kind, content in (("t1/{}.jpg", picture), ("t2/{}.jpg", picture), ("mask/{}.png", mask)):
                    archive.writestr(f"{folder}/{kind.format(number)}", content)
    recipe = dsifn.module.RECIPE
    files = recipe.open(str(tmp_path / "all.zip"), None, exact=True)
    plan = recipe.splits(recipe.configs[0], files)
    assert {split: len(items) for split, items in plan.items()} == {"train": 3600, "validation": 340, "test": 48}
    assert not files.notes
    files.entries.pop("val/t1/7.jpg")
    with pytest.raises(dsifn.module.InputError, match=r"val/t2/7\.jpg has no counterpart in val/t1.*--accept_archive"):
        recipe.splits(recipe.configs[0], files)
    files.accept = True
    with pytest.raises(dsifn.module.InputError, match="pairs of val: found 339, expected 340"):
        recipe.splits(recipe.configs[0], files)


# -- Refusals ---------------------------------------------------------------------------------------------------------


def put(name: str, content: bytes):
    """Put a file in, in place of one of the same name."""
    name = f"dataset/{name}"
    return lambda entries: [*((n, c) for n, c in entries if n != name), (name, content)]


MASK = np.zeros((16, 16), np.uint8)


@pytest.mark.parametrize(
    "change, says",
    [
        (put("copy/train/t1/0_1.jpg", b""), r"train/t1/0_1 is there twice, as .* and dataset/copy/train/t1/0_1\.jpg"),
        (put("train/mask/0_1.tif", b""), r"train/mask/0_1 is there twice, as .*0_1\.png and .*0_1\.tif"),
        (put("train/mask/0_1.png", png(MASK[:8])), r"0_1\.png have the sizes 16 x 16, 16 x 16, 16 x 8"),
        (put("train/t2/0_1.jpg", png(np.zeros((9, 9, 3), np.uint8), "JPEG")), r"have the sizes 16 x 16, 9 x 9, 16"),
        (put("train/t2/0_1.jpg", png(MASK, "JPEG")), r"t2/0_1\.jpg has the mode L, expected RGB"),
        (put("train/mask/1_1.jpg", png(MASK + 1, "JPEG")), r"1_1\.jpg is a JPEG that ends at 1: 0 and 1 are lost"),
    ],
    ids=["pair twice", "mask twice", "small mask", "small picture", "grey picture", "JPEG of 0 and 1"],
)
def test_refused_whatever_is_accepted(dsifn, change, says, tmp_path):
    raw = dsifn.copy_of_raw(tmp_path)
    rewrite(raw, change)
    code, said = dsifn.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(says, said), said
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_mask_of_half_the_size_is_no_substitute(dsifn, tmp_path):
    """Where only mask_256 has it, sizes tell."""
    raw = dsifn.copy_of_raw(tmp_path)
    rewrite(raw, lambda entries: [(n, c) for n, c in entries if n != "dataset/train/mask/0_1.png"])
    code, said = dsifn.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and re.search(r"mask_256/0_1\.png have the sizes 16 x 16, 16 x 16, 8 x 8", said), said


def test_the_flattened_copy_is_refused(dsifn, tmp_path):
    for folder in ("A", "B", "label", "list"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        (tmp_path / "raw" / folder / "0_2.png").write_bytes(png(MASK))
    code, said = dsifn.run(data_dir=tmp_path / "raw", output_dir=tmp_path / "out")
    assert code == 2 and "DSIFN-256" in said and "164 of its 192 test names" in said and "t1, t2 and mask" in said
    assert not (tmp_path / "out").exists()


def test_it_is_pushed_privately_only(dsifn, tmp_path):
    code, said = dsifn.run("--push_to_hub", "owner/dsifn", output_dir=tmp_path / "out")
    assert code == 2 and "non-commercial" in said and "--private" in said and not (tmp_path / "out").exists()


# -- Real files -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/imagery/change")
def test_real_pairs(dsifn, tmp_path):
    """22 real pairs, seven of them from DSIFN: training masks as 0 and 1, the others as 0 and 255."""
    table = datasets.load_dataset("parquet", data_files=str(REAL), split="train")
    table = table.cast_column("image_a", datasets.Image(decode=False)).cast_column(
        "image_b", datasets.Image(decode=False)
    )
    expected = {}
    for row in table:
        folder = tmp_path / "raw" / row["split"]
        stem = f"{row['source']}_{row['name']}"
        for kind in ("t1", "t2", "mask"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "t1" / f"{stem}.jpg").write_bytes(row["image_a"]["bytes"])
        (folder / "t2" / f"{stem}.jpg").write_bytes(row["image_b"]["bytes"])
        change = (np.asarray(row["mask"]) > 127).astype(np.uint8)
        kind, suffix = ("TIFF", "tif") if row["split"] == "test" else ("PNG", "png")
        values = change if row["split"] == "train" else change * 255
        (folder / "mask" / f"{stem}.{suffix}").write_bytes(png(values, kind))
        expected[f"{row['split']}/{stem}"] = row["image_a"]["bytes"], row["image_b"]["bytes"], change
    code, said = dsifn.run(data_dir=tmp_path / "raw", output_dir=tmp_path / "out")
    assert code == 0 and "pairs of train: found" in said, said
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert sum(map(len, loaded.values())) == len(expected) == 22
    for part in loaded.values():
        raw = part.cast_column("image1", datasets.Image(decode=False)).cast_column(
            "image2", datasets.Image(decode=False)
        )
        for row in raw:
            before, after, change = expected[row["name"]]
            assert (row["image1"]["bytes"], row["image2"]["bytes"]) == (before, after)
            assert np.array_equal(row["mask"], change)
    assert open_task("change", dataset_name=str(tmp_path / "out")).num_labels == 2
