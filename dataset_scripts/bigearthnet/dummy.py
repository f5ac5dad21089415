"""BigEarthNet in small: an archive of 19 patches with real names, nesting and shapes, for tests."""

import argparse
import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


LIST = "bigearthnet_s2_v1_patches.txt.xz"
# Pixels a side of each band, in the order of the names.
SIZES = {
    "B01": 20, "B02": 120, "B03": 120, "B04": 120, "B05": 60, "B06": 60, "B07": 60, "B08": 120, "B09": 20,
    "B11": 60, "B12": 60, "B8A": 60,
}  # fmt: skip
# In-Domain split, what is special of the patch, its labels.
PATCHES = {
    "S2A_MSIL2A_20171121T112351_43_15": ("train", "drawn twice and three times", ["Sea and ocean", "Estuaries"]),
    "S2A_MSIL2A_20170701T093031_34_53": ("train", "drawn second", ["Coniferous forest", "Mixed forest", "Peatbogs"]),
    "S2B_MSIL2A_20180421T100029_75_34": ("train", "drawn first", ["Pastures", "Water bodies", "Water courses"]),
    "S2B_MSIL2A_20180525T94030_35_58": ("train", "drawn third", ["Rice fields", "Port areas"]),
    "S2B_MSIL2A_20180224T112109_3_57": ("train", "clean draws", ["Vineyards", "Olive groves"]),
    "S2A_MSIL2A_20170813T112121_26_1": ("train", "clean draw", ["Broad-leaved forest"]),
    "S2B_MSIL2A_20180220T114339_64_70": ("train", "none of the 19", ["Bare rock"]),
    "S2A_MSIL2A_20170905T95032_18_90": ("train", "five digits", ["Non-irrigated arable land"]),
    "S2B_MSIL2A_20180204T094159_30_35": ("train", "snow", ["Moors and heathland"]),
    "S2B_MSIL2A_20180417T102019_30_1": ("train", "snow, none of the 19", ["Airports"]),
    "S2A_MSIL2A_20180527T093041_25_79": ("train", "cloud", ["Salines", "Beaches, dunes, sands"]),
    "S2B_MSIL2A_20170927T94020_69_88": ("validation", "", ["Agro-forestry areas", "Natural grassland"]),
    "S2B_MSIL2A_20180525T94030_8_3": ("validation", "", ["Discontinuous urban fabric"]),
    "S2A_MSIL2A_20180510T94033_14_79": ("validation", "", ["Transitional woodland/shrub", "Sparsely vegetated areas"]),
    "S2A_MSIL2A_20180228T101021_28_57": ("validation", "snow", ["Complex cultivation patterns"]),
    "S2A_MSIL2A_20180510T94032_13_36": ("test", "", ["Industrial or commercial units"]),
    "S2B_MSIL2A_20180525T94031_34_28": ("test", "", ["Inland marshes"]),
    "S2A_MSIL2A_20171101T94132_76_15": (
        "test",
        "",
        ["Land principally occupied by agriculture, with significant areas of natural vegetation"],
    ),
    "S2A_MSIL2A_20171208T093351_1_64": ("test", "cloud, none of the 19", ["Dump sites"]),
}
WKT = (
    'PROJCS["WGS 84 / UTM zone 29N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],UNIT["metre",1],'
    'AUTHORITY["EPSG","32629"]]'
)


def write_dummy(folder: str | Path) -> Path:
    """Write BigEarthNet-v1.0.tar.gz, under 1 MB, and the list of all patches beside it.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        What --data_dir takes.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name(LIST), Path(folder) / LIST)
    path = Path(folder) / "BigEarthNet-v1.0.tar.gz"
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # the same bytes always
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for number, patch in enumerate(sorted(PATCHES)):
                archive.addfile(_entry(f"BigEarthNet-v1.0/{patch}", directory=True))
                for name, content in files_of(patch, number).items():
                    entry = _entry(f"BigEarthNet-v1.0/{patch}/{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return Path(folder)


def files_of(patch: str, number: int) -> dict[str, bytes]:
    """The 13 files of a patch: name -> content."""
    files = {}
    for band, (name, size) in enumerate(SIZES.items()):
        rows, columns = np.indices((size, size))
        pixels = 40 + 97 * number + 7 * band + 12 * rows + 4 * columns  # no two bands alike, packs well
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint16)).save(buffer, format="TIFF")
        files[f"{patch}_{name}.tif"] = buffer.getvalue()
    day = patch.split("_")[2]
    ulx, uly = 500_000 + 1200 * number, 4_300_020
    facts = {
        "labels": PATCHES[patch][2],
        "coordinates": {"ulx": ulx, "uly": uly, "lrx": ulx + 1200, "lry": uly - 1200},
        "projection": WKT,
        "tile_source": f"S2A_MSIL1C_{day[:8]}T112351_N0206_R037_T29SNC.SAFE",
        "acquisition_date": f"{day[:4]}-{day[4:6]}-{day[6:8]} 11:23:51",
    }
    return files | {f"{patch}_labels_metadata.json": json.dumps(facts).encode()}


def _entry(name: str, directory: bool = False) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    entry.mode = 0o755 if directory else 0o644
    return entry


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    sys.stdout.write(f"{write_dummy(parser.parse_args().folder)}\n")
