"""Features of videos for probes: extracted once, kept in files that name what they depend on."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.files import write_atomically
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.evaluation.embed import evaluation_mode
from svilm_fast.models.precision import at_least_fp32
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.action.evaluation import encode_views


@dataclass
class ClipFeatures:
    """Features of the videos that were decoded.

    features: float32 [n, V, 1 + T, D] of V views: the pooled tokens, then the mean over space of
    the tokens of each of T time steps. reasons: why other videos have none.
    """

    ids: list[str]
    features: np.ndarray
    reasons: dict[str, str]

    @property
    def pooled(self) -> np.ndarray:
        """[n, V, D]."""
        return self.features[:, :, 0]

    @property
    def steps(self) -> np.ndarray:
        """[n, V, T, D]."""
        return self.features[:, :, 1:]


def encoded(encoder: Any, frames: Tensor) -> Tensor:
    """Return [b, 1 + T, D] of frames uint8 [b, F, H, W, 3]."""
    outputs = VideoOutputs(groups=False, segments=False, tokens=True)
    video = encoder.encode_video(frames, None, outputs)
    time = video.grid[0]
    steps = video.tokens.unflatten(1, (time, -1)).mean(dim=2)
    return torch.cat([at_least_fp32(video.pooled)[:, None], steps], dim=1)


def evaluation_features(
    encoder: Any,
    dataset: ClipDataset,
    device: torch.device,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> ClipFeatures:
    """Encode all evaluation views of every video."""
    found, reasons = encode_views(
        encoder,
        dataset,
        lambda frames: encoded(encoder, frames),
        device,
        batch_size=batch_size,
        autocast=autocast,
    )
    return _in_order(dataset, found, reasons)


@torch.no_grad()
def training_features(
    encoder: Any,
    dataset: ClipDataset,
    device: torch.device,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    passes: int,
    seed: int,
) -> ClipFeatures:
    """Encode `passes` training views of every video: random frames, crops and flips.

    A video with a view that cannot be decoded has no features.
    """
    found: dict[str, list[np.ndarray]] = {}
    reasons: dict[str, str] = {}
    with evaluation_mode(encoder):
        for epoch in range(passes):
            for places in _chunks(len(dataset), batch_size):
                clips = []
                for place, draw in zip(places, dataset.draws(places, seed, epoch), strict=True):
                    try:
                        clips.append(dataset.clip(place, draw))
                    except DataError as error:
                        reasons.setdefault(dataset.ids[place], str(error))
                if not clips:
                    continue
                batch = dataset.collate(clips)
                with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                    rows = encoded(encoder, batch.frames.to(device)).float().cpu().numpy()
                for video, row in zip(batch.ids, rows, strict=True):
                    found.setdefault(video, []).append(row)
    whole = {video: np.stack(rows) for video, rows in found.items() if len(rows) == passes}
    return _in_order(dataset, whole, reasons)


def kept(folder: Path | None, depends_on: Any, extract: Callable[[], ClipFeatures]) -> ClipFeatures:
    """Return the features in `folder` that were made with the same `depends_on`, or extract them.

    depends_on: JSON values that name everything the features follow from; their hash is the name of
    the file. folder: None: nothing is kept. A damaged file is made again.
    """
    if folder is None:
        return extract()
    text = json.dumps(depends_on, sort_keys=True, default=str)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    read = _read(path)
    if read is not None:
        return read
    found = extract()
    folder.mkdir(parents=True, exist_ok=True)

    content = io.BytesIO()
    np.savez(
        content,
        features=found.features,
        ids=np.array(json.dumps(found.ids)),
        reasons=np.array(json.dumps(found.reasons)),
        depends_on=np.array(text),
    )
    write_atomically(path, content.getvalue())
    return found


def _read(path: Path) -> ClipFeatures | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, reasons = (json.loads(str(file[name])) for name in ("ids", "reasons"))
            return ClipFeatures(ids, file["features"], reasons)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _in_order(
    dataset: ClipDataset, found: dict[str, np.ndarray], reasons: dict[str, str]
) -> ClipFeatures:
    ids = [video for video in dataset.ids if video in found]
    if not ids:
        raise DataError(f"data.{dataset.split}: no video could be decoded")
    return ClipFeatures(ids, np.stack([found[video] for video in ids]), reasons)


def _chunks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(count, start + size)))
