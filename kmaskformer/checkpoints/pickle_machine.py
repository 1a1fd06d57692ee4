"""A pickle machine that calls nothing but what it is given.

Python's own unpickler can be told which names it may import, but it still sets attributes, makes objects and extends
whatever it has. This machine interprets the opcodes itself, on numbers, strings and plain containers; a global is a
token that only a table turns into a call. Long byte strings stay views of the file, so that arrays are never copied.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN
from kmaskformer.checkpoints.pickle_cursor import PickleCursor

HIGHEST_PROTOCOL = 5
# A checkpoint takes about 50 opcodes per array. The limit bounds the memory that one-byte opcodes can fill.
MOST_OPCODES = 2_000_000

_KEYS = (str, bytes, int, float, type(None))


@dataclass(frozen=True, eq=False)
class AllowedGlobal:
    """A global that a pickle may name.

    Args:
        name: `module.name`.
        call: What a call of it makes; None if it may be passed on but not called.
    """

    name: str
    call: Callable[..., Any] | None = None


class RefusedError(ValueError):
    """A call asks for something that the table allows, in a form that it does not; the text is its name."""


class Restorable:
    """An object on the machine's stack whose state the pickle may set."""

    def set_state(self, state: Any) -> None:
        """Takes the state, or raises ValueError."""
        raise NotImplementedError


