"""Clips and captions to embeddings: micro-batches, a progress bar, and what was left out."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

log = logging.getLogger(__name__)


class ClipBatchLike(Protocol):
    """What evaluation reads of `svilm_fast.data.ClipBatch`."""

    frames: Tensor
    ids: list[str]
    captions: list[str]
    text_tokens: Tensor
    text_mask: Tensor
    metadata: list[dict[str, Any]]


class VideoTextModel(Protocol):
    """What evaluation asks of a dual encoder; both sides end in unit vectors of one space."""

    def encode_video(self, frames: Tensor, seeds: Any = None) -> Any: ...

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor: ...


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
    repeated: int = 0


@dataclass
class _Collector:
    row_of_video: dict[str, int] = field(default_factory=dict)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    video_of_text: list[int] = field(default_factory=list)
    videos: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)
    repeated: int = 0

    def choose(self, ids: Sequence[str], captions: Sequence[str]) -> tuple[list[int], list[int]]:
        """The rows of a batch whose video, and whose caption, was not met before."""
        new_videos, new_texts = [], []
        for row, (video, caption) in enumerate(zip(ids, captions, strict=True)):
            if (video, caption) in self.seen:
                self.repeated += 1
                continue
            self.seen.add((video, caption))
            new_texts.append(row)
            if video not in self.row_of_video:
                self.row_of_video[video] = len(self.row_of_video)
                new_videos.append(row)
        return new_videos, new_texts


@torch.no_grad()
def embed_clips(
    model: VideoTextModel,
    batches: Iterable[ClipBatchLike],
    *,
    device: torch.device | str | None = None,
    micro_batch: int | None = None,
    autocast: torch.dtype | None = None,
    keep_frames: int = 0,
    frame_size: int = 96,
    total: int | None = None,
    progress: bool | None = None,
) -> Embeddings:
    """Encode every clip and caption of `batches` in evaluation mode, without a graph.

    A clip that comes with several captions is encoded once (rows of one id are one video); an exact
    repetition of id and caption is left out and counted. micro_batch: clips in one encoder call
    (default: the batch as it comes). autocast: dtype of mixed precision, e.g. torch.bfloat16.
    keep_frames: how many evenly spaced frames of each clip to keep at `frame_size` pixels, for
    pictures. total: number of clips, for the progress bar, which shows on a terminal unless
    `progress` says otherwise.

    Under ZeRO-3 every rank must make the same encoder calls: give all ranks equally many batches
    (a batch of known clips is encoded again then) and join the results with `merge_ranks`.
    """
    device = torch.device(device) if device is not None else _device_of(model)
    pictures = (keep_frames, frame_size)
    collector = _Collector()
    started = time.perf_counter()
    with _evaluation_mode(model), _progress(total, progress) as advance:
        for batch in batches:
            for part in _split(len(batch.ids), micro_batch):
                _embed_part(model, batch, part, collector, device, autocast, pictures)
                advance(len(batch.ids[part]))
    if not collector.videos:
        raise ValueError("no clip could be embedded: the loader gave no batch, see its skips")
    if collector.repeated:
        log.info("%d repeated pairs of id and caption were left out", collector.repeated)
    return Embeddings(
        video_ids=list(collector.row_of_video),
        captions=collector.captions,
        videos=torch.cat(collector.videos),
        texts=torch.cat(collector.texts),
        video_of_text=torch.tensor(collector.video_of_text, dtype=torch.int64),
        metadata=collector.metadata,
        frames=torch.cat(collector.frames) if keep_frames else None,
        seconds=time.perf_counter() - started,
        repeated=collector.repeated,
    )


def merge_ranks(embeddings: Embeddings, group: dist.ProcessGroup | None = None) -> Embeddings:
    """Join what every rank embedded, in order of rank; all ranks get the whole.

    A clip that two ranks embedded (padding of the last batches) counts once.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return embeddings
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, embeddings, group=group)
    return join(parts)


def join(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenate embeddings of several ranks or shards; repeated pairs count once."""
    collector = _Collector()
    for part in parts:
        ids = [part.video_ids[row] for row in part.video_of_text.tolist()]
        new_videos, new_texts = collector.choose(ids, part.captions)
        rows = [int(part.video_of_text[row]) for row in new_videos]
        collector.videos.append(part.videos[rows])
        collector.texts.append(part.texts[new_texts])
        collector.captions += [part.captions[row] for row in new_texts]
        collector.video_of_text += [collector.row_of_video[ids[row]] for row in new_texts]
        collector.metadata += [part.metadata[row] for row in rows]
        if part.frames is not None:
            collector.frames.append(part.frames[rows])
    return Embeddings(
        video_ids=list(collector.row_of_video),
        captions=collector.captions,
        videos=torch.cat(collector.videos),
        texts=torch.cat(collector.texts),
        video_of_text=torch.tensor(collector.video_of_text, dtype=torch.int64),
        metadata=collector.metadata,
        frames=torch.cat(collector.frames) if collector.frames else None,
        seconds=max(part.seconds for part in parts),
        repeated=collector.repeated + sum(part.repeated for part in parts),
    )


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


def _embed_part(
    model: VideoTextModel,
    batch: ClipBatchLike,
    part: slice,
    collector: _Collector,
    device: torch.device,
    autocast: torch.dtype | None,
    pictures: tuple[int, int],
) -> None:
    ids, captions = batch.ids[part], batch.captions[part]
    keep_frames, frame_size = pictures
    new_videos, new_texts = collector.choose(ids, captions)
    lockstep = dist.is_initialized() and dist.get_world_size() > 1
    idle = [0] if lockstep else []
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        if video_rows := new_videos or idle:
            frames = batch.frames[part][video_rows]
            video = model.encode_video(frames.to(device), None).video.float().cpu()
            collector.videos.append(video[: len(new_videos)])
            if keep_frames:
                small = small_frames(frames, keep_frames, frame_size)
                collector.frames.append(small[: len(new_videos)])
        if text_rows := new_texts or idle:
            tokens = batch.text_tokens[part][text_rows].to(device)
            mask = batch.text_mask[part][text_rows].to(device)
            text = model.encode_text(tokens, mask).float().cpu()
            collector.texts.append(text[: len(new_texts)])
    collector.metadata += [batch.metadata[part][row] for row in new_videos]
    collector.captions += [captions[row] for row in new_texts]
    collector.video_of_text += [collector.row_of_video[ids[row]] for row in new_texts]


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
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


def _split(count: int, micro_batch: int | None) -> Iterator[slice]:
    step = micro_batch or max(1, count)
    if step < 1:
        raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
    return (slice(start, start + step) for start in range(0, count, step))


def _device_of(model: Any) -> torch.device:
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return parameter.device if parameter is not None else torch.device("cpu")
