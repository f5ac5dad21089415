"""Hostile and broken weight files, each made from one valid tiny checkpoint, and the process that feeds them to the command.

`python hostile.py FOLDER` makes the files in FOLDER, runs `gfm-hf convert` and `gfm-hf info` on each in a child of its
own, with a limit on time and memory, and prints what happened as JSON.
"""

import json
import os
import pickle
import pickletools
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


MEMORY_LIMIT = 400 * 2**20  # bytes above an idle child: who takes more is killed
TIME_LIMIT_S = 10
Records = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        make: Writes it; gets the valid checkpoint and the path.
        phrase: Regular expression for what the refusal has to say; None where conversion has to succeed.
        payload: What an unpickler that trusts the file would run, where there is such code.
    """

    make: Callable[["Valid", Path], None]
    phrase: str | None
    payload: Callable[["Valid", str], bytes] | None = None


CASES: dict[str, Case] = {}


def case(name: str, phrase: str | None, **options: Any) -> Callable[[Any], Any]:
    """Register what writes a file."""

    def register(make: Callable[["Valid", Path], None]) -> Callable[["Valid", Path], None]:
        assert name not in CASES
        CASES[name] = Case(make, phrase, **options)
        return make

    return register


# ---- the valid checkpoint --------------------------------------------------------------------------------------------


@dataclass
class Valid:
    """A tiny training checkpoint in the authors' layout: its objects, and what torch.save makes of them."""

    folder: Path
    state: dict[str, Any]
    node: type
    records: Records = field(default_factory=list)
    legacy: bytes = b""

    @classmethod
    def build(cls, folder: Path) -> "Valid":
        """Make it; the process has a module `yacs.config` from here on."""
        from gfm_hf import GFMConfig, GFMForPreTraining
        from gfm_hf.convert.layouts import LAYOUTS
        from gfm_hf.convert.outward import translate

        torch.manual_seed(0)
        config = GFMConfig(image_size=64, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)
        state, _ = translate(GFMForPreTraining(config), LAYOUTS["authors"])
        valid = cls(folder, state, fake_yacs())
        valid.records = valid.saved(valid.content())
        valid.legacy = valid.saved_legacy(valid.content())
        return valid

    def content(self, **changes: Any) -> dict[str, Any]:
        """What the authors' code saves, with other entries where wished."""
        return {
            "model": OrderedDict(self.state),
            "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": []},
            "max_accuracy": 0.5,
            "epoch": 3,
            "config": self.config(),
        } | changes

    def config(self, **sections: dict[str, Any]) -> Any:
        """The authors' configuration, with other entries in its sections."""
        plain = {
            "DATA": {"IMG_SIZE": 64, "DATA_PATH": "images", "MASK_PATCH_SIZE": 32, "MASK_RATIO": 0.6},
            "MODEL": {"TYPE": "swin"},
            "TRAIN": {"EPOCHS": 3},
        }
        swin = self.node({"WINDOW_SIZE": 4} | sections.pop("SWIN", {}))
        names = dict.fromkeys([*plain, *sections])
        return self.node(
            {name: self.node(plain.get(name, {}) | sections.get(name, {})) for name in names}
            | {"MODEL": self.node({"TYPE": "swin", "SWIN": swin})}
        )

    def model(self, **changes: Any) -> dict[str, Any]:
        """The state dict with some weights replaced; None takes one away."""
        merged = self.state | {name.replace("__", "."): value for name, value in changes.items()}
        return OrderedDict({name: value for name, value in merged.items() if value is not None})

    def saved(self, content: Any) -> Records:
        """The records that torch.save writes, named below the folder `archive`."""
        buffer = BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as archive:
            return [(name, archive.read(name)) for name in archive.namelist()]

    def saved_legacy(self, content: Any) -> bytes:
        """The bytes that torch.save writes in its old format."""
        buffer = BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()

    @property
    def pickled(self) -> bytes:
        """The pickle of the present format."""
        return dict(self.records)["archive/data.pkl"]

    def with_pickle(self, pickled: bytes, name: str = "data.pkl") -> Records:
        """The records with another pickle, at the same place."""
        return [(key, pickled if key == f"archive/{name}" else value) for key, value in self.records]

    def marker(self, name: str) -> str:
        """The file that code in the file of this name would create."""
        return str(self.folder / "ran" / name)


def fake_yacs() -> type:
    """A module `yacs.config` whose CfgNode pickles by name, as the one that the authors' code uses."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    sys.modules["yacs"] = types.ModuleType("yacs")
    sys.modules["yacs.config"] = module
    return module.CfgNode  # type: ignore[no-any-return]


def write_zip(path: Path, records: Records, before: bytes = b"") -> None:
    """A plain archive, as torch.save writes it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data)
    path.write_bytes(before + buffer.getvalue())


# ---- pickles by hand -------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """A string."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """An integer, as torch writes it where it can be."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    head = b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<i", size)
    return head + value.to_bytes(size, "little", signed=True)


def named(module: str, name: str) -> bytes:
    """A global."""
    return f"c{module}\n{name}\n".encode()


