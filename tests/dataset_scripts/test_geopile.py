"""What is special of GeoPile: its sources, labels, NAIP-like windows, and piles of one's own."""

import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image
from scripts import Script, contents, encoded


@pytest.fixture(scope="session")
def geopile(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.prepare("geopile", tmp_path_factory.mktemp("geopile"))


def rows_of(folder: Path, config: str) -> list[dict]:
    return list(datasets.load_dataset(str(folder), config, split="train"))


# -- The sources ------------------------------------------------------------------------------------------------------


def test_all_is_the_sources_one_after_the_other(geopile):
    """Without shards of its own, and it is what comes without a name."""
    sources = ["resisc45", "patternnet", "mlrsnet", "rsd46", "naip"]
    parts = [encoded(datasets.load_dataset(str(geopile.built), name, split="train")) for name in sources]
    whole = datasets.load_dataset(str(geopile.built), split="train")
    assert encoded(whole) == sum(parts, []) and [len(part) for part in parts] == [16, 6, 6, 3, 9]
    assert not (geopile.built / "all").exists()
    assert list(dict.fromkeys(whole["source"])) == ["RESISC45", "PatternNet", "MLRSNet", "RSD46-WHU", "NAIP-like"]


def test_rows(geopile):
    found = {row["source_id"]: row for row in rows_of(geopile.built, "all")}
    raw = {row["source_id"]: row["image"] for row in undecoded(geopile.built, "all")}
    for name, row in found.items():
        content = raw[name]["bytes"]
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["dhash"] == f"{geopile.module.dhash(Image.open(io.BytesIO(content))):016x}"
        assert (row["width"], row["height"]) == row["image"].size
    assert (found["airplane/airplane_001.jpg"]["label"], found["airplane/airplane001.jpg"]["label"]) == (
        "airplane",
    ) * 2
    assert found["airplane/airplane_001.jpg"]["gsd_m"] == {"min": 0.2, "max": 30.0}
    odd = found["train/Airport/Airport_00024.png"]
    assert odd["label"] == "Airport" and odd["image"].size == (24, 17) and not odd["labels"]


def test_the_order_mixes_classes_and_does_not_change(geopile):
    """The order is that of a hash: published positions (of a manifest, of a seeded run) stay valid."""
    ids = [row["source_id"] for row in rows_of(geopile.built, "resisc45")]
    assert ids == sorted(ids, key=lambda name: hashlib.md5(f"resisc45/{name}".encode()).hexdigest())
    assert len({row.split("/")[0] for row in ids[:8]}) == 2


def test_multi_labels(geopile):
    """Broken rows (too few values, no number, a second row of a picture) cost the labels, not the picture."""
    found = {row["source_id"]: (row["label"], row["labels"]) for row in rows_of(geopile.built, "mlrsnet")}
    assert found == {
        "airport/airport_00001.jpg": ("airport", ["airplane", "airport"]),
        "airport/airport_00002.jpg": ("airport", []),
        "airport/airport_00003.jpg": ("airport", []),
        "harbor&port/harbor_port_00001.jpg": ("harbor&port", []),
        "harbor&port/harbor_port_00002.jpg": ("harbor&port", []),
        "harbor&port/harbor_port_00003.jpg": ("harbor&port", []),
    }
    card = (geopile.built / "README.md").read_text()
    assert "airport.csv: broken rows, of which the pictures have no labels: 3, 4" in card
    assert "harbor&port.csv: broken rows, of which the pictures have no labels: 3" in card
    assert "MLRSNet: pictures without labels: 5" in card


def test_the_authors_layout(geopile, tmp_path):
    """GeoPileV0/source/class/picture, NAIP below some folder: the same ids as from the archives."""
    root = tmp_path / "GeoPileV0"
    for archive, name in (("NWPU-RESISC45.zip", "RESISC45"), ("PatternNet.zip", "PatternNet")):
        shutil.unpack_archive(geopile.raw / archive, tmp_path / "unpacked")
        folder = next(path for path in (tmp_path / "unpacked").rglob("airplane") if path.is_dir()).parent
        shutil.copytree(folder, root / name)
        shutil.rmtree(tmp_path / "unpacked")
    (root / "NAIP" / "0").mkdir(parents=True)
    Image.new("RGB", (16, 16), "green").save(root / "NAIP" / "0" / "crop_1.png")
    code, said = geopile.run(data_dir=tmp_path, output_dir=tmp_path / "out")
    assert code == 0 and "the pile lacks MLRSNet, RSD46-WHU" in said, said
    for name in ("resisc45", "patternnet"):
        assert contents(tmp_path / "out" / name) == contents(geopile.built / name)
    (naip,) = rows_of(tmp_path / "out", "naip")
    assert (naip["source"], naip["source_id"], naip["label"]) == ("NAIP", "0/crop_1.png", None)


def undecoded(folder: Path, config: str) -> list[dict]:
    rows = datasets.load_dataset(str(folder), config, split="train")
    return list(rows.cast_column("image", datasets.Image(decode=False)))


def test_counts_and_classes_are_checked(geopile, tmp_path):
    """What was accepted is on the card; --exact accepts nothing."""
    card = (geopile.built / "README.md").read_text()
    for sentence in (
        "images of RESISC45: found 16, expected 31,500",
        "RESISC45: the folders of airport, baseball_diamond",
        "PatternNet: classes without 800 pictures: airplane (3), wastewater_treatment_plant (3)",
        "images of MLRSNet: found 6, expected 109,161",
    ):
        assert sentence in card
    code, said = geopile.run("--exact", output_dir=tmp_path / "out")
    assert code == 2 and "found 16, expected 31,500" in said and not (tmp_path / "out").exists()


def test_what_may_be_pushed(geopile, tmp_path):
    """Of the five, RESISC45 and RSD46-WHU stay; so does what contains them."""
    closed = {config.name for config in geopile.module.RECIPE.configs if config.no_push}
    assert closed == {"resisc45", "rsd46", "all"}
    for config in closed:
        code, said = geopile.run("--config", config, "--push_to_hub", "owner/x", output_dir=tmp_path / "out")
        assert code == 2 and "must not be pushed" in said and "--manifest_only" in said
    assert not (tmp_path / "out").exists()


def test_folders_of_ones_own_are_not_taken_for_published_ones(geopile, tmp_path):
    """Although their names have the letters of NAIP in them; nor is what was built here before."""
    for name in ("naip_texas", "NAIP"):
        shutil.copytree(geopile.raw / "tiles", tmp_path / name)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "naip_texas" / "a.png")
    (tmp_path / "pile.yaml").write_text(
        "sources: [{name: texas, path: naip_texas, gsd_m: 1, licence: mine}]\nnaip: {tiles: NAIP, windows: 9, size: 32}"
    )
    for _ in range(2):
        code, said = geopile.run("--config", "naip", "texas", data_dir=tmp_path, output_dir=tmp_path / "geopile")
        assert code == 0, said
    assert len(rows_of(tmp_path / "geopile", "texas")) == 3 and len(rows_of(tmp_path / "geopile", "naip")) == 9


