"""Walks a pickle of torch.save without building anything but numbers, texts and containers.

A pickle is a program. This reads its instructions one by one and acts on those that a checkpoint is made of; there is
no way from here to an object, a function or a type of Python. Tensors become descriptions. What a checkpoint does not
need (other instructions, other names, keys that are containers, copies of one thing) is refused with its name.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


# A Swin-L with its optimizer has 1 MiB and 200,000 instructions.
MAX_BYTES = 8 * 2**20
MAX_STEPS = 2_000_000
MAX_INTEGER = 2**63
# The one larger number: what files in the old format begin with.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
SCALARS = (str, int, float, bool, type(None))
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


class PickleError(ValueError):
    """A pickle is damaged or wants what no weights need; the message continues a sentence about the file."""


@dataclass(frozen=True)
class Storage:
    """A block of numbers, by name."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that a pickle may use, and what it stands for here."""

    kind: str
    dtype: torch.dtype | None = None


GLOBALS = {
    "collections.OrderedDict": _Global("dictionary"),
    # The configuration of the authors' code, without that code.
    "yacs.config.CfgNode": _Global("dictionary"),
    "builtins.set": _Global("set"),
    "__builtin__.set": _Global("set"),
    "torch.Size": _Global("size"),
    "torch._utils._rebuild_tensor_v2": _Global("tensor"),
    "torch._utils._rebuild_parameter": _Global("parameter"),
    **{
        f"{module}.{name}": _Global("storage", dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in STORAGE_TYPES.items()
    },
}
_MARK = object()


@dataclass
class Walked:
    """What one pickle holds.

    Attributes:
        content: Dictionaries, lists, tuples, scalars, and `TensorView` for tensors. Sets are lists.
        storages: The storages that its tensors view, by key.
        length: Bytes up to its end.
    """

    content: Any
    storages: dict[str, Storage]
    length: int


def walk(data: bytes) -> Walked:
    """Walk the pickle at the start of some bytes.

    Raises:
        PickleError: It is damaged, or holds something that no weights need.
    """
    machine = _Machine()
    try:
        for steps, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if steps > MAX_STEPS or (position or 0) > MAX_BYTES:
                raise PickleError("has a pickle of millions of steps, a thousand times those of weights")
            if opcode.name == "STOP":
                return Walked(machine.pop(), machine.storages, int(position or 0) + 1)
            machine.step(opcode.name, argument)
    except PickleError:
        raise
    # Anything else that goes wrong inside the walk is an instruction without what it works on.
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise PickleError(f"is damaged: its pickle cannot be followed ({shown(str(error))})") from error
    raise PickleError("is damaged or cut off: its pickle has no end")


def shown(value: Any, limit: int = 80) -> str:
    """A value from a file for a message: short, in one line, without control characters."""
    if not isinstance(value, SCALARS):
        return type(value).__name__
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        return "a huge number"
    text = value if isinstance(value, str) else repr(value)
    text = text[: limit + 1]
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


class _Machine:
    """The pickle machine, as far as checkpoints need it."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # What was copied once; a second copy of the same thing is how small files become large.
        self._copied: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise PickleError("is damaged: its pickle cannot be followed")
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in NUMBERS:
            self._stack.append(self._number(argument))
        elif name in TEXTS:
            self._stack.append(argument)
        elif name in HANDLERS:
            HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"uses the pickle instruction {name}, which weights do not need; nothing was run")

    def _number(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= MAX_INTEGER and value != LEGACY_MAGIC:
            raise PickleError("holds a whole number beyond 64 bits")
        return value

    def _to_mark(self) -> list[Any]:
        items = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    # ---- containers

    def _tuple(self, count: int | None) -> None:
        items = self._to_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        for item in items:
            if isinstance(item, tuple) and any(isinstance(inner, tuple) for inner in item):
                raise PickleError("nests tuples, which weights do not need")
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise PickleError("is damaged: its pickle cannot be followed")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("is damaged: its pickle cannot be followed")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, SCALARS):
                raise PickleError(f"has a {type(key).__name__} as the key of a dictionary, which weights do not need")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    # ---- names and calls

    def _name(self, module: Any, name: Any) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
        if full not in GLOBALS:
            raise PickleError(f"wants to run {shown(full)}, which weights do not need; nothing was run")
        self._stack.append(GLOBALS[full])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._name(module, name)

    def _call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise PickleError("wants to run what is no function; nothing was run")
        makers: dict[str, Callable[[tuple[Any, ...]], Any]] = {
            "dictionary": self._make_dictionary,
            "set": self._make_set,
            "size": self._make_size,
            "tensor": _make_tensor,
            "parameter": _make_parameter,
        }
        if function.kind not in makers:
            raise PickleError("wants to run a type of storage; nothing was run")
        self._stack.append(makers[function.kind](arguments))

    def _make_dictionary(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        if arguments:
            raise PickleError("makes a dictionary from another one, which weights do not need")
        return {}

    def _make_set(self, arguments: tuple[Any, ...]) -> list[Any]:
        items = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(items, list) or not all(isinstance(item, SCALARS) for item in items):
            raise PickleError("holds a set of something else than texts and numbers")
        self._copy_once(items)
        return items

    def _make_size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        if len(arguments) != 1 or not isinstance(arguments[0], tuple):
            raise PickleError("is damaged: a size is no tuple")
        return arguments[0]

    def _copy_once(self, value: Any) -> None:
        if id(value) in self._copied and value:
            raise PickleError("copies one thing again and again, which weights do not need")
        self._copied[id(value)] = value  # kept, so that no other thing gets its identity

    def _build(self) -> None:
        """Attributes of dictionaries (`_metadata` of state dicts, flags of configurations) are left out."""
        state, target = self.pop(), self._stack[-1]
        if not isinstance(target, dict) or not isinstance(state, dict):
            raise PickleError("sets attributes of something else than a dictionary; nothing was run")
        self._copy_once(state)

    def _persistent(self) -> None:
        pid = self.pop()
        fits = isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"
        if not fits or not isinstance(pid[1], _Global) or pid[1].dtype is None:
            raise PickleError("is damaged: a storage is not described as torch does")
        key, numel = pid[2], pid[4]
        # The sixth part, a view of another storage, was given up before the first Swin.
        if not isinstance(key, str) or type(numel) is not int or numel < 0 or pid[5:] not in ((), (None,)):
            raise PickleError("is damaged: a storage is not described as torch does")
        storage = Storage(key, pid[1].dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleError(f"is damaged: storage {shown(key)} is described twice, differently")
        self._stack.append(storage)

    # ---- memory

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        self._stack.append(self._memo[index])


def _make_tensor(arguments: tuple[Any, ...]) -> TensorView:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise PickleError("is damaged: a tensor is not described as torch does")
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or len(shape) > 8
        or not all(type(number) is int and number >= 0 for number in numbers)
    ):
        raise PickleError("is damaged: a tensor has impossible sizes or strides")
    return TensorView(storage, offset, shape, stride)


def _make_parameter(arguments: tuple[Any, ...]) -> TensorView:
    if not arguments or not isinstance(arguments[0], TensorView):
        raise PickleError("is damaged: a parameter is no tensor")
    return arguments[0]


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine._tuple(None),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": lambda machine, _: machine._append([machine.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._to_mark()),
    "ADDITEMS": lambda machine, _: machine._append(machine._to_mark()),
    "SETITEM": lambda machine, _: machine._set_item(),
    "SETITEMS": lambda machine, _: machine._set_items(machine._to_mark()),
    "GLOBAL": lambda machine, argument: machine._global(argument),
    "STACK_GLOBAL": lambda machine, _: machine._stack_global(),
    "REDUCE": lambda machine, _: machine._call(),
    "NEWOBJ": lambda machine, _: machine._call(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._persistent(),
    "PUT": lambda machine, argument: machine._remember(int(argument)),
    "BINPUT": lambda machine, argument: machine._remember(argument),
    "LONG_BINPUT": lambda machine, argument: machine._remember(argument),
    "MEMOIZE": lambda machine, _: machine._remember(len(machine._memo)),
    "GET": lambda machine, argument: machine._recall(int(argument)),
    "BINGET": lambda machine, argument: machine._recall(argument),
    "LONG_BINGET": lambda machine, argument: machine._recall(argument),
}
