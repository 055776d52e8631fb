"""Pre-training as a task: data, model, evaluation and report of S-ViLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from svilm_fast.core.errors import UserError
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.data.views import ONE_VIEW, CropGroup, Views
from svilm_fast.models.config import CropView
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.models.tower_digest import video_tower_digest
from svilm_fast.objectives.flops import StepFlops, step_flops
from svilm_fast.objectives.svilm import SViLM, build_model
from svilm_fast.tasks.base import InitialWeights, RankPlace, ReportRequest, Task
from svilm_fast.tasks.clips import check_split, training_clips
from svilm_fast.tasks.pretrain.inputs import model_inputs
from svilm_fast.tasks.pretrain.retrieval import (
    RetrievalEvaluator,
    encoder_of,
    evaluate,
    evaluation_data,
)
from svilm_fast.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from svilm_fast.evaluation.pointing import PointingScore
    from svilm_fast.report.page import PageContent, Section

PICTURE_FRAMES = 4  # frames of a clip in a retrieval strip


def _group(view: CropView) -> CropGroup:
    return CropGroup(view.count, view.frames, view.image_size, view.scale)


class Pretraining(Task):
    """S-ViLM on videos with captions; loaded weights must match (see `initial_weights`)."""

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    _stored: VideoEmbeddings | None = None

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        if not train:
            return evaluation_data(self.config, split, tokenizer)
        reads = self.config.objectives.reads()
        if self.config.data.captions == "none" and (reads.texts or reads.nouns):
            raise UserError(
                "data.captions=none and the objectives compare videos with captions: set "
                "data.captions to coarse, fine or fused"
            )
        clips = training_clips(
            self.config,
            split,
            tokenizer,
            nouns=reads.nouns,
            table=table,
            teacher=self.config.objectives.stored_width(self.config),
            codes=True,
            views=ONE_VIEW if reads.crops is None else Views(groups=(_group(reads.crops),)),
        )
        self._stored = clips.instead
        return clips

    def initial_weights(self) -> InitialWeights:
        """All must match; the run that wrote stored embeddings may have had other objectives."""
        if self.config.data.video_embeddings is None:
            return InitialWeights()
        return InitialWeights(("objectives.*",), ("objectives.*",))

    def state(self) -> dict[str, Any]:
        return {} if self._stored is None else {"video_tower": self._stored.tower}

    def check_weights(self, model: nn.Module) -> None:
        """Raise UserError if another video tower wrote the stored embeddings of the clips."""
        stored = self._stored
        if stored is None:
            return
        own = video_tower_digest(encoder_of(model).video)
        if own != stored.tower:
            raise UserError(
                f"data.video_embeddings: the video tower that wrote {str(stored.folder)!r} has the "
                f"SHA-256 {stored.tower[:12]}, that of this run {own[:12]}. Start with "
                "--weights-from the portable checkpoint that `svilm embed` read (--weights ema if "
                "it read the average) and with the blocks model and video of its run, or embed the "
                "videos with the tower of this run"
            )

    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> ModelInputs:
        return model_inputs(batch, self.config, step, place)

    def model(self) -> SViLM:
        return build_model(self.config)

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[RetrievalEvaluator]:
        """Return retrieval; nothing for a training without texts, which leaves it to chance."""
        if not self._learns_texts:
            return []
        check_split(self.config, split)
        return [RetrievalEvaluator(self.config, tokenizer, split, max_clips)]

    def flops(self) -> StepFlops:
        """Return forward and backward of a step, captions and nouns padded as loaded."""
        return step_flops(
            self.config,
            global_batch=self.config.training.global_batch,
            num_nouns=self.config.data.nouns.per_caption,
            text_length=self.config.data.tokenizer.length,
            noun_length=self.config.data.tokenizer.noun_length,
            stored_videos=self.config.data.video_embeddings is not None,
        )

    def report(self, request: ReportRequest) -> PageContent:
        """Return retrieval, curves, and pictures of some clips beside those of an untrained model.

        Without a split, and for a training without texts, the page holds the curves alone.
        """
        from svilm_fast.report import texts
        from svilm_fast.report.page import PageContent  # imports matplotlib
        from svilm_fast.report.sections import curves_section, headline, retrieval_sections

        encoder = encoder_of(request.model)
        split = request.split if self._learns_texts else None
        sections, retrieval, pointing = [], None, None
        if split is not None:
            dataset = evaluation_data(self.config, split, request.tokenizer)
            retrieval = evaluate(
                encoder,
                dataset,
                self.config,
                request.device,
                max_clips=request.max_clips,
                keep_frames=PICTURE_FRAMES,
                progress=request.progress,
            )
            sections += retrieval_sections(retrieval)
        if request.series:
            sections.append(curves_section(request.series, self.metrics(), texts.ACCURACY))
        if split is not None:
            of_clips, pointing = self._clip_sections(request, dataset)
            sections += of_clips
        tiles = headline(retrieval, request.series, pointing)
        return PageContent(sections, tiles, sum(p.numel() for p in encoder.parameters()))

    @property
    def _learns_texts(self) -> bool:
        reads = self.config.objectives.reads()
        return reads.texts or reads.nouns

    def _clip_sections(
        self, request: ReportRequest, dataset: ClipDataset
    ) -> tuple[list[Section], PointingScore | None]:
        from svilm_fast.evaluation.pointing import has_masks
        from svilm_fast.report.probe import probe_clips, spread_clips
        from svilm_fast.report.sections import clip_sections, noun_sharpness, pointing_score

        config, encoder = self.config, encoder_of(request.model)
        every = config.objectives.active_first().values()
        temperatures = (objective.segment_temperature() for objective in every)
        modules = request.model.objectives.modules_by_name.values()
        heads = (objective.segment_head for objective in modules)
        head = next((found for found in heads if found is not None), None)
        torch.manual_seed(config.run.seed)
        untrained = self.model().encoder.to(request.device).eval()
        batch = dataset.collate(spread_clips(dataset, request.clips))
        probes = probe_clips(
            encoder,
            batch,
            beta=noun_sharpness(config.objectives, request.series),
            temperature=next(found for found in temperatures if found is not None),
            temporal_head=head,
            paste_lengths=(config.data.cut_paste.shortest, config.data.cut_paste.longest),
            seed=config.run.seed,
            untrained=untrained,
        )
        pointing = None
        if batch.metadata and has_masks(batch.metadata[0]):
            pointing = pointing_score(encoder, dataset)
        sections = clip_sections(
            probes, config.objectives, headed=head is not None, pointing=pointing
        )
        return sections, None if pointing is None else pointing[0]
