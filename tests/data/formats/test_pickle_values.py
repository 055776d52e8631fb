"""A pickle is read opcode by opcode: plain values, or an error with the byte; nothing runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import random

import pytest

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats.pickle_values import plain_value


class Harmful:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_imports_is_refused_with_its_byte_and_never_run(tmp_path, protocol):
    target = str(tmp_path / "made")
    data = pickle.dumps({"vid1": [["a"]], "vid2": Harmful(target)}, protocol=protocol)
    with pytest.raises(ListFormatError) as error:
        plain_value(data, "c.pkl")
    importing = ("GLOBAL", "STACK_GLOBAL")
    place = next(at for opcode, _, at in pickletools.genops(data) if opcode.name in importing)
    assert f"c.pkl, byte {place}: the pickle holds the instruction" in str(error.value)
    assert not os.path.exists(target)


@pytest.mark.parametrize(
    "value", [(1, 2), None, True, 1.5, b"bytes", {1, 2}, {"a": [frozenset()]}, bytearray(b"a")]
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_other_kinds_of_values_are_refused(value, protocol):
    with pytest.raises(ListFormatError, match=r"byte \d+"):
        plain_value(pickle.dumps([value], protocol=protocol), "c.pkl")


def test_texts_of_python_2():
    data = b"(dp0\nS'vid1'\np1\n(lp2\n(lp3\nS'a \\'dog\\''\np4\naas."
    assert plain_value(data, "c.pkl") == {"vid1": [["a 'dog'"]]}
    assert plain_value(b"\x80\x02]U\x05caf\xc3\xa9a.", "c.pkl") == ["café"]
    with pytest.raises(ListFormatError, match="a key has no value"):
        plain_value(b"(S'vid1'\nI5\nI6\nd.", "c.pkl")


def test_random_plain_values_equal_those_of_pickle():
    draw = random.Random(0)

    def value(depth):
        kind = draw.choice(["int", "str", "list", "dict"] if depth else ["int", "str"])
        if kind == "int":
            return draw.choice([0, -1, 255, 65_536, 2**31, -(2**70)])
        if kind == "str":
            return draw.choice(["", "a", "é", "x" * 300, 'quo"te\n'])
        size = draw.randrange(4)
        if kind == "list":
            return [value(depth - 1) for _ in range(size)]
        return {f"k{n}": value(depth - 1) for n in range(size)}

    for _ in range(500):
        made = value(4)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert plain_value(pickle.dumps(made, protocol=protocol), "x") == made


def test_damaged_pickles_end_in_the_same_error():
    draw = random.Random(1)
    whole = pickle.dumps({f"vid{n}": [["a", "dog"], ["a"]] for n in range(5)}, protocol=2)
    for size in range(len(whole)):
        with pytest.raises(ListFormatError):
            plain_value(whole[:size], "x")
    refused = 0
    for _ in range(3000):
        data = bytearray(whole)
        data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            plain_value(bytes(data), "x")
        except ListFormatError:
            refused += 1
    assert refused > 500
