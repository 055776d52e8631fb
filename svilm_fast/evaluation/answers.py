"""Accuracy of answers to questions: sums over counts, overall and by type of question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


def normalised(answer: str) -> str:
    """Return an answer as it is compared: lower case, runs of white space as one space."""
    return " ".join(answer.lower().split())


@dataclass
class AnswerCount:
    """Questions asked, and how many of them were answered right."""

    asked: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float:
        """Percent; 0 if nothing was asked."""
        return 100.0 * self.right / self.asked if self.asked else 0.0


@dataclass
class AnswerAccuracy:
    """Counts by type of question, in the order in which the types were first seen."""

    by_type: dict[str, AnswerCount] = field(default_factory=dict)

    def add(self, kind: str, right: bool) -> None:
        """Count one question of a type."""
        count = self.by_type.setdefault(kind, AnswerCount())
        count.asked += 1
        count.right += right

    def merge(self, other: AnswerAccuracy) -> None:
        """Add the counts of another part of the questions."""
        for kind, count in other.by_type.items():
            mine = self.by_type.setdefault(kind, AnswerCount())
            mine.asked += count.asked
            mine.right += count.right

    @property
    def total(self) -> AnswerCount:
        """The sums over all types."""
        counts = self.by_type.values()
        return AnswerCount(sum(c.asked for c in counts), sum(c.right for c in counts))

    @property
    def mean_of_types(self) -> float:
        """Unweighted mean of the types' accuracies, percent; 0 without questions."""
        found = [count.accuracy for count in self.by_type.values()]
        return sum(found) / len(found) if found else 0.0


def answer_accuracy(answers: Iterable[tuple[str, str | None, str]]) -> AnswerAccuracy:
    """Count exact matches.

    answers: for each question its type, the given answer (None: none, as for a video that cannot be
    decoded) and the true answer. Answers are compared as `normalised` returns them, so a true
    answer outside a model's vocabulary is counted as wrong.
    """
    accuracy = AnswerAccuracy()
    for kind, given, truth in answers:
        accuracy.add(kind, given is not None and normalised(given) == normalised(truth))
    return accuracy


@dataclass(frozen=True)
class MajorityBaseline:
    """The most frequent training answer of each type of question, and of all questions."""

    by_type: Mapping[str, str]
    overall: str

    @classmethod
    def of(cls, questions: Iterable[tuple[str, str]]) -> MajorityBaseline:
        """Count (type, answer) pairs; the answer seen first wins a tie.

        Raises ValueError without questions.
        """
        counts: dict[str, dict[str, int]] = {}
        every: dict[str, int] = {}
        for kind, answer in questions:
            answer = normalised(answer)
            of_type = counts.setdefault(kind, {})
            of_type[answer] = of_type.get(answer, 0) + 1
            every[answer] = every.get(answer, 0) + 1
        if not every:
            raise ValueError("there are no questions")
        best = {kind: max(found, key=found.__getitem__) for kind, found in counts.items()}
        return cls(best, max(every, key=every.__getitem__))

    def answer(self, kind: str) -> str:
        """Return the answer to a question of a type; to one of an unknown type the overall one."""
        return self.by_type.get(kind, self.overall)
