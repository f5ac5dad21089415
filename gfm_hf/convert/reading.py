"""Reads a weight file without running anything in it and without allocating what it merely claims to hold.

First only names, shapes and numbers are read, and every tensor is compared with the bytes that are there; then the
weights, one block at a time. This is stricter than `torch.load(weights_only=True)`, which builds what it reads while it
reads, copies on request and leaves sizes to the file.
"""

import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from gfm_hf.convert.pickles import LEGACY_MAGIC, MAX_BYTES, PickleError, Storage, TensorView, Walked, shown, walk


# Entries under which checkpoints keep their weights; without one of them the file itself has to be the dictionary.
WEIGHT_ENTRIES = ("model", "state_dict")
LEGACY_PROTOCOL = 1001
LEGACY_PARTS = ("magic number", "protocol", "machine", "content", "storage keys")
# A directory of more entries than this belongs to no model.
MAX_ENTRIES = 20_000
END_RECORD_BYTES = 22
LOCAL_HEADER_BYTES = 30
SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A weight file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredCheckpoint:
    """A weight file whose contents are known and not yet read.

    Attributes:
        path: The file.
        kind: "safetensors", "torch" or "torch (legacy)".
        tensors: Name -> shape and type of the weights, without optimizer and the like.
        read: Reads one weight by its name, into memory of its own.
        config: The configuration that the authors' code stores next to the weights, as nested dictionaries.
        facts: Other plain entries, such as the epoch.
        optimizer: The state of the optimizer by parameter, with a reader in the place of each tensor.
    """

    path: Path
    kind: str
    tensors: dict[str, StoredTensor]
    read: Callable[[str], torch.Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[int, dict[str, Callable[[], torch.Tensor]]] = field(default_factory=dict)


def open_checkpoint(path: str | Path) -> StoredCheckpoint:
    """Look into a weight file: safetensors, or what `torch.save` writes, in its present or its old format.

    Raises:
        CheckpointError: It is none of these, it is damaged, it wants code to run, or it claims more than it holds.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is no file; give a weight file.")
        with path.open("rb") as file:
            start = file.read(64)
        _refuse_other_files(path, start)
        if start[8:9] == b"{":  # behind the length of its header
            return _open_safetensors(path)
        if start.startswith(b"PK"):
            return _open_zip(path)
        if start.startswith(b"\x80"):
            return _open_legacy(path)
        return _open_safetensors(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or line(error)}); check the path.") from error


def line(error: Exception) -> str:
    """The first line of an error, short."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0], 160)


def _refuse_other_files(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty; download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights; download the file itself, not the page about it.")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull` beside it.")
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        raise CheckpointError(f"{path} is a compressed archive; unpack it and give the weight file inside.")


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> StoredCheckpoint:
    tensors = {}
    try:
        with safe_open(path, "pt") as file:  # the library compares header and size
            for name in file.keys():
                described = file.get_slice(name)
                dtype = SAFETENSORS_TYPES.get(described.get_dtype())
                if dtype is None:
                    raise CheckpointError(
                        f"{path}: {shown(name)} is of type {described.get_dtype()}; weights are floating point numbers."
                    )
                tensors[name] = StoredTensor(tuple(described.get_shape()), dtype)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is neither safetensors nor a file of torch.save, or it is damaged ({line(error)}); download it again."
        ) from error

    def read(name: str) -> torch.Tensor:
        with safe_open(
            path, "pt"
        ) as file:  # opened for each, so that no more of the mapped file than one stays in memory
            return file.get_tensor(name).clone()

    return StoredCheckpoint(path, "safetensors", tensors, read)


# ---- files of torch.save ---------------------------------------------------------------------------------------------


def _open_zip(path: Path) -> StoredCheckpoint:
    archive, entries = _check_archive(path)
    root = _pickle_root(path, entries)
    pickled = entries[f"{root}/data.pkl"]
    if pickled.file_size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has a pickle of {pickled.file_size:,} bytes; that of weights has a tenth of it."
        )
    byteorder = entries.get(f"{root}/byteorder")
    if byteorder is not None and _read_entry(path, archive, byteorder) != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine; save it anew as safetensors there.")
    walked = _walk(path, bytes(_read_entry(path, archive, pickled)))
    for storage in walked.storages.values():
        entry = entries.get(f"{root}/data/{storage.key}")
        if entry is None or entry.file_size != storage.numel * storage.dtype.itemsize:
            there = "is not there" if entry is None else f"has {entry.file_size:,} bytes"
            raise CheckpointError(
                f"{path} is damaged: storage {shown(storage.key)} should have {storage.numel:,} numbers of "
                f"{storage.dtype} but {there}; download it again."
            )
    return _described(
        path, "torch", walked.content, lambda key: _read_entry(path, archive, entries[f"{root}/data/{key}"])
    )