def run_pickle(
    data: memoryview,
    source: str,
    allowed: Mapping[tuple[str, str], AllowedGlobal],
    persistent_load: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Interprets one pickle.

    Args:
        data: Bytes that begin with the pickle.
        source: What is read, for messages.
        allowed: What the pickle may name, by module and name.
        persistent_load: Makes the object for a persistent id; None refuses persistent ids.

    Returns:
        The pickle's value and the number of bytes that it takes.

    Raises:
        CheckpointError: If the pickle names anything else, or is truncated or corrupt.
    """
    machine = _Machine(PickleCursor(data, source), allowed, persistent_load)
    try:
        return machine.run(), machine.cursor.position
    except CheckpointError:
        raise
    except RefusedError as error:
        raise refuse(source, str(error)) from error
    except (ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
        position = machine.cursor.position
        raise CheckpointError(
            source, "a pickle of arrays", f"{type(error).__name__}: {error} (at byte {position})", DOWNLOAD_AGAIN
        ) from error


def refuse(source: str, name: str) -> CheckpointError:
    """The error for a pickle that asks for more than arrays and plain containers."""
    return CheckpointError(
        source,
        "a pickle that holds only arrays, numbers, strings and plain containers",
        f"it asks for `{name}`",
        "Nothing of it ran. If you trust the file, open it where it was made and save only its dictionary of weights, "
        "for instance `torch.save(model.state_dict(), path)` or safetensors.",
    )


class _Machine:
    def __init__(
        self,
        cursor: PickleCursor,
        allowed: Mapping[tuple[str, str], AllowedGlobal],
        persistent_load: Callable[[Any], Any] | None,
    ) -> None:
        self.cursor = cursor
        self.allowed = allowed
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPCODES):
            code = self.cursor.take(1)[0]
            if code == ord("."):
                if len(self.stack) != 1 or self.marks:
                    raise ValueError(f"{len(self.stack)} values at the end")
                return self.stack.pop()
            self.step(code)
        raise ValueError(f"more than {MOST_OPCODES} opcodes")

    def step(self, code: int) -> None:
        if code in _VALUES:
            self.stack.append(_VALUES[code](self.cursor))
        elif code in _ACTIONS:
            _ACTIONS[code](self)
        else:
            self.refuse_opcode(code)

    def refuse_opcode(self, code: int) -> None:
        opcode = pickletools.code2op.get(chr(code))
        if opcode is None:
            raise ValueError(f"unknown opcode 0x{code:02x}")
        name = f"the opcode {opcode.name}"
        if opcode.name == "INST":
            name = f"{_printable(self.cursor.line())}.{_printable(self.cursor.line())}"
        elif opcode.name in ("NEWOBJ", "NEWOBJ_EX", "OBJ"):
            made = [value.name for value in self.stack[-3:] if isinstance(value, AllowedGlobal)]
            name = f"an object of {made[0]}" if made else name
        raise refuse(self.cursor.source, name)

    # The stack.

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise ValueError("a mark in place of a value")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_several(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def top(self, kind: type) -> Any:
        if (self.marks and self.marks[-1] == len(self.stack)) or type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} to add to")
        return self.stack[-1]

    # Containers.

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def add(self, values: list[Any]) -> None:
        self.top(set).update(map(_key, values))

    def set_items(self, values: list[Any]) -> None:
        self.top(dict).update(pairs(values))

    def save(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    # Globals and what is made of them.

    def find(self, module: Any, name: Any) -> None:
        found = self.allowed.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            raise refuse(self.cursor.source, f"{_printable(module)}.{_printable(name)}")
        self.stack.append(found)

    def reduce(self) -> None:
        function, arguments = self.pop_several(2)
        if not isinstance(function, AllowedGlobal) or type(arguments) is not tuple:
            raise ValueError("a call of something that is not a function")
        if function.call is None:
            raise refuse(self.cursor.source, f"{function.name}()")
        self.stack.append(function.call(*arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Restorable):
            target.set_state(state)
        elif type(target) is not dict:  # Attributes of a dictionary, such as `_metadata` of a state dict, are dropped.
            name = target.name if isinstance(target, AllowedGlobal) else type(target).__name__
            raise refuse(self.cursor.source, f"attributes of {name}")

    def persistent(self) -> None:
        if self.persistent_load is None:
            raise refuse(self.cursor.source, "a persistent id, which only PyTorch's own files have")
        self.stack.append(self.persistent_load(self.pop()))

    def check_protocol(self) -> None:
        protocol = self.cursor.number("<B")
        if protocol > HIGHEST_PROTOCOL:
            raise ValueError(f"pickle protocol {protocol}")


def pairs(values: list[Any]) -> dict[Any, Any]:
    """Dictionary of alternating keys and values. Keys are scalars: a nested tuple could take forever to hash."""
    if len(values) % 2:
        raise ValueError("a key without a value")
    return dict(zip(map(_key, values[::2]), values[1::2], strict=True))


def _key(value: Any) -> Any:
    if not isinstance(value, _KEYS):
        raise ValueError(f"a key of type {type(value).__name__}")
    return value


def _printable(name: Any) -> str:
    text = name.decode("latin1") if isinstance(name, bytes) else name
    return clip(text)[1:-1] if isinstance(text, str) else clip(text)


_VALUES: dict[int, Callable[[PickleCursor], Any]] = {
    ord("N"): lambda cursor: None,
    0x88: lambda cursor: True,
    0x89: lambda cursor: False,
    ord("I"): PickleCursor.integer_line,
    ord("L"): PickleCursor.integer_line,
    ord("J"): lambda cursor: cursor.number("<i"),
    ord("K"): lambda cursor: cursor.number("<B"),
    ord("M"): lambda cursor: cursor.number("<H"),
    0x8A: lambda cursor: cursor.integer(cursor.number("<B")),
    0x8B: lambda cursor: cursor.integer(cursor.number("<i")),
    ord("F"): lambda cursor: float(cursor.line()),
    ord("G"): lambda cursor: cursor.number(">d"),
    ord("S"): PickleCursor.quoted_line,
    ord("T"): lambda cursor: cursor.python2_text(cursor.number("<i")),
    ord("U"): lambda cursor: cursor.python2_text(cursor.number("<B")),
    ord("B"): lambda cursor: cursor.raw(cursor.number("<I")),
    ord("C"): lambda cursor: cursor.raw(cursor.number("<B")),
    0x8E: lambda cursor: cursor.raw(cursor.number("<Q")),
    0x96: lambda cursor: cursor.raw(cursor.number("<Q")),
    ord("V"): PickleCursor.escaped_line,
    ord("X"): lambda cursor: cursor.text(cursor.number("<I")),
    0x8C: lambda cursor: cursor.text(cursor.number("<B")),
    0x8D: lambda cursor: cursor.text(cursor.number("<Q")),
    ord("}"): lambda cursor: {},
    ord("]"): lambda cursor: [],
    ord(")"): lambda cursor: (),
    0x8F: lambda cursor: set(),
}

_ACTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _Machine.check_protocol,
    0x95: lambda machine: machine.cursor.number("<Q"),
    ord("("): lambda machine: machine.marks.append(len(machine.stack)),
    ord("0"): lambda machine: machine.pop(),
    ord("1"): lambda machine: machine.pop_to_mark(),
    ord("2"): lambda machine: machine.stack.append(machine.stack[-1]),
    ord("l"): lambda machine: machine.stack.append(machine.pop_to_mark()),
    ord("t"): lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    ord("d"): lambda machine: machine.stack.append(pairs(machine.pop_to_mark())),
    0x85: lambda machine: machine.stack.append(tuple(machine.pop_several(1))),
    0x86: lambda machine: machine.stack.append(tuple(machine.pop_several(2))),
    0x87: lambda machine: machine.stack.append(tuple(machine.pop_several(3))),
    0x91: lambda machine: machine.stack.append(frozenset(map(_key, machine.pop_to_mark()))),
    ord("a"): lambda machine: machine.append(machine.pop_several(1)),
    ord("e"): lambda machine: machine.append(machine.pop_to_mark()),
    ord("s"): lambda machine: machine.set_items(machine.pop_several(2)),
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    0x90: lambda machine: machine.add(machine.pop_to_mark()),
    ord("p"): lambda machine: machine.save(int(machine.cursor.line())),
    ord("q"): lambda machine: machine.save(machine.cursor.number("<B")),
    ord("r"): lambda machine: machine.save(machine.cursor.number("<I")),
    0x94: lambda machine: machine.save(len(machine.memo)),
    ord("g"): lambda machine: machine.stack.append(machine.memo[int(machine.cursor.line())]),
    ord("h"): lambda machine: machine.stack.append(machine.memo[machine.cursor.number("<B")]),
    ord("j"): lambda machine: machine.stack.append(machine.memo[machine.cursor.number("<I")]),
    ord("c"): lambda machine: machine.find(str(machine.cursor.line(), "utf-8"), str(machine.cursor.line(), "utf-8")),
    0x93: lambda machine: machine.find(*machine.pop_several(2)),
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
