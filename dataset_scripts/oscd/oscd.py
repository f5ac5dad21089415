"""OSCD: 24 pairs of Sentinel-2 scenes with the changes of cities between two dates, in 13 bands or in RGB.

    python dataset_scripts/oscd/oscd.py --data_dir FOLDER --output_dir oscd    # FOLDER holds the three zip archives
    load_dataset("oscd", "all_bands")               # the folder, or the repository after --push_to_hub

Under datasets 3.6 this file is a loading script too. It imports nothing of its neighbours: copy it anywhere.
"""

import argparse
import hashlib
import io
import itertools
import json
import lzma
import math
import multiprocessing
import os
import re
import signal
import sys
import tarfile
import threading
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
import numpy as np
import rasterio
from datasets.arrow_writer import ParquetWriter
from filelock import FileLock, Timeout
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from tqdm import tqdm


# --- common to all dataset scripts: begin ---
# Each script stands alone, so this part is in each of them, letter by letter; tests/dataset_scripts compares them.
UNFINISHED = "unfinished-"
STATE, LOCK = ".build.json", ".build.lock"
ROW_GROUP_BYTES = 32 * 2**20
SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}
SIZES |= {"10M<n<100M": 10**8, "100M<n<1B": 10**9}
NOT_ARCHIVES = {b"<": "a web page (a log-in, a quota, a moved address)", b"version https://git": "an LFS pointer"}
# What Python and Pillow raise for broken bytes; RuntimeError is zipfile's for a password.
BROKEN = (
    OSError, EOFError, RuntimeError, ValueError, SyntaxError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    tarfile.TarError,
)  # fmt: skip
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What file browsers leave behind.
JUNK = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")


class InputError(ValueError):
    """What was given cannot be used; the message says what to do next."""


class UnreadableError(InputError):
    """One file of the set cannot be read; the others may."""


