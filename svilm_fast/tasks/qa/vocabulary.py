"""The answers that a model can give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import ListFormatError
from svilm_fast.evaluation.answers import MajorityBaseline, normalised

FILE_BYTES = 1 << 26


@dataclass(frozen=True)
class AnswerVocabulary:
    """Distinct answers, as `normalised`; an answer's place is its class."""

    answers: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """The class of each answer."""
        return {answer: place for place, answer in enumerate(self.answers)}

    @property
    def sha256(self) -> str:
        """SHA-256 of the answers in their order, as a JSON list in UTF-8."""
        text = json.dumps(list(self.answers), ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def most_frequent(cls, answers: Iterable[str], size: int | None) -> AnswerVocabulary:
        """Return the `size` most frequent answers (None: all); the one seen first wins a tie.

        Raises UserError for fewer than two different answers.
        """
        counts: dict[str, int] = {}
        for answer in answers:
            counts[answer] = counts.get(answer, 0) + 1
        ranked = sorted(counts, key=lambda answer: -counts[answer])  # stable: first seen first
        if len(ranked) < 2:
            raise UserError(
                f"the training data have {len(ranked)} different answers: question answering needs "
                "samples with `questions` and at least two answers (docs/tasks/qa.md)"
            )
        return cls(tuple(ranked[:size]))

    @classmethod
    def read(cls, path: str | Path) -> AnswerVocabulary:
        """Read a JSON file: a list of answers, or an object of answers with their classes from 0.

        Raises ListFormatError that names the file and the entry.
        """
        file = Path(path)
        if not file.is_file() or file.stat().st_size > FILE_BYTES:
            raise ListFormatError(f"task.answers_file={path} is no file of at most 64 MiB")
        try:
            found = json.loads(file.read_bytes(), object_pairs_hook=_pairs)
        except (ValueError, RecursionError) as error:
            raise ListFormatError(f"{path}: not valid JSON ({error})") from None
        if isinstance(found, list) and not isinstance(found, _Pairs):
            entries: Sequence[Any] = found
        elif isinstance(found, _Pairs):
            entries = _by_class(found, path)
        else:
            raise ListFormatError(f"{path}: expected a list of answers or an object")
        return cls(_distinct(entries, path))

    @classmethod
    def restored(cls, answers: Any) -> AnswerVocabulary:
        """Check the answers that a run has kept. Raises UserError."""
        valid = isinstance(answers, list) and all(isinstance(each, str) for each in answers)
        if not valid or len(answers) < 2 or len(set(answers)) < len(answers):
            raise UserError("task.json is damaged: `answers` is not a list of different texts")
        return cls(tuple(answers))

    def leaked(self, training: set[str], held_out: Iterable[str]) -> list[str]:
        """Return the answers of held-out questions that are in the vocabulary and not in training.

        A vocabulary made from training answers has none.
        """
        return sorted({answer for answer in held_out if answer in self.index} - training)


@dataclass(frozen=True)
class TrainingAnswers:
    """What question answering knows of its training data.

    questions: of the training split, of missing videos too where lists tell them; covered: those
    whose answer is in the vocabulary; videos: with a question; leaked: answers of the vocabulary
    that only held-out questions have.
    """

    vocabulary: AnswerVocabulary
    majority: MajorityBaseline
    questions: int
    covered: int
    videos: int
    leaked: int


class _Pairs(list):  # type: ignore[type-arg]
    """The pairs of a JSON object, duplicate keys included."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _by_class(pairs: _Pairs, path: str | Path) -> list[str]:
    answers: dict[int, str] = {}
    for answer, place in pairs:
        if not isinstance(place, int) or isinstance(place, bool) or place in answers:
            raise ListFormatError(
                f"{path}, {answer!r}: expected a class of its own, found {place!r}"
            )
        answers[place] = answer
    if sorted(answers) != list(range(len(answers))):
        raise ListFormatError(f"{path}: the classes are not 0 to {len(answers) - 1}")
    return [answers[place] for place in range(len(answers))]


def _distinct(entries: Sequence[Any], path: str | Path) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, str) or not entry.strip():
            raise ListFormatError(f"{path}, [{place}]: expected an answer, found {entry!r}")
        answer = normalised(entry)
        if answer in seen:
            raise ListFormatError(f"{path}, [{place}]: {entry!r} repeats [{seen[answer]}]")
        seen[answer] = place
    if len(seen) < 2:
        raise ListFormatError(f"{path}: expected at least two answers")
    return tuple(seen)
