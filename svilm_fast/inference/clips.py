"""Reads videos as the evaluation does: middle frames of equal parts, centre crop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from svilm_fast.data.augment import centre_window, cut
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.sampling import FrameChoice, choose_frames
from svilm_fast.data.segments import InSegment, Segment
from svilm_fast.inference.config import PretrainedConfig


def frame_choice(config: PretrainedConfig) -> FrameChoice:
    """Return the evaluation's choice of a clip's frames."""
    reading = config.reading
    by_time = reading.frames_by == "time"
    return FrameChoice(config.video.frames, None, reading.short_clip, by_time)


def decoded_side(config: PretrainedConfig) -> int:
    """Return the length of the shorter side, in pixels, at which videos are decoded."""
    size = config.video.image_size
    return max(size, round(size * config.reading.resize_margin))


def read_clip(path: str | Path, config: PretrainedConfig, segment: Segment | None = None) -> Tensor:
    """Read a video file, or the part `segment` of it, as uint8 [F, size, size, 3].

    A child process decodes under `reading.limits`. Raises OSError or DataError.
    """
    reading = config.reading
    decoded = decode_limited(
        Path(path).read_bytes(),
        InSegment(frame_choice(config), segment),
        short_side=decoded_side(config),
        limits=reading.limits,
        decoder=reading.decoder,
    )
    return centre_crop(torch.from_numpy(decoded.frames), config)


def clip_of_frames(frames: Tensor, config: PretrainedConfig) -> Tensor:
    """Turn the decoded frames of a video, uint8 [n, h, w, 3], into uint8 [F, size, size, 3].

    Frames in the number and size of the model's input are used as they are. Of others the middle
    frames of F equal parts and their centre crop are taken.
    """
    shape = tuple(frames.shape)
    if frames.dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(
            "a video as a tensor must be uint8 RGB frames [F, H, W, 3], or a batch "
            f"[B, F, H, W, 3]; got {frames.dtype} {list(shape)}"
        )
    wanted, size = config.video.frames, config.video.image_size
    if shape == (wanted, size, size, 3):
        return frames.cpu()
    index = choose_frames(len(frames), wanted, None, short_clip=config.reading.short_clip)
    return centre_crop(frames.cpu()[torch.from_numpy(index)], config)


def centre_crop(frames: Tensor, config: PretrainedConfig) -> Tensor:
    """Cut the evaluation's crop: uint8 [F, h, w, 3] to uint8 [F, size, size, 3]."""
    height, width = frames.shape[1:3]
    window = centre_window(width, height, config.reading.resize_margin)
    return cut(frames.numpy(), window, config.video.image_size)
