"""Reads a weight file without executing anything in it and without allocating what it merely claims to hold.

A pickle is walked twice. The first walk builds nothing but names, shapes and numbers, through stand-ins for the few
types that checkpoints are made of, and compares every tensor with the bytes that are there. Only then torch reads it,
with `weights_only`. Safetensors files need one look at their header.
"""

import collections
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open


# Entries under which checkpoints keep their weights; without one of them the file itself has to be the dictionary.
WEIGHT_ENTRIES = ("model", "state_dict")
# What data.pkl may weigh: names, shapes and options. That of a Swin-L with its optimizer has less than 1 MiB.
MAX_PICKLE_BYTES = 64 * 2**20
# torch.save writes protocol 2; protocol 4 is what people choose by hand. Opcodes that run or allocate on request
# (INST, OBJ, NEWOBJ_EX, EXT*, BYTEARRAY8, NEXT_BUFFER, PERSID) are not among them.
OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT SETITEM SETITEMS DICT EMPTY_SET "
    "ADDITEMS GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID "
    "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE".split()
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
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
        config: The configuration that the authors' code stores next to the weights, as nested dictionaries.
        facts: Other plain entries, such as the epoch.
        read: Reads the weights: name -> tensor, in memory of their own.
        read_all: Reads everything that the file holds, such as the optimizer's state beside the weights.
    """

    path: Path
    kind: str
    tensors: dict[str, StoredTensor]
    read: Callable[[], dict[str, torch.Tensor]]
    read_all: Callable[[], dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def open_checkpoint(path: str | Path) -> StoredCheckpoint:
    """Look into a weight file: safetensors, or what `torch.save` writes, in its present or its old format.

    Raises:
        CheckpointError: It is none of these, it is damaged, it wants code to run, or it claims more than it holds.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    _refuse_other_files(path, start)
    if start.startswith(b"PK"):
        return _open_zip(path)
    if start[:1] == b"\x80":
        return _open_legacy(path)
    return _open_safetensors(path)


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
                        f"{path}: {name} is of type {described.get_dtype()}; weights are floating point numbers."
                    )
                tensors[name] = StoredTensor(tuple(described.get_shape()), dtype)
            facts = {f"metadata.{name}": value for name, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is neither safetensors nor a file of torch.save, or it is damaged ({_line(error)}); download it again."
        ) from error

    def read_one(name: str) -> torch.Tensor:
        with safe_open(
            path, "pt"
        ) as file:  # opened for each, so that no more of the mapped file than one stays in memory
            return file.get_tensor(name).clone()

    def read() -> dict[str, torch.Tensor]:
        return {name: read_one(name) for name in tensors}

    return StoredCheckpoint(path, "safetensors", tensors, read, read, facts=facts)


# ---- files of torch.save ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Storage:
    """A block of numbers, by name."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _ConfigNode(dict[str, Any]):
    """Stand-in for yacs' CfgNode: a dictionary."""


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


# Everything a pickle may name, and what stands in for it. All of it is inert: no call does more than keep its arguments.
GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("yacs.config", "CfgNode"): _ConfigNode,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{(module, name): dtype for module in ("torch", "torch.cuda") for name, dtype in STORAGE_TYPES.items()},
}


