"""Labels, questions and answers that a sample's json or list row may carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from svilm_fast.data import text
from svilm_fast.data.errors import AnnotationError

ANNOTATIONS = ("label", "question", "answers")

Label = str | int

_EXPECTED = {
    "label": "a text, a whole number, or a list of them",
    "question": "a text",
    "answers": "a text or a list of texts",
}


class Annotations(NamedTuple):
    """What a sample is labelled with; `answers` is empty where it has none."""

    label: Label | list[Label] | None
    question: str | None
    answers: list[str]


def to_columns(record: Mapping[str, Any]) -> dict[str, bytes]:
    """The annotations of a sample as JSON, empty where it has none, as an index keeps them.

    `answers` are also read from `answer`. Texts are cleaned (`text.clean`); an empty one counts as
    none, and a whole number as the text of an answer. A value of another kind becomes an object,
    which `from_column` refuses: the sample stays usable where nobody reads its annotations.
    """
    answers = record.get("answers")
    given = {
        "label": record.get("label"),
        "question": record.get("question"),
        "answers": record.get("answer") if answers is None else answers,
    }
    return {name: _encoded(name, value) for name, value in given.items()}


def from_column(name: str, encoded: str, sample: str) -> Any:
    """The value of an annotation, None where there is none. Raises AnnotationError."""
    value = json.loads(encoded) if encoded else None
    if isinstance(value, dict):
        raise AnnotationError(
            f"{sample}: {name}={value['found']} is not read: expected {_EXPECTED[name]}"
        )
    return value


def _encoded(name: str, value: Any) -> bytes:
    if value is None or value == [] or (isinstance(value, str) and not text.clean(value)):
        return b""
    parts = value if isinstance(value, list) and name != "question" else [value]
    read = [_part(name, part) for part in parts]
    if not read or None in read:
        return json.dumps({"found": text.storable(f"{value!r:.60}")}).encode()
    alone = name == "question" or (name == "label" and not isinstance(value, list))
    return json.dumps(read[0] if alone else read).encode()


def _part(name: str, value: Any) -> Label | None:
    """A label or text; None for anything else."""
    if isinstance(value, str):
        return text.clean(value) or None
    if isinstance(value, bool) or not isinstance(value, int) or name == "question":
        return None
    return value if name == "label" else str(value)
