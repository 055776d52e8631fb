"""Clips and captions to embeddings: micro-batches, a progress bar, and what was left out."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from svilm_fast.core.console import Console
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import CAPTION_NOTE, ClipDataset
from svilm_fast.data.samples import StoredFile
from svilm_fast.data.segments import Segment
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.video_encoder import VideoOutputs

log = logging.getLogger(__name__)


class VideoTextModel(Protocol):
    """What evaluation asks of a dual encoder; both sides end in unit vectors of one space."""

    def encode_video(
        self, frames: Tensor, seeds: Any = None, outputs: VideoOutputs | None = None
    ) -> VideoFeatures: ...

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor: ...

    def encode_nouns(self, tokens: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CaptionTable:
    """All captions of a data set: videos may have several, which a batch shows only one of.

    tokens: int [n, S]; mask: bool [n, S]; rows: the captions of each video; video: the name of the
    video that a sample shows. Samples of one video file, or of one segment of it, are one video
    under the first's id.
    """

    texts: list[str]
    tokens: Tensor
    mask: Tensor
    rows: dict[str, list[int]]
    video: dict[str, str]

    @classmethod
    def of(cls, dataset: ClipDataset) -> CaptionTable:
        """Every caption of a data set, tokenised here."""
        texts: list[str] = []
        rows: dict[str, list[int]] = {}
        video: dict[str, str] = {}
        names: dict[tuple[StoredFile, Segment | None], str] = {}
        for sample in dataset.table:
            name = video[sample.id] = names.setdefault((sample.video, sample.segment), sample.id)
            rows.setdefault(name, []).extend(range(len(texts), len(texts) + len(sample.captions)))
            texts += sample.captions
        length, cut_before = dataset.config.tokenizer.length, dataset.tokenizer.truncated
        tokens, mask = dataset.tokenizer.encode_batch(texts, length)
        cut = dataset.tokenizer.truncated - cut_before
        if cut and not (dist.is_initialized() and dist.get_rank()):
            _warn_once(f"data.{dataset.split}, as evaluated: {cut} x {CAPTION_NOTE}")
        return cls(texts, tokens.to(torch.int32), mask, rows, video)


@dataclass
class Embeddings:
    """One row for each video and one for each caption.

    videos: float32 [n, D]; texts: float32 [q, D]; video_of_text: int64 [q]; frames: uint8
    [n, s, h, w, 3] small pictures for looking, or None; seconds: time in the encoders.
    """

    video_ids: list[str]
    captions: list[str]
    videos: Tensor
    texts: Tensor
    video_of_text: Tensor
    metadata: list[dict[str, Any]]
    frames: Tensor | None = None
    seconds: float = 0.0


@dataclass
class _EmbeddingCollector:
    row_of_video: dict[str, int] = field(default_factory=dict)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    video_of_text: list[int] = field(default_factory=list)
    videos: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def new_rows(self, ids: Sequence[str]) -> list[int]:
        """The rows of a batch whose video was not met before; numbers them."""
        rows = []
        for row, name in enumerate(ids):
            if name not in self.row_of_video:
                self.row_of_video[name] = len(self.row_of_video)
                rows.append(row)
        return rows

    def result(self, seconds: float) -> Embeddings:
        if not self.videos:
            raise ValueError(
                "no clip could be embedded: the loader delivered no batch; see what it skipped"
            )
        return Embeddings(
            video_ids=list(self.row_of_video),
            captions=self.captions,
            videos=torch.cat(self.videos),
            texts=torch.cat(self.texts),
            video_of_text=torch.tensor(self.video_of_text, dtype=torch.int64),
            metadata=self.metadata,
            frames=torch.cat(self.frames) if self.frames else None,
            seconds=seconds,
        )


@torch.no_grad()
def embed_clips(
    model: VideoTextModel,
    batches: Iterable[ClipBatch],
    *,
    captions: CaptionTable | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    keep_frames: int = 0,
    frame_size: int = 96,
    total: int | None = None,
    progress: bool | None = None,
    calls: int = 0,
) -> Embeddings:
    """Encode every clip and caption of `batches` in evaluation mode, without a graph.

    A batch is one call of each encoder. A video that comes twice counts once. captions: where all
    captions of a video are to be used, not only the one that came with the batch. autocast: dtype
    of mixed precision, e.g. torch.bfloat16. keep_frames: how many evenly spaced frames of each clip
    to keep at `frame_size` pixels, for pictures. total: number of clips, for the progress bar,
    which shows on a terminal unless `progress` says otherwise. calls: make at least so many calls,
    by repeating the last batch: under ZeRO-3 all ranks must make equally many.
    """
    device = torch.device(device) if device is not None else device_of(model)
    pictures = (keep_frames, frame_size)
    collector = _EmbeddingCollector()
    started = time.perf_counter()
    batch, made = None, 0
    with evaluation_mode(model), _progress(total, progress) as advance:
        for batch in batches:
            _embed_batch(model, batch, captions, collector, device, autocast, pictures)
            advance(len(batch.ids))
            made += 1
        while batch is not None and made < calls:
            _embed_batch(model, batch, captions, collector, device, autocast, pictures)
            made += 1
    return collector.result(time.perf_counter() - started)


def merge_ranks(embeddings: Embeddings, group: dist.ProcessGroup | None = None) -> Embeddings:
    """Join what every rank embedded, in order of rank; all ranks get the whole.

    A video that two ranks embedded counts once.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return embeddings
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, embeddings, group=group)
    return join(parts)