def test_a_source_can_be_added(geopile, own):
    """Without building the others again."""
    code, said = geopile.run("--config", "flights", data_dir=own, output_dir=own / "out")
    assert code == 0 and "1 shards written" in said, said
    code, said = geopile.run("--config", "flights", "days", data_dir=own, output_dir=own / "out")
    assert code == 0 and "1 shards written" in said, said
    assert len(rows_of(own / "out", "flights")) == len(rows_of(own / "out", "days")) == 6


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda raw: shutil.copytree(raw / "RSD46-WHU", raw / "rsd46_copy"), "are the same source; keep one"),
        (lambda raw: (raw / "MLRSNet.rar").write_bytes(b"Rar!"), "is a rar archive"),
        (lambda raw: (raw / "NAIP").mkdir(), "are the same source; keep one"),
    ],
    ids=["twice", "rar", "crops and tiles"],
)
def test_refused_folders(geopile, change, says, tmp_path):
    raw = geopile.copy_of_raw(tmp_path)
    change(raw)
    code, said = geopile.run(data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and says in said and not (tmp_path / "out").exists()


# -- NAIP-like windows ------------------------------------------------------------------------------------------------


def test_windows_are_pixels_of_the_tiles(geopile):
    """Red, green and blue, no nodata, no place twice, as many of each tile; the row says where."""
    rows = rows_of(geopile.built, "naip")
    places = set()
    for row in rows:
        name, column, line = row["source_id"].split(":")
        with rasterio.open(geopile.raw / "tiles" / name) as tile:
            pixels = tile.read((1, 2, 3), window=rasterio.windows.Window(int(column), int(line), 32, 32))
        assert np.array_equal(np.asarray(row["image"]), pixels.transpose(1, 2, 0)) and pixels.any(axis=0).all()
        assert not (pixels == 255).all(axis=0).any()  # what that tile calls nodata
        assert int(column) % 32 == int(line) % 32 == 0
        places.add(row["source_id"])
    assert len(places) == 9
    assert sorted(place[:10] for place in places) == ["m_3907600_"] * 5 + ["m_3907601_"] * 4


def test_the_seed_draws_other_windows(geopile, tmp_path):
    raw = geopile.copy_of_raw(tmp_path)
    places = []
    for seed in (1, 2):
        (raw / "pile.yaml").write_text(f"naip: {{tiles: tiles, windows: 9, size: 32, seed: {seed}}}")
        assert geopile.run("--config", "naip", data_dir=raw, output_dir=tmp_path / f"{seed}")[0] == 0
        places.append({row["source_id"] for row in rows_of(tmp_path / f"{seed}", "naip")})
    assert places[0] == {row["source_id"] for row in rows_of(geopile.built, "naip")} != places[1]
    code, said = geopile.run("--config", "naip", data_dir=raw, output_dir=tmp_path / "1")
    assert code == 2 and "choose another --output_dir" in said, "windows of two seeds must not meet in one folder"


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that hands out parts of files, as those that hold tiles do."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        start, end = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(content)}")).groups()
        part = content[int(start) : int(end) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None: ...


def test_tiles_of_a_stac_catalog(geopile, tmp_path):
    """The same windows, whether a tile lies here or is read from afar."""
    handler = functools.partial(Ranges, directory=str(geopile.raw / "tiles"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        names = sorted(path.name for path in (geopile.raw / "tiles").iterdir())
        items = [{"type": "Feature", "assets": {"image": {"href": f"{address}/{name}"}}} for name in names]
        (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        (tmp_path / "pile.yaml").write_text("naip: {tiles: items.json, windows: 9, size: 32, seed: 1}")
        # In a process of its own: GDAL waits for the server without letting go of Python's lock.
        arguments = geopile.arguments(data_dir=tmp_path / "pile.yaml", output_dir=tmp_path / "out")
        command = [sys.executable, str(geopile.path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert undecoded(tmp_path / "out", "naip") == undecoded(geopile.built, "naip")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"transform": rasterio.Affine(0.6, 0, 0, 0, -0.6, 0)}, "at 0.6 x 0.6 m"),
        ({"crs": "EPSG:4326"}, "NAIP of 1 m"),
        ({"count": 1}, "has 1 bands"),
        ({"dtype": "uint16"}, "of uint16"),
    ],
    ids=["0.6 m", "degrees", "grey", "uint16"],
)
def test_other_tiles_are_refused(geopile, change, says, tmp_path):
    profile = {"width": 64, "height": 64, "count": 3, "dtype": "uint8", "crs": "EPSG:26918"}
    profile |= {"transform": rasterio.Affine(1, 0, 9, 0, -1, 9)} | change
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as tile:
        tile.write(np.full((profile["count"], 64, 64), 9, profile["dtype"]))
    (tmp_path / "pile.yaml").write_text("naip: {tiles: [a.tif], windows: 2, size: 32}")
    code, said = geopile.run(data_dir=tmp_path, output_dir=tmp_path / "out")
    assert code == 2 and says in said and "a.tif" in said and not (tmp_path / "out").exists()


def test_too_few_places(geopile, tmp_path):
    """More windows than cells are refused at once; a tile without enough clean ones is named."""
    raw = geopile.copy_of_raw(tmp_path)
    (raw / "pile.yaml").write_text("naip: {tiles: tiles, windows: 61, size: 32}")
    code, said = geopile.run("--config", "naip", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "room for 30 windows, not for 31" in said and not (tmp_path / "out").exists()
    (raw / "pile.yaml").write_text("naip: {tiles: tiles, windows: 60, size: 32}")
    code, said = geopile.run("--config", "naip", data_dir=raw, output_dir=tmp_path / "out")
    assert code == 2 and "m_3907601_ne_18_1_2015.tif has no window without nodata" in said
    code, said = geopile.run("--config", "naip", "--skip_unreadable", data_dir=raw, output_dir=tmp_path / "skipped")
    assert code == 0 and len(rows_of(tmp_path / "skipped", "naip")) == 50  # 2 of 6 columns of a tile were not flown


# -- A pile of one's own ----------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of flights by day, with a pile.yaml."""
    for day, colour in (("monday", "red"), ("tuesday", "blue")):
        (tmp_path / "flights" / day).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (12, 10), colour).save(tmp_path / "flights" / day / f"{number}.png")
    (tmp_path / "pile.yaml").write_text(
        "sources:\n"
        "  - {name: flights, path: flights, gsd_m: [0.03, 0.1], licence: CC-BY-4.0, redistribute: true}\n"
        "  - {name: days, path: flights, gsd_m: 0.05, licence: mine, labelled: true}\n"
    )
    return tmp_path


def test_own_folders(geopile, own):
    code, said = geopile.run(data_dir=own / "pile.yaml", output_dir=own / "out")
    assert code == 0 and "warning" not in said, said
    flights, days = (rows_of(own / "out", name) for name in ("flights", "days"))
    assert {row["label"] for row in flights} == {None} and {row["label"] for row in days} == {"monday", "tuesday"}
    assert [row["gsd_m"] for row in (flights[0], days[0])] == [{"min": 0.03, "max": 0.1}, {"min": 0.05, "max": 0.05}]
    assert len(rows_of(own / "out", "all")) == 12 and flights[0]["source"] == "flights"
    card = (own / "out" / "README.md").read_text()
    assert "licence: CC-BY-4.0" in card and str(own) not in card
    assert "# A pile of pictures" in card and "587,954" not in card and "RESISC45" not in card and "n<1K" in card
    flags = ["--config", "days", "--push_to_hub", "owner/x"]
    code, said = geopile.run(*flags, data_dir=own, output_dir=own / "pushed")
    assert code == 2 and "redistribute: true" in said


def test_own_folders_beside_the_published_sources(geopile, own):
    written = f"geopile: {geopile.raw}\n" + (own / "pile.yaml").read_text()
    (own / "pile.yaml").write_text(written)
    code, said = geopile.run(data_dir=own / "pile.yaml", output_dir=own / "out")
    assert code == 0, said
    sources = list(dict.fromkeys(row["source"] for row in rows_of(own / "out", "all")))
    assert sources == ["RESISC45", "PatternNet", "MLRSNet", "RSD46-WHU", "flights", "days"]
    builder = geopile.builder(
        config_name="all", data_dir=str(own / "pile.yaml"), cache_dir=str(own / "cache"), accept_archive=True
    )
    stream = builder.as_streaming_dataset(split="train")
    assert encoded(stream) == encoded(datasets.load_dataset(str(own / "out"), "all", split="train"))


def test_an_own_archive(geopile, own):
    """Also a compressed tar, of which the order of the rows is not that of the files."""
    shutil.make_archive(str(own / "packed"), "gztar", own / "flights")
    (own / "pile.yaml").write_text("sources: [{name: a, path: packed.tar.gz, gsd_m: 1, licence: mine}]")
    code, said = geopile.run("--config", "a", data_dir=own, output_dir=own / "out")
    assert code == 0, said
    assert sorted(row["source_id"] for row in rows_of(own / "out", "a"))[0] == "monday/0.png"


@pytest.mark.parametrize(
    "text, says",
    [
        ("sources: [", "is no YAML"),
        ("sources: {a: 1}", "sources has to be a list"),
        ("source: []", "'source' is no setting here; use some of geopile, naip, sources"),
        ("sources: [{name: a, path: flights, gsd_m: 1}]", "has to have gsd_m, licence, name, path"),
        ("sources: [{name: a, path: nowhere, gsd_m: 1, licence: x}]", "nowhere does not exist"),
        ("sources: [{name: a, path: flights, gsd_m: fine, licence: x}]", "gsd_m of a has to be metres"),
        ("sources: [{name: a, path: flights, gsd_m: [3, 1], licence: x}]", "gsd_m of a has to be metres"),
        ("sources: [{name: ../a, path: flights, gsd_m: 1, licence: x}]", "is no name for a configuration"),
        ("sources: [{name: naip, path: flights, gsd_m: 1, licence: x}]", "the name naip is taken"),
        ("naip: {tiles: flights, windows: -1}", "whole numbers"),
        ("naip: {tiles: nowhere.txt}", "is no folder of tiles"),
        ("naip: {tiles: [a.tif, b/a.tif]}", "a.tif is named twice"),
        ("naip: {tiles: []}", "no tile is named"),
        ("geopile: nowhere\nsources: []", "nowhere is no folder"),
        ("geopile:\nsources: []", "geopile has to be a path"),
    ],
)
def test_what_is_wrong_in_a_pile_is_said(geopile, own, text, says):
    (own / "pile.yaml").write_text(text)
    code, said = geopile.run(data_dir=own, output_dir=own / "out")
    assert code == 2 and says in said and said.count("\n") == 1 and not (own / "out").exists()