def _check_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An open zip archive that is built like those of torch.save: plain, one entry behind the other, nothing else."""
    try:
        archive = zipfile.ZipFile(path)
        listed, start_of_directory, comment = archive.infolist(), archive.start_dir, archive.comment
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({line(error)}); download it again.") from error
    if len(listed) > MAX_ENTRIES:
        raise CheckpointError(f"{path} is an archive of {len(listed):,} entries, which no model has.")
    if len({entry.filename.casefold() for entry in listed}) != len(listed):
        raise CheckpointError(f"{path} is damaged: two of its entries have one name.")
    place = 0
    for entry in sorted(listed, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise CheckpointError(
                f"{path} holds {shown(entry.filename)} compressed or encrypted, which torch.save never does; unpack the "
                "archive if it contains a weight file, or save the weights anew."
            )
        if entry.header_offset < place:
            raise CheckpointError(f"{path} is damaged: two of its entries share bytes; download it again.")
        place = entry.header_offset + LOCAL_HEADER_BYTES + len(entry.filename.encode()) + entry.file_size
    if place > start_of_directory or comment or not _ends_with_directory(path):
        raise CheckpointError(f"{path} is damaged: it claims more or less than it has; download it again.")
    return archive, {entry.filename: entry for entry in listed}


def _ends_with_directory(path: Path) -> bool:
    """Whether the archive's closing record is the file's last, so that all readers find the same directory."""
    with path.open("rb") as file:
        file.seek(-END_RECORD_BYTES, 2)
        return file.read(4) == b"PK\x05\x06"


def _pickle_root(path: Path, entries: dict[str, zipfile.ZipInfo]) -> str:
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0] or roots[0] in ("", ".", ".."):
        raise CheckpointError(
            f"{path} is a zip archive but not one of torch.save; unpack it and give the weight file inside."
        )
    if any(name == f"{roots[0]}/constants.pkl" or name.startswith(f"{roots[0]}/code/") for name in entries):
        raise CheckpointError(f"{path} is a TorchScript program; save its state_dict() with torch.save instead.")
    return roots[0]


def _read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    data = bytearray(entry.file_size)
    try:
        with archive.open(entry) as file:
            count = cast(Any, file).readinto(data)
            rest = file.read(1)  # at the end the checksum is compared
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({line(error)}); download it again.") from error
    if count != len(data) or rest:
        raise CheckpointError(f"{path} is damaged: {shown(entry.filename)} is cut off; download it again.")
    return data


def _open_legacy(path: Path) -> StoredCheckpoint:
    """Five pickles (`LEGACY_PARTS`), then the storages one by one: a length in 8 bytes and the numbers."""
    with path.open("rb") as file:
        start = file.read(MAX_BYTES)
    parts: dict[str, Any] = {}
    storages: dict[str, Storage] = {}
    position = 0
    for name in LEGACY_PARTS:
        walked = _walk(path, start[position:])
        parts[name] = walked.content
        storages |= walked.storages
        position += walked.length
        if parts["magic number"] != LEGACY_MAGIC or isinstance(parts["magic number"], bool):
            raise CheckpointError(f"{path} is a pickle but not one of torch.save; save its tensors with torch.save.")
    machine = parts["machine"]
    if parts["protocol"] != LEGACY_PROTOCOL or not isinstance(machine, dict):
        raise CheckpointError(f"{path} is a pickle but not one of torch.save; save its tensors with torch.save.")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path} was written on a big-endian machine; save it anew as safetensors there.")
    places = _legacy_places(path, position, parts["storage keys"], storages)

    def read(key: str) -> bytearray:
        data = bytearray(storages[key].numel * storages[key].dtype.itemsize)
        with path.open("rb") as file:
            file.seek(places[key])
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{path} is cut off at storage {shown(key)}; download it again.")
        return data

    return _described(path, "torch (legacy)", parts["content"], read)


def _legacy_places(path: Path, position: int, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin; together they have to fill the file exactly."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError(f"{path} is damaged: its storages are not those its tensors need; download it again.")
    places = {}
    with path.open("rb") as file:
        for key in keys:
            file.seek(position)
            if int.from_bytes(file.read(8), "little", signed=True) != storages[key].numel:
                raise CheckpointError(f"{path} is damaged or cut off at storage {shown(key)}; download it again.")
            places[key] = position + 8
            position += 8 + storages[key].numel * storages[key].dtype.itemsize
    if position != path.stat().st_size or len(places) != len(keys):
        raise CheckpointError(f"{path} is damaged: its storages do not fill it exactly; download it again.")
    return places


def _walk(path: Path, data: bytes) -> Walked:
    try:
        return walk(data)
    except PickleError as error:
        raise CheckpointError(
            f"{path} {error}. Get the file from a source you trust, or save its tensors alone."
        ) from error


# ---- what is in it ---------------------------------------------------------------------------------------------------


def _described(path: Path, kind: str, content: Any, read_storage: Callable[[str], bytearray]) -> StoredCheckpoint:
    """Find the weights in what a pickle holds, and check every tensor of it."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights.")
    entry = next((name for name in WEIGHT_ENTRIES if isinstance(content.get(name), dict)), None)
    weights = content if entry is None else content[entry]
    if not weights or not all(isinstance(value, TensorView) for value in weights.values()):
        names = ", ".join(shown(name, 40) for name in list(content)[:8]) or "nothing"
        raise CheckpointError(
            f"{path} has no state dict under {' or '.join(map(repr, WEIGHT_ENTRIES))}, only {names}; save one with "
            'torch.save({"model": model.state_dict()}, path).'
        )
    for name, view in weights.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} is damaged: a weight is called {shown(name)}.")
        _check_view(path, name, view)
    for view in _views_in(content):
        _check_view(path, "a tensor beside the weights", view)

    # Many small views of one large block would otherwise read it again for each of them.
    shared_storage = lru_cache(maxsize=1)(read_storage)

    def read_view(view: TensorView) -> torch.Tensor:
        whole = math.prod(view.shape) == view.storage.numel
        data = read_storage(view.storage.key) if whole else shared_storage(view.storage.key)
        flat = torch.frombuffer(data, dtype=view.storage.dtype) if data else torch.empty(0, dtype=view.storage.dtype)
        tensor = flat.as_strided(view.shape, view.stride, view.offset)
        return tensor if whole else tensor.clone()

    config = content.get("config") if entry else None
    return StoredCheckpoint(
        path,
        kind,
        {name: StoredTensor(view.shape, view.storage.dtype) for name, view in weights.items()},
        read=lambda name: read_view(weights[name]),
        config=config if isinstance(config, dict) else {},
        facts=_facts(content) if entry else {},
        optimizer=_optimizer(content, read_view),
    )


def _facts(content: dict[Any, Any]) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, int | float | str)
    }
    return {shown(name, 40): shown(value) if isinstance(value, str) else value for name, value in plain.items()}


def _optimizer(
    content: dict[Any, Any], read: Callable[[TensorView], torch.Tensor]
) -> dict[int, dict[str, Callable[[], torch.Tensor]]]:
    """Readers of the optimizer's tensors, by parameter and name."""
    optimizer = content.get("optimizer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(state, dict):
        return {}
    return {
        index: {name: partial(read, view) for name, view in entry.items() if isinstance(view, TensorView)}
        for index, entry in state.items()
        if isinstance(index, int) and isinstance(entry, dict)
    }


def _views_in(content: Any) -> Iterator[TensorView]:
    """All tensors of nested containers, which may contain themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, TensorView):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _check_view(path: Path, name: str, view: TensorView) -> None:
    """Refuse views that repeat numbers or leave their storage: copying them could take any amount of memory."""
    count = math.prod(view.shape)
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.stride))
    if count and (count > view.storage.numel or last >= view.storage.numel):
        raise CheckpointError(
            f"{path}: {shown(name)} claims {count:,} numbers but its storage has {view.storage.numel:,}; download it again."
        )
