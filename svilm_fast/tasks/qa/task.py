"""Question answering as a task: data, model, evaluation and page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation.answers import MajorityBaseline
from svilm_fast.models.precision import ElementSizes
from svilm_fast.models.tubelet_embedding import MASK_TOKEN
from svilm_fast.objectives.base import Metric
from svilm_fast.tasks.base import (
    InitialWeights,
    RankPlace,
    ReportRequest,
    Task,
    TaskConfig,
)
from svilm_fast.tasks.clips import evaluation_clips, training_clips
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.tasks.qa.cost import qa_cost
from svilm_fast.tasks.qa.evaluation import QAEvaluator
from svilm_fast.tasks.qa.head import IGNORED, QAInputs, QuestionAnswerer
from svilm_fast.tasks.qa.questions import drawn, every_question, questions_of, refused_questions
from svilm_fast.tasks.qa.settings import QASettings
from svilm_fast.tasks.qa.vocabulary import AnswerVocabulary, TrainingAnswers
from svilm_fast.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from svilm_fast.report.page import PageContent

log = logging.getLogger(__name__)

LEAKED_SHOWN = 3


class QuestionAnswering(Task):
    """Questions about videos, answered by a classifier over the answers of the training data."""

    Settings: ClassVar[type[TaskSettings]] = QASettings

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self._answers: TrainingAnswers | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def settings(self) -> QASettings:
        """Return the block `task`."""
        assert isinstance(self.config.task, QASettings)
        return self.config.task

    @property
    def answers(self) -> TrainingAnswers:
        """The answers of the run, or else of its training data."""
        if self._answers is None:
            self._answers = self._read_answers(open_split(self.config.data, "train", nouns=False))
        return self._answers

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        self._tokenizer = tokenizer
        if not train:
            return evaluation_clips(self.config, split, tokenizer, nouns=False)
        clips = training_clips(
            self.config, split, tokenizer, nouns=False, table=table, metadata=True
        )
        self._answers = self._read_answers(clips.table)
        self._announce(self._answers, clips.table)
        return clips

    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> QAInputs:
        """Draw questions for every clip among those whose answer is in the vocabulary.

        A clip without one is encoded, and nothing is learned from it.
        """
        assert self._tokenizer is not None
        wanted, index = self.settings.questions_per_clip, self.answers.vocabulary.index
        seeds = StepSeeds(self.config.run.seed, step, batch.keys)
        of_clips = [
            questions_of(record, name)
            for record, name in zip(batch.metadata, batch.ids, strict=True)
        ]
        known = [[q for q in asked if q.answer in index] for asked in of_clips]
        counts = [max(1, len(asked)) for asked in known]
        texts: list[str] = []
        labels: list[int] = []
        for asked, chosen in zip(known, drawn(counts, seeds.at(Site.QUESTIONS), wanted)):
            texts += [asked[n].text if asked else "" for n in chosen]
            labels += [index[asked[n].answer] if asked else IGNORED for n in chosen]
        tokens, mask = self.encoded(texts)
        shape = (len(batch), wanted)
        batch = batch.to(place.device)
        return QAInputs(
            batch.frames,
            tokens.unflatten(0, shape).to(place.device),
            mask.unflatten(0, shape).to(place.device),
            torch.tensor(labels).unflatten(0, shape).to(place.device),
            StepSeeds(seeds.run_seed, step, batch.keys),
        )

    def encoded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens int64 [n, S] and mask bool [n, S] of questions."""
        assert self._tokenizer is not None
        return self._tokenizer.encode_batch(texts, self.config.data.tokenizer.length)

    def model(self) -> QuestionAnswerer:
        return QuestionAnswerer(self.config, self.settings, len(self.answers.vocabulary))

    def head_cost(self, precision: ElementSizes) -> HeadCost:
        return qa_cost(self.config, self.settings, len(self.answers.vocabulary), precision)

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[QAEvaluator]:
        return [QAEvaluator(self.config, tokenizer, split, max_clips, self.answers)]

    def initial_weights(self) -> InitialWeights:
        """The head is new; the objectives of pre-training and other heads are left out."""
        return InitialWeights(
            may_be_new=("head.*",), may_be_missing=("objectives.*", "head.*", MASK_TOKEN)
        )

    def metrics(self) -> dict[str, Metric]:
        panel = "Accuracy in the batch, %"
        return {"accuracy_qa": Metric("acc", panel, "questions in the vocabulary", share=True)}

    def state(self) -> dict[str, Any]:
        answers = self.answers
        return {
            "answers": list(answers.vocabulary.answers),
            "answers_sha256": answers.vocabulary.sha256,
            "majority": {
                "by_type": dict(answers.majority.by_type),
                "overall": answers.majority.overall,
            },
            "training_questions": answers.questions,
            "training_questions_in_vocabulary": answers.covered,
            "training_videos": answers.videos,
            "leaked_answers": answers.leaked,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the answers of a run. Raises UserError for a damaged task.json."""
        vocabulary = AnswerVocabulary.restored(state.get("answers"))
        if state.get("answers_sha256") != vocabulary.sha256:
            raise UserError("task.json is damaged: answers_sha256 is not that of its answers")
        try:
            majority = MajorityBaseline(
                {str(kind): str(best) for kind, best in state["majority"]["by_type"].items()},
                str(state["majority"]["overall"]),
            )
            counts = [
                int(state[name])
                for name in (
                    "training_questions",
                    "training_questions_in_vocabulary",
                    "training_videos",
                    "leaked_answers",
                )
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"task.json is damaged: {type(error).__name__}: {error}") from None
        self._answers = TrainingAnswers(vocabulary, majority, *counts)

    def report(self, request: ReportRequest) -> PageContent:
        """Return accuracy by type, examples, and curves."""
        from svilm_fast.tasks.qa.page import qa_page  # imports matplotlib

        evaluator = None
        if request.split is not None:
            (evaluator,) = self.evaluators(request.tokenizer, request.split, request.max_clips)
        return qa_page(evaluator, self.metrics(), request)

    def _read_answers(self, table: SampleTable) -> TrainingAnswers:
        sources = self.config.data.train
        assert sources is not None
        every = [asked for asked in every_question(sources, table) if asked]
        pairs = [(q.type, q.answer) for asked in every for q in asked]
        answers = [answer for _, answer in pairs]
        leaked: list[str] = []
        if self.settings.answers_file is None:
            vocabulary = AnswerVocabulary.most_frequent(answers, self.settings.answers)
        else:
            vocabulary = AnswerVocabulary.read(self.settings.answers_file)
            leaked = self._leaked(vocabulary, set(answers))
        covered = sum(answer in vocabulary.index for answer in answers)
        if not covered:
            raise UserError(
                "no training question has an answer of the vocabulary; data.train needs samples "
                "with `questions`, and task.answers_file answers that occur in them "
                "(docs/tasks/qa.md)"
            )
        majority = MajorityBaseline.of(pairs)
        return TrainingAnswers(vocabulary, majority, len(answers), covered, len(every), len(leaked))

    def _leaked(self, vocabulary: AnswerVocabulary, training: set[str]) -> list[str]:
        held_out: set[str] = set()
        for split in ("val", "test"):
            if getattr(self.config.data, split) is not None:
                table = open_split(self.config.data, split, nouns=False)
                sources = getattr(self.config.data, split)
                held_out |= {q.answer for asked in every_question(sources, table) for q in asked}
        found = vocabulary.leaked(training, held_out)
        if found and _is_first():
            log.warning(
                "task.answers_file contains %d answers that occur in validation or test questions "
                "and in no training question (%s%s): the score is not comparable with one whose "
                "vocabulary is made from training answers",
                len(found),
                ", ".join(found[:LEAKED_SHOWN]),
                ", ..." if len(found) > LEAKED_SHOWN else "",
            )
        return found

    def _announce(self, answers: TrainingAnswers, table: SampleTable) -> None:
        if _is_first():
            refused = {skip.sample for skip in table.rejected}
            lost = refused_questions(self.config.data.train, refused)
            if lost:
                log.warning(
                    "%d training questions are about %d videos that are missing or refused: they "
                    "count for the vocabulary, and nothing is learned from them",
                    sum(map(len, lost.values())),
                    len(lost),
                )
            log.info(
                "%d answers (SHA-256 %s) cover %d of %d training questions about %d videos",
                len(answers.vocabulary),
                answers.vocabulary.sha256[:16],
                answers.covered,
                answers.questions,
                answers.videos,
            )


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