def together(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """A call of a function or a type."""
    return function + together(*arguments) + b"R"


def put(index: int) -> bytes:
    """Keep the top of the stack, under an index far from those that torch uses."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """Repeat what was kept."""
    return b"j" + struct.pack("<I", index)


def storage(key: bytes, numel: int, kind: str = "FloatStorage") -> bytes:
    """A reference to a block of numbers."""
    return together(text("storage"), named("torch", kind), key, text("cpu"), number(numel)) + b"Q"


def view(block: bytes, offset: int, shape: bytes, stride: bytes) -> bytes:
    """A tensor."""
    hooks = named("collections", "OrderedDict") + b")R"
    return call(named("torch._utils", "_rebuild_tensor_v2"), block, number(offset), shape, stride, b"\x89", hooks)


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return together(*map(number, values))


def laughs(levels: int, first: int = 200) -> bytes:
    """A list of tuples, each of two of the one before: the last, kept at `first + levels`, has 2**levels leaves."""
    built = text("ha") + b"\x85" + put(first)
    for index in range(first, first + levels):
        built += get(index) + get(index) + b"\x86" + put(index + 1)
    return b"](" + built + b"e"


def several(*items: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


@dataclass
class View:
    """Pickles as a tensor with any geometry over a given storage."""

    base: torch.Tensor
    offset: Any
    shape: Any
    stride: Any

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.base._typed_storage(), self.offset, self.shape, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


# ---- controls: the tools above do no harm ----------------------------------------------------------------------------


@case("valid.pth", None)
def _(valid: Valid, path: Path) -> None:
    write_zip(path, valid.records)


@case("valid-legacy.pth", None)
def _(valid: Valid, path: Path) -> None:
    path.write_bytes(valid.legacy)


@case("valid.safetensors", None)
def _(valid: Valid, path: Path) -> None:
    save_file(valid.state, path)


@case("valid-extra-entry.pth", None)
def _(valid: Valid, path: Path) -> None:
    write_zip(path, valid.with_pickle(valid.pickled[:-1] + text("note") + text("by hand") + b"s."))


@case("valid-containing-itself.pth", None)
def _(valid: Valid, path: Path) -> None:
    content = valid.content()
    content["optimizer"] = content
    torch.save(content, path)


# ---- code ------------------------------------------------------------------------------------------------------------


def _touch(valid: Valid, name: str) -> bytes:
    return text(f"touch {valid.marker(name)}")


def _script(valid: Valid, name: str) -> bytes:
    script = valid.folder / "payloads" / f"{Path(name).stem}.py"
    script.write_text(f"open({valid.marker(name)!r}, 'w')")
    return text(str(script))


def _evil_bytes(valid: Valid, name: str) -> bytes:
    data = b"\x80\x02" + call(named("posix", "system"), _touch(valid, name)) + b"."
    return b"B" + struct.pack("<I", len(data)) + data


def _evil_file(valid: Valid, name: str) -> bytes:
    stored = valid.folder / "payloads" / f"{name}.npy"
    stored.write_bytes(b"\x80\x02" + call(named("posix", "system"), _touch(valid, name)) + b".")
    return text(str(stored))


def _python(valid: Valid, name: str) -> bytes:
    return text(f"open({valid.marker(name)!r}, 'w')")


def _attribute(valid: Valid, name: str) -> bytes:
    return call(call(named("builtins", "getattr"), named("pathlib", "Path"), text("touch")), _path(valid, name))


def _path(valid: Valid, name: str) -> bytes:
    return call(named("pathlib", "Path"), text(valid.marker(name)))


def _module(valid: Valid, name: str) -> bytes:
    # What is imported lies on the path of the process that tries it.
    (valid.folder / "hostile_canary.py").write_text(f"open({valid.marker(name)!r}, 'w')")
    return text("hostile_canary")


RUNS: dict[str, tuple[str, Callable[[Valid, str], bytes]]] = {
    "os-system.pth": ("os.system", lambda v, n: call(named("os", "system"), _touch(v, n))),
    "posix-system.pth": ("posix.system", lambda v, n: call(named("posix", "system"), _touch(v, n))),
    "os-popen.pth": ("os.popen", lambda v, n: call(named("os", "popen"), _touch(v, n))),
    "eval.pth": ("builtins.eval", lambda v, n: call(named("builtins", "eval"), _python(v, n))),
    "eval-python2.pth": ("__builtin__.eval", lambda v, n: call(named("__builtin__", "eval"), _python(v, n))),
    "exec.pth": ("builtins.exec", lambda v, n: call(named("builtins", "exec"), _python(v, n))),
    "getattr.pth": ("builtins.getattr", _attribute),
    "popen.pth": (
        "subprocess.Popen",
        lambda v, n: call(named("subprocess", "Popen"), together(text("touch"), text(v.marker(n)))),
    ),
    "import.pth": (
        "importlib.import_module",
        lambda v, n: call(named("importlib", "import_module"), _module(v, n)),
    ),
    "run-path.pth": ("runpy.run_path", lambda v, n: call(named("runpy", "run_path"), _script(v, n))),
    "numpy-load.pth": (
        "numpy.load",
        lambda v, n: call(named("numpy", "load"), _evil_file(v, n), b"N", b"\x88"),
    ),
    "pickle-loads.pth": ("_pickle.loads", lambda v, n: call(named("_pickle", "loads"), _evil_bytes(v, n))),
    "torch-load-from-bytes.pth": (
        "torch.storage._load_from_bytes",
        lambda v, n: call(named("torch.storage", "_load_from_bytes"), _evil_bytes(v, n)),
    ),
    "partial.pth": (
        "functools.partial",
        lambda v, n: call(call(named("functools", "partial"), named("posix", "system"), _touch(v, n))),
    ),
    "inst.pth": ("instruction INST", lambda v, n: b"(" + _touch(v, n) + b"iposix\nsystem\n"),
    "obj.pth": ("posix.system", lambda v, n: b"(" + named("posix", "system") + _touch(v, n) + b"o"),
    "stack-global.pth": (
        "posix.system",
        lambda v, n: text("posix") + text("system") + b"\x93" + together(_touch(v, n)) + b"R",
    ),
}
# These name what is known to be dangerous, but reach for the network or the screen when they run: nobody calls them.
NAMES = {
    "torch-hub.pth": ("torch.hub", "load", ("someone/repository", "model")),
    "torch-load.pth": ("torch", "load", ("other.pth",)),
    "webbrowser.pth": ("webbrowser", "open", ("http://127.0.0.1:9/",)),
    "numpy-scalar.pth": ("numpy._core.multiarray", "scalar", ("f8",)),
    "bytearray.pth": ("builtins", "bytearray", ()),
    "lookalike-class.pth": ("yacs.config", "CfgNodeX", ()),
    "lookalike-module.pth": ("yacs.config2", "CfgNode", ()),
    "lookalike-sibling.pth": ("yacs.config", "os", ()),
    "lookalike-case.pth": ("yacs.config", "cfgnode", ()),
    "lookalike-tail.pth": ("yacs.config", "CfgNode.", ()),
    "file-storage.pth": ("torch", "FloatStorage.from_file", ("/etc/hostname",)),
    "quantised.pth": ("torch._utils", "_rebuild_qtensor", ()),
    "complex-weight.pth": ("torch", "ComplexFloatStorage", ()),
    "wrapper-subclass.pth": ("torch._tensor", "_rebuild_from_type_v2", ()),
}
DOTTED = {
    "dotted-init.pth": ("yacs.config", "CfgNode.__init__"),
    "dotted-globals.pth": ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "dotted-classmethod.pth": ("collections", "OrderedDict.fromkeys"),
    "dotted-subclasses.pth": ("collections", "OrderedDict.__base__.__subclasses__"),
    "dotted-module.pth": ("torch", "serialization.os.system"),
}


def _with_payload(payload: Callable[[Valid, str], bytes]) -> Callable[[Valid, Path], None]:
    """The valid checkpoint with one more entry, whose value is the payload."""

    def make(valid: Valid, path: Path) -> None:
        pickled = valid.pickled[:-1] + text("note") + payload(valid, path.name) + b"s."
        write_zip(path, valid.with_pickle(pickled))

    return make


def _register_code() -> None:
    for name, (phrase, payload) in RUNS.items():
        CASES[name] = Case(_with_payload(payload), phrase.replace(".", r"\."), payload)
    for name, (module, attribute, arguments) in NAMES.items():
        built = call(named(module, attribute), *map(text, arguments))
        phrase = f"{module}.{attribute}, which weights do not need".replace(".", r"\.")
        CASES[name] = Case(_with_payload(lambda *_, built=built: built), phrase)
    for name, (module, attribute) in DOTTED.items():
        built = text(module) + text(attribute) + b"\x93" + b")R"
        phrase = f"{module}.{attribute}, which weights do not need".replace(".", r"\.")
        CASES[name] = Case(_with_payload(lambda *_, built=built: built), phrase)


_register_code()


# ---- other operations ------------------------------------------------------------------------------------------------

NODE = named("yacs.config", "CfgNode")
ORDERED = named("collections", "OrderedDict")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
BUILT = "damaged|not need|sets attributes|wants to run"
# name -> (what is said, value of one more entry)
OPERATIONS: dict[str, tuple[str | None, bytes]] = {
    "ext1.pth": ("instruction EXT1", b"\x82\x01"),
    "ext2.pth": ("instruction EXT2", b"\x83\x01\x00"),
    "ext4.pth": ("instruction EXT4", b"\x84\x01\x00\x00\x00"),
    "persid.pth": ("instruction PERSID", b"P0\n"),
    "dup.pth": ("instruction DUP", b"]2a"),
    "bytearray8.pth": ("instruction BYTEARRAY8", b"\x96" + struct.pack("<Q", 4) + b"four"),
    "bytearray8-huge.pth": ("damaged|BYTEARRAY8", b"\x96" + struct.pack("<Q", 2**40)),
    "next-buffer.pth": ("instruction NEXT_BUFFER", b"\x97"),
    "bytearray-billion.pth": ("bytearray", call(named("builtins", "bytearray"), number(10**9))),
    "newobj-ex.pth": ("pathlib.Path", named("pathlib", "Path") + b")}\x92"),
    "newobj-popen.pth": ("subprocess.Popen", named("subprocess", "Popen") + together(text("ls")) + b"\x81"),
    "call-a-type-of-numbers.pth": (BUILT, call(named("torch", "FloatStorage"), number(10**12))),
    "build-on-class.pth": (BUILT, NODE + b"N}" + text("get") + NODE + b"s\x86b"),
    "build-on-function.pth": (BUILT, REBUILD + b"N}" + text("__kwdefaults__") + b"}s\x86b"),
    "build-attributes.pth": (BUILT, REBUILD + b"}" + text("note") + b"\x88sb"),
    "build-changes-class.pth": (BUILT, ORDERED + b")RN}" + text("__class__") + NODE + b"s\x86b"),
    "build-on-storage.pth": (BUILT, storage(text("0"), 8) + b"]" + text("1") + b"ab"),
    "build-on-number-type.pth": (BUILT, named("torch", "FloatStorage") + b"}" + text("itemsize") + b"K\x00sb"),
    "build-setstate.pth": (BUILT, ORDERED + b")R}" + text("__setstate__") + named("os", "system") + b"sb"),
    "pid-of-other-kind.pth": ("damaged", together(text("module"), text("os"), text("x"), text("cpu"), number(1)) + b"Q"),
    "pid-short.pth": ("damaged", together(text("storage")) + b"Q"),
    "pid-number.pth": ("damaged", number(5) + b"Q"),
    "pid-dictionary.pth": ("damaged", b"}Q"),
    "pid-negative.pth": ("damaged", storage(text("0"), -1)),
    "pid-other-size.pth": ("damaged", storage(text("0"), 97)),
    "pid-other-type.pth": ("damaged", storage(text("0"), 96, "HalfStorage")),
    "pid-of-no-type.pth": ("damaged", together(text("storage"), REBUILD, text("0"), text("cpu"), number(1)) + b"Q"),
    "storage-not-there.pth": ("storage 999", storage(text("999"), 10)),
    "storage-outside.pth": (r"storage \.\./data\.pkl", storage(text("../data.pkl"), 10)),
    "storage-of-a-terabyte.pth": ("1,000,000,000,000 numbers", storage(text("999"), 10**12)),
    "storage-of-7000-digits.pth": ("LONG4", storage(text("999"), 2**23000)),
    "storage-of-600-digits.pth": ("beyond 64 bits", storage(text("999"), 2**2000)),
    "memo-2-31.pth": (None, b"N" + put(2**31)),
    "memo-text.pth": (None, b"Np4294967296\n"),
    "memo-nothing.pth": ("damaged", get(2**30)),
    "binbytes8-huge.pth": ("damaged", b"\x8e" + struct.pack("<Q", 2**40)),
    "binunicode8-huge.pth": ("damaged", b"\x8d" + struct.pack("<Q", 2**62)),
    "binunicode-huge.pth": ("damaged", b"X" + struct.pack("<I", 2**32 - 1)),
    "long4-huge.pth": ("damaged|LONG4", b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "long4-negative.pth": ("damaged", b"\x8b" + struct.pack("<i", -1)),
    "int-of-a-million-digits.pth": ("damaged", b"I" + b"9" * 10**6 + b"\n"),
    "frame-huge.pth": (None, b"\x95" + struct.pack("<Q", 2**40) + b"N"),
    "stack-empty.pth": ("instruction POP", b"0" * 40),
    "no-mark.pth": ("damaged", b"t"),
    # Few bytes that name the same thing over and over.
    "laughs-as-key.pth": ("nests tuples", several(laughs(60), b"}" + get(260) + b"Ns")),
    "laughs-as-storage.pth": ("nests tuples", several(laughs(30), storage(get(230), 1))),
    "laughs-as-kind.pth": ("nests tuples", several(
        laughs(30), together(get(230), REBUILD, text("0"), text("cpu"), number(1)) + b"Q")),
    "laughs-as-shape.pth": ("nests tuples", several(
        laughs(30), view(storage(text("0"), 8), 0, together(get(230)), numbers(1)))),
    "laughs-in-a-set.pth": ("nests tuples", several(laughs(60), call(named("builtins", "set"), several(get(260))))),
    "list-as-key.pth": ("list as the key", b"}]Ns"),
    "list-in-a-set.pth": ("a set of something else", call(named("builtins", "set"), several(b"]"))),
    "tuples-of-one-text.pth": ("a size is no tuple", several(
        text("x" * 100_000) + put(200), (named("torch", "Size") + get(200) + b"\x85R") * 2_000)),
    "dictionaries-of-one.pth": ("a dictionary from another", several(
        b"}(" + b"".join(number(key) + b"N" for key in range(20_000)) + b"u" + put(200),
        (ORDERED + get(200) + b"\x85R") * 2_000)),
    "attributes-of-one.pth": ("copies one thing", several(
        b"}(" + b"".join(text(f"a{key}") + b"N" for key in range(20_000)) + b"u" + put(200),
        (ORDERED + b")R" + get(200) + b"b") * 2_000)),
    "sets-of-one.pth": ("copies one thing", several(
        several(*map(number, range(20_000))) + put(200), (named("builtins", "set") + get(200) + b"\x85R") * 2_000)),
    "empty-sets.pth": ("has a pickle of", b"](" + b"\x8f" * 12_000_000 + b"e"),
    "empty-dictionaries.pth": ("has a pickle of", b"](" + b"}" * 12_000_000 + b"e"),
}  # fmt: skip


def _register_operations() -> None:
    for name, (phrase, value) in OPERATIONS.items():
        CASES[name] = Case(_with_payload(lambda *_, value=value: value), phrase)


_register_operations()


# ---- weights and entries that are not what they should be ------------------------------------------------------------

BLOCK = "encoder.layers.0.blocks.0."
SECOND = "encoder.layers.2.blocks.1."
STEM = "encoder.patch_embed.proj.weight"
TABLE = "attn.relative_position_bias_table"
NOTHING = torch.zeros(1)


def _tall(rows: int) -> torch.Tensor:
    """A tensor without a single number."""
    return torch.zeros(0).as_strided((rows, 0), (1, 1))


def _deep(levels: int, kind: str = "tuples") -> str:
    """Stands for a tuple in a tuple in a tuple ..., or for lists; `_save` puts them there."""
    return f"@{kind}{levels}@"


def _shared(levels: int, kind: Callable[[Any], Any] = tuple) -> Any:
    nested = kind(["ha"])
    for _ in range(levels):
        nested = kind([nested, nested])
    return nested


def _stages(valid: Valid, count: int) -> dict[str, Any]:
    """Stages behind the last, of which only the least is there."""
    extra: dict[str, Any] = {}
    for stage in range(4, count):
        extra[f"encoder.layers.{stage}.blocks.0.norm1.weight"] = torch.ones(1)
        extra[f"encoder.layers.{stage}.blocks.0.{TABLE}"] = torch.zeros(49, 8)
    return extra


Changes = Callable[[Valid], dict[str, Any]]
# name -> (what is said, weights that differ; None takes one away)
WEIGHTS: dict[str, tuple[str, Changes]] = {
    "nan.pth": ("NaN", lambda v: {STEM: torch.full_like(v.state[STEM], float("nan"))}),
    "infinity.pth": ("infinity", lambda v: {STEM: torch.full_like(v.state[STEM], float("inf"))}),
    "one-nan-in-the-last.pth": (
        "NaN", lambda v: {"decoder.0.bias": torch.cat([v.state["decoder.0.bias"][1:], torch.tensor([float("nan")])])}),
    "integers.pth": ("int64", lambda v: {STEM: v.state[STEM].long()}),
    "booleans.pth": ("bool", lambda v: {STEM: v.state[STEM] > 0}),
    "bytes.pth": ("uint8", lambda v: {STEM: v.state[STEM].to(torch.uint8)}),
    "complex.pth": ("ComplexFloatStorage", lambda v: {STEM: v.state[STEM].to(torch.complex64)}),
    "float8.pth": ("does? not need|do not need", lambda v: {STEM: v.state[STEM].to(torch.float8_e4m3fn)}),
    "sparse.pth": ("do not need", lambda v: {"decoder.0.bias": v.state["decoder.0.bias"].to_sparse()}),
    "meta.pth": ("do not need|damaged", lambda v: {"decoder.0.bias": v.state["decoder.0.bias"].to("meta")}),
    "no-stem.pth": ("not the weights of a Swin", lambda v: {STEM: None}),
    "no-bias.pth": ("lacks what is", lambda v: {f"{BLOCK}mlp.fc1.bias": None}),
    "no-second-block.pth": ("no place|lacks", lambda v: {f"{SECOND}norm1.weight": None}),
    "no-table.pth": ("missing", lambda v: {BLOCK + TABLE: None}),
    "unknown-weight.pth": ("no place in a GFMForPreTraining: encoder.mystery", lambda v: {"encoder.mystery": NOTHING}),
    "unknown-weight-long.pth": ("no place in a GFM", lambda v: {"x" * 100_000: NOTHING}),
    "unknown-weight-of-escapes.pth": ("no place in a GFM", lambda v: {"\x1b[2J\x07\r\u202e": NOTHING}),
    "unknown-weight-of-surrogates.pth": ("no place in a GFM", lambda v: {"\ud800": NOTHING}),
    "vision-transformer.pth": ("ViT", lambda v: {**dict.fromkeys(v.state), "cls_token": NOTHING, "norm": NOTHING}),
    "swin-v2.pth": ("Swin V2", lambda v: {**dict.fromkeys(v.state), "layers.0.blocks.0.attn.logit_scale": NOTHING}),
    "qkv-23-rows.pth": (r"shape \(23, 8\)", lambda v: {f"{BLOCK}attn.qkv.weight": torch.zeros(23, 8)}),
    "qkv-21-rows.pth": (r"shape \(21, 8\)", lambda v: {f"{BLOCK}attn.qkv.weight": torch.zeros(21, 8)}),
    "qkv-no-rows.pth": ("is empty", lambda v: {f"{BLOCK}attn.qkv.weight": torch.zeros(0, 8)}),
    "qkv-scalar.pth": ("qkv|q_proj", lambda v: {f"{SECOND}attn.qkv.weight": torch.tensor(1.0)}),
    "table-50-rows.pth": ("50 rows", lambda v: {BLOCK + TABLE: torch.zeros(50, 1)}),
    "table-36-rows.pth": ("36 rows", lambda v: {BLOCK + TABLE: torch.zeros(36, 1)}),
    "table-scalar.pth": ("has shape", lambda v: {BLOCK + TABLE: torch.tensor(1.0)}),
    "table-no-heads.pth": ("is empty", lambda v: {BLOCK + TABLE: torch.zeros(49, 0)}),
    "table-3-heads.pth": ("3 heads", lambda v: {BLOCK + TABLE: torch.zeros(49, 3)}),
    "second-table-3-heads.pth": ("position tables of stage 3", lambda v: {SECOND + TABLE: torch.zeros(49, 3)}),
    "second-table-50-rows.pth": ("stage 3|position_bias_table", lambda v: {SECOND + TABLE: torch.zeros(50, 2)}),
    "second-table-36-rows.pth": ("stage 3|position_bias_table", lambda v: {SECOND + TABLE: torch.zeros(36, 2)}),
    "second-table-larger.pth": ("stage 3|position_bias_table", lambda v: {SECOND + TABLE: torch.zeros(81, 2)}),
    "second-table-smaller.pth": ("stage 3|position_bias_table", lambda v: {SECOND + TABLE: torch.zeros(25, 2)}),
    "second-table-scalar.pth": ("stage 3|position_bias_table", lambda v: {SECOND + TABLE: torch.tensor(1.0)}),
    "second-table-empty.pth": ("", lambda v: {SECOND + TABLE: torch.zeros(0, 2)}),
    "stem-2-dimensions.pth": ("shape", lambda v: {STEM: torch.zeros(8, 48)}),
    "stem-oblong.pth": ("4 by 2", lambda v: {STEM: torch.zeros(8, 3, 4, 2)}),
    "stem-of-a-million.pth": ("", lambda v: {STEM: torch.zeros(1_000_000, 3, 1, 1)}),
    "decoder-scalar.pth": ("shape", lambda v: {"decoder.0.weight": torch.tensor(1.0)}),
    "projector-of-no-stage.pth": ("no stage", lambda v: {"projector.weight": torch.zeros(32, 33)}),
    "projector-scalar.pth": ("shape", lambda v: {"projector.weight": torch.tensor(1.0)}),
    "positions-of-12.pth": ("", lambda v: {"encoder.absolute_pos_embed": torch.zeros(1, 12, 8)}),
    "positions-flat.pth": ("", lambda v: {"encoder.absolute_pos_embed": torch.zeros(256)}),
    # Numbers that a model would be built from, though no weight is as large.
    "classes-a-billion.pth": ("", lambda v: {"head.weight": _tall(10**9)} | _without_decoder(v)),
    "mlp-of-a-million.pth": ("", lambda v: {f"{BLOCK}mlp.fc1.weight": torch.zeros(1_000_000, 1)}),
    "seventeen-stages.pth": ("", lambda v: _stages(v, 17)),
    "ten-thousand-blocks.pth": (
        "", lambda v: {f"encoder.layers.3.blocks.{block}.norm1.weight": torch.ones(1) for block in range(1, 10_000)}),
    "mask-of-a-billion-pixels.pth": (
        "", lambda v: {f"{BLOCK}attn_mask": torch.zeros(0).as_strided((10**16, 0, 0), (1, 1, 1))}),
    # Views.
    "view-of-a-trillion.pth": (
        "claims 1,000,000,000,000", lambda v: {STEM: torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}),
    "view-that-repeats.pth": ("claims", lambda v: {STEM: torch.zeros(8, 3, 4, 1).expand(8, 3, 4, 4)}),
    "view-negative-offset.pth": ("damaged", lambda v: {STEM: View(torch.zeros(384), -1, (8, 3, 4, 4), (48, 16, 4, 1))}),
    "view-negative-stride.pth": ("damaged", lambda v: {STEM: View(torch.zeros(384), 9, (8, 3, 4, 4), (-48, 16, 4, 1))}),
    "view-negative-size.pth": ("damaged", lambda v: {STEM: View(torch.zeros(384), 0, (-8, -3, 4, 4), (48, 16, 4, 1))}),
    "view-too-far.pth": ("claims", lambda v: {STEM: View(torch.zeros(384), 1, (8, 3, 4, 4), (48, 16, 4, 1))}),
    "view-too-large.pth": ("claims", lambda v: {STEM: View(torch.zeros(384), 0, (2**40, 3, 4, 4), (48, 16, 4, 1))}),
    "view-two-ranks.pth": ("strides", lambda v: {STEM: View(torch.zeros(384), 0, (8, 3, 4, 4), (48, 16, 4))}),
    "view-of-words.pth": ("damaged", lambda v: {STEM: View(torch.zeros(384), 0, "8344", "1111")}),
    "view-of-fractions.pth": ("damaged", lambda v: {STEM: View(torch.zeros(384), 0.5, (8, 3, 4, 4), (48, 16, 4, 1))}),
    "view-of-7000-digits.pth": ("LONG4", lambda v: {STEM: View(torch.zeros(384), 0, (2**23000, 3, 4, 4), (48, 16, 4, 1))}),
    # Names and values.
    "name-number.pth": ("a weight is called 7", lambda v: {7: NOTHING}),
    "name-bytes.pth": ("_codecs.encode", lambda v: {b"encoder": NOTHING}),
    "name-deep.pth": ("nests tuples|as the key", lambda v: {_deep(2_000): NOTHING}),
    "value-list.pth": ("state dict", lambda v: {STEM: [0.0] * 4}),
    "value-deep.pth": ("nests tuples|as the key", lambda v: {STEM: _deep(100_000)}),
    "value-text.pth": ("state dict", lambda v: {STEM: "weights"}),
}  # fmt: skip


def _without_decoder(valid: Valid) -> dict[str, Any]:
    return {name: None for name in valid.state if name.startswith(("decoder.", "projector."))}


# name -> (what is said, everything the file holds)
CONTENTS: dict[str, tuple[str | None, Callable[[Valid], Any]]] = {
    "content-list.pth": ("a list, not a dictionary", lambda v: [v.state]),
    "content-tensor.pth": ("not a dictionary", lambda v: torch.zeros(3)),
    "content-none.pth": ("not a dictionary", lambda v: None),
    "content-empty.pth": ("state dict", lambda v: {}),
    "content-numbers.pth": ("state dict", lambda v: {1: 2, 3: 4}),
    "content-deep.pth": ("nests tuples|as the key", lambda v: {_deep(2_000): 1}),
    "content-other-entry.pth": ("state dict", lambda v: {"weights": v.state}),
    "content-model-empty.pth": ("state dict", lambda v: v.content(model={})),
    "content-model-is-itself.pth": ("state dict", lambda v: _itself()),
    "beside-a-terabyte.pth": ("claims", lambda v: v.content(ema=torch.zeros(1).expand(2**40))),
    "beside-a-terabyte-deep.pth": ("claims", lambda v: v.content(ema=[{"x": (torch.zeros(1).expand(2**40),)}])),
    "epoch-of-5000-digits.pth": ("", lambda v: v.content(epoch=10**5000)),
    "entry-name-tuple.pth": ("tuple as the key", lambda v: v.content() | {(1, 2): "x", 5: "y"}),
    "entry-deep.pth": ("nests tuples", lambda v: v.content(note=_deep(100_000))),
    "entry-shared.pth": ("nests tuples", lambda v: v.content(note=_shared(40))),
    "option-shared.pth": ("nests tuples", lambda v: v.content(config=v.config(SWIN={"QK_SCALE": _shared(30)}))),
    "option-deep.pth": ("nests tuples", lambda v: v.content(config=v.config(SWIN={"QK_SCALE": _deep(100_000)}))),
    "path-shared.pth": ("nests tuples", lambda v: v.content(config=v.config(DATA={"DATA_PATH": _shared(30)}))),
    "path-deep.pth": ("nests tuples", lambda v: v.content(config=v.config(DATA={"DATA_PATH": _deep(100_000)}))),
    "path-long.pth": (None, lambda v: v.content(config=v.config(DATA={"DATA_PATH": "x\x1b[2J" * 10**6}))),
    "path-lists.pth": (None, lambda v: v.content(config=v.config(DATA={"DATA_PATH": _shared(30, list)}))),
    "path-deep-lists.pth": (None, lambda v: v.content(config=v.config(DATA={"DATA_PATH": _deep(100_000, "lists")}))),
    "option-lists.pth": ("QK_SCALE", lambda v: v.content(config=v.config(SWIN={"QK_SCALE": _shared(30, list)}))),
    "option-deep-lists.pth": ("QK_SCALE", lambda v: v.content(config=v.config(SWIN={"QK_SCALE": _deep(100_000, "lists")}))),
    "epochs-lists.pth": (None, lambda v: v.content(config=v.config(TRAIN={"EPOCHS": _shared(30, list)}))),
    "entry-lists.pth": (None, lambda v: v.content(note=_shared(40, list))),
    "window-huge.pth": (None, lambda v: v.content(config=v.config(SWIN={"WINDOW_SIZE": 10**5}))),
    "window-infinite.pth": (None, lambda v: v.content(config=v.config(SWIN={"WINDOW_SIZE": float("inf")}))),
    "window-fraction.pth": (None, lambda v: v.content(config=v.config(SWIN={"WINDOW_SIZE": 7.5}))),
    "image-infinite.pth": ("", lambda v: v.content(config=v.config(DATA={"IMG_SIZE": float("inf")}))),
    "image-nan.pth": ("", lambda v: v.content(config=v.config(DATA={"IMG_SIZE": float("nan")}))),
    "image-negative.pth": ("", lambda v: v.content(config=v.config(DATA={"IMG_SIZE": -64}))),
    "image-huge.pth": (None, lambda v: v.content(
        model=v.model(encoder__absolute_pos_embed=torch.zeros(1, 256, 8)), config=v.config(DATA={"IMG_SIZE": 10**6}))),
    "cells-of-nothing.pth": (None, lambda v: v.content(config=v.config(DATA={"MASK_PATCH_SIZE": 0}))),
    "ratio-nan.pth": (None, lambda v: v.content(config=v.config(DATA={"MASK_RATIO": float("nan")}))),
    "ratio-huge.pth": ("", lambda v: v.content(config=v.config(DATA={"MASK_RATIO": 10**400}))),
    "alpha-nan.pth": (None, lambda v: v.content(config=v.config() | {"ALPHA": float("nan")})),
}  # fmt: skip


def _itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def _register_contents() -> None:
    for name, (phrase, changes) in WEIGHTS.items():

        def make(valid: Valid, path: Path, changes: Changes = changes) -> None:
            merged = valid.state | changes(valid)
            model = OrderedDict({key: value for key, value in merged.items() if value is not None})
            _save(valid, valid.content(model=model), path)

        CASES[name] = Case(make, phrase)
    for name, (said, content) in CONTENTS.items():
        CASES[name] = Case(lambda valid, path, content=content: _save(valid, content(valid), path), said)


def _save(valid: Valid, content: Any, path: Path) -> None:
    """What torch.save writes, with deep tuples where `_deep` marked their places."""
    records = valid.saved(content)
    pickled = dict(records)["archive/data.pkl"]

    def nested(match: re.Match[bytes]) -> bytes:
        count = int(match[2])
        return b")" + b"\x85" * count if match[1] == b"tuples" else b"]" * count + b"a" * (count - 1)

    pickled = re.sub(rb"X.\x00\x00\x00@(tuples|lists)(\d+)@", nested, pickled, flags=re.DOTALL)
    write_zip(path, [(name, pickled if name == "archive/data.pkl" else data) for name, data in records])


_register_contents()


# ---- archives --------------------------------------------------------------------------------------------------------

END = struct.Struct("<4s4H2LH")
DIRECTORY = b"PK\x01\x02"


def _registered_zip(name: str, phrase: str | None) -> Callable[[Callable[[Valid], bytes]], None]:
    """Register a function that returns the file's bytes."""

    def register(build: Callable[[Valid], bytes]) -> None:
        CASES[name] = Case(lambda valid, path: _write(path, build(valid)), phrase)

    return register


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def packed(records: Records, compression: int = zipfile.ZIP_STORED, **options: Any) -> bytes:
    """An archive in memory."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, value in options.items():
            setattr(archive, key, value)
        for name, data in records:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, data)
    return buffer.getvalue()


def directory_of(data: bytes) -> tuple[int, int]:
    """Where an archive's directory begins and ends."""
    end = data.rindex(b"PK\x05\x06")
    *_, size, start, _ = END.unpack_from(data, end)
    return start, start + size


def entry_at(data: bytes, name: str) -> int:
    """Where the directory describes an entry."""
    position = data.index(DIRECTORY, directory_of(data)[0])
    while data[position + 46 : position + 46 + len(name)] != name.encode():
        position = data.index(DIRECTORY, position + 4)
    return position


def patched(data: bytes, position: int, *values: int, form: str) -> bytes:
    """Other numbers at a position."""
    new = struct.pack(form, *values)
    return data[:position] + new + data[position + len(new) :]


def bomb(valid: Valid) -> Records:
    """Records with one weight of 200 MB of zeros."""
    return [*valid.records, ("archive/data/bomb", bytes(200 * 2**20))]


def spiteful(valid: Valid) -> bytes:
    """A pickle that torch's own safe reader takes, at the price of a gigabyte."""
    built = call(named("builtins", "bytearray"), number(10**9))
    return valid.pickled[:-1] + text("note") + built + b"s."


@_registered_zip("zip-no-pickle.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([record for record in v.records if not record[0].endswith("data.pkl")])


@_registered_zip("zip-two-pickles.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([*v.records, ("other/data.pkl", v.pickled)])


@_registered_zip("zip-same-name-twice.pth", "one name")
def _(v: Valid) -> bytes:
    import warnings

    with warnings.catch_warnings(action="ignore"):
        return packed([*v.records, ("archive/data.pkl", spiteful(v))])


@_registered_zip("zip-same-name-in-capitals.pth", "")
def _(v: Valid) -> bytes:
    return packed([("archive/DATA.PKL", spiteful(v)), *v.records])


@_registered_zip("zip-other-root-in-capitals.pth", None)
def _(v: Valid) -> bytes:
    other = [(name.replace("archive/", "other/"), data) for name, data in v.with_pickle(spiteful(v))]
    return packed([*((name.replace("data.pkl", "DATA.PKL"), data) for name, data in other), *v.records])


@_registered_zip("zip-climbing.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([(name.replace("archive/", "../"), data) for name, data in v.records])


@_registered_zip("zip-climbing-deep.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([(name.replace("archive/", "a/../../b/"), data) for name, data in v.records])


@_registered_zip("zip-absolute.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([(name.replace("archive/", "/"), data) for name, data in v.records])


@_registered_zip("zip-in-zip.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([("model.pth", packed(v.records))])


@_registered_zip("zip-as-pickle.pth", "damaged")
def _(v: Valid) -> bytes:
    return packed(v.with_pickle(packed(v.records)))


@_registered_zip("zip-deflated-pickle.pth", "compressed or encrypted")
def _(v: Valid) -> bytes:
    return packed(v.records, zipfile.ZIP_DEFLATED)


@_registered_zip("zip-bomb.pth", "compressed or encrypted")
def _(v: Valid) -> bytes:
    return packed(bomb(v), zipfile.ZIP_DEFLATED)


@_registered_zip("zip-bomb-that-says-stored.pth", "")
def _(v: Valid) -> bytes:
    data = packed(v.records, zipfile.ZIP_DEFLATED)
    for name, _ in v.records:
        data = patched(data, entry_at(data, name) + 10, 0, form="<H")
    return data


@_registered_zip("zip-larger-than-itself.pth", "claims more")
def _(v: Valid) -> bytes:
    data = packed([*v.records, ("archive/data/large", b"large")])
    return patched(data, entry_at(data, "archive/data/large") + 20, 2**31, 2**31, form="<2L")


@_registered_zip("zip-entries-overlap.pth", "")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    where = entry_at(data, "archive/data/2")
    other = struct.unpack_from("<L", data, entry_at(data, "archive/data/1") + 42)[0]
    return patched(data, where + 42, other, form="<L")


@_registered_zip("zip-entry-past-the-end.pth", "")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return patched(data, entry_at(data, "archive/data/2") + 42, len(data) - 40, form="<L")


@_registered_zip("zip-entry-far-past-the-end.pth", "")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return patched(data, entry_at(data, "archive/data/2") + 42, 2**31, form="<L")


@_registered_zip("zip-encrypted.pth", "encrypted")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return patched(data, entry_at(data, "archive/data.pkl") + 8, 1, form="<H")


@_registered_zip("zip-unknown-method.pth", "compressed|damaged")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return patched(data, entry_at(data, "archive/data.pkl") + 10, 99, form="<H")


@_registered_zip("zip-wrong-sum.pth", "CRC")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    at = data.index(b"encoder.patch_embed.proj.weight")
    return data[:at] + b"ENCODER" + data[at + 7 :]


@_registered_zip("zip-wrong-record-size.pth", "storage 0 should have")
def _(v: Valid) -> bytes:
    return packed([(n, d[:-4] if n == "archive/data/0" else d) for n, d in v.records])


@_registered_zip("zip-record-missing.pth", "storage 3")
def _(v: Valid) -> bytes:
    return packed([record for record in v.records if record[0] != "archive/data/3"])


@_registered_zip("zip-big-endian.pth", "big-endian")
def _(v: Valid) -> bytes:
    return packed([(n, b"big" if n.endswith("byteorder") else d) for n, d in v.records])


@_registered_zip("zip-byteorder-of-1-MB.pth", "big-endian")
def _(v: Valid) -> bytes:
    return packed([(n, b"\x00" * 2**20 if n.endswith("byteorder") else d) for n, d in v.records])


@_registered_zip("zip-torchscript.pth", "TorchScript")
def _(v: Valid) -> bytes:
    return packed([*v.records, ("archive/code/__torch__.py", b"import os"), ("archive/constants.pkl", b"\x80\x02).")])


@_registered_zip("zip-constants.pth", "TorchScript|cannot be read")
def _(v: Valid) -> bytes:
    return packed([*v.records, ("archive/constants.pkl", b"\x80\x02).")])


@_registered_zip("zip-cut-in-directory.pth", "cut off")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return data[: sum(directory_of(data)) // 2]


@_registered_zip("zip-cut-in-the-middle.pth", "cut off")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    return data[: len(data) // 2]


@_registered_zip("zip-cut-at-100.pth", "cut off")
def _(v: Valid) -> bytes:
    return packed(v.records)[:100]


@_registered_zip("zip-cut-by-one.pth", "cut off")
def _(v: Valid) -> bytes:
    return packed(v.records)[:-1]


@_registered_zip("zip-middle-missing.pth", "")
def _(v: Valid) -> bytes:
    data = packed(v.records)
    half = directory_of(data)[0] // 2
    return data[:half] + data[half + 1000 :]


@_registered_zip("zip-garbage-behind.pth", "")
def _(v: Valid) -> bytes:
    return packed(v.records) + b"garbage" * 20


@_registered_zip("zip-garbage-in-front.pth", None)
def _(v: Valid) -> bytes:
    return b"PK\x03\x04" + bytes(996) + packed(v.records)


@_registered_zip("zip-garbage-far-behind.pth", "cut off|damaged")
def _(v: Valid) -> bytes:
    return packed(v.records) + bytes(10**6)


def shifted(directory: bytes, distance: int) -> bytes:
    """A directory of entries that all lie elsewhere."""
    changed, position = directory, 0
    while position < len(changed):
        (offset,) = struct.unpack_from("<L", changed, position + 42)
        changed = patched(changed, position + 42, offset + distance, form="<L")
        position += 46 + sum(struct.unpack_from("<3H", changed, position + 28))
    return changed


@_registered_zip("zip-two-directories.pth", None)
def _(v: Valid) -> bytes:
    """The directory that Python finds lies right before the end; the one that torch finds, where the end says."""
    hidden, shown, count = packed(v.with_pickle(spiteful(v))), packed(v.records), len(v.records)
    (start, stop), (begin, end) = directory_of(hidden), directory_of(shown)
    # Python adds the distance between the two to every offset.
    directory = shifted(shown[begin:end], start - begin)
    last = END.pack(b"PK\x05\x06", 0, 0, count, count, stop - start, start, 0)
    return hidden[:stop] + shown[:begin] + directory + last


@_registered_zip("zip-two-zip64-directories.pth", None)
def _(v: Valid) -> bytes:
    """Python reads the long end record right before its locator; torch, the one that the locator names."""
    hidden, shown, count = packed(v.with_pickle(spiteful(v))), packed(v.records), len(v.records)
    (start, stop), (begin, end) = directory_of(hidden), directory_of(shown)

    def long_end(size: int, offset: int) -> bytes:
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)

    front = hidden[:stop] + long_end(stop - start, start)
    body = front + shown[:begin] + shifted(shown[begin:end], len(front))
    body += long_end(end - begin, len(front) + begin)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, stop, 1)
    return body + locator + END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


@_registered_zip("zip-many-entries.pth", "entries, which no model has")
def _(v: Valid) -> bytes:
    return packed([*v.records, *((f"archive/data/x{index}", b"") for index in range(20_000))])


@_registered_zip("zip-of-nothing.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([])


@_registered_zip("zip-named.safetensors", None)
def _(v: Valid) -> bytes:
    return packed(v.records)


@_registered_zip("npz.pth", "not one of torch.save")
def _(v: Valid) -> bytes:
    return packed([("weights.npy", b"\x93NUMPY")])


# ---- the old format --------------------------------------------------------------------------------------------------


def parts_of(legacy: bytes) -> list[bytes]:
    """The five pickles, and the storages."""
    parts, position = [], 0
    for _ in range(5):
        *_, (_, _, last) = pickletools.genops(legacy[position:])
        assert last is not None
        parts.append(legacy[position : position + last + 1])
        position += last + 1
    return [*parts, legacy[position:]]


def _legacy(name: str, phrase: str | None, change: Callable[[Valid, list[bytes]], Any], **options: Any) -> None:
    """Register a file of the old format whose parts are changed in place."""

    def make(valid: Valid, path: Path) -> None:
        parts = parts_of(valid.legacy)
        change(valid, parts)
        path.write_bytes(b"".join(parts))

    CASES[name] = Case(make, phrase, **options)


def _set(index: int, value: Callable[[Valid, list[bytes]], bytes]) -> Callable[[Valid, list[bytes]], None]:
    def change(valid: Valid, parts: list[bytes]) -> None:
        parts[index] = value(valid, parts)

    return change


def _legacy_entry(built: bytes) -> Callable[[Valid, list[bytes]], None]:
    return _set(3, lambda v, p: p[3][:-1] + text("note") + built + b"s.")


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


_legacy("legacy-code.pth", r"posix\.system", _legacy_entry(call(named("posix", "system"), text("true"))))
_legacy("legacy-third-pickle.pth", r"posix\.system", _set(2, lambda v, p: b"\x80\x02" + call(named("posix", "system"), _touch(v, "legacy-third-pickle.pth")) + b"."),
        payload=lambda v, n: call(named("posix", "system"), _touch(v, n)))  # fmt: skip
_legacy(
    "legacy-keys-pickle.pth",
    r"posix\.system",
    _set(4, lambda v, p: b"\x80\x02" + call(named("posix", "system"), text("true")) + b"."),
)
_legacy(
    "legacy-fifth-opcode.pth",
    r"posix\.system",
    _set(4, lambda v, p: b"\x80\x02(" + named("posix", "system") + text("true") + b"o."),
)
_legacy("legacy-cut-in-pickle.pth", "damaged", _set(3, lambda v, p: p[3][: len(p[3]) // 2]))
_legacy("legacy-cut-in-storages.pth", "cut off|do not fill", _set(5, lambda v, p: p[5][: len(p[5]) // 2]))
_legacy("legacy-cut-by-one.pth", "cut off|do not fill", _set(5, lambda v, p: p[5][:-1]))
_legacy("legacy-no-storages.pth", "cut off", _set(5, lambda v, p: b""))
_legacy("legacy-garbage-behind.pth", "cut off|do not fill", _set(5, lambda v, p: p[5] + b"garbage"))
_legacy("legacy-storage-size.pth", "storage", _set(5, lambda v, p: struct.pack("<q", 10**12) + p[5][8:]))
_legacy("legacy-storage-negative.pth", "storage", _set(5, lambda v, p: struct.pack("<q", -1) + p[5][8:]))
_legacy("legacy-other-protocol.pth", "not one of torch.save", _set(1, lambda v, p: _pickled(1002)))
_legacy("legacy-other-magic.pth", "not one of torch.save", _set(0, lambda v, p: _pickled(7)))
_legacy(
    "legacy-magic-shared.pth",
    "nests tuples",
    _set(0, lambda v, p: b"\x80\x02" + several(laughs(60, 1), b"}" + get(61) + b"Ns") + b"."),
)
_legacy("legacy-machine.pth", "big-endian", _set(2, lambda v, p: _pickled({"little_endian": False})))
_legacy("legacy-machine-list.pth", "not one of torch.save", _set(2, lambda v, p: _pickled([])))
_legacy("legacy-no-keys.pth", "storages are not those", _set(4, lambda v, p: _pickled([])))
_legacy("legacy-keys-number.pth", "storages are not those", _set(4, lambda v, p: _pickled(5)))
_legacy("legacy-keys-twice.pth", "damaged|cut off|storages are not", _set(4, lambda v, p: _twice(p[4])))
_legacy("legacy-terabyte.pth", "storages are not those|cut off", _legacy_entry(
    together(text("storage"), named("torch", "FloatStorage"), text("999"), text("cpu"), number(10**12), b"N") + b"Q"))  # fmt: skip
_legacy("legacy-part-of-a-storage.pth", "", _set(3, lambda v, p: _with_view_metadata(p[3])))
_legacy("legacy-bytearray.pth", "bytearray", _legacy_entry(call(named("builtins", "bytearray"), number(10**9))))
_legacy("legacy-memo.pth", None, _legacy_entry(b"N" + put(2**31)))


def _twice(keys: bytes) -> bytes:
    stored = pickle.loads(keys)
    return _pickled([*stored, stored[0]])


def _with_view_metadata(pickled: bytes) -> bytes:
    """The first storage as a part of itself that lies outside of it."""
    part = together(text("part"), number(10**9), number(10**12))
    changed, count = re.subn(rb"N(?=t(q.|r....)Q)", lambda _: part, pickled, count=1, flags=re.DOTALL)
    assert count
    return changed


@case("plain-pickle.pth", "not one of torch.save")
def _(valid: Valid, path: Path) -> None:
    path.write_bytes(_pickled({"model": {"weight": [0.0]}}))


@case("plain-pickle-of-code.pth", r"posix\.system", payload=lambda v, n: call(named("posix", "system"), _touch(v, n)))
def _(valid: Valid, path: Path) -> None:
    path.write_bytes(b"\x80\x02" + call(named("posix", "system"), _touch(valid, path.name)) + b".")


@case("old-pickle-of-code.pth", "neither safetensors")
def _(valid: Valid, path: Path) -> None:
    path.write_bytes(call(named("posix", "system"), _touch(valid, path.name)) + b".")


@case("pickle-long.pth", "")
def _(valid: Valid, path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"}0" * 10_000_000 + b"N.")


@case("pickle-longer.pth", "")
def _(valid: Valid, path: Path) -> None:
    pickled = b"\x80\x02" + b"X" + struct.pack("<I", 100 * 2**20)
    with path.open("wb") as file:
        file.write(pickled)
        file.truncate(200 * 2**20)


@case("zip-pickle-of-100-MB.pth", "has a pickle of")
def _(valid: Valid, path: Path) -> None:
    name, size = "archive/data.pkl", 100 * 2**20
    data = packed([(name, b"")])
    start, stop = directory_of(data)
    directory = patched(data[start:stop], 20, size, size, form="<2L")
    with path.open("wb") as file:
        file.write(data[:start])
        file.seek(start + size)  # a hole
        file.write(directory + END.pack(b"PK\x05\x06", 0, 0, 1, 1, stop - start, start + size, 0))


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors(name: str, header: Any, data: bytes = bytes(64), size: int | None = None, phrase: str = "") -> None:
    """Register a file with any header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(encoded) if size is None else size) + encoded + data
    said = phrase or "neither safetensors nor a file of torch.save"
    CASES[f"{name}.safetensors"] = Case(lambda valid, path: _write(path, content), said)


def _described(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_safetensors("st-overlap", {"a": _described(0, 64, [16]), "b": _described(0, 64, [16])})
_safetensors("st-outside", {"a": _described(0, 640, [160])})
_safetensors("st-backwards", {"a": _described(64, 0, [16])})
_safetensors("st-shape", {"a": _described(0, 64, [2**62, 2**62])})
_safetensors("st-negative", {"a": _described(0, 64, [-16])})
_safetensors("st-hole", {"a": _described(8, 64, [14])})
_safetensors("st-header-huge", b"{}", size=2**62)
_safetensors("st-header-past-end", b"{}", size=10**6)
_safetensors("st-header-zero", b"", size=0)
_safetensors("st-not-json", b"not json at all")
_safetensors("st-not-object", b"[1, 2, 3]")
_safetensors("st-not-text", b"\xff\xfe{}")
_safetensors("st-deep", b'{"a":' + b"[" * 100_000)
_safetensors("st-type", {"a": _described(0, 64, [16], "F33")})
_safetensors("st-float8", {"a": _described(0, 64, [64], "F8_E4M3")}, phrase="F8_E4M3|neither")
_safetensors("st-empty", {}, data=b"", phrase="not the weights of a Swin")
_safetensors("st-other-model", {"a": _described(0, 64, [16])}, phrase="not the weights of a Swin")
_safetensors("st-metadata", {"__metadata__": {"a": 1}})


@case("st-cut.safetensors", "neither safetensors")
def _(valid: Valid, path: Path) -> None:
    save_file(valid.state, path)
    path.write_bytes(path.read_bytes()[:-1])


@case("st-longer.safetensors", "neither safetensors")
def _(valid: Valid, path: Path) -> None:
    save_file(valid.state, path)
    path.write_bytes(path.read_bytes() + b"x")


@case("st-nan.safetensors", "NaN")
def _(valid: Valid, path: Path) -> None:
    save_file(valid.state | {STEM: torch.full_like(valid.state[STEM], float("nan"))}, path)


@case("st-integers.safetensors", "int64")
def _(valid: Valid, path: Path) -> None:
    save_file(valid.state | {STEM: valid.state[STEM].long()}, path)


# ---- other layouts ---------------------------------------------------------------------------------------------------


def _mmseg(name: str, changes: dict[str, Any]) -> None:
    def make(valid: Valid, path: Path) -> None:
        from gfm_hf import GFMConfig, GFMModel
        from gfm_hf.convert.layouts import LAYOUTS
        from gfm_hf.convert.outward import translate

        config = GFMConfig(image_size=64, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)
        state, _ = translate(GFMModel(config), LAYOUTS["mmseg"])
        state = state | changes
        torch.save({"state_dict": state, "config": {"DATA": {"IMG_SIZE": 64}}}, path)

    CASES[name] = Case(make, "downsample" if changes else None)


_mmseg("mmseg.pth", {})
_mmseg("mmseg-merging-30.pth", {"backbone.stages.0.downsample.reduction.weight": torch.zeros(16, 30)})
_mmseg("mmseg-merging-scalar.pth", {"backbone.stages.0.downsample.reduction.weight": torch.tensor(1.0)})


# ---- no weight files at all, and folders -----------------------------------------------------------------------------

BYTES = {
    "empty.pth": ("is empty", b""),
    "page.pth": ("web page", b"\n<!DOCTYPE html><html><body>Sign in</body></html>"),
    "page-xml.pth": ("web page", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    "pointer.pth": ("Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
    "archive.pth": ("compressed archive", b"\x1f\x8b\x08\x00" + zlib.compress(bytes(100))),
    "archive-tar.pth": ("neither safetensors", b"model.pth".ljust(257, b"\x00") + b"ustar".ljust(767, b"\x00")),
    "text.pth": ("neither safetensors", b"these are no weights"),
    "one-byte.pth": ("damaged", b"\x80"),
    "two-bytes.pth": ("damaged|cut off", b"PK"),
    "json.pth": ("neither safetensors", b'{"model": [1, 2, 3]}'),
    "hdf5.pth": ("neither safetensors", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "onnx.pth": ("neither safetensors", b"\x08\x07\x12\x07pytorch" + bytes(100)),
}


def _register_bytes() -> None:
    for name, (phrase, data) in BYTES.items():
        CASES[name] = Case(lambda valid, path, data=data: _write(path, data), phrase)


_register_bytes()


@case("pipe.pth", "does not exist|regular file|no file")
def _(valid: Valid, path: Path) -> None:
    os.mkfifo(path)


@case("loop.pth", "does not exist|cannot be read")
def _(valid: Valid, path: Path) -> None:
    path.symlink_to(path)


@case("link-to-device.pth", "does not exist|regular file|no file")
def _(valid: Valid, path: Path) -> None:
    path.symlink_to("/dev/zero")


@case("folder-empty.pth", "no weight file")
def _(valid: Valid, path: Path) -> None:
    path.mkdir()


@case("folder-two.pth", "2 weight files")
def _(valid: Valid, path: Path) -> None:
    path.mkdir()
    for name in ("a.pth", "b.pth"):
        write_zip(path / name, valid.records)


def _folder(name: str, phrase: str, **changes: Any) -> Callable[[Callable[[Valid, Path], None]], None]:
    """Register a folder of transformers: its config.json, and what a function adds."""

    def register(fill: Callable[[Valid, Path], None]) -> None:
        def make(valid: Valid, path: Path) -> None:
            from gfm_hf import GFMConfig, GFMForPreTraining

            config = GFMConfig(image_size=64, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)
            GFMForPreTraining(config).save_pretrained(path)
            stored = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(stored | changes))
            fill(valid, path)

        CASES[name] = Case(make, phrase)

    return register


@_folder("folder-code", "")
def _(valid: Valid, path: Path) -> None:
    (path / "model.safetensors").unlink()
    payload = call(named("posix", "system"), _touch(valid, path.name))
    write_zip(path / "pytorch_model.bin", valid.with_pickle(b"\x80\x02" + payload + b"."))


@_folder("folder-auto-map", "", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, model_type="gfm_evil")
def _(valid: Valid, path: Path) -> None:
    (path / "evil.py").write_text(f"open({valid.marker(path.name)!r}, 'w')")


@_folder("folder-nan", "NaN")
def _(valid: Valid, path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path / "model.safetensors")
    first = next(iter(state))
    save_file(
        state | {first: torch.full_like(state[first], float("nan"))}, path / "model.safetensors", {"format": "pt"}
    )


@_folder("folder-other-shape", "", embed_dim=16)
def _(valid: Valid, path: Path) -> None:
    pass


@_folder("folder-huge-config", "", embed_dim=8192)
def _(valid: Valid, path: Path) -> None:
    save_file({"note": torch.zeros(1)}, path / "model.safetensors", {"format": "pt"})


@_folder("folder-no-weights", "")
def _(valid: Valid, path: Path) -> None:
    (path / "model.safetensors").unlink()


@_folder("folder-cut", "")
def _(valid: Valid, path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


@_folder("folder-architecture-number", None, architectures=5)
def _(valid: Valid, path: Path) -> None:
    pass


@_folder("folder-architecture-list", None, architectures=[["GFMModel"]])
def _(valid: Valid, path: Path) -> None:
    pass


@_folder("folder-embed-text", "", embed_dim="many")
def _(valid: Valid, path: Path) -> None:
    pass


def _timm(name: str, size: Any) -> None:
    def make(valid: Valid, path: Path) -> None:
        path.mkdir()
        save_file(valid.state, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": size}}))

    CASES[name] = Case(make, None)


_timm("timm-size-word", [3, "large", 3])
_timm("timm-size-null", [3, None, 3])
_timm("timm-size-negative", [3, -64, 3])


# ---- the process that runs the command -------------------------------------------------------------------------------


@dataclass
class Result:
    """What a child did: what its commands said and how they ended, and what the child took for all of them."""

    runs: list[dict[str, Any]]
    peak: int
    seconds: float
    killed: str
    ran: bool = False
    left: list[str] = field(default_factory=list)


def main(folder: Path) -> None:
    """Make the files, feed each to the command, print the results."""
    import gfm_hf.convert  # noqa: F401  # once, for all children

    files = folder / "files"
    for name in ("files", "ran", "payloads", "out"):
        (folder / name).mkdir(parents=True)
    torch.set_num_threads(1)
    sys.path.append(str(folder))
    made = _child([lambda: _make(folder, files)], folder)
    if made.runs[0]["code"]:
        sys.exit(made.runs[0]["stderr"])
    idle = _child([lambda: 0], folder).peak
    results = {name: _run(folder, name, idle) for name in CASES}
    sings = {name: _sings(folder, name) for name, item in CASES.items() if item.payload}
    json.dump({"results": results, "sings": sings}, sys.stdout)


def _make(folder: Path, files: Path) -> int:
    valid = Valid.build(folder)
    for name, item in CASES.items():
        item.make(valid, files / name)
    for name, item in CASES.items():
        if item.payload:
            bare = b"\x80\x02" + item.payload(valid, name) + b"."
            (folder / "payloads" / f"{name}.bare").write_bytes(bare)
    return 0


def _run(folder: Path, name: str, idle: int) -> dict[str, Any]:
    """Both commands in a child; what was executed and left behind."""
    file, output = str(folder / "files" / name), folder / "out"
    commands = ["convert", file, str(output / name.replace(".", "-"))], ["info", file]
    result = _child([lambda arguments=arguments: _command(arguments) for arguments in commands], folder, idle)
    marker = folder / "ran" / name
    result.ran = marker.exists()
    marker.unlink(missing_ok=True)
    result.left = sorted(item.name for item in output.iterdir())
    for item in output.iterdir():
        _remove(item)
    convert, info = result.runs
    return vars(result) | {"convert": convert, "info": info}


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _command(arguments: list[str]) -> int:
    import gfm_hf_cli

    before = _fingerprint()
    code = gfm_hf_cli.main(arguments)
    if _fingerprint() != before:
        print("TAMPERED", file=sys.stderr)  # noqa: T201
    if any(name.split(".")[0] == "yacs" for name in sys.modules):
        print("TAMPERED: yacs", file=sys.stderr)  # noqa: T201
    return code


def _fingerprint() -> str:
    """What a file could have changed in the reader: attributes of its functions and classes."""
    from gfm_hf.convert import pickles, reading

    shown = []
    for module in (pickles, reading):
        for name, value in sorted(vars(module).items()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                shown.append((name, sorted((key, str(item)) for key, item in vars(value).items())))
            elif isinstance(value, types.FunctionType):
                shown.append((name, str(sorted(vars(value))), value.__defaults__, value.__kwdefaults__))
            elif isinstance(value, dict | list | set):
                shown.append((name, str(value)))
    return repr(shown)


def _sings(folder: Path, name: str) -> bool:
    """Whether an unpickler that trusts everything runs the payload: otherwise its marker would prove nothing."""
    payload = (folder / "payloads" / f"{name}.bare").read_bytes()
    marker = folder / "ran" / name
    _child([lambda: bool(pickle.loads(payload)) and 0], folder)
    deadline = time.monotonic() + 2
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return marker.exists()


def _child(works: list[Callable[[], int]], folder: Path, idle: int = 0) -> Result:
    """Fork, run one after the other, wait; where the size of an idle child is known, kill what takes too much."""
    streams = [
        (folder / f"stdout{index}", folder / f"stderr{index}", folder / f"code{index}") for index in range(len(works))
    ]
    for stream in (path for paths in streams for path in paths):
        stream.write_text("")
    child = os.fork()
    if not child:
        _become(works, streams)
    killed = ""
    while True:
        pid, _, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if not killed and idle and _resident(child) > idle + MEMORY_LIMIT:
            killed = "memory"
        if not killed and idle and _worked(child) > TIME_LIMIT_S:
            killed = "time"
        if killed:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.003)
    runs = []
    for paths in streams:
        out, err, code = (path.read_bytes().decode(errors="replace")[-3000:] for path in paths)
        runs.append({"code": int(code) if code else None, "stdout": out, "stderr": err, "tampered": "TAMPERED" in err})
    return Result(runs, usage.ru_maxrss * 1024 - idle, usage.ru_utime + usage.ru_stime, killed)


def _worked(pid: int) -> float:
    """Seconds of work: on a busy machine the clock says nothing about a file."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _become(works: list[Callable[[], int]], streams: list[tuple[Path, Path, Path]]) -> None:
    """The child: the output of each work and its exit code into files."""
    try:
        for work, (out, err, code) in zip(works, streams):
            for number_, path in enumerate((out, err), start=1):
                os.dup2(os.open(path, os.O_WRONLY), number_)
            code.write_text(str(_exit_code(work)))
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(0)


def _exit_code(work: Callable[[], int]) -> int:
    """What the interpreter would exit with."""
    try:
        return int(work())
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc(limit=-3)
        return 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
