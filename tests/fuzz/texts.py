"""Strategies that several targets share: odd texts, odd JSON, damaged bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# fmt: off
_PIECES = [
    "a red circle", "the dog", " ", "\n", "\t", "\0", "\x1b[31m", "\x9b2J", "\u200b", "\ufeff",
    "\ud83d", "\udc00", "é", "e\u0301", "ﬁ", "你好", "👩\u200d👩", "&amp;", "&amp;quot;", "&#0;",
    "&#xd800;", "&lt;b&gt;", "<pad>", "<start>", "<end>", "[bold]", "{x}", "%s", "''", '"', ",",
    "\\", "../", "/etc/passwd", "²", "٣", "İ", "ß", "\u202e", "a" * 300, "\u3164", "\u2800", "'s",
    "n't", "don't", "-", "—", "...", "1/2", "#",
]
_WORDS = (
    "a an the red blue small dog cat man woman people runs jumps over on and two".split()  # noqa: SIM905
)
# fmt: on
# Any characters, including lone surrogates, mixed with strings that often cause faults.
TEXTS = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=8)), max_size=12).map("".join),
    st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join),
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**26, 10**400, 0.5, 1e308, -0.0]),
    st.floats(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with flipped, cut, repeated or inserted bytes."""
    raw = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "repeat", "insert"]))
        if kind == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and raw:
            raw[at] = draw(st.sampled_from([0, 1, 0x20, 0x2D, 0x30, 0x37, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + draw(st.integers(1, 40))]
        elif kind == "repeat":
            piece = raw[at : at + draw(st.integers(1, 200))]
            raw[at:at] = piece * draw(st.sampled_from([1, 1, 3, 50]))
        else:
            raw[at:at] = draw(st.binary(max_size=12))
    return bytes(raw)


def _paths(value: Any, here: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value; its own, the empty path, is first."""
    items: list[tuple] = [here]
    pairs = value.items() if isinstance(value, dict) else []
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        items += _paths(inner, (*here, key))
    return items


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """The bytes of a JSON document with values replaced, removed, added, nested or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(_paths(value)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(JSON)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "number", "wrap", "rename"]))
        if kind == "replace":
            holder[path[-1]] = draw(JSON)
        elif kind == "remove":
            del holder[path[-1]]
        elif kind == "number":
            holder[path[-1]] = draw(NUMBERS)
        elif kind == "wrap":
            holder[path[-1]] = [holder[path[-1]]]
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = holder.pop(path[-1])
    text = json.dumps(value)
    deep = draw(st.integers(0, 40))
    if deep == 0:
        depth = draw(st.sampled_from([50, 900, 1100, 50_000]))
        text = "[" * depth + text + "]" * draw(st.sampled_from([0, depth]))
    raw = text.encode()
    return draw(damaged(raw)) if draw(st.booleans()) else raw


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