class PushError(RuntimeError):
    """The Hub did not take the set; what was built stays."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Archive(NamedTuple):
    """A published archive: its checksum ("" = none is known), its size (0 = unknown) and an address if it has one.

    `unpack` is for a compressed tar of which the rows need files from far apart: it is unpacked once, to the cache.
    `prefix` is put before the names of its files. `configs` are those that need it; none stands for all.
    """

    name: str
    sha256: str = ""
    md5: str = ""
    size_bytes: int = 0
    url: str = ""
    optional: bool = False
    unpack: bool = False
    prefix: str = ""
    configs: tuple[str, ...] = ()


class Item(NamedTuple):
    """A row to be: its key, the files it is made of, what is known without reading them, its size if not theirs."""

    key: str
    names: tuple[str, ...]
    known: tuple[Any, ...] = ()
    size_bytes: int = 0


@dataclass
class Config(datasets.BuilderConfig):
    """One configuration. `no_push` and `private_only` are sentences: why, and what to do instead.

    `parts` names the configurations that this one joins; their shards serve both.
    """

    accept_archive: bool = False
    exact: bool = False
    no_push: str = ""
    private_only: str = ""
    parts: tuple[str, ...] = ()


class Files:
    """The files of a set by name, out of archives or folders, in the order they lie there; nothing is unpacked.

    With `by_folder` the entries are folders, not files: of millions of small files the names alone would fill memory.

    Attributes:
        notes: What is not as published and was accepted, for the card.
        digests: One checksum a source, by its name: of an archive's bytes, or of a folder's names, sizes and times.
    """

    def __init__(
        self, sources: Sequence[tuple[Path, Archive | None]], accept: bool, exact: bool, by_folder: bool = False
    ) -> None:
        self.paths = [path for path, _ in sources]
        self.prefixes = [known.prefix if known else "" for _, known in sources]
        self.accept, self.exact, self.by_folder = accept, exact, by_folder
        self.notes: list[str] = []
        self.digests: dict[str, str] = {}
        self.entries: dict[str, tuple[int, int, int]] = {}  # name -> number of the source, size, offset in a tar
        self.handles: dict[tuple[int, Path], Any] = {}
        for number, (path, known) in enumerate(sources):
            inside = (_inside(path, entry) for entry in (_folder(path) if path.is_dir() else _archive(path, known)))
            found = (entry for entry in inside if not JUNK.search(entry.name))
            for entry in _folders(path, found) if by_folder else found:
                name = self.prefixes[number] + entry.name
                if name in self.entries:
                    how = "in two places; pack its files together" if by_folder else "twice; keep one of them"
                    raise InputError(f"{path} holds {entry.name} {how}.")
                self.entries[name] = (number, entry.size, entry.data)
            digest = self.digests[self.prefixes[number] + path.name] = self._digest(number, path, known)
            if known and known.unpack and path.is_file():
                self.paths[number] = self._unpacked(number, digest)

    def _unpacked(self, number: int, digest: str) -> Path:
        """Unpack a compressed tar to the cache of `datasets`; again, if what is there is of a killed attempt."""
        cache = os.path.join(datasets.config.DOWNLOADED_DATASETS_PATH, digest)
        skip = len(self.prefixes[number])
        sizes = {name[skip:]: size for name, (source, size, _) in self.entries.items() if source == number}
        os.makedirs(cache, exist_ok=True)
        with FileLock(os.path.join(cache, LOCK)):
            for force in (False, True):
                settings = datasets.DownloadConfig(cache_dir=cache, force_extract=force)
                folder = Path(datasets.DownloadManager(download_config=settings).extract(str(self.paths[number])))
                if all((folder / name).is_file() and (folder / name).stat().st_size == sizes[name] for name in sizes):
                    return folder
        raise InputError(f"{self.paths[number]} could not be unpacked into {folder}; look for free space there.")

    def _digest(self, number: int, path: Path, known: Archive | None) -> str:
        if path.is_dir():
            skip = len(self.prefixes[number])
            mine = [(name[skip:], size) for name, (source, size, _) in self.entries.items() if source == number]
            listing = [(name, size, (path / name).stat().st_mtime_ns) for name, size in mine]
            return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        method = "md5" if known and known.md5 and not known.sha256 else "sha256"
        digest, expected = hashlib.new(method), getattr(known, method, "")
        size = path.stat().st_size
        with path.open("rb") as file, tqdm(desc=f"checksum of {path.name}", total=size, unit="B", disable=None) as bar:
            while block := file.read(2**22):
                digest.update(block)
                bar.update(len(block))
        if expected and digest.hexdigest() != expected:
            self.object(
                f"{path.name} has the {method.upper()} {digest.hexdigest()}, the published archive has {expected}"
            )
        return digest.hexdigest()

    def object(self, sentence: str, acceptable: bool = True) -> None:
        """Refuse what is not as published, or note it where another archive is accepted."""
        if not (self.accept and acceptable):
            instead = ", or pass --accept_archive (accept_archive=True) to go on with this one" if acceptable else ""
            raise InputError(f"{sentence}; use the published archive{instead}.")
        self.note(sentence)

    def note(self, sentence: str) -> None:
        """Say what the card will say, too."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            _say(f"warning: {sentence}")

    def expect(self, what: str, found: int, expected: int) -> None:
        """Object to a wrong count; `exact` admits none, whatever archive is accepted."""
        if found != expected:
            self.object(f"{what}: found {found:,}, expected {expected:,}", acceptable=not self.exact)

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        number, size, offset = self.entries[name]
        path, inside = self.paths[number], name.removeprefix(self.prefixes[number])
        try:
            if path.is_dir():
                content = (path / inside).read_bytes()
            elif isinstance(archive := self._archive(path), zipfile.ZipFile):
                content = archive.read(inside)
            else:
                content = _bytes_of(archive, offset, size)
            if len(content) != size:
                raise EOFError(f"{len(content):,} of {size:,} bytes")
            return content
        except BROKEN as error:
            raise UnreadableError(f"{name} in {path.name} cannot be read ({error}).") from error

    def read_folder(self, folder: str) -> dict[str, bytes]:
        """The files of one folder by their names, where the entries are folders."""
        number, size, offset = self.entries[folder]
        path = self.paths[number]
        try:
            if path.is_dir():
                return {file.name: file.read_bytes() for file in (path / folder).iterdir() if file.is_file()}
            if isinstance(archive := self._archive(path), zipfile.ZipFile):
                names = [name for name in archive.namelist() if name.rpartition("/")[0] == folder]
                return {PurePosixPath(name).name: archive.read(name) for name in names}
            span = io.BytesIO(_bytes_of(archive, offset, size) + bytes(tarfile.RECORDSIZE))  # a tar ends with zeros
            with tarfile.open(fileobj=span, mode="r:") as tar:
                return {PurePosixPath(m.name).name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore
        except BROKEN as error:
            raise UnreadableError(f"{folder} in {path.name} cannot be read ({error}).") from error

    def _archive(self, path: Path) -> Any:
        key = (os.getpid(), path)  # of a fork, parent and child would share one place in the file
        if key not in self.handles:
            self.handles[key] = zipfile.ZipFile(path) if _is_zip(path) else tarfile.open(path)
        return self.handles[key]

    def open_image(self, name: str, modes: Sequence[str] = ("RGB",)) -> tuple[bytes, Image.Image]:
        """The bytes of one file, and what Pillow decodes from them."""
        content = self.read(name)
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (*BROKEN, Image.DecompressionBombError) as error:
            reason = re.sub(r" <.*>", "", str(error)) or type(error).__name__  # Pillow tells an address in memory
            raise UnreadableError(f"{name} is no readable image ({reason}).") from error
        if image.mode not in modes:
            raise UnreadableError(f"{name} has the mode {image.mode}, expected {' or '.join(modes)}.")
        return content, image

    def read_image(self, name: str, modes: Sequence[str] = ("RGB",)) -> dict[str, Any]:
        """What an Image column takes: the bytes as they are, after Pillow has decoded them once."""
        return {"bytes": self.open_image(name, modes)[0], "path": PurePosixPath(name).name}

    def size(self, item: Item) -> int:
        """Bytes that a row will have, about."""
        return item.size_bytes or sum(self.entries[name][1] for name in item.names)

    def part(self, items: Sequence[Item]) -> "Files":
        """The same files, but only those of these rows: little to send to another process."""
        part = object.__new__(type(self))
        wanted = {name: self.entries[name] for item in items for name in item.names}
        part.__dict__ |= self.__dict__ | {"entries": wanted}
        return part

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.handles = _handles


# A process that writes shards keeps its archives open from one to the next: a compressed tar is read forwards.
_handles: dict[tuple[int, Path], Any] = {}


class Entry(NamedTuple):
    """A file in an archive or a folder; in a tar with the offsets of its header and of its bytes."""

    name: str
    size: int
    header: int = 0
    data: int = 0


def _bytes_of(tar: Any, offset: int, size: int) -> bytes:
    """Bytes of a tar; in a compressed one forwards is cheap, backwards starts again, so the last ones are kept."""
    if getattr(tar, "latest", (None,))[0] != (offset, size):
        tar.fileobj.seek(offset)
        tar.latest = ((offset, size), tar.fileobj.read(size))
    return tar.latest[1]


def _folder(path: Path) -> Iterator[Entry]:
    """Files below a folder, through links but never twice through one place; what was built there is left out."""
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or STATE in names:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in (Path(folder, name) for name in sorted(names)):
            if file.is_file():
                yield Entry(file.relative_to(path).as_posix(), file.stat().st_size)


def _is_zip(path: Path) -> bool:
    """Whether it begins like one: `zipfile` also takes a tar for a zip that has one at its end."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _folders(path: Path, found: Iterator[Entry]) -> Iterator[Entry]:
    """One entry for the files of a folder, which lie together: in a tar all bytes from the first header on."""
    for folder, group in itertools.groupby(found, lambda entry: entry.name.rpartition("/")[0]):
        entries = list(group)
        twice = [name for name, times in Counter(entry.name for entry in entries).items() if times > 1]
        if twice:
            raise InputError(f"{path} holds {twice[0]} twice; keep one of them.")
        start, last = entries[0].header, entries[-1]
        size = last.data + last.size - start if last.data else sum(entry.size for entry in entries)
        yield Entry(folder, size, start, start)


def _archive(path: Path, known: Archive | None) -> Iterator[Entry]:
    with path.open("rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in NOT_ARCHIVES.items():
        if head.startswith(start):
            raise InputError(f"{path} is {what}, not an archive; fetch it again in a browser.")
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                yield from (Entry(e.filename, e.file_size) for e in archive.infolist() if not e.is_dir())
            return
        with tarfile.open(path) as tar:
            for member in tar:
                if member.issym() or member.islnk():
                    raise InputError(f"{path} holds {member.name}, which is a link; unpack it and pass the folder.")
                if member.isreg():
                    yield Entry(member.name.removeprefix("./"), member.size, member.offset, member.offset_data)
                tar.members = []  # type: ignore[attr-defined]  # else a list of millions stays in memory
            # tarfile takes a cut or a damaged header for the end; after a whole archive nothing but zeros come.
            handle: Any = tar.fileobj
            handle.seek(tar.offset)
            rest = handle.read(2**20)
            if not rest or rest.strip(b"\0"):
                raise tarfile.ReadError("the end is missing")
            while rest := handle.read(2**20):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("a header is damaged")
    except InputError:
        raise
    except BROKEN as error:
        size = f"{path.stat().st_size:,} bytes" + (f" of {known.size_bytes:,}" if known and known.size_bytes else "")
        raise InputError(f"{path} ({size}) is truncated, or no zip or tar archive; fetch it again.") from error


def _inside(path: Path, entry: Entry) -> Entry:
    if re.search(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)", entry.name):
        raise InputError(f"{path} holds {entry.name!r}, which points outside; do not unpack it, fetch it again.")
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} holds {entry.name!r}, which is no UTF-8; rename it.") from error
    return entry


@dataclass(frozen=True)
class Recipe:
    """All that the common part has to be told of a set.

    Attributes:
        archives: What is published, each looked for by its name; a folder without any of them is the unpacked set.
        features: Columns of a configuration.
        plan: What rows each split has, in their order, without reading a pixel.
        row: One row, read; raises UnreadableError.
        by_folder: Entries of Files are folders.
        metadata: YAML of the card: licence, tags, pretty_name ...
        text: Body of the card: source, columns, where the splits are from.
    """

    archives: Sequence[Archive]
    configs: Sequence[Config]
    features: Callable[[Config], datasets.Features]
    plan: Callable[[Config, Files], dict[str, list[Item]]]
    row: Callable[[Files, Item], dict[str, Any]]
    metadata: dict[str, Any]
    text: str
    citation: str
    homepage: str
    how_to_get: str
    by_folder: bool = False

    def open(
        self,
        data_dir: str | None,
        manager: Any,
        accept: bool = False,
        exact: bool = False,
        configs: Sequence[Config] | None = None,
    ) -> Files:
        """Find, check and list the archives that some configurations need; without data_dir from their addresses."""
        names = None if configs is None else {name for config in configs for name in (config.name, *config.parts)}
        if data_dir is not None:
            return Files(self.find(Path(data_dir), names), accept, exact, self.by_folder)
        known = [archive for archive in self.archives if archive.url]
        if not known or not all(archive.url or archive.optional for archive in self.archives):
            raise InputError(f"this set cannot be downloaded by itself: {self.how_to_get} Then pass data_dir.")
        try:
            paths = [Path(manager.download(archive.url)) for archive in known]
        except Exception as error:  # whatever the network raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{known[0].url} could not be fetched ({reason}). {self.how_to_get}") from error
        return Files(list(zip(paths, known)), accept, exact, self.by_folder)

    def find(self, path: Path, names: Set[str] | None) -> list[tuple[Path, Archive | None]]:
        """The archives in a folder, the folder itself if it holds none, or the one archive.

        Args:
            path: What the user gave.
            names: Configurations that are asked for; None stands for all.
        """
        if not path.exists():
            raise InputError(f"{path} does not exist. {self.how_to_get}")
        if path.is_file():
            if len([archive for archive in self.archives if not archive.optional]) > 1:
                raise InputError(f"{path} is one of several archives; pass the folder that holds them.")
            alone = len(self.archives) == 1
            known = [archive for archive in self.archives if archive.name == path.name or alone]
            if not known and any(archive.md5 or archive.sha256 for archive in self.archives):
                raise InputError(
                    f"{path} is none of {', '.join(archive.name for archive in self.archives)}; give it its name back."
                )
            return [(path, known[0] if known else None)]
        wanted = [a for a in self.archives if names is None or not a.configs or not names.isdisjoint(a.configs)]
        there = [archive for archive in wanted if (path / archive.name).is_file()]
        inside = [child for child in path.iterdir() if not child.name.startswith(".")]
        if len(self.archives) == len(inside) == 1 and not there and inside[0].name.endswith(ARCHIVES):
            return [(inside[0], self.archives[0])]  # under another name
        missing = [archive.name for archive in wanted if not archive.optional and archive not in there]
        if there and missing:
            raise InputError(f"{path} lacks {', '.join(missing)}. {self.how_to_get}")
        return [(path / archive.name, archive) for archive in there] or [(path, None)]

    def info(self, config: Config) -> datasets.DatasetInfo:
        """What `datasets` wants to know of a configuration."""
        return datasets.DatasetInfo(
            description=config.description,
            features=self.features(config),
            citation=self.citation,
            homepage=self.homepage,
            license=self.metadata.get("license_name", self.metadata["license"]),
        )

    def parts(self, config: Config, files: Files) -> list[Config]:
        """The configurations that have shards of their own."""
        return [known for known in self.configs if known.name in config.parts] or [config]

    def splits(self, config: Config, files: Files) -> dict[str, list[Item]]:
        """The plan, checked: no split is empty, no key comes twice."""
        if config.parts:
            joined: dict[str, list[Item]] = {}
            for split, items in (
                pair for part in self.parts(config, files) for pair in self.splits(part, files).items()
            ):
                joined.setdefault(split, []).extend(items)
            return joined
        plan = {split: items for split, items in self.plan(config, files).items() if items}
        for split, items in plan.items():
            twice = [key for key, times in Counter(item.key for item in items).items() if times > 1]
            if twice:
                raise InputError(f"{config.name}/{split} has the id {twice[0]} twice; keep one of them.")
        if not plan:
            where = ", ".join(map(str, files.paths)) or "what was given"
            raise InputError(f"{where} holds nothing of {config.name}. {self.how_to_get}")
        return plan


class FromRecipe:
    """What the builders of all sets have in common; for a class that is a GeneratorBasedBuilder, too."""

    RECIPE: Recipe
    config: Any

    def _info(self) -> datasets.DatasetInfo:
        return self.RECIPE.info(self.config)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        config = self.config
        files = self.RECIPE.open(config.data_dir, dl_manager, config.accept_archive, config.exact, [config])
        generators = []
        for split, items in self.RECIPE.splits(config, files).items():
            batches = [items[i : i + 100] for i in range(0, len(items), 100)]  # a list is what num_proc divides
            generators.append(datasets.SplitGenerator(split, gen_kwargs={"files": files, "batches": batches}))
        return generators

    def _generate_examples(self, files: Files, batches: list[list[Item]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for item in (item for batch in batches for item in batch):
            yield item.key, self.RECIPE.row(files, item)


class Job(NamedTuple):
    """One shard to write; `part` is the key of its split in the state, `files` has what its rows are made of."""

    recipe: Recipe
    part: str
    number: int
    target: Path
    features: datasets.Features
    items: list[Item]
    files: Files
    manifest: bool
    skip: bool


def _watch_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Of a killed build the workers would wait for their next shard for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _write_shard(job: Job) -> tuple[str, int, dict[str, Any]]:
    files, skipped = job.files, []
    row_bytes = sum(map(files.size, job.items)) // len(job.items) + 1
    unfinished = job.target.with_name(f"{UNFINISHED}{os.getpid()}-{job.target.name}")
    features = _without_pixels(job.features) if job.manifest else job.features
    try:
        batch = min(max(ROW_GROUP_BYTES // row_bytes, 1), 100)
        with ParquetWriter(path=str(unfinished), features=features, writer_batch_size=batch) as writer:
            for item in tqdm(job.items, job.target.name, leave=False, disable=None, unit="row"):
                try:
                    row = job.recipe.row(files, item)
                except UnreadableError as error:
                    if not job.skip:
                        raise
                    skipped.append(str(error))
                    continue
                if job.manifest:
                    row = {name: value for name, value in (_digest_of(files, item) | row).items() if name in features}
                writer.write(features.encode_example(row))
            rows, num_bytes = writer.finalize()
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, job.target)
    finally:
        unfinished.unlink(missing_ok=True)
    record = {"rows": rows, "num_bytes": num_bytes, "size": job.target.stat().st_size, "skipped": skipped}
    return job.part, job.number, record


def _digest_of(files: Files, item: Item) -> dict[str, str]:
    digest = hashlib.sha256()
    for name in item.names:
        contents = files.read_folder(name) if files.by_folder else {"": files.read(name)}
        for _, content in sorted(contents.items()):
            digest.update(content)
    return {"sha256": digest.hexdigest()}


def _write_shards(jobs: list[Job], num_proc: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if num_proc == 1:
        yield from map(_write_shard, jobs)
        return
    with ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), _watch_parent) as pool:
        waiting = [pool.submit(_write_shard, job) for job in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process was killed, probably for memory; repeat the command with a smaller --num_proc."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _without_pixels(features: datasets.Features) -> datasets.Features:
    """The columns of a manifest: a SHA-256 of the row's files in place of what holds pixels."""
    arrays, binary = (datasets.Image, datasets.Array2D, datasets.Array3D), ("binary", "large_binary")
    heavy = [k for k, v in features.items() if isinstance(v, arrays) or getattr(v, "dtype", "") in binary]
    kept = {name: feature for name, feature in features.items() if name not in heavy}
    return datasets.Features({"sha256": datasets.Value("string")} | kept)


def _cut(items: list[Item], files: Files, max_bytes: int) -> list[list[Item]]:
    """Cut a split into pieces of at most max_bytes, the same ones every time; a larger row stands alone."""
    shards: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        size = files.size(item)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += size
    return shards


def _save(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def build(recipe: Recipe, args: argparse.Namespace, configs: list[Config]) -> None:
    """Write the shards that are not there yet, then the card."""
    folder = Path(args.output_dir)
    own = (UNFINISHED, LOCK)
    if folder.exists() and not (folder / STATE).exists() and any(not p.name.startswith(own) for p in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no build; choose another --output_dir.")
    manager = datasets.DownloadManager() if args.data_dir is None else None
    files = recipe.open(args.data_dir, manager, args.accept_archive, args.exact, configs)
    plans = {
        part.name: (part, recipe.splits(part, files)) for config in configs for part in recipe.parts(config, files)
    }
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _write(recipe, args, configs, files, plans, folder)
    except Timeout as error:
        raise InputError(
            f"another build writes into {folder}; wait for it, or choose another --output_dir."
        ) from error


def _state(folder: Path, files: Files, made_of: dict[str, Any]) -> dict[str, Any]:
    """What is done of an earlier call, which has to have been one of the same files, flags and versions."""
    if not (folder / STATE).exists():
        return {"made_of": made_of, "sources": files.digests, "parts": {}, "configs": {}}
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        same = state["made_of"] == made_of
        common = state["sources"].keys() & files.digests.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / STATE} is damaged; delete {folder}, or choose another --output_dir.") from error
    if not same or any(state["sources"][name] != files.digests[name] for name in common):
        raise InputError(f"{folder} holds shards of other files, flags or versions; choose another --output_dir.")
    state["sources"] |= files.digests
    return state


def _write(
    recipe: Recipe,
    args: argparse.Namespace,
    configs: list[Config],
    files: Files,
    plans: dict[str, tuple[Config, dict[str, list[Item]]]],
    folder: Path,
) -> None:
    flags = [args.max_shard_mb, args.manifest_only]
    script = hashlib.sha256(Path(sys.modules[recipe.plan.__module__].__file__ or "").read_bytes()).hexdigest()
    state = _state(folder, files, {"flags": flags, "script": script, "datasets": datasets.__version__})
    _save(folder / STATE, json.dumps(state))
    for leftover in [*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"*/{UNFINISHED}*")]:
        leftover.unlink(missing_ok=True)
    jobs: dict[Path, Job] = {}
    stored: dict[str, dict[str, str]] = {}  # configuration -> split -> part
    for config, plan in plans.values():
        features = recipe.features(config)
        (folder / config.name).mkdir(exist_ok=True)
        splits = stored[config.name] = {}
        for split, items in plan.items():
            # Splits that are the same in two configurations are stored once; the card points both to them.
            part = hashlib.sha256(json.dumps([features.to_dict(), items], default=str).encode()).hexdigest()
            splits[split] = part
            shards = _cut(items, files, int(args.max_shard_mb * 1e6))
            new = {"where": f"{config.name}/{split}", "shards": [None] * len(shards)}
            known = state["parts"].setdefault(part, new)
            for number, (shard, record) in enumerate(zip(shards, known["shards"])):
                target = folder / f"{known['where']}-{number:05d}-of-{len(shards):05d}.parquet"
                whole = record is not None and (args.skip_unreadable or not record["skipped"])
                if not whole or not target.exists() or target.stat().st_size != record["size"]:
                    how = (args.manifest_only, args.skip_unreadable)
                    jobs.setdefault(
                        target, Job(recipe, part, number, target, features, shard, files.part(shard), *how)
                    )
    for config in configs:
        places: dict[str, list[str]] = {}
        for split, part in (pair for source in recipe.parts(config, files) for pair in stored[source.name].items()):
            places.setdefault(split, []).append(part)
        state["configs"][config.name] = {"splits": places, "notes": files.notes}
    _save(folder / STATE, json.dumps(state))
    if jobs:
        written = _write_shards(list(jobs.values()), args.num_proc)
        for part, number, record in tqdm(written, "shards", len(jobs), disable=None):
            state["parts"][part]["shards"][number] = record
            _save(folder / STATE, json.dumps(state))
    for name, splits in stored.items():
        for split, part in splits.items():
            if not sum(shard["rows"] for shard in state["parts"][part]["shards"]):
                raise InputError(f"of {name}/{split} no row can be read; fetch the set again.")
    for config, _ in plans.values():  # of configurations that share all their splits nothing is left
        if not any((folder / config.name).iterdir()):
            (folder / config.name).rmdir()
    _save(folder / "README.md", card(recipe, state, args.manifest_only))
    records = [shard for part in state["parts"].values() for shard in part["shards"] if shard]
    rows, skipped = sum(record["rows"] for record in records), sum(len(record["skipped"]) for record in records)
    left_out = f" {skipped:,} files could not be read and are left out; the card names them." if skipped else ""
    _say(f"{folder}: {rows:,} rows stored, {len(jobs)} shards written now.{left_out}")


def card(recipe: Recipe, state: dict[str, Any], manifest_only: bool) -> str:
    """README.md: the metadata that the Hub and `load_dataset` read, then what a person wants to know."""
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    infos, places, table, notes = DatasetInfosDict(), MetadataConfigs(), [], []
    for config in recipe.configs:
        entry = state["configs"].get(config.name)
        places_of = entry["splits"] if entry else {}
        parts = {split: [state["parts"][part] for part in keys] for split, keys in places_of.items()}
        records = [record for pieces in parts.values() for piece in pieces for record in piece["shards"]]
        if not records or None in records:
            continue
        info = recipe.info(config)
        info.features = _without_pixels(info.features) if manifest_only else info.features
        info.splits, info.download_size, info.dataset_size = datasets.SplitDict(), 0, 0
        for split, pieces in parts.items():
            shards = [shard for piece in pieces for shard in piece["shards"]]
            rows, num_bytes, size = (sum(shard[key] for shard in shards) for key in ("rows", "num_bytes", "size"))
            info.splits.add(datasets.SplitInfo(split, num_bytes, rows))
            info.download_size += size
            info.dataset_size += num_bytes
        infos[config.name] = info
        paths = {split: [f"{piece['where']}-*.parquet" for piece in pieces] for split, pieces in parts.items()}
        data_files = [{"split": split, "path": path if len(path) > 1 else path[0]} for split, path in paths.items()]
        places[config.name] = {"data_files": data_files}
        counts = ", ".join(f"{split} {part.num_examples:,}" for split, part in info.splits.items())
        table.append(f"| `{config.name}` | {counts} | {config.description} |")
        notes += [note for note in entry["notes"] if note not in notes]
        notes += [f"Left out: {text}" for record in records for text in record["skipped"]]
    wholes = [config.name for config in recipe.configs if config.parts and config.name in places]
    places[(wholes or list(places))[0]]["default"] = True
    data = DatasetCardData(**recipe.metadata)
    infos.to_dataset_card_data(data)
    # `load_dataset` knows a folder by its name and these facts, not by its files: without a digest among them, an
    # earlier build of the same sizes would answer from the cache.
    built_from = json.dumps([state["made_of"], sorted(state["sources"].items())])
    digest = hashlib.sha256(built_from.encode()).hexdigest()[:12]
    entries: Any = data["dataset_info"]
    for entry in entries if isinstance(entries, list) else [entries]:
        entry["description"] = f"Built from {digest}."
    places.to_dataset_card_data(data)
    largest = max(sum(split.num_examples for split in info.splits.values()) for info in infos.values())
    data["size_categories"] = [next(name for name, end in SIZES.items() if largest < end)]
    text = [
        "```python",
        f'load_dataset("this folder or repository", "{next(iter(places))}", streaming=True)',
        "```",
        "",
    ]
    text += ["| configuration | rows | what it is |", "|---|---|---|", *table]
    text += ["", "A manifest: SHA-256 sums stand in place of the pixels."] if manifest_only else []
    text += ["", "## Not as published", "", *sorted({f"- {note}" for note in notes})] if notes else []
    licence = recipe.metadata.get("license_name", recipe.metadata["license"])
    text += ["", f"Licence: {licence}. Homepage: {recipe.homepage}", "", "```bibtex", recipe.citation.strip(), "```"]
    title = f"# {recipe.metadata['pretty_name']}"
    return "\n".join(["---", data.to_yaml(), "---", "", title, "", recipe.text.strip(), "", *text, ""])


def push(folder: Path, repo: str, private: bool) -> None:
    """Upload the card and the shards as they are, in one commit.

    All other shards there go: the card has no place for them, and pixels must not stay beside a manifest.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repo).private:
            raise InputError(f"{repo} exists and is public; make it private, or choose another name.")
        shards = [f"{path.name}/*.parquet" for path in sorted(folder.iterdir()) if path.is_dir()]
        wanted = ["README.md", *shards]
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="dataset",
            allow_patterns=wanted,
            delete_patterns=["*/*.parquet"],
        )
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PushError(f"{repo} was not pushed ({reason}); {folder} is whole: repeat the command.") from error


def parse_args(recipe: Recipe, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, the same for every set."""
    names = [config.name for config in recipe.configs]
    parser = argparse.ArgumentParser(
        description=f"{recipe.metadata['pretty_name']}: raw files -> Parquet and card.", epilog=recipe.how_to_get
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_dir", help="the archive, a folder with the archives, or the unpacked set")
    if any(archive.url for archive in recipe.archives):
        source.add_argument("--download", action="store_true", help="fetch the archives")
    parser.add_argument("--output_dir", required=True, help="new folder, or one of an interrupted build to go on with")
    parser.add_argument("--config", nargs="+", choices=names, default=names, help="configurations (default: all)")
    parser.add_argument("--num_proc", type=int, default=1, help="shards written at a time (1)")
    parser.add_argument("--max_shard_mb", type=float, default=300, help="size of a shard by its files (300)")
    parser.add_argument("--accept_archive", action="store_true", help="go on where checksum or counts are others")
    parser.add_argument("--exact", action="store_true", help="refuse wrong counts even with --accept_archive")
    parser.add_argument("--skip_unreadable", action="store_true", help="leave broken files out; the card names them")
    parser.add_argument("--manifest_only", action="store_true", help="ids and SHA-256 sums in place of pixels")
    parser.add_argument("--push_to_hub", metavar="REPO", help="owner/name of a dataset repository")
    parser.add_argument("--private", action="store_true", help="make that repository private")
    return parser.parse_args(argv)


def run(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 the input is at fault, 1 the Hub could not be reached."""
    args = parse_args(recipe, argv)
    try:
        configs = [config for config in recipe.configs if config.name in args.config]
        for config in recipe.configs if args.push_to_hub and not args.manifest_only else []:
            forbidden = config.no_push or ("" if args.private else config.private_only)
            # What an earlier call left in the folder would be pushed along.
            if forbidden and (config in configs or (Path(args.output_dir) / config.name).exists()):
                raise InputError(f"{config.name} must not be pushed: {forbidden}")
        if args.num_proc < 1 or not 0 < args.max_shard_mb < math.inf:
            raise InputError("--num_proc and --max_shard_mb have to be positive.")
        build(recipe, args, configs)
        if args.push_to_hub:
            push(Path(args.output_dir), args.push_to_hub, args.private)
    except UnreadableError as error:
        _say(
            f"error: {' '.join(str(error).split())} Mend it, or repeat with --skip_unreadable to leave such files out."
        )
        return 2
    except (InputError, OSError) as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 2
    except PushError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here.")
        return 130
    return 0


# --- common to all dataset scripts: end ---


SPLITS = {
    "train": (
        "aguasclaras", "bercy", "bordeaux", "nantes", "paris", "rennes", "saclay_e", "abudhabi", "cupertino", "pisa",
        "beihai", "hongkong", "beirut", "mumbai",
    ),
    "test": (
        "brasilia", "montpellier", "norcia", "rio", "saclay_w", "valencia", "dubai", "lasvegas", "milano", "chongqing",
    ),
}  # fmt: skip
# In the order of wavelength, B8A between B08 and B09; the names sort otherwise.
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
RGB = ("B04", "B03", "B02")
# What becomes 0 and 255 in `rgb`: SeCo, datasets/oscd_dataset.py.
STRETCH = {"B04": (426, 3698), "B03": (667, 2969), "B02": (885, 2620)}

# Re-uploads rename the folders above the cities.
BAND_PATH = re.compile(r"(?:^|/)([^/]+)/imgs_([12])_rect/(B\d\d|B8A)\.tiff?$", re.IGNORECASE)
MASK_PATH = re.compile(r"(?:^|/)([^/]+)/cm/(cm\.png|[^/]+-cm\.tiff?)$", re.IGNORECASE)
DATES_PATH = re.compile(r"(?:^|/)([^/]+)/(dates\.txt)$", re.IGNORECASE)
LIST_PATH = re.compile(r"(?:^|/)(train|test)\.txt$", re.IGNORECASE)
DATE = re.compile(r"date_([12])\s*:\s*(\d{4})-?(\d\d)-?(\d\d)")


def features(config: Config) -> datasets.Features:
    """Columns: before and after (GeoTIFF bytes of 13 bands, or 8-bit pictures), the mask, and where and when."""
    image = datasets.Image() if config.name == "rgb" else datasets.Value("binary")
    columns: dict[str, Any] = {"image1": image, "image2": image, "mask": datasets.Image()}
    columns |= dict.fromkeys(("city", "date1", "date2"), datasets.Value("string"))
    columns |= dict.fromkeys(("height", "width"), datasets.Value("int32"))
    columns |= {"crs": datasets.Value("string"), "transform": datasets.Sequence(datasets.Value("float64"), length=6)}
    return datasets.Features(columns)


def plan(config: Config, files: Files) -> dict[str, list[Item]]:
    """One row a city, in the order of the official lists."""
    found = _cities(files)
    official = {city for cities in SPLITS.values() for city in cities}
    strange = sorted(found.keys() - official)
    if strange:
        raise InputError(
            f"{next(iter(found[strange[0]].values()))}: {strange[0]} is no city of this set, of which the official "
            f"lists have {len(official)}; take out what is not of it."
        )
    _check_lists(files)
    bands = RGB if config.name == "rgb" else BANDS
    splits: dict[str, list[Item]] = {}
    for split, cities in SPLITS.items() if found else ():
        splits[split] = []
        for city in (city for city in cities if city in found):
            wanted = [f"imgs_{date}_rect/{band}" for date in (1, 2) for band in bands]
            lacking = [what for what in wanted if what not in found[city]]
            masks = [name for what, name in found[city].items() if what.startswith("cm")]
            if lacking or not masks:
                files.object(f"{city} lacks {lacking[0] + '.tif' if lacking else 'its change map, cm/cm.png'}")
                continue
            names = [*(found[city][what] for what in wanted), *masks]
            names += [found[city]["dates.txt"]] if "dates.txt" in found[city] else []
            splits[split].append(Item(city, tuple(names), (city, bands)))
        files.expect(f"cities of {split}", len(splits[split]), len(cities))
    return splits


def _cities(files: Files) -> dict[str, dict[str, str]]:
    """City -> what it is of a city ("imgs_1_rect/B01", "cm.png", "cm.tif", "dates.txt") -> file."""
    found: dict[str, dict[str, str]] = {}
    for name in files.entries:
        if "__MACOSX/" in name:
            continue
        if match := BAND_PATH.search(name):
            what = f"imgs_{match[2]}_rect/{match[3].upper()}"
        elif match := MASK_PATH.search(name):
            what = "cm.png" if match[2].lower() == "cm.png" else "cm.tif"
        elif match := DATES_PATH.search(name):
            what = "dates.txt"
        else:
            continue
        city = found.setdefault(match[1].lower(), {})
        if what in city:
            raise InputError(f"{what} of {match[1]} is there twice, as {city[what]} and {name}; keep one of them.")
        city[what] = name
    return found


def _check_lists(files: Files) -> None:
    """Refuse lists of cities that are not the official ones: they would not be the benchmark."""
    for name in files.entries:
        if match := LIST_PATH.search(name):
            listed = {city.lower() for city in re.findall(r"[\w-]+", files.read(name).decode("utf-8", "replace"))}
            other = sorted(listed ^ set(SPLITS[match[1].lower()]))
            if other:
                raise InputError(
                    f"{name} is not the official list of {match[1].lower()}: {other[0]} is "
                    f"{'too much' if other[0] in listed else 'missing'}; use the published archive, or take it out."
                )


def row(files: Files, item: Item) -> dict[str, Any]:
    """One city."""
    city, bands = item.known
    count = len(bands)
    first, grid = _stack(files, item.names[:count])
    second, _ = _stack(files, item.names[count : 2 * count])
    rest = item.names[2 * count :]
    change = _change_map(files, city, [name for name in rest if not DATES_PATH.search(name)])
    if not first.shape[1:] == second.shape[1:] == change.shape:
        sizes = ", ".join(f"{width} x {height}" for height, width in (first.shape[1:], second.shape[1:], change.shape))
        raise UnreadableError(f"{item.names[0]}: before, after and change map of {city} have the sizes {sizes}.")
    dates = [match.groups() for name in rest for match in DATE.finditer(files.read(name).decode("utf-8", "replace"))]
    when = {number: f"{year}-{month}-{day}" for number, year, month, day in dates}
    encode = _picture if tuple(bands) == RGB else _geotiff
    height, width = change.shape
    return {
        "image1": encode(first, grid),
        "image2": encode(second, grid),
        "mask": _png(change),
        "city": city,
        "date1": when.get("1"),
        "date2": when.get("2"),
        "height": height,
        "width": width,
        "crs": grid["crs"].to_string() if grid["crs"] else None,
        "transform": None if grid["transform"].is_identity else list(grid["transform"])[:6],
    }


def _read_band(files: Files, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels (H, W) of a raster of one band, and where they lie."""
    content = files.read(name)
    try:
        if not content:
            raise EOFError("zero bytes")  # for rasterio a file to write
        with warnings.catch_warnings(), MemoryFile(content) as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open() as raster:
                if raster.count != 1:
                    raise UnreadableError(f"{name} has {raster.count} bands, expected 1.")
                return raster.read(1), {key: getattr(raster, key) for key in ("crs", "transform", "nodata")}
    except (OSError, EOFError, RasterioError) as error:
        raise UnreadableError(f"{name} is no readable raster ({' '.join(str(error).split())}).") from error


def _stack(files: Files, names: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels (bands, H, W), uint16, and the grid of B02, which is a 10 m band from the start."""
    with rasterio.Env():  # one for all, or each file would set up its own
        bands = [_read_band(files, name) for name in names]
    for name, (pixels, _) in zip(names, bands):
        if pixels.dtype != np.uint16 or pixels.shape != bands[0][0].shape:
            raise UnreadableError(
                f"{name} is {pixels.shape[1]} x {pixels.shape[0]} {pixels.dtype}, expected uint16 of the size of "
                f"{PurePosixPath(names[0]).name}."
            )
    (grid,) = [grid for name, (_, grid) in zip(names, bands) if PurePosixPath(name).stem.upper() == "B02"]
    return np.stack([pixels for pixels, _ in bands]), grid


def _change_map(files: Files, city: str, names: Sequence[str]) -> np.ndarray:
    """(H, W) uint8, 0 no change, 1 change; of two files both have to say the same."""
    maps = {}
    for name in names:
        if name.lower().endswith(".png"):
            content = files.read_image(name, ("1", "L", "LA", "P", "RGB", "RGBA"))["bytes"]
            with Image.open(io.BytesIO(content)) as image:
                maps[name] = (np.asarray(image.convert("L")) > 0).astype(np.uint8)
        else:
            pixels, _ = _read_band(files, name)
            strange = pixels[(pixels != 1) & (pixels != 2)]
            if strange.size:
                raise UnreadableError(f"{name} holds {strange[0]}, expected 1 (no change) and 2 (change).")
            maps[name] = (pixels == 2).astype(np.uint8)
    first, *others = maps.items()
    for name, other in others:
        if other.shape != first[1].shape or (other != first[1]).any():
            apart = f"in {(other != first[1]).sum():,} px" if other.shape == first[1].shape else "in their sizes"
            raise UnreadableError(f"the two change maps of {city}, {first[0]} and {name}, differ {apart}.")
    return first[1]


def _geotiff(bands: np.ndarray, grid: dict[str, Any]) -> bytes:
    """Bit-exact GeoTIFF bytes of (bands, H, W), the same ones every time; the bands carry their names."""
    count, height, width = bands.shape
    layout = {"compress": "deflate", "predictor": 2, "interleave": "band", "blockysize": min(height, 128)}
    nodata = grid["nodata"] if grid["nodata"] in range(2**16) else None  # another value is none of uint16
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
        with memory.open(driver="GTiff", **shape, **grid | {"nodata": nodata}, **layout) as raster:
            raster.write(bands)
            raster.descriptions = BANDS
        return memory.read()


def _picture(bands: np.ndarray, grid: dict[str, Any]) -> dict[str, Any]:
    """8-bit PNG of (3, H, W): each band stretched from SeCo's low to its high value, cut off, rounded down."""
    low, high = np.array([STRETCH[band] for band in RGB], dtype=np.float64).T[..., None, None]
    pixels = np.clip((bands - low) / (high - low), 0, 1) * 255
    return _png(pixels.astype(np.uint8).transpose(1, 2, 0))


def _png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


HOW_TO_GET = (
    "Fetch the three archives 'Onera Satellite Change Detection dataset - Images.zip', '... - Train Labels.zip' and "
    "'... - Test Labels.zip' from https://rcdaudt.github.io/oscd/ into one folder (spaces in the names stay), or pass "
    "a folder with the unpacked set; its cities need imgs_1_rect and imgs_2_rect."
)
PRIVATE = (
    "its licence is not certain (torchgeo names CC-BY-4.0, other copies say unknown): ask at the source, keep it to "
    "yourself with --private, or push names and hashes with --manifest_only."
)
RECIPE = Recipe(
    archives=(
        Archive("Onera Satellite Change Detection dataset - Images.zip", md5="c50d4a2941da64e03a47ac4dec63d915"),
        Archive("Onera Satellite Change Detection dataset - Train Labels.zip", md5="4d2965af8170c705ebad3d6ee71b6990"),
        Archive("Onera Satellite Change Detection dataset - Test Labels.zip", md5="8177d437793c522653c442aa4e66c617"),
    ),
    configs=(
        Config(name="all_bands", description="13 bands, uint16, as GeoTIFF bytes; bit-exact.", private_only=PRIVATE),
        Config(
            name="rgb",
            description="B04, B03, B02 as 8-bit pictures, stretched with SeCo's limits.",
            private_only=PRIVATE,
        ),
    ),
    features=features,
    plan=plan,
    row=row,
    metadata={
        "pretty_name": "Onera Satellite Change Detection (OSCD)",
        "license": "other",
        "license_name": "cc-by-4.0-according-to-torchgeo",
        "license_link": "https://rcdaudt.github.io/oscd/",
        "task_categories": ["image-segmentation"],
        "tags": ["geospatial", "remote-sensing", "change-detection", "sentinel-2", "multispectral"],
    },
    text="""
24 pairs of Sentinel-2 scenes of cities, taken between 2015 and 2018, with the changes a person marked: new buildings
and roads above all. From the `imgs_1_rect` and `imgs_2_rect` folders: all bands on the 10 m grid, the second date
registered to the first, sides of 241 to 1180 px. One row is one city; cutting it into crops is left to the training.

| column | what it is |
|---|---|
| `image1`, `image2` | before and after; see below |
| `mask` | 8-bit PNG, 0 no change, 1 change (it looks black) |
| `city` | name of the folder |
| `date1`, `date2` | YYYY-MM-DD of the two scenes, from `dates.txt`; empty where it is missing |
| `height`, `width` | of all three, px |
| `crs`, `transform` | map projection and (a, b, c, d, e, f) of B02 of the first date; empty where it has none |

Of a pixel's upper left corner, x = a column + b row + c and y = d column + e row + f, in metres.

**`all_bands`**: bytes of one GeoTIFF (deflate, predictor 2) with the published pixels, bit by bit, e.g.
`rasterio.MemoryFile(row["image1"]).open().read()`, (13, height, width) uint16. Level-1C top-of-atmosphere reflectance
times 10,000. The bands, in this order, with their central wavelength and the resolution they were taken with:

| B01 | B02 | B03 | B04 | B05 | B06 | B07 | B08 | B8A | B09 | B10 | B11 | B12 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
| 443 nm | 490 | 560 | 665 | 705 | 740 | 783 | 842 | 865 | 945 | 1375 | 1610 | 2190 |
| 60 m | 10 | 10 | 10 | 20 | 20 | 20 | 10 | 20 | 60 | 60 | 20 | 20 |

Sorted by file name, B8A would be the last one. A nodata value is not documented; where the files declare one, it is
kept.

**`rgb`**: B04, B03, B02 as 8-bit PNG, for models of three bands and for the eye. Per band `(value - low) / (high -
low)`, cut off at 0 and 1, times 255, rounded down, with the limits of SeCo (ServiceNow/seasonal-contrast): B04 426 to
3698, B03 667 to 2969, B02 885 to 2620. Dark woods and water become 0, bright roofs and clouds 255.

**Splits.** The official ones: 14 cities to train, 10 to test, no validation part. Lists with Berlin, Canberra or
Madrid, which go around, are wrong and are refused.

**To know.** `saclay_e` (train) and `saclay_w` (test) are neighbours. The published change maps come as `cm.png` (0 and
255) and `-cm.tif` (1 and 2); where both are there, they were compared and are equal. SeCo, whose protocol several
papers follow, reads `imgs_1` and `imgs_2`, not the registered folders, and cuts crops of 96 px: scores are not quite
comparable. How the GFM paper cut and read the pairs is not published.

**Licence.** torchgeo names CC-BY-4.0; other copies say that it is unknown. It was not confirmed at the source: check
before publishing. The scenes contain modified Copernicus Sentinel data, which are free with that sentence.
""",
    citation="""
@inproceedings{daudt2018urban,
  title = {Urban Change Detection for Multispectral Earth Observation Using Convolutional Neural Networks},
  author = {Caye Daudt, Rodrigo and Le Saux, Bertrand and Boulch, Alexandre and Gousseau, Yann},
  booktitle = {IEEE International Geoscience and Remote Sensing Symposium (IGARSS)},
  year = {2018},
  doi = {10.1109/IGARSS.2018.8518015}
}
""",
    homepage="https://rcdaudt.github.io/oscd/",
    how_to_get=HOW_TO_GET,
)


class OSCD(FromRecipe, datasets.GeneratorBasedBuilder):
    """The builder: the class for `datasets` 5, the loading script for 3.6."""

    RECIPE = RECIPE
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = Config
    BUILDER_CONFIGS = list(RECIPE.configs)
    DEFAULT_CONFIG_NAME = "all_bands"
    DEFAULT_WRITER_BATCH_SIZE = 4


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `--help` lists its flags."""
    return run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
