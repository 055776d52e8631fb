"""The classes of a data set, and the class of each of its samples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.data.errors import AnnotationError, ListFormatError
from svilm_fast.data.formats.common import once, read_lines
from svilm_fast.data.lists import rows_of_samples
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tables import column_name

log = logging.getLogger(__name__)

DEFAULT_FIELD = "label"
_SHOWN = 8  # classes in a message
UNKNOWN = -1  # the class of a label that is not among the classes


@dataclass(frozen=True)
class ClassNames:
    """Distinct classes; the place of a name is the number of its class."""

    names: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each class."""
        return {name: place for place, name in enumerate(self.names)}

    @property
    def sha256(self) -> str:
        """SHA-256 of the names in their order, as a JSON list in UTF-8."""
        text = json.dumps(list(self.names), ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, labels: Iterable[str]) -> np.ndarray:
        """Return the classes of labels, int64 [n]; UNKNOWN for those that are not among them."""
        return np.array([self.index.get(label, UNKNOWN) for label in labels], dtype=np.int64)

    @classmethod
    def of(cls, labels: Iterable[str]) -> ClassNames:
        """Return the distinct labels in sorted order; whole numbers are sorted as numbers.

        Raises UserError for fewer than two.
        """
        found = set(labels)
        if len(found) < 2:
            raise UserError(
                f"the samples have {len(found)} different labels: recognition needs at least two "
                "(docs/tasks/action.md)"
            )
        numbers = all(label.isdecimal() for label in found)
        return cls(tuple(sorted(found, key=(lambda each: (int(each), each)) if numbers else str)))

    @classmethod
    def read(cls, path: str | Path) -> ClassNames:
        """Read a text file with one class a line. Raises ListFormatError."""
        seen: dict[str, int] = {}
        for line, name in read_lines(str(path)):
            once(seen, name, line, f"{path}, line {line}")
        if len(seen) < 2:
            raise ListFormatError(f"{path}: expected at least two classes, one a line")
        return cls(tuple(seen))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ClassNames:
        """Check the classes that a run has kept. Raises UserError."""
        names = state.get("classes")
        texts = names if isinstance(names, list) else []
        texts = [each for each in texts if isinstance(each, str)]
        if texts != names or len(texts) < 2 or len(set(texts)) < len(texts):
            raise UserError("task.json is damaged: `classes` is not a list of different texts")
        classes = cls(tuple(texts))
        if state.get("classes_sha256") != classes.sha256:
            raise UserError("task.json is damaged: classes_sha256 is not that of its classes")
        return classes


def label_of(value: Any, sample: str, field: str) -> str:
    """Return a sample's label as text. Raises AnnotationError unless it is one text or number."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise AnnotationError(
            f"{sample}: has no {field}; name the field of its class with task.label_field"
        )
    raise AnnotationError(f"{sample}: {field}: expected one label, found {value!r:.60}")


def field_of(record: Mapping[str, Any], field: str) -> Any:
    """Return a field of a sample's JSON; lists keep the names of their columns in lower case."""
    return record[field] if field in record else record.get(column_name(field))


def labels_in(
    table: SampleTable, field: str = DEFAULT_FIELD, sources: str | Sequence[str] | None = None
) -> list[str]:
    """Return the label of every sample.

    `label` is read from the index; any other field from the sample's JSON. sources: of the split;
    an error names the line of a list among them. Raises AnnotationError that names the sample.
    """
    if field == DEFAULT_FIELD:
        values: Iterable[Any] = table.labels()
    else:
        values = (field_of(table.read_metadata(place), field) for place in range(len(table)))
    found = []
    for place, value in enumerate(values):
        try:
            found.append(label_of(value, table.id(place), field))
        except AnnotationError:
            label_of(value, place_of(sources, table.id(place)), field)  # raises with the line
    return found


def place_of(sources: str | Sequence[str] | None, sample: str) -> str:
    """Return list, line and name of a sample; its name where no list has it."""
    places = (f"{where} ({sample})" for _, _, where in rows_of_samples(sources, {sample}))
    return next(places, sample)


def check_labels(
    labels: Mapping[str, str | None],
    classes: ClassNames,
    sources: str | Sequence[str] | None,
    split: str,
    field: str,
    origin: str = "classes of the training data",
) -> None:
    """Warn of labels that are not among the classes, with the place of the first one.

    labels: of the videos of a split; None: not known. sources: of the split.
    origin: what the classes are. Raises UserError when no label is among them.
    """
    known = {video: label for video, label in labels.items() if label is not None}
    outside = {video: label for video, label in known.items() if label not in classes.index}
    if not outside:
        return
    video, label = next(iter(outside.items()))
    names = ", ".join(classes.names[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
    message = (
        f"{place_of(sources, video)}, field {field!r}: {label!r} is not among the {len(classes)} "
        f"{origin} ({names})"
    )
    if len(outside) == len(known):
        raise UserError(
            f"{message}, and neither is any other label of the {split} split: give a split "
            "whose labels are, or name the field of the class (task.label_field, --label-field)"
        )
    if not dist.is_initialized() or dist.get_rank() == 0:
        log.warning(
            "%s; %s of the %s split with such labels, counted as wrong",
            message,
            counted(len(outside), "video"),
            split,
        )


def refused_labels(
    sources: str | Sequence[str] | None, refused: Collection[str], field: str = DEFAULT_FIELD
) -> dict[str, str]:
    """Return the labels of videos that were refused when a split was listed, by name.

    A missing file is refused, for example. sources: of the split. Only the lists among them can
    tell; a refused member of a shard is not in the result.
    """
    return {
        name: label_of(value, where, field)
        for name, row, where in rows_of_samples(sources, refused)
        if (value := field_of(row.extra, field)) is not None
    }
