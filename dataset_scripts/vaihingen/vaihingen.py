"""ISPRS Vaihingen: 33 aerial pictures at 9 cm in near infrared, red and green with six classes, as 742 tiles of 512 px.

    python dataset_scripts/vaihingen/vaihingen.py --data_dir FOLDER --output_dir vaihingen  # FOLDER holds the archives
    load_dataset("vaihingen", "eroded")             # that folder; the terms do not allow to push it

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
from datasets.arrow_writer import ParquetWriter
from filelock import FileLock, Timeout
from PIL import Image
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


AREAS = {
    "train": (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37),
    "test": (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38),
}
TILES = {"train": 344, "test": 398}
NO_AREA = 9  # some copies have it; it is in none of the lists
TILE_PX = 512
# Of impervious surface, building, low vegetation, tree, car, clutter: their places are the ids.
COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
BOUNDARY, IGNORE = (0, 0, 0), 255
FILE_PATH = re.compile(r"(?:^|/)top_mosaic_09cm_area([1-9]\d*)(_noBoundary)?\.tiff?$", re.IGNORECASE)


def features(config: Config) -> datasets.Features:
    """Columns: a tile, its mask of ids, and where it was cut."""
    columns: dict[str, Any] = {"image": datasets.Image(), "mask": datasets.Image()}
    columns |= dict.fromkeys(("area", "x0", "y0"), datasets.Value("int32")) | {"name": datasets.Value("string")}
    return datasets.Features(columns)


def tile_corners(width: int, height: int) -> list[tuple[int, int]]:
    """Upper left corners (x0, y0) of the tiles of an area, row by row.

    Args:
        width: Of the area, px; at least 512.
        height: Of the area, px; at least 512.

    Source: MMSegmentation, tools/dataset_converters/vaihingen.py. It documents a stride of 256 px, but steps by the
        512 px of a tile, moves the last column and row inside and writes what comes twice over itself.
    """
    columns, rows = (
        [min(start, length - TILE_PX) for start in range(0, length, TILE_PX)] for length in (width, height)
    )
    return [(x0, y0) for y0 in rows for x0 in columns]


def plan(config: Config, files: Files) -> dict[str, list[Item]]:
    """The tiles of each area; sizes come from the headers of the pictures."""
    images, masks = _areas(files)[0], _areas(files)[1 if config.name == "full" else 2]
    if images and not masks.keys() & images.keys():
        archive = RECIPE.archives[1 if config.name == "full" else 2].name
        other = next(known.name for known in RECIPE.configs if known.name != config.name)
        raise InputError(f"the masks of {config.name} are missing: add {archive}, or pass --config {other}.")
    splits: dict[str, list[Item]] = {}
    for split, areas in AREAS.items() if images else ():
        splits[split] = []
        found = [area for area in areas if area in images]
        for area in found:
            if area in masks:
                splits[split] += _tiles(files, area, images[area], masks[area])
            else:
                files.object(f"{images[area]} has no mask")
        files.expect(f"areas of {split}", len(found), len(areas))
        files.expect(f"tiles of {split}", len(splits[split]), TILES[split])
    return splits


def _areas(files: Files) -> tuple[dict[int, str], dict[int, str], dict[int, str]]:
    """Area -> file: of pictures, of full and of eroded masks. Pictures and full masks have one name."""
    found: tuple[dict[int, str], dict[int, str], dict[int, str]] = ({}, {}, {})
    known = {area for areas in AREAS.values() for area in areas}
    for name in files.entries:
        match = FILE_PATH.search(name)
        # Masks for participants are those of the training areas once more.
        if not match or "__MACOSX/" in name or "for_participants/" in name or int(match[1]) == NO_AREA:
            continue
        area = int(match[1])
        if area not in known:
            files.object(f"{name} is no area of this set, which has {len(known)}")
            continue
        kind = found[2 if match[2] else 0 if re.search(r"(^|/)top/[^/]+$", name) else 1]
        if area in kind:
            raise InputError(f"area {area} is there twice, as {kind[area]} and {name}; keep one of them.")
        kind[area] = name
    return found


def _tiles(files: Files, area: int, image: str, mask: str) -> list[Item]:
    names, tile_bytes = (image, mask), 4 * TILE_PX**2
    try:
        with Image.open(io.BytesIO(files.read(image))) as opened:
            width, height = opened.size
    except (*BROKEN, Image.DecompressionBombError):
        return [Item(f"area{area}", names, (area, 0, 0), tile_bytes)]  # said when the row is read
    if min(width, height) < TILE_PX:
        raise InputError(
            f"{image} is {width} x {height} px, less than a tile of {TILE_PX}; use the published archive."
        )
    corners = tile_corners(width, height)
    return [Item(tile_name(area, x0, y0), names, (area, x0, y0), tile_bytes) for x0, y0 in corners]


def tile_name(area: int, x0: int, y0: int) -> str:
    """What MMSegmentation calls a tile."""
    return f"area{area}_{x0}_{y0}_{x0 + TILE_PX}_{y0 + TILE_PX}.png"


def row(files: Files, item: Item) -> dict[str, Any]:
    """One tile."""
    (image, mask), (area, x0, y0) = item.names, item.known
    pixels = _decoded(files, image, lambda colours, _: colours)
    ids = _decoded(files, mask, _ids)
    if pixels.shape[:2] != ids.shape:
        told = " and ".join(f"{width} x {height}" for height, width in (pixels.shape[:2], ids.shape))
        raise UnreadableError(f"{image} and {mask} have the sizes {told}; they have to have one.")
    here = slice(y0, y0 + TILE_PX), slice(x0, x0 + TILE_PX)
    where = {"area": area, "x0": x0, "y0": y0, "name": tile_name(area, x0, y0)}
    return {"image": _png(pixels[here]), "mask": _png(ids[here])} | where


# Picture and mask of the area that was read last: its tiles come one after the other.
_last: dict[tuple[str, ...], np.ndarray] = {}


def _decoded(files: Files, name: str, change: Callable[[np.ndarray, str], np.ndarray]) -> np.ndarray:
    """Pixels (H, W, 3) of a file, after `change`, which gets its name too."""
    key = (*map(str, files.paths), *files.digests, name)
    if key not in _last:
        image = files.open_image(name, ("RGB", "RGBA"))[1].convert("RGB")
        changed = change(np.asarray(image), name)
        while len(_last) > 1:
            _last.pop(next(iter(_last)))
        _last[key] = changed
    return _last[key]


def _ids(colours: np.ndarray, name: str) -> np.ndarray:
    """Colours (H, W, 3) -> ids (H, W) uint8; black is the boundary of an eroded mask, and no class of a full one."""
    codes = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    eroded = "_noboundary." in name.lower()
    classes = dict(enumerate(COLOURS)) | ({IGNORE: BOUNDARY} if eroded else {})
    ids, unknown = np.empty(codes.shape, np.uint8), np.ones(codes.shape, bool)
    for number, (red, green, blue) in classes.items():
        here = codes == (red << 16 | green << 8 | blue)
        ids[here] = number
        unknown &= ~here
    if unknown.any():
        found, counts = np.unique(colours[unknown], axis=0, return_counts=True)
        most = tuple(found[counts.argmax()].tolist())
        raise UnreadableError(
            f"{name} has {counts.sum():,} px of {len(found):,} colours that are no class, such as {most}; published "
            f"{'eroded' if eroded else 'full'} masks have none."
        )
    return ids


def _png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


HOW_TO_GET = (
    "Ask for the set at https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx and put "
    "ISPRS_semantic_labeling_Vaihingen.zip and the two ground_truth archives (_COMPLETE, _eroded_COMPLETE; one of them "
    "is enough with --config full or eroded) into one folder."
)
TERMS = (
    "ISPRS and DGPF give it to those who ask, for research; let others fetch it and run this script, or push ids and "
    "hashes with --manifest_only."
)
RECIPE = Recipe(
    archives=(
        Archive("ISPRS_semantic_labeling_Vaihingen.zip", md5="462b8dca7b6fa9eaf729840f0cdfc7f3"),
        Archive(
            "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip",
            md5="4802dd6326e2727a352fb735be450277",
            optional=True,
        ),
        Archive("ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip", optional=True),
    ),
    configs=(
        Config(
            name="eroded", description="Seams between classes are ignored (255), as in MMSegmentation.", no_push=TERMS
        ),
        Config(name="full", description="Every pixel has a class.", no_push=TERMS),
    ),
    features=features,
    plan=plan,
    row=row,
    metadata={
        "pretty_name": "ISPRS Vaihingen 2D semantic labeling",
        "license": "other",
        "license_name": "isprs-dgpf-terms-research-only",
        "license_link": "https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx",
        "task_categories": ["image-segmentation"],
        "tags": ["geospatial", "remote-sensing", "aerial-imagery", "land-cover"],
    },
    text="""
