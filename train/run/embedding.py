"""Embeds video files and sentences with the model of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svilm_fast.data.augment import centre_window, cut
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.train.run.loaded_run import LoadedRun


@torch.no_grad()
def embed_videos(run: LoadedRun, paths: Sequence[str | Path], *, batch_size: int = 32) -> Tensor:
    """Embed whole video files as the run's evaluation does: middle frames, centre crop.

    Args:
        paths: video files; a child process decodes them under `data.limits`.
        batch_size: videos per call of the encoder.

    Returns:
        float32 [n, D] on the CPU, rows of unit norm. Raises OSError or DataError for a file that
        cannot be read or decoded.
    """
    model, device = _encoder(run)
    outputs = VideoOutputs(groups=False, segments=False)
    parts = [
        model.encode_video(torch.stack(clips).to(device), None, outputs).video.float().cpu()
        for clips in _batches(run, list(paths), batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, run.config.model.embed_dim)


@torch.no_grad()
def embed_texts(run: LoadedRun, texts: Sequence[str]) -> Tensor:
    """Embed sentences as the run's evaluation does.

    Returns:
        float32 [n, D] on the CPU, rows of unit norm.
    """
    tokens, mask = run.tokenizer.encode_batch(texts, run.config.data.tokenizer.length)
    model, device = _encoder(run)
    return model.encode_text(tokens.to(device), mask.to(device)).float().cpu()


def _encoder(run: LoadedRun) -> tuple[Any, torch.device]:
    encoder: Any = run.model.encoder
    return encoder, next(encoder.parameters()).device


def _batches(run: LoadedRun, paths: list[str | Path], batch_size: int) -> Iterator[list[Tensor]]:
    for start in range(0, len(paths), batch_size):
        yield [_clip(run, Path(path)) for path in paths[start : start + batch_size]]


def _clip(run: LoadedRun, path: Path) -> Tensor:
    """The evaluation view of a video: uint8 [F, size, size, 3]."""
    data, video = run.config.data, run.config.video
    choose = FrameChoice(video.frames, None, data.short_clip, by_time=data.frames_by == "time")
    decoded = decode_limited(
        path.read_bytes(),
        choose,
        short_side=max(video.image_size, round(video.image_size * data.resize_margin)),
        limits=data.limits,
        decoder=data.decoder,
    )
    height, width = decoded.frames.shape[1:3]
    window = centre_window(width, height, data.resize_margin)
    return cut(decoded.frames, window, video.image_size)
