"""Embeds the clips and captions of a data set with a dual encoder."""

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
from svilm_fast.core.errors import UserError
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import CAPTION_NOTE, ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.data.sample_files import StoredFile
from svilm_fast.data.segments import Segment
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.video_encoder import VideoOutputs

log = logging.getLogger(__name__)

_TEXTS = 256  # texts of one encoder call
FRAME_SIZE = 96  # pixels of the longer side of a frame that is kept for pictures


class VideoTextModel(Protocol):
    """A dual encoder: videos, texts and nouns become unit vectors of one space."""

    def encode_video(
        self, frames: Tensor, seeds: Any = None, outputs: VideoOutputs | None = None
    ) -> VideoFeatures: ...

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor: ...

    def encode_nouns(self, tokens: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CaptionTable:
    """All captions of a data set; a batch holds only one caption of each sample.

    tokens: int [n, S]; mask: bool [n, S]; rows: the captions of each video; video: the video of
    each sample; nouns: of each caption, where the data set knows them. Samples of the same file, or
    of the same segment of it, are one video, named after the first sample. cut: captions that are
    longer than the tokenizer's length, of which only the beginning is read.
    """

    texts: list[str]
    tokens: Tensor
    mask: Tensor
    rows: dict[str, list[int]]
    video: dict[str, str]
    nouns: list[tuple[str, ...]] = field(default_factory=list)
    cut: int = 0

    @classmethod
    def of(cls, dataset: ClipDataset) -> CaptionTable:
        """Every caption of a data set, tokenised here. Raises DataError for one without."""
        if dataset.config.captions == "none":
            raise DataError(
                "data.captions=none: retrieval needs captions; set data.captions or "
                "evaluation.captions to coarse, fine or fused"
            )
        texts: list[str] = []
        rows: dict[str, list[int]] = {}
        video: dict[str, str] = {}
        nouns: list[tuple[str, ...]] = []
        names: dict[tuple[StoredFile, Segment | None], str] = {}
        for sample in dataset.table:
            name = video[sample.id] = names.setdefault((sample.video, sample.segment), sample.id)
            rows.setdefault(name, []).extend(range(len(texts), len(texts) + len(sample.captions)))
            texts += sample.captions
            nouns += [found or () for found in sample.nouns]
        length, cut_before = dataset.config.tokenizer.length, dataset.tokenizer.truncated
        tokens, mask = dataset.tokenizer.encode_batch(texts, length)
        cut = dataset.tokenizer.truncated - cut_before
        if cut and not (dist.is_initialized() and dist.get_rank()):
            _warn_once(f"data.{dataset.split}, as evaluated: {cut} x {CAPTION_NOTE}")
        return cls(texts, tokens.to(torch.int32), mask, rows, video, nouns, cut)


@dataclass
class Embeddings:
    """One row for each video and one for each caption.

    videos: float32 [n, D]; texts: float32 [q, D]; video_of_text: int64 [q]; metadata: JSON of the
    samples; frames: uint8 [n, s, h, w, 3] small frames for pictures, or None; groups: float32
    [n, G, D], or None where they were not asked for; seconds: time spent in reading and encoding.
    """

    video_ids: list[str]
    captions: list[str]
    videos: Tensor
    texts: Tensor
    video_of_text: Tensor
    metadata: list[dict[str, Any]]
    frames: Tensor | None = None
    groups: Tensor | None = None
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
    groups: list[Tensor] = field(default_factory=list)

    def new_rows(self, ids: Sequence[str]) -> list[int]:
        """Register the ids of a batch; return the rows whose id is new."""
        rows = []
        for row, name in enumerate(ids):
            if name not in self.row_of_video:
                self.row_of_video[name] = len(self.row_of_video)
                rows.append(row)
        return rows

    def result(self, seconds: float) -> Embeddings:
        if not self.videos:
            raise ValueError(
                "no clip could be embedded: the loader delivered no batch; its skips say why"
            )
        return Embeddings(
            video_ids=list(self.row_of_video),
            captions=self.captions,
            videos=torch.cat(self.videos),
            texts=torch.cat(self.texts),
            video_of_text=torch.tensor(self.video_of_text, dtype=torch.int64),
            metadata=self.metadata,
            frames=torch.cat(self.frames) if self.frames else None,
            groups=torch.cat(self.groups) if self.groups else None,
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
    total: int | None = None,
    progress: bool | None = None,
    calls: int = 0,
    keep_groups: bool = False,
) -> Embeddings:
    """Encode the clips and captions of `batches` in evaluation mode, without gradients.

    Each batch is one call of each encoder. A video that occurs twice counts once.

    Args:
        model: the encoders.
        batches: for example a ClipLoader.
        captions: all captions of the videos; None: use only those in the batches.
        device: of the encoders' inputs; None: that of the model's parameters.
        autocast: dtype of mixed precision, for example torch.bfloat16.
        keep_frames: number of evenly spaced small frames of each clip to keep for pictures.
        total: number of clips, for the progress bar.
        progress: whether to show the bar; None: only on a terminal.
        calls: minimum number of encoder calls, reached by repeating the last batch. Under ZeRO-3
            all ranks must make the same number.
        keep_groups: keep the embeddings of the groups of every clip.
    """
    device = torch.device(device) if device is not None else device_of(model)
    collector, keep = _EmbeddingCollector(), (keep_frames, keep_groups)
    started = time.perf_counter()
    batch, made = None, 0
    with evaluation_mode(model), progress_bar(total, progress) as advance:
        for batch in batches:
            _embed_batch(model, batch, captions, collector, device, autocast, keep)
            advance(len(batch.ids))
            made += 1
        while batch is not None and made < calls:
            _embed_batch(model, batch, captions, collector, device, autocast, keep)
            made += 1
    return collector.result(time.perf_counter() - started)


@torch.no_grad()
def encode_captions(
    model: VideoTextModel,
    dataset: ClipDataset,
    texts: Sequence[str],
    *,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Encode texts, tokenised as the captions of a data set: float32 [n, D] on the CPU."""
    device = torch.device(device) if device is not None else device_of(model)
    length, vectors = dataset.config.tokenizer.length, []
    with evaluation_mode(model):
        for start in range(0, len(texts), _TEXTS):
            chunk = list(texts[start : start + _TEXTS])
            tokens, mask = dataset.tokenizer.encode_batch(chunk, length)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                encoded = model.encode_text(tokens.to(device, torch.int64), mask.to(device))
            vectors.append(encoded.float().cpu())
    return torch.cat(vectors)


def gather(value: Any) -> list[Any]:
    """Return the picklable `value` of every rank of the default process group, in rank order."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def join(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenate the embeddings of several ranks; a video in two of them counts once."""
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
        if part.groups is not None:
            collector.groups.append(part.groups[rows])
    return collector.result(max(part.seconds for part in parts))


def small_frames(frames: Tensor, count: int, size: int) -> Tensor:
    """Evenly spaced small frames: uint8 [b, F, H, W, 3] to uint8 [b, count, h, w, 3].

    The longer side becomes `size` pixels, unless it is shorter.
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
    keep: tuple[int, bool],
) -> None:
    keep_frames, keep_groups = keep
    table = captions or _captions_of_batch(batch)
    names = [table.video[name] for name in batch.ids]
    rows = collector.new_rows(names)
    # A batch without a new video is encoded too, and dropped: under ZeRO-3 other ranks wait for it.
    encoded = rows or [0]
    texts = [text for row in encoded for text in table.rows[names[row]]]
    frames = batch.frames[encoded]
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        outputs = VideoOutputs(groups=keep_groups, segments=False)
        features = model.encode_video(frames.to(device), None, outputs)
        video = features.video
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
    if keep_groups:
        if features.groups is None:
            raise UserError(
                "re-ranking by nouns needs group tokens, and the model has none: train it with the "
                "grounding objective"
            )
        collector.groups.append(features.groups.float().cpu())
    if keep_frames:
        collector.frames.append(small_frames(frames, keep_frames, FRAME_SIZE))


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
    """Put a model into evaluation mode inside the `with` block."""
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


@contextmanager
def progress_bar(
    total: int | None, progress: bool | None, what: str = "embedding clips"
) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr in the `with` block, which calls the function with finished clips.

    progress: whether to show it; None: only on a terminal.
    """
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
        task = bar.add_task(what, total=total)
        yield lambda clips: bar.advance(task, clips)


def device_of(model: Any) -> torch.device:
    """The device of a module's parameters; the CPU for anything else."""
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return parameter.device if parameter is not None else torch.device("cpu")