class _Inspector(pickle.Unpickler):
    """Unpickler that knows nothing but `GLOBALS`."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(BytesIO(data))
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return GLOBALS[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._path} wants to run {module}.{name}, which weights do not need; nothing was run. Get the file "
                "from a source you trust, and save its tensors alone."
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int) or numel < 0:
            raise CheckpointError(f"{self._path} is damaged: a storage is described as {pid!r:.100}.")
        storage = _Storage(str(key), dtype, numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise CheckpointError(f"{self._path} is damaged: storage {key} is described twice, differently.")
        return storage


def _inspect(data: bytes, path: Path) -> tuple[Any, dict[str, _Storage], int]:
    """Walk one pickle: its content with stand-ins, its storages by key, its length in bytes."""
    length = _check_opcodes(data, path)
    inspector = _Inspector(data, path)
    try:
        return inspector.load(), inspector.storages, length
    except CheckpointError:
        raise
    # Nothing of ours runs while it loads: whatever goes wrong is the file's doing.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({_line(error)}); download it again.") from error


def _check_opcodes(data: bytes, path: Path) -> int:
    """Refuse what no checkpoint needs before the unpickler sees it; returns the pickle's length.

    An index far beyond what was stored makes the unpickler allocate a table of that size.
    """
    end = 0
    try:
        for steps, (opcode, argument, position) in enumerate(pickletools.genops(data), start=1):
            end = int(position or 0) + 1
            if opcode.name not in OPCODES:
                raise CheckpointError(
                    f"{path} uses the pickle operation {opcode.name}, which weights do not need; nothing was run. Get the "
                    "file from a source you trust, and save its tensors alone."
                )
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(str(argument)) > steps:
                raise CheckpointError(f"{path} is damaged: its pickle refers to entry {argument} after {steps} steps.")
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({_line(error)}); download it again.") from error
    return end


def _open_zip(path: Path) -> StoredCheckpoint:
    entries = _check_archive(path)
    root = _pickle_root(path, entries)
    pickled = entries[f"{root}/data.pkl"]
    if pickled.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} has a pickle of {pickled.file_size:,} bytes; weights need less than a thousandth."
        )
    with zipfile.ZipFile(path) as archive:
        try:
            data = archive.read(pickled)
            byteorder = f"{root}/byteorder"
            if byteorder in entries and archive.read(byteorder) != b"little":
                raise CheckpointError(
                    f"{path} was written on a big-endian machine; save it anew as safetensors there."
                )
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{path} is damaged ({_line(error)}); download it again.") from error
    content, storages, _ = _inspect(data, path)
    for storage in storages.values():
        entry = entries.get(f"{root}/data/{storage.key}")
        if entry is None or entry.file_size != storage.numel * storage.dtype.itemsize:
            there = "not there" if entry is None else f"{entry.file_size:,} bytes"
            raise CheckpointError(
                f"{path} is damaged: storage {storage.key} should have {storage.numel:,} numbers of {storage.dtype} but is "
                f"{there}; download it again."
            )
    return _described(path, "torch", content, lambda: _load(path))


def _check_archive(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip archive that stores its content plainly and no more of it than the file has bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({_line(error)}); download it again.") from error
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise CheckpointError(f"{path} is damaged: two of its entries have one name.")
    for entry in listed:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise CheckpointError(
                f"{path} holds {entry.filename!r:.80} compressed or encrypted, which torch.save never does; unpack the "
                "archive if it contains a weight file, or save the weights anew."
            )
    if sum(entry.file_size for entry in listed) > path.stat().st_size:
        raise CheckpointError(f"{path} claims more bytes than it has; download it again.")
    return entries


def _pickle_root(path: Path, entries: Iterable[str]) -> str:
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0] or roots[0] in ("", ".", ".."):
        raise CheckpointError(
            f"{path} is a zip archive but not one of torch.save; unpack it and give the weight file inside."
        )
    if any(name.startswith(f"{roots[0]}/code/") for name in entries):
        raise CheckpointError(f"{path} is a TorchScript program; save its state_dict() with torch.save instead.")
    return roots[0]


def _open_legacy(path: Path) -> StoredCheckpoint:
    """Five pickles (magic number, protocol, machine, content, storage keys), then the storages one by one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(min(size, MAX_PICKLE_BYTES))
        parts: list[Any] = []
        storages: dict[str, _Storage] = {}
        position = 0
        for _ in range(5):
            content, found, length = _inspect(start[position:], path)
            parts.append(content)
            storages |= found
            position += length
            if parts[0] != LEGACY_MAGIC:
                break
        magic, protocol, machine, content, keys = (parts + [None] * 5)[:5]
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
            raise CheckpointError(f"{path} is a pickle but not one of torch.save; save its tensors with torch.save.")
        if not isinstance(machine, dict) or not machine.get("little_endian"):
            raise CheckpointError(f"{path} was written on a big-endian machine; save it anew as safetensors there.")
        _check_legacy_storages(path, file, position, size, keys, storages)
    return _described(path, "torch (legacy)", content, lambda: _load(path))


