"""Answers to all questions of a split, with their accuracy and protocol."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.outcomes import Outcomes
from svilm_fast.data.batch import ClipBatch
from svilm_fast.evaluation.answers import AnswerAccuracy, answer_accuracy
from svilm_fast.tasks.base import EvaluationRequest
from svilm_fast.tasks.clips import autocast_dtype
from svilm_fast.tasks.qa.questions import Question, questions_of, refused_questions
from svilm_fast.tasks.qa.vocabulary import TrainingAnswers
from svilm_fast.tasks.split import RankPart, SplitEvaluator, read_videos

GUESSES = 5  # most probable answers that are kept for each question


@dataclass(frozen=True)
class Answered:
    """A question with its most probable answers, best first; no guesses: not decoded."""

    video: str
    question: Question
    guesses: tuple[tuple[str, float], ...]

    @property
    def given(self) -> str | None:
        """The answer that counts."""
        return self.guesses[0][0] if self.guesses else None

    @property
    def right(self) -> bool:
        """Whether the answer matches."""
        return self.given == self.question.answer


@dataclass
class QAResult:
    """Accuracy on a split.

    accuracy: of the model; majority: of always giving the most frequent training answer of a type.
    protocol: what the number depends on. missing: videos that could not be found or decoded, with
    the reason; all their questions count as wrong. refused: samples of shards that were refused
    when the split was listed, whose questions are unknown. answered: in the order of the split.
    """

    accuracy: AnswerAccuracy
    majority: AnswerAccuracy
    protocol: dict[str, Any]
    missing: dict[str, str]
    refused: dict[str, str]
    answered: list[Answered] = field(repr=False)
    with_answers: bool = True

    def metrics(self) -> dict[str, float]:
        """Percentages: overall, by type, the mean over the types, and the majority baseline.

        `videos_not_decoded` is the number of videos that were missing or could not be read.
        """
        found = {
            "qa/accuracy": self.accuracy.total.accuracy,
            "qa/accuracy_mean_of_types": self.accuracy.mean_of_types,
            "qa/majority": self.majority.total.accuracy,
            "qa/videos_not_decoded": float(len(self.missing) + len(self.refused)),
        }
        for kind, count in self.accuracy.by_type.items():
            name = f"qa/accuracy_{re.sub(r'[^A-Za-z0-9_.-]', '_', kind)}"
            while name in found:
                name += "~"
            found[name] = count.accuracy
        return found

    def outcomes(self) -> list[Outcomes]:
        """Whether each question is right; the questions of a video are drawn together."""
        right = np.array([float(each.right) for each in self.answered])
        return [Outcomes([each.video for each in self.answered], {"qa/accuracy": right})]

    def table(self) -> list[tuple[str, list[str]]]:
        """Rows of type, questions, right ones, accuracy and majority; the sums come last."""
        rows = []
        for kind, count in self.accuracy.by_type.items():
            rows.append((kind, count, self.majority.by_type[kind].accuracy))
        rows.append(("all", self.accuracy.total, self.majority.total.accuracy))
        return [
            (kind, [f"{c.asked}", f"{c.right}", f"{c.accuracy:.2f} %", f"{baseline:.2f} %"])
            for kind, c, baseline in rows
        ]

    def lines(self) -> list[str]:
        """The protocol as lines of text."""
        return [f"{key.replace('_', ' ')}: {value}" for key, value in self.protocol.items()]

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = self.metrics() | {
            "protocol": self.protocol,
            "by_type": {kind: asdict(count) for kind, count in self.accuracy.by_type.items()},
            "majority_by_type": {k: asdict(count) for k, count in self.majority.by_type.items()},
            "missing": self.missing,
            "refused": self.refused,
            "outcomes": [each.to_json() for each in self.outcomes()],
        }
        if self.with_answers:
            content["questions"] = [
                {"video": each.video, **each.question._asdict(), "guesses": each.guesses}
                for each in self.answered
            ]
        text = json.dumps(content, ensure_ascii=False, indent=None if self.with_answers else 1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        rows = [("type", ["questions", "right", "accuracy", "majority"]), *self.table()]
        lines = [f"{kind:14}" + "".join(f"{cell:>12}" for cell in cells) for kind, cells in rows]
        lines += ["", f"mean over types: {self.accuracy.mean_of_types:.2f} %", *self.lines()]
        for title, listed in (("not decoded", self.missing), ("refused", self.refused)):
            lines += [f"{title}: {video}: {reason}" for video, reason in listed.items()]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class QAEvaluator(SplitEvaluator):
    """Asks all questions of a split; each video is encoded once."""

    name: ClassVar[str] = "qa"
    answers: TrainingAnswers

    def run(self, model: Any, request: EvaluationRequest) -> QAResult:
        """Answer the questions; in training every rank takes a part of the videos."""
        device, size = request.device, self.config.evaluation.batch_size

        def call(batch: ClipBatch) -> list[list[Answered]]:
            return self._ask(model, batch, device)

        def idle(black: Tensor) -> None:
            self._guesses(model, black, [[]], device)

        def read(part: RankPart) -> tuple[dict[str, list[Answered]], dict[str, str]]:
            return read_videos(model, self.dataset, size, part, call, idle)

        found, reasons = self.on_all_ranks(request, read)
        return self._result(found, reasons, request)

    def _ask(self, model: Any, batch: ClipBatch, device: torch.device) -> list[list[Answered]]:
        """Return the answered questions about every video of a batch."""
        asked = [
            questions_of(record, name)
            for record, name in zip(batch.metadata, batch.ids, strict=True)
        ]
        guesses = self._guesses(model, batch.frames, asked, device)
        return [
            [Answered(video, question, best) for question, best in zip(of_video, rows, strict=True)]
            for video, of_video, rows in zip(batch.ids, asked, guesses, strict=True)
        ]

    @torch.no_grad()
    def _guesses(
        self, model: Any, frames: Tensor, asked: Sequence[Sequence[Question]], device: torch.device
    ) -> list[list[tuple[tuple[str, float], ...]]]:
        """Return the most probable answers of the questions about each of b videos."""
        most = max(1, *(len(of_video) for of_video in asked))
        texts = [question.text for of_video in asked for question in of_video]
        length = self.config.data.tokenizer.length
        tokens = torch.zeros(len(asked), most, length, dtype=torch.int64)
        mask = torch.zeros(len(asked), most, length, dtype=torch.bool)
        mask[..., 0] = True  # attention over no token at all is not defined
        encoded, real = self.tokenizer.encode_batch(texts, length)
        rows = torch.tensor(
            [r for r, of_video in enumerate(asked) for _ in of_video], dtype=torch.int64
        )
        places = torch.tensor(
            [n for of_video in asked for n in range(len(of_video))], dtype=torch.int64
        )
        tokens[rows, places], mask[rows, places] = encoded, real
        dtype = autocast_dtype(self.config)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model.answer(frames.to(device), tokens.to(device), mask.to(device))
        answers = self.answers.vocabulary.answers
        best = logits.softmax(-1).topk(min(GUESSES, len(answers)), dim=-1)
        values, classes = best.values.tolist(), best.indices.tolist()
        return [
            [
                tuple((answers[c], p) for c, p in zip(classes[row][place], values[row][place]))
                for place in range(len(of_video))
            ]
            for row, of_video in enumerate(asked)
        ]

    def _result(
        self,
        by_video: dict[str, list[Answered]],
        why: dict[str, str],
        request: EvaluationRequest,
    ) -> QAResult:
        data, missing = self.dataset, {}
        answered: list[Answered] = []
        for place, video in enumerate(data.ids):
            if video not in by_video:
                missing[video] = why.get(video, "not decoded")
                asked = questions_of(data.table.read_metadata(place), video)
                by_video[video] = [Answered(video, question, ()) for question in asked]
            answered += by_video[video]
        refused = {skip.sample: skip.message for skip in data.table.rejected}
        source = getattr(self.config.data, self.split)
        for video, asked in refused_questions(source, refused).items():
            missing[video] = refused.pop(video)
            by_video[video] = [Answered(video, question, ()) for question in asked]
            answered += by_video[video]
        majority = self.answers.majority
        return QAResult(
            accuracy=answer_accuracy(
                (a.question.type, a.given, a.question.answer) for a in answered
            ),
            majority=answer_accuracy(
                (a.question.type, majority.answer(a.question.type), a.question.answer)
                for a in answered
            ),
            protocol=self._protocol(answered, by_video, missing, refused),
            missing=missing,
            refused=refused,
            answered=answered,
            with_answers=not request.in_training,
        )

    def _protocol(
        self,
        answered: list[Answered],
        by_video: dict[str, list[Answered]],
        missing: dict[str, str],
        refused: dict[str, str],
    ) -> dict[str, Any]:
        """Return what the accuracy depends on."""
        answers = self.answers
        lines = sorted("\t".join((a.video, a.question.text, a.question.answer)) for a in answered)
        vocabulary = answers.vocabulary
        lost = sum(len(by_video[video]) for video in missing)
        source = getattr(self.config.task, "answers_file", None)
        return {
            "split": self.split_text,
            "questions": len(answered),
            "questions_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "videos_with_questions": sum(bool(asked) for asked in by_video.values()),
            "videos_not_decoded": f"{len(missing)}, with {lost} questions that count as wrong",
            "samples_refused": f"{len(refused)}, whose questions are unknown and not counted",
            "answers_in_the_vocabulary": len(vocabulary),
            "vocabulary_sha256": vocabulary.sha256,
            "vocabulary_from": source or f"{answers.questions} training questions",
            "vocabulary_answers_only_held_out": answers.leaked,
            "questions_outside_the_vocabulary": sum(
                a.question.answer not in vocabulary.index for a in answered
            ),
            "questions_cut": self._cut([a.question.text for a in answered]),
            "match": "exact, in lower case; outside the vocabulary or not decoded counts as wrong",
            "accuracy": "right questions / all questions",
            "frames": self.dataset.frames,
        }

    def _cut(self, texts: Sequence[str]) -> int:
        """Return how many questions are longer than the model reads.

        The tokenizer counts the captions that a loader without workers encodes as well.
        """
        before = self.tokenizer.truncated
        self.tokenizer.encode_batch(texts, self.config.data.tokenizer.length)
        return self.tokenizer.truncated - before
