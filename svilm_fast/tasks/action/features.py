"""Features of videos for probes: extracted once, kept in files that name what they depend on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.files import opened_atomically
from svilm_fast.data.assemble import Assembler, Loaded, Request
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError, WorkerError
from svilm_fast.data.loader import made_by_workers
from svilm_fast.data.pipeline import check_shared_memory
from svilm_fast.evaluation.embed import evaluation_mode, progress_bar
from svilm_fast.models.precision import at_least_fp32
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.action.evaluation import encode_views
from svilm_fast.tasks.split import RankPart


@dataclass
class ClipFeatures:
    """Features of the videos that were decoded.

    features: float32 [n, V, 1 + T, D] of V views: the pooled tokens, then the mean over space of
    the tokens of each of T time steps; T = 0 where they were not asked for. reasons: why other
    videos have none.
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


@dataclass(frozen=True)
class Extraction:
    """How features are extracted.

    steps: keep the time steps, which take T times the memory of the pooled tokens. progress:
    whether to show a bar; None: only on a terminal.
    """

    encoder: Any
    device: torch.device
    batch_size: int
    autocast: torch.dtype | None
    steps: bool = True
    progress: bool | None = None

    def encoded(self, frames: Tensor) -> Tensor:
        """Return [b, 1 + T, D] of frames uint8 [b, F, H, W, 3] on the device."""
        outputs = VideoOutputs(groups=False, segments=False, tokens=self.steps)
        video = self.encoder.encode_video(frames, None, outputs)
        pooled = at_least_fp32(video.pooled)[:, None]
        if not self.steps:
            return pooled
        steps = video.tokens.unflatten(1, (video.grid[0], -1)).mean(dim=2)
        return torch.cat([pooled, steps], dim=1)

    def of_evaluation(self, dataset: ClipDataset) -> ClipFeatures:
        """Encode all evaluation views of every video."""
        found, reasons = encode_views(
            self.encoder,
            dataset,
            self.encoded,
            self.device,
            batch_size=self.batch_size,
            autocast=self.autocast,
            part=RankPart(progress=self.progress),
        )
        return _in_order(dataset, found, reasons)

    @torch.no_grad()
    def of_training(self, dataset: ClipDataset, *, passes: int, seed: int) -> ClipFeatures:
        """Encode `passes` training views of every video: random frames, crops and flips.

        A video with a view that cannot be decoded has no features.
        """
        found: dict[str, list[np.ndarray]] = {}
        reasons: dict[str, str] = {}
        kind = self.device.type
        total = passes * len(dataset)
        with evaluation_mode(self.encoder), progress_bar(total, self.progress) as advance:
            for loaded in _training_views(dataset, self.batch_size, passes, seed):
                reasons |= {skip.sample: skip.message for skip in loaded.skips}
                advance(loaded.wanted)
                if loaded.failure is not None:
                    raise WorkerError(loaded.failure[0])
                batch: Any = loaded.batch
                if batch is None:
                    continue
                with torch.autocast(kind, dtype=self.autocast, enabled=self.autocast is not None):
                    rows = self.encoded(batch.frames.to(self.device)).float().cpu().numpy()
                for video, row in zip(batch.ids, rows, strict=True):
                    found.setdefault(video, []).append(row)
        whole = {video: np.stack(rows) for video, rows in found.items() if len(rows) == passes}
        return _in_order(dataset, whole, reasons)


def kept(
    folder: Path | None,
    depends_on: dict[str, Any],
    extract: Callable[[], ClipFeatures],
    *,
    steps: bool = True,
) -> ClipFeatures:
    """Return the features in `folder` that were made with the same `depends_on`, or extract them.

    depends_on: JSON values that name everything the features follow from; their hash is the name of
    the file. folder: None: nothing is kept. steps: time steps are read; a file with them serves
    those who read none. A damaged file is made again.
    """
    if folder is None:
        return extract()
    texts = [
        json.dumps(depends_on | {"steps": with_steps}, sort_keys=True, default=str)
        for with_steps in ((True,) if steps else (False, True))
    ]
    paths = [folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz" for text in texts]
    for path in paths:
        read = _read(path)
        if read is not None:
            return read
    found = extract()
    folder.mkdir(parents=True, exist_ok=True)
    # Written in place: features of a large set would not fit into memory a second time.
    with opened_atomically(paths[0]) as draft:
        np.savez(
            draft,
            features=found.features,
            ids=np.array(json.dumps(found.ids)),
            reasons=np.array(json.dumps(found.reasons)),
            depends_on=np.array(texts[0]),
        )
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


def _training_views(
    dataset: ClipDataset, batch_size: int, passes: int, seed: int
) -> Iterator[Loaded]:
    """Load every video once in each pass, with the workers of the data settings."""
    config, count = dataset.config, len(dataset)
    requests = (
        Request(epoch, [[place] for place in range(start, min(count, start + batch_size))])
        for epoch in range(passes)
        for start in range(0, count, batch_size)
    )
    workers = 0 if config.cache == "memory" else config.workers
    assembler = Assembler(dataset, seed, workers, leave_out=True)
    if not workers:
        return (assembler[request] for request in requests)
    check_shared_memory(config, dataset)
    return made_by_workers(assembler, requests, config, False)
