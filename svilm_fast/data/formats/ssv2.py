"""Something-Something v2: records with a template and the objects that fill it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import Texts, checked, field, once, read_json, shown


def read(paths: Sequence[str], notes: Notes, *, extension: str = "webm") -> Rows:
    """Read `labels.json` ({template: number}) and `train.json` or `validation.json`.

    The label of a row is the template without its brackets, its caption the record's own text, and
    its video `<id>.webm`. `test.json` has ids only and is refused.

    extension: of the files.
    """
    given = [path for path in paths if os.path.basename(path).lower() == "labels.json"]
    records = [path for path in paths if path not in given]
    if len(given) != 1 or len(records) != 1:
        raise ListFormatError(
            f"expected labels.json and one file of records, got {', '.join(paths) or 'no files'}"
        )
    classes = _classes(given[0])
    names: dict[str, str] = {}  # of the templates
    seen: dict[str, int] = {}
    texts_of = Texts(records[0], "template", "label")
    for place, record in enumerate(checked(read_json(records[0]), list, records[0])):
        template, text = texts_of(record, place)
        video = record.get("id")
        if isinstance(video, bool) or not isinstance(video, str | int) or not str(video).strip():
            label = f"{records[0]}, [{place}], field 'id'"
            raise ListFormatError(f"{label}: expected a number, found {shown(video)}")
        if seen.setdefault(str(video), place) != place:
            once(seen, str(video), place, f"{records[0]}, [{place}], field 'id'")
        name = names.get(template) or without_brackets(template)
        if name not in classes:
            swapped = without_brackets(text) in classes
            hint = "; the fields label and template seem to be swapped" if swapped else ""
            raise ListFormatError(
                f"{records[0]}, [{place}], field 'template': {shown(template)} is not in "
                f"{given[0]}{hint}"
            )
        names[template] = name
        out: dict[str, Any] = {"video": f"{video}.{extension}", "label": name, "caption": text}
        if "placeholders" in record:
            label = f"{records[0]}, [{place}]"
            out["placeholders"] = field(record, "placeholders", list, label)
        yield out
    notes["classes in labels.json"] = len(classes)


def without_brackets(template: str) -> str:
    """`Pushing [something] left` as labels.json writes it: `Pushing something left`."""
    return template.replace("[", "").replace("]", "").strip()


def _classes(path: str) -> dict[str, int]:
    """The classes by name, numbered from 0 without gaps."""
    classes: dict[str, int] = {}
    for name, number in checked(read_json(path), dict, path).items():
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        classes[without_brackets(name)] = checked(number, int, f"{path}, {name!r}")
    if not classes or sorted(classes.values()) != list(range(len(classes))):
        raise ListFormatError(
            f"{path}: the classes are not numbered from 0 without gaps or repeats"
        )
    return classes
