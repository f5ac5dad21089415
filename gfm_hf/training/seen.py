"""A warning where images that a run is scored on were in the data that its backbone was pretrained on."""

import argparse
import glob
import shlex
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gfm_hf.cards import read_json
from gfm_hf.data.duplicates import hashes_of_source, seen_samples, source_of_name
from gfm_hf.data.sources import open_images
from gfm_hf.data.tasks import TaskSplit


# Without being asked for, no more images than these are decoded: some seconds.
QUICK_IMAGES = 10_000
NAMED = 3


def seen_in_pretraining(args: argparse.Namespace, split: TaskSplit) -> dict[str, Any]:
    """Compare a part with the pretraining data, if they are known, and warn on stderr.

    Known are those of --pretraining_data, else those that the checkpoint's own folder records, as long as they lie
    where they lay, unchanged, and are quickly read.

    Args:
        args: `pretraining_data`, `model_name_or_path` and the source of the part.
        split: The part that is scored.

    Returns:
        Facts for results and card; {} where nothing is known.

    Raises:
        ValueError: --pretraining_data names nothing that can be opened.
    """
    asked = args.pretraining_data
    if asked == "none":
        return {}
    cache = {"cache_dir": args.cache_dir}
    recorded, is_here = ({}, False) if asked else _recorded_source(args.model_name_or_path, cache)
    source = source_of_name(asked) if asked else recorded if is_here else {}
    hashes = hashes_of_source(source | cache, None if asked else QUICK_IMAGES) if source else None
    if hashes is None:
        if recorded:
            name = next(iter(recorded.values()))
            tqdm.write(
                f"note: the {split.name} part was not compared with the pretraining data {name}; pass "
                "--pretraining_data to do it, or none.",
                file=sys.stderr,
            )
        return {}
    names = seen_samples(split, hashes)
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        sets = (asked or next(iter(source.values())), args.data_dir or args.parquet or args.dataset_name)
        words = " ".join(shlex.quote(" ".join(one) if isinstance(one, list) else str(one)) for one in sets)
        tqdm.write(
            f"warning: {len(names)} of {len(split)} samples of the {split.name} part look like pretraining images "
            f"({', '.join(names[:NAMED])}{more}); scores on them say little about new images. To look at them: "
            f"python dataset_scripts/overlap.py {words} --output_dir overlap",
            file=sys.stderr,
        )
    return {"samples_seen_in_pretraining": len(names)}


def _recorded_source(checkpoint: str, cache: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What a pretraining run noted of its images, and whether they are here, on this machine, as they were.

    Nothing is fetched: a data set of the Hub is not here.
    """
    results = Path(checkpoint) / "all_results.json"
    names = ("train_dir", "train_parquet", "dataset_name", "dataset_config_name", "split", "image_column_name")
    try:
        facts = read_json(results) if results.is_file() else {}
        flags = facts.get("arguments") or {}
        source = {name: flags[name] for name in names if flags.get(name)}
        place = source.get("train_dir") or source.get("train_parquet") or source.get("dataset_name") or []
        paths = [place] if isinstance(place, str) else list(place)
        if not paths or not all(glob.glob(str(path), recursive=True) for path in paths):
            return source, False
        # The fingerprint of a stream is another one than that of the files it came from.
        same = flags.get("streaming") or open_images(**source, **cache).fingerprint == facts.get("data_fingerprint")
        return source, bool(same)
    except (ValueError, TypeError, AttributeError):  # a record that somebody edited, or files that have changed
        return {}, False