def join(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenate embeddings of several ranks or shards; a video in two of them counts once."""
    collector = _EmbeddingCollector()
    for part in parts:
        rows = collector.new_rows(part.video_ids)
        kept = torch.isin(part.video_of_text, torch.tensor(rows, dtype=torch.int64))
        texts = kept.nonzero()[:, 0].tolist()
        collector.videos.append(part.videos[rows])
        collector.texts.append(part.texts[texts])
        collector.captions += [part.captions[row] for row in texts]
        owners = [part.video_ids[int(part.video_of_text[row])] for row in texts]
        collector.video_of_text += [collector.row_of_video[name] for name in owners]
        collector.metadata += [part.metadata[row] for row in rows]
        if part.frames is not None:
            collector.frames.append(part.frames[rows])
    return collector.result(max(part.seconds for part in parts))


def small_frames(frames: Tensor, count: int, size: int) -> Tensor:
    """Evenly spaced frames made small: uint8 [b, F, H, W, 3] to uint8 [b, count, h, w, 3].

    The longer side becomes `size` pixels, unless it is shorter already.
    """
    steps = frames.shape[1]
    index = ((torch.arange(count) + 0.5) * steps / count).long().clamp(max=steps - 1)
    picked = frames[:, index.to(frames.device)]
    height, width = picked.shape[2:4]
    scale = min(1.0, size / max(height, width))
    if scale == 1.0:
        return picked.cpu()
    target = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = picked.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(planes, target, mode="bilinear", antialias=True)
    small = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return small.reshape(*picked.shape[:2], *target, 3).cpu()


def _embed_batch(
    model: VideoTextModel,
    batch: ClipBatch,
    captions: CaptionTable | None,
    collector: _EmbeddingCollector,
    device: torch.device,
    autocast: torch.dtype | None,
    pictures: tuple[int, int],
) -> None:
    table = captions or _captions_of_batch(batch)
    names = [table.video[name] for name in batch.ids]
    rows = collector.new_rows(names)
    # A batch without news is encoded all the same and dropped: other ranks may have some.
    asked = rows or [0]
    texts = [text for row in asked for text in table.rows[names[row]]]
    frames = batch.frames[asked]
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        outputs = VideoOutputs(groups=False, segments=False)
        video = model.encode_video(frames.to(device), None, outputs).video
        tokens = table.tokens[texts].to(device, torch.int64)
        text = model.encode_text(tokens, table.mask[texts].to(device))
    if not rows:
        return
    collector.videos.append(video.float().cpu())
    collector.texts.append(text.float().cpu())
    collector.captions += [table.texts[row] for row in texts]
    for row in rows:
        count = len(table.rows[names[row]])
        collector.video_of_text += [collector.row_of_video[names[row]]] * count
        collector.metadata.append(batch.metadata[row] if batch.metadata else {})
    if pictures[0]:
        collector.frames.append(small_frames(frames, *pictures))


@functools.cache
def _warn_once(message: str) -> None:
    """A run evaluates many times; what is true of its data is said once."""
    log.warning("%s", message)


def _captions_of_batch(batch: ClipBatch) -> CaptionTable:
    rows = {name: [row] for row, name in enumerate(batch.ids)}
    names = dict(zip(batch.ids, batch.ids, strict=True))
    return CaptionTable(batch.captions, batch.text_tokens, batch.text_mask, rows, names)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode for the time of the block."""
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


@contextmanager
def _progress(total: int | None, progress: bool | None) -> Iterator[Callable[[int], None]]:
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda clips: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embedding clips", total=total)
        yield lambda clips: bar.advance(task, clips)


def device_of(model: Any) -> torch.device:
    """The device of a module's parameters; the CPU for anything else."""
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return parameter.device if parameter is not None else torch.device("cpu")
