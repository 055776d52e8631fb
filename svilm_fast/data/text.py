"""Captions as they are used everywhere: packing, training, evaluation and tokenizers.

`clean` is the one place that decides what a caption's text is. A caption of ordinary characters is
left as it is, byte for byte.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

from svilm_fast.data.errors import DataError, SampleJsonError

# Text crawled from pages is often escaped twice ("&amp;quot;").
_UNESCAPES = 3
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Colours and the like: ESC, [, parameters, a letter (ECMA-48, 5.4).
_SEQUENCES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
_START = re.compile("^[\\s\ufeff]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
# Letters and symbols by category that show nothing: Hangul fillers, the blank Braille cell, and
# the sign that stands for a lost character.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0" + _REPLACEMENT
# Controls, formats, surrogates, private and unassigned characters; separators; marks without a base
_INVISIBLE = ("C", "Z", "M")


def clean(text: str) -> str:
    """`text` without HTML entities, control characters and lone surrogates.

    Entities become their characters. Control characters other than tab, newline and carriage
    return are left out, and ANSI control sequences as a whole. Half a surrogate pair, as truncated
    JSON holds it, becomes U+FFFD. White space around the text is removed, and so are byte
    order marks before it.
    """
    if text.isprintable() and "&" not in text:
        return text.strip()
    for _ in range(_UNESCAPES if "&" in text else 0):
        text = html.unescape(text)
    text = _CONTROLS.sub("", _SEQUENCES.sub("", text))
    text = _SURROGATES.sub(_REPLACEMENT, text)
    return _START.sub("", text).rstrip()


def is_damaged(text: str) -> bool:
    """Whether `text` holds half a surrogate pair or a control character, which `clean` removes."""
    return bool(_SURROGATES.search(text) or _CONTROLS.search(text.strip()))


def is_visible(text: str) -> bool:
    """Whether any character of `text` can be seen: zero-width and format characters cannot."""
    return any(c not in _BLANK and unicodedata.category(c)[0] not in _INVISIBLE for c in text)


def decode_utf8(
    data: bytes, label: str, kind: type[DataError], *, line: int = 1, start: int = 0
) -> str:
    """UTF-8 text, a byte order mark before it removed.

    line, start: number of the first line and offset of the first byte, where `data` is a part of a
    file.

    Raises `kind` with the line and the byte for anything else: bytes of another encoding would
    become other characters.
    """
    try:
        return data.decode("utf-8" if start else "utf-8-sig")
    except UnicodeDecodeError as error:
        if not start and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            what = "it begins with the byte order mark of UTF-16"
        else:
            line += data.count(b"\n", 0, error.start)
            what = f"line {line}, byte 0x{data[error.start]:02x} at {start + error.start}"
        raise kind(f"{label}: not UTF-8 text ({what}): save it as UTF-8") from None


def storable(value: Any) -> Any:
    """A JSON value whose texts can be written as UTF-8: lone surrogates become U+FFFD.

    Raises SampleJsonError for hundreds of levels of nesting.
    """
    try:
        return _storable(value)
    except RecursionError:
        raise SampleJsonError("lists or objects are nested too deeply") from None


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub(_REPLACEMENT, value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value