def _check_legacy_storages(
    path: Path, file: BinaryIO, position: int, size: int, keys: Any, storages: dict[str, _Storage]
) -> None:
    """Each storage is its length in 8 bytes and its numbers; together they have to fill the file exactly."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError(f"{path} is damaged: its storages are not those its tensors need; download it again.")
    for key in keys:
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little", signed=True)
        if numel != storages[key].numel:
            raise CheckpointError(f"{path} is damaged or cut off at storage {key}; download it again.")
        position += 8 + numel * storages[key].dtype.itemsize
    if position != size:
        raise CheckpointError(
            f"{path} is damaged: its storages end at byte {position:,} of {size:,}; download it again."
        )


def _described(path: Path, kind: str, content: Any, load: Callable[[], dict[str, Any]]) -> StoredCheckpoint:
    """Find the weights in what a pickle holds, and check each of them."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights.")
    entry = next((name for name in WEIGHT_ENTRIES if isinstance(content.get(name), dict)), None)
    weights = content if entry is None else content[entry]
    other = {name: value for name, value in weights.items() if not isinstance(value, _Tensor)}
    if other or not weights:
        names = ", ".join(repr(name)[:40] for name in list(content)[:8])
        raise CheckpointError(
            f"{path} has no state dict under {' or '.join(map(repr, WEIGHT_ENTRIES))}, only {names}; save one with "
            'torch.save({"model": model.state_dict()}, path).'
        )
    tensors = {_text(path, name): _checked(path, name, tensor) for name, tensor in weights.items()}
    for tensor in _tensors_in(content):
        _checked(path, "a tensor beside the weights", tensor)
    config = content.get("config") if entry else None
    plain = {name: value for name, value in content.items() if isinstance(value, int | float | str | bool)}
    return StoredCheckpoint(
        path,
        kind,
        tensors,
        read=lambda: dict(load() if entry is None else load()[entry]),
        read_all=load,
        config=config if isinstance(config, dict) else {},
        facts=plain if entry else {},
    )


def _tensors_in(content: Any) -> Iterator[_Tensor]:
    """All tensors of nested containers, which may contain themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _text(path: Path, name: Any) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{path} is damaged: a weight is called {name!r:.40}.")
    return name


def _checked(path: Path, name: str, tensor: _Tensor) -> StoredTensor:
    """Refuse views that repeat numbers or leave their storage: copying them could take any amount of memory."""
    numbers = (tensor.offset, *tensor.shape, *tensor.stride)
    if not isinstance(tensor.storage, _Storage) or len(tensor.shape) != len(tensor.stride):
        raise CheckpointError(f"{path} is damaged: {name} has shape {tensor.shape} and strides {tensor.stride}.")
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise CheckpointError(f"{path} is damaged: {name} has shape {tensor.shape} and strides {tensor.stride}.")
    count = math.prod(tensor.shape)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride))
    if count and (count > tensor.storage.numel or last >= tensor.storage.numel):
        raise CheckpointError(
            f"{path}: {name} claims {count:,} numbers but its storage has {tensor.storage.numel:,}; download it again."
        )
    return StoredTensor(tensor.shape, tensor.storage.dtype)


def _load(path: Path) -> dict[str, Any]:
    """Let torch read what was inspected."""
    with torch.serialization.safe_globals([(collections.OrderedDict, "yacs.config.CfgNode"), set]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({_line(error)}); download it again.") from error


def _line(error: Exception) -> str:
    """The first line of an error, short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
