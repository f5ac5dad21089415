import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gfm_hf.data.decoding import Record, UnreadableImageError, decode
from gfm_hf.data.sources import ImageStream, ImageTable, hold_out, open_images

from .pictures import encode, pixels_of


pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
ODD_FILES = Path(__file__).parents[3] / "shared" / "imagery" / "odd_files"


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(
        ["b.png", "a.JPG", "deep/er/c.tif", "deep/d.webp", "notes.txt", ".hidden.png", ".h/e.png"]
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if name.endswith("txt") else encode(pixels_of(i)))
    return tmp_path / "images"


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="Parquet needs datasets")
    # The library rests 5 s at each end of a shuffled stream, for the sake of threads that download.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)
    files = []
    for shard in range(2):
        rows = [{"bytes": encode(pixels_of(10 * shard + i)), "path": f"s{shard}_{i}.png"} for i in range(4)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict({"image": rows, "label": range(4)}, features=features)
        files.append(tmp_path / "shards" / f"part-{shard}.parquet")
        files[-1].parent.mkdir(exist_ok=True)
        table.to_parquet(str(files[-1]))
    return files


def names_of(table):
    return [table[i].name for i in range(len(table))]


# Folders


def test_folder_is_listed_recursively_sorted_and_without_hidden_names(folder):
    table = open_images(train_dir=folder)
    assert isinstance(table, ImageTable)
    assert names_of(table) == ["a.JPG", "b.png", "deep/d.webp", "deep/er/c.tif"]
    assert [table[i].index for i in range(4)] == [0, 1, 2, 3]
    assert np.array_equal(np.asarray(decode(table[1])), pixels_of(0))
    assert "4 images" in table.description
    with pytest.raises(IndexError):
        table[4]


def test_folder_stays_a_table_when_streaming(folder):
    assert isinstance(open_images(train_dir=folder, streaming=True), ImageTable)


def test_folder_fingerprint_follows_names_and_sizes_only(folder, tmp_path):
    first = open_images(train_dir=folder).fingerprint
    assert first == open_images(train_dir=str(folder)).fingerprint and len(first) == 64
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_images(train_dir=moved).fingerprint == first
    (moved / "b.png").write_bytes(b"longer" * 1000)
    resized = open_images(train_dir=moved).fingerprint
    (moved / "b.png").rename(moved / "bb.png")
    assert len({first, resized, open_images(train_dir=moved).fingerprint}) == 3


def test_folder_accepts_names_that_are_no_text(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encode(pixels_of(0)))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    table = open_images(train_dir=tmp_path)
    assert len(table.fingerprint) == 64 and decode(table[0]).mode == "RGB"


def test_folder_links_are_followed_once(folder):
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "nowhere")
    table = open_images(train_dir=folder)
    assert names_of(table) == ["a.JPG", "b.png", "deep/d.webp", "deep/er/c.tif", "gone.png"]
    with pytest.raises(UnreadableImageError, match="cannot be opened"):
        decode(table[4])


