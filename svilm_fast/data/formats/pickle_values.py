"""Plain values of a pickle, read opcode by opcode: nothing is imported, called or unpickled.

A pickle is a program. `pickle.load` runs it, and a program may import and call anything. This
reader knows only the instructions that make dictionaries, lists, texts and whole numbers.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import Any

from svilm_fast.data.errors import ListFormatError

_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # texts of Python 2
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_STORE = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}
_MARK = object()
_OPERATIONS = {each.code: each for each in pickletools.opcodes}
_BINUNICODE, _SHORT_BINUNICODE, _BINPUT, _LONG_BINPUT, _MEMOIZE = b"X\x8cqr\x94"


def plain_value(data: bytes, label: str) -> Any:
    """The value of a pickle made of dict, list, str and int. Raises ListFormatError otherwise."""
    machine = _Machine()
    place = 0
    try:
        for at, name, argument in _instructions(data, machine):
            place = at
            if name == "STOP":
                return machine.result()
            machine.step(name, argument)
    except _RefusedOpcode as error:
        raise ListFormatError(
            f"{label}, byte {place}: the pickle {error}; only dictionaries, lists, texts and whole "
            "numbers are read"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ListFormatError(
            f"{label}, byte {place}: not a whole pickle ({type(error).__name__}: {error})"
        ) from None
    raise ListFormatError(f"{label}: not a whole pickle: it has no end")


def _instructions(data: bytes, machine: _Machine) -> Iterator[tuple[int, str, Any]]:
    """Place, name and argument of the instructions; those of nearly every byte are carried out.

    They are texts, and the notes of values in the memo: `pickletools` takes four times as long.
    Raises ValueError where an instruction is unknown or cut.
    """
    place, end = 0, len(data)
    stack, memo = machine.stack, machine.memo
    stream = io.BytesIO(data)
    while place < end:
        code = data[place]
        if code == _BINUNICODE and place + 5 <= end:
            start = place + 5
            after = start + int.from_bytes(data[place + 1 : start], "little")
        elif code == _SHORT_BINUNICODE and place + 2 <= end:
            start = place + 2
            after = start + data[place + 1]
        elif code == _BINPUT and place + 2 <= end and stack and stack[-1] is not _MARK:
            memo[data[place + 1]] = stack[-1]
            place += 2
            continue
        elif code == _LONG_BINPUT and place + 5 <= end and stack and stack[-1] is not _MARK:
            memo[int.from_bytes(data[place + 1 : place + 5], "little")] = stack[-1]
            place += 5
            continue
        elif code == _MEMOIZE and stack and stack[-1] is not _MARK:
            memo[len(memo)] = stack[-1]
            place += 1
            continue
        else:
            after = end + 1
        if after <= end:
            stack.append(str(data[start:after], "utf-8", "surrogatepass"))
            place = after
            continue
        operation = _OPERATIONS.get(chr(code))
        if operation is None:
            raise ValueError(f"at position {place}, opcode {bytes([code])!r} unknown")
        stream.seek(place + 1)
        argument = None if operation.arg is None else operation.arg.reader(stream)
        yield place, operation.name, argument
        place = stream.tell()


class _RefusedOpcode(Exception):
    pass


class _Machine:
    """The stack and the memo of the pickle machine."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError("its end leaves no single value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _TEXTS:
            stack.append(argument)
        elif name in _FETCH:
            stack.append(self.memo[int(argument)])
        elif name in _STORE:
            self.memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in _NUMBERS:
            if isinstance(argument, bool):
                raise _RefusedOpcode(f"holds {argument}")
            stack.append(argument)
        elif name in _BYTES:
            # pickletools decodes these bytes as Latin-1.
            stack.append(argument.encode("latin-1").decode("utf-8"))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("LIST", "DICT"):
            items = self._marked()
            stack.append(items if name == "LIST" else _paired(items, {}))
        elif name in ("APPEND", "APPENDS"):
            items = self._marked() if name == "APPENDS" else [self._pop()]
            self._target(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            _paired(items, self._target(dict))
        elif name not in ("PROTO", "FRAME"):
            raise _RefusedOpcode(f"holds the instruction {name}")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def _top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self.stack[-1]

    def _target(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"items are added to something that is no {kind.__name__}")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _paired(items: list[Any], into: dict[Any, Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key has no value")
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, str | int):
            raise ValueError("a key is no text or number")
        if key in into:
            raise _RefusedOpcode(f"holds the key {key!r} twice")
        into[key] = value
    return into