Aerial pictures of Vaihingen, Germany, as true orthophotos of 9 cm a pixel: 33 areas, sides of 1281 to 3816 px, 8 bits,
**near infrared, red, green** in this order (vegetation looks red; there is no blue band).

| column | what it is |
|---|---|
| `image` | PNG, 512 x 512 px, near infrared, red, green |
| `mask` | 8-bit PNG of ids, 255 = ignore |
| `area`, `x0`, `y0` | number of the area, and column and row of the tile's upper left pixel in it |
| `name` | file name of the tile in MMSegmentation |

| id | 0 | 1 | 2 | 3 | 4 | 5 | 255 |
|---|---|---|---|---|---|---|---|
| class | impervious surface | building | low vegetation | tree | car | clutter | boundary |
| colour | 255 255 255 | 0 0 255 | 0 255 255 | 0 255 0 | 255 255 0 | 255 0 0 | 0 0 0 |

These are MMSegmentation's ids, and so those of the GFM paper's mIoU. torchgeo counts clutter as 0: do not mix. A mask
with another colour is refused.

**`eroded` or `full`.** In the eroded masks (`_noBoundary`) the seams between classes are black, 255 here.
MMSegmentation reads them for training and for the scores, and the GFM paper follows MMSegmentation: take `eroded` to
compare with it. Scores on the full masks are another measure, mostly lower. Surface heights (`dsm`) are left out.