def test_folder_errors_say_what_was_found(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for i in range(3):
        (tmp_path / "other" / f"{i}.npy").write_bytes(b"x")
    for path, message in {
        "empty": "holds no files",
        "other": "holds 3 files, none of them .jpg",
        "missing": "does not exist",
        "images/b.png": "is a file",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_images(train_dir=tmp_path / path)


@pytest.mark.parametrize(
    "given", [{}, {"train_dir": "a", "train_parquet": "b"}, {"dataset_name": "a", "train_dir": "b"}]
)
def test_exactly_one_source(given):
    with pytest.raises(ValueError, match="exactly one of --dataset_name, --train_dir, --train_parquet"):
        open_images(**given)


# Parquet and datasets


def test_parquet_folder_pattern_list_and_file(parquet, tmp_path):
    cache = str(tmp_path / "cache")
    expected = [f"s{shard}_{i}.png" for shard in range(2) for i in range(4)]
    for source in (parquet[0].parent, str(parquet[0].parent / "part-*.parquet"), parquet):
        table = open_images(train_parquet=source, cache_dir=cache)
        assert isinstance(table, ImageTable) and names_of(table) == expected
    assert np.array_equal(np.asarray(decode(table[5])), pixels_of(11))
    assert table[5].path is None and table[5].data is not None
    one = open_images(train_parquet=parquet[1], cache_dir=cache)
    assert len(one) == 4 and one.fingerprint != table.fingerprint
    assert open_images(train_parquet=parquet, cache_dir=cache).fingerprint == table.fingerprint
    assert len(open_images(train_parquet=parquet, cache_dir=cache, split="test[:3]")) == 3


def test_parquet_errors_name_the_next_step(parquet, tmp_path):
    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match="matches no Parquet file"):
        open_images(train_parquet=tmp_path / "no-*.parquet")
    with pytest.raises(ValueError, match="no column 'picture' but 'image', 'label'; pass --image_column_name"):
        open_images(train_parquet=parquet, image_column_name="picture", cache_dir=cache)
    with pytest.raises(ValueError, match="'label'.*not images"):
        open_images(train_parquet=parquet, image_column_name="label", cache_dir=cache)
    parquet[0].write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(ValueError, match="cannot be opened|Parquet"):
        open_images(train_parquet=parquet[0], cache_dir=cache)


def test_row_without_image_is_unreadable(tmp_path):
    datasets = pytest.importorskip("datasets", reason="Parquet needs datasets")
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [None]}, features=features).to_parquet(str(tmp_path / "n.parquet"))
    table = open_images(train_parquet=tmp_path / "n.parquet", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UnreadableImageError, match="row 0.*holds no image"):
        decode(table[0])


def test_dataset_by_name(folder, tmp_path):
    pytest.importorskip("datasets", reason="named datasets need datasets")
    for name in ("notes.txt", "a.JPG"):
        (folder / name).unlink()
    table = open_images(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))
    assert len(table) == 3 and len(table.fingerprint) == 64
    assert all(decode(table[i]).mode == "RGB" for i in range(3))
    stream = open_images(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"), streaming=True)
    assert len(list(stream.records(0))) == 3


def test_unknown_dataset_is_one_sentence(tmp_path):
    pytest.importorskip("datasets", reason="named datasets need datasets")
    with pytest.raises(ValueError, match="cannot be opened") as caught:
        open_images(dataset_name=str(tmp_path / "nowhere"), cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_stream_order_depends_on_seed_and_epoch_only(parquet):
    def order(seed, epoch):
        stream = open_images(train_parquet=parquet, streaming=True, seed=seed, shuffle_buffer=4)
        assert isinstance(stream, ImageStream)
        return [record.name for record in stream.records(epoch)]

    base = order(0, 0)
    assert sorted(base) == sorted(f"s{shard}_{i}.png" for shard in range(2) for i in range(4))
    assert base == order(0, 0)
    assert base != order(0, 1) and base != order(1, 0)


def test_stream_counts_records_and_keeps_its_fingerprint(parquet):
    stream = open_images(train_parquet=parquet, streaming=True)
    assert [record.index for record in stream.records(3)] == list(range(8))
    assert "streamed" in stream.description
    assert stream.fingerprint == open_images(train_parquet=parquet, streaming=True).fingerprint
    assert stream.fingerprint != open_images(train_parquet=parquet[:1], streaming=True).fingerprint


# Setting images aside


def numbered(length):
    return ImageTable(length, lambda i: Record(i, str(i)), "digest", f"{length} images")


@pytest.mark.parametrize("length, count, taken", [(100, 7, 7), (100, 50, 10), (5, 3, 1), (5, 0, 0)])
def test_hold_out_takes_each_image_to_one_side(length, count, taken):
    rest, held_out = hold_out(numbered(length), count, seed=0)
    kept = [rest[i].index for i in range(len(rest))]
    assert len(held_out) == taken
    assert sorted(kept + [record.index for record in held_out]) == list(range(length))


def test_hold_out_follows_the_seed_and_leaves_something():
    draws = [[record.index for record in hold_out(numbered(500), 20, seed)[1]] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        hold_out(numbered(1), 1, seed=0)


def test_hold_out_of_a_stream_takes_its_first_records(parquet):
    stream = open_images(train_parquet=parquet, streaming=True)
    rest, held_out = hold_out(stream, 3, seed=0)
    assert rest is stream
    assert held_out == list(stream.records(0))[:3]
