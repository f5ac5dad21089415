import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from gfm_hf.data.duplicates import dhash, hashes_of_source, seen_samples, source_of_name
from gfm_hf.data.tasks import open_task

from .sets import parquet, write


ROOT = Path(__file__).parents[2]
BEGIN, END = "# --- difference hash: begin ---", "# --- difference hash: end ---"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scene(seed, size=48):
    """A picture with structure: noise of a few pixels, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_hash_is_what_its_definition_says():
    cells = np.random.default_rng(0).integers(0, 256, (8, 9)).astype(np.uint8)
    cells[3, 4] = cells[3, 5]  # equal is not darker
    bits = "".join("1" if cells[y, x] < cells[y, x + 1] else "0" for y in range(8) for x in range(8))
    assert dhash(Image.fromarray(cells)) == int(bits, 2)
    picture = scene(1)
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
    assert f"{dhash(picture):064b}" == "".join("01"[int(step > 0)] for step in np.diff(grey, axis=1).ravel())


def test_the_hash_is_the_same_text_everywhere():
    texts = {}
    for path in [*ROOT.glob("gfm_hf/**/*.py"), *ROOT.glob("dataset_scripts/**/*.py")]:
        text = path.read_text()
        if "def dhash(" in text:
            assert text.count(BEGIN) == text.count(END) == 1, path
            texts[path.name] = text.partition(BEGIN)[2].partition(END)[0]
    assert {"duplicates.py", "overlap.py"} <= set(texts)
    assert len(set(texts.values())) == 1, "the hash differs between " + ", ".join(sorted(texts))


@pytest.fixture
def benchmark(tmp_path):
    """Twelve pictures of a test part; picture 3 is flat."""
    pictures = {f"test/{'ab'[i % 2]}/{i:02d}.png": encoded(scene(i)) for i in range(12)}
    pictures["test/b/03.png"] = encoded(Image.new("RGB", (48, 48), (90, 90, 91)))
    pictures |= {f"train/{name}/x{i}.png": encoded(scene(50 + i)) for i, name in enumerate("aabb")}
    pictures |= {f"validation/{name}/y{i}.png": encoded(scene(60 + i)) for i, name in enumerate("ab")}
    return open_task("classification", data_dir=write(tmp_path / "benchmark", **pictures)).test


def test_seen_samples_are_found_turned_and_recompressed(benchmark, tmp_path):
    others = {f"{i}.png": encoded(scene(100 + i)) for i in range(30)}
    for number, turn in enumerate(Image.Transpose):
        others[f"below/turned{number}.jpg"] = encoded(scene(number + 4).transpose(turn), "JPEG", quality=80)
    others |= {"same.png": encoded(scene(1)), "flat.png": encoded(Image.new("RGB", (48, 48), (90, 90, 91)))}
    others["broken.png"] = others["1.png"][:60]
    hashes = hashes_of_source({"train_dir": str(write(tmp_path / "pretraining", **others))})
    assert len(hashes) == 30 + 7 + 1
    found = seen_samples(benchmark, hashes)
    assert sorted(Path(name).stem for name in found) == ["01", *(f"{i:02d}" for i in range(4, 11))]
    assert not seen_samples(benchmark, hashes[:0])
    own = dhash(scene(0))
    assert len(seen_samples(benchmark, np.array([own ^ 0b11 << 9], np.uint64))) == 1
    assert not seen_samples(benchmark, np.array([own ^ 0b111 << 9], np.uint64))


def test_of_a_pair_either_date_counts_once(tmp_path):
    pictures = {f"train/{name}/{i}.png": encoded(scene(10 * i + at)) for at, name in enumerate(("image1", "image2")) for i in range(5)}  # fmt: skip
    pictures |= {f"train/mask/{i}.png": encoded(Image.fromarray(np.eye(48, dtype=np.uint8) * 255)) for i in range(5)}
    pictures |= {name.replace("train", "test"): data for name, data in pictures.items()}
    pairs = open_task("change", data_dir=write(tmp_path / "pairs", **pictures)).test
    hashes = np.array([dhash(scene(seed)) for seed in (11, 20, 21)], np.uint64)
    assert [Path(name).stem for name in seen_samples(pairs, hashes)] == ["1", "2"]


def test_a_stored_column_is_read_in_place_of_the_pictures(tmp_path):
    words = [f"{dhash(scene(i)):016x}" for i in range(3)]
    parquet(tmp_path / "pile" / "train-0.parquet", dhash=[*words, None])
    found = hashes_of_source({"train_parquet": str(tmp_path / "pile")}, most_images=0)
    assert found.tolist() == [dhash(scene(i)) for i in range(3)]


def test_pictures_of_parquet_are_hashed_up_to_a_number(tmp_path):
    parquet(tmp_path / "x.parquet", image=[encoded(scene(i)) for i in range(3)])
    source = {"train_parquet": str(tmp_path / "x.parquet")}
    assert hashes_of_source(source).tolist() == [dhash(scene(i)) for i in range(3)]
    assert hashes_of_source(source, most_images=3) is not None
    assert hashes_of_source(source, most_images=2) is None


def test_names_of_sets(tmp_path):
    folder = write(tmp_path / "folder", **{"a.png": b"", "b/c.png": b""})
    table = write(tmp_path / "table", **{"all/train.parquet": b""})
    assert source_of_name(str(folder)) == {"train_dir": str(folder)}
    for name in (str(table), f"{table}/*/*.parquet", f"{table}/all/train.parquet"):
        assert source_of_name(name) == {"train_parquet": name}
    hub = {"dataset_name": "me/pile", "dataset_config_name": None, "split": "train"}
    assert source_of_name("me/pile") == hub
    assert source_of_name("me/pile:naip:part") == hub | {"dataset_config_name": "naip", "split": "part"}
    assert source_of_name("me/pile::part") == hub | {"split": "part"}
    with pytest.raises(ValueError, match="cannot be opened"):
        hashes_of_source(source_of_name(str(tmp_path / "nowhere" / "at" / "all")))