**Splits.** The official areas: 16 to train, 17 to test. MMSegmentation calls the latter val; there is no third part.
Area 9, which some copies have, is in neither.

**Tiles.** MMSegmentation's: it documents a stride of 256 px but in effect steps by 512 and moves the last column and
row inside, which gives 344 and 398. Tiles of the last columns and rows overlap their neighbours of the same area, so
cut a validation part off train by `area`, not by tile (the scripts of gfm_hf cut by row: their validation score is a
little too good, their test score is not touched). In a manifest, `sha256` is that of the area's picture and mask
together.

**To know.** The paper prints a ground sample distance of 0.9 m; it is 0.09 m.

**Terms.** For research, with an acknowledgement of the German Society for Photogrammetry, Remote Sensing and
Geoinformation (DGPF; Cramer 2010). The exact terms were not confirmed: read them where you ask for the data. Do not
re-publish.
""",
    citation="""
@article{rottensteiner2012isprs,
  title = {The ISPRS benchmark on urban object classification and 3D building reconstruction},
  author = {Rottensteiner, Franz and Sohn, Gunho and Jung, Jaewook and Gerke, Markus and Baillard, Caroline and Benitez, Sebastien and Breitkopf, Uwe},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume = {I-3},
  pages = {293--298},
  year = {2012},
  doi = {10.5194/isprsannals-I-3-293-2012}
}

@article{cramer2010dgpf,
  title = {The DGPF-Test on Digital Airborne Camera Evaluation -- Overview and Test Design},
  author = {Cramer, Michael},
  journal = {Photogrammetrie - Fernerkundung - Geoinformation},
  number = {2},
  pages = {73--82},
  year = {2010},
  doi = {10.1127/1432-8364/2010/0041}
}
""",
    homepage="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx",
    how_to_get=HOW_TO_GET,
)


class Vaihingen(FromRecipe, datasets.GeneratorBasedBuilder):
    """The builder: the class for `datasets` 5, the loading script for 3.6."""

    RECIPE = RECIPE
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = Config
    BUILDER_CONFIGS = list(RECIPE.configs)
    DEFAULT_CONFIG_NAME = "eroded"
    DEFAULT_WRITER_BATCH_SIZE = 100


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `--help` lists its flags."""
    return run(RECIPE, argv)


if __name__ == "__main__":
    sys.exit(main())
