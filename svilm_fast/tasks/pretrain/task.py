"""Pre-training as a task: data, model, evaluation and report of S-ViLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.flops import StepFlops, step_flops
from svilm_fast.objectives.svilm import SViLM, build_model
from svilm_fast.tasks.base import RankPlace, ReportRequest, Task
from svilm_fast.tasks.clips import training_clips
from svilm_fast.tasks.pretrain.inputs import model_inputs
from svilm_fast.tasks.pretrain.retrieval import (
    RetrievalEvaluator,
    encoder_of,
    evaluate,
    evaluation_data,
)
from svilm_fast.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from svilm_fast.report.page import PageContent

PICTURE_FRAMES = 4  # frames of a clip in a retrieval strip


class Pretraining(Task):
    """S-ViLM on videos with captions; weights are loaded whole or not at all."""

    Settings: ClassVar[type[TaskSettings]] = TaskSettings

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        """Open the clips of a split; nouns where an objective reads them."""
        if not train:
            return evaluation_data(self.config, split, tokenizer)
        nouns = self.config.objectives.reads().nouns
        return training_clips(self.config, split, tokenizer, nouns=nouns, table=table)

    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> ModelInputs:
        """Move the batch to the device and blend its clips there."""
        return model_inputs(batch, self.config, step, place)

    def model(self) -> SViLM:
        """Build the dual encoder with its objectives."""
        return build_model(self.config)

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[RetrievalEvaluator]:
        """Return retrieval on the clips of a split."""
        data = evaluation_data(self.config, split, tokenizer)
        return [RetrievalEvaluator(self.config, data, max_clips)]

    def flops(self) -> StepFlops:
        """Return forward and backward of a step, captions and nouns padded as loaded."""
        return step_flops(
            self.config,
            global_batch=self.config.training.global_batch,
            num_nouns=self.config.data.nouns.per_caption,
            text_length=self.config.data.tokenizer.length,
            noun_length=self.config.data.tokenizer.noun_length,
        )

    def report(self, request: ReportRequest) -> PageContent:
        """Return retrieval, curves and a look into some clips, beside an untrained model."""
        from svilm_fast.report.page import run_content  # imports matplotlib

        config, encoder = self.config, encoder_of(request.model)
        dataset = retrieval = None
        if request.split is not None:
            dataset = evaluation_data(config, request.split, request.tokenizer)
            retrieval = evaluate(
                encoder,
                dataset,
                config,
                request.device,
                max_clips=request.max_clips,
                keep_frames=PICTURE_FRAMES,
                progress=request.progress,
            )
        every = config.objectives.active_first().values()
        temperatures = (objective.segment_temperature() for objective in every)
        modules = request.model.objectives.modules_by_name.values()
        heads = (objective.segment_head for objective in modules)
        torch.manual_seed(config.run.seed)
        untrained = self.model().encoder.to(request.device).eval()
        return run_content(
            model=encoder,
            dataset=dataset,
            retrieval=retrieval,
            series=request.series,
            config=request.tree,
            clips=request.clips,
            temperature=next(found for found in temperatures if found is not None),
            temporal_head=next((found for found in heads if found is not None), None),
            paste_lengths=(config.data.cut_paste.shortest, config.data.cut_paste.longest),
            seed=config.run.seed,
            untrained=untrained,
            device=request.device,
        )
