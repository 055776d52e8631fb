"""The questions of a sample, and those that a training step asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.philox import uniform
from svilm_fast.data.errors import AnnotationError
from svilm_fast.data.lists import ListFile, is_list, rows_of_samples
from svilm_fast.data.samples import SampleTable
from svilm_fast.evaluation.answers import normalised

NO_TYPE = "other"


class Question(NamedTuple):
    """A question about a video; `answer` as it is compared (`normalised`)."""

    text: str
    answer: str
    type: str


def questions_of(record: Mapping[str, Any], sample: str) -> list[Question]:
    """Return the questions in a sample's JSON: `questions: [{question, answer, type}]`.

    `type` may be absent. Raises AnnotationError that names the sample and the field.
    """
    listed = record.get("questions")
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise AnnotationError(f"{sample}: questions: expected a list of objects")
    found = []
    for place, each in enumerate(listed):
        where = f"{sample}: questions[{place}]"
        if not isinstance(each, Mapping):
            raise AnnotationError(f"{where}: expected an object with question, answer and type")
        for name in ("question", "answer"):
            if not isinstance(each.get(name), str) or not each[name].strip():
                raise AnnotationError(f"{where}.{name}: expected a text, found {each.get(name)!r}")
        kind = each.get("type") or NO_TYPE
        if not isinstance(kind, str):
            raise AnnotationError(f"{where}.type: expected a text, found {kind!r}")
        found.append(Question(each["question"].strip(), normalised(each["answer"]), kind))
    return found


def questions_in(table: SampleTable) -> Iterator[tuple[int, list[Question]]]:
    """Yield every place of a table with its sample's questions."""
    for place in range(len(table)):
        yield place, questions_of(table.read_metadata(place), table.id(place))


def every_question(sources: str | Sequence[str], table: SampleTable) -> Iterator[list[Question]]:
    """Yield the questions of every sample of a split, of missing videos too where lists tell them.

    sources: of the split. Lists alone are read in their order: which videos are there then changes
    neither the answers nor the order in which they are first seen.
    """
    paths = [sources] if isinstance(sources, str) else list(sources)
    if all(map(is_list, paths)):
        for path in paths:
            for row in ListFile(path).rows():
                yield questions_of(row.extra, f"{path}, line {row.line}")
        return
    for _, asked in questions_in(table):
        yield asked
    yield from refused_questions(paths, {skip.sample for skip in table.rejected}).values()


def refused_questions(
    sources: str | Sequence[str] | None, refused: Collection[str]
) -> dict[str, list[Question]]:
    """Return the questions of videos that were refused when a split was listed.

    A missing file is refused, for example. sources: of the split. refused: names in its skip
    report. Only the lists among the sources can tell their questions; a refused member of a shard
    is not in the result.
    """
    return {
        name: questions_of(row.extra, where)
        for name, row, where in rows_of_samples(sources, refused)
    }


def drawn(counts: Sequence[int], seeds: Tensor, wanted: int) -> list[list[int]]:
    """Return which questions each of b clips is asked, `wanted` of them.

    counts: questions of each clip, at least 1. seeds: int64 [b]. The questions of a clip are put
    into random order; a clip with fewer than `wanted` is asked some of them again.
    """
    numbers = uniform(seeds, torch.arange(max(counts), device=seeds.device)).cpu().numpy()
    chosen = []
    for count, row in zip(counts, numbers, strict=True):
        order = np.argsort(row[:count], kind="stable").tolist()
        chosen.append([order[place % count] for place in range(wanted)])
    return chosen
