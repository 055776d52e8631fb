"""Embeds the samples of shards with a finished run: one .npz file for each shard, resumable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.core.text import counted
from svilm_fast.data import files
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.offline.work import Unit, do_work
from svilm_fast.data.shards import find_shards
from svilm_fast.data.skips import Skip
from svilm_fast.inference.features import FeatureFormat, require_pyarrow, write_parquet
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.clips import evaluation_clips
from svilm_fast.train.config.options import Weights
from svilm_fast.train.folder.manifest import MANIFEST
from svilm_fast.train.run.loaded_run import LoadedRun, load_run


@dataclass(frozen=True)
class EmbedSettings:
    """What every shard is embedded with; `device` changes rounding only."""

    run: str
    weights: Weights
    batch_size: int
    device: str
    format: FeatureFormat = FeatureFormat.NPZ


def embed_shards(
    run_dir: str | Path,
    source: str,
    out_dir: str | Path,
    *,
    weights: Weights | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    format: FeatureFormat = FeatureFormat.NPZ,
    engine: OfflineEngine = OfflineEngine.LOCAL,
    workers: int | None = 1,
    progress: bool | None = None,
) -> list[str]:
    """Write the embeddings of every sample of `source` (shards) to `out_dir`.

    `{shard}.npz` holds ids and captions [n] (text), videos and texts float32 [n, D], rows of unit
    norm: the evaluation view of a sample and its first caption. `{shard}.parquet` holds the same as
    the columns id, caption, video and text. Samples that cannot be loaded are left out and listed
    in `embed_manifest.jsonl`. Work that was stopped continues.

    Args:
        workers: shards at a time; every worker loads the model.

    Returns lines that say what was embedded and refused. Raises DataError for sources without
    shards and for a folder of other work, UserError for a run that cannot be loaded and for Parquet
    without pyarrow.
    """
    if format is FeatureFormat.PARQUET:
        require_pyarrow()
    run = load_run(run_dir, weights=weights)
    shards = find_shards(source)
    names = [path.rpartition("/")[2] for path in shards]
    if len(set(names)) < len(names):
        raise DataError(f"{source!r} names shards of one name in several folders")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    units = [
        Unit(name, os.path.abspath(path) if local else path, [name, files.size_of(path)])
        for name, path in zip(names, shards, strict=True)
        for local in [files.protocol(path) is None]
    ]
    model = hashlib.sha256((run.files.portable / MANIFEST).read_bytes()).hexdigest()
    settings = EmbedSettings(os.path.abspath(run_dir), run.weights, batch_size, device, format)
    parameters = {"model": model, "weights": run.weights, "batch_size": batch_size}
    if format is not FeatureFormat.NPZ:  # folders of earlier versions hold no format
        parameters["format"] = format
    reports = do_work(
        "embed",
        embed_shard,
        units,
        settings,
        out,
        parameters=parameters,
        engine=engine,
        workers=workers,
        progress=progress,
    )
    refused = [skip for report in reports for skip in report["refused"]]
    return [
        f"embedded {counted(sum(report['samples'] for report in reports), 'sample')} of "
        f"{counted(len(units), 'shard')}; refused {len(refused)}",
        *(f"  refused {skip['sample']}: {skip['message']}" for skip in refused[:20]),
    ]


def embed_shard(name: str, shard: str, settings: EmbedSettings, out: Outputs) -> dict[str, Any]:
    """Embed one shard; a unit of off-line work."""
    run = _loaded(settings.run, settings.weights, settings.device)
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"test": shard, "cache": "none"})}
    )
    dataset = evaluation_clips(config, "test", run.tokenizer, nouns=False)
    refused: list[Skip] = []
    parts = [
        _embedded(run, batch, settings.device)
        for batch in _batches(dataset, settings.batch_size, refused)
    ]
    empty = np.empty((0, run.config.model.embed_dim), np.float32)
    columns: dict[str, Any] = {
        "ids": np.array([name for part in parts for name in part[0]], dtype=np.str_),
        "captions": np.array([text for part in parts for text in part[1]], dtype=np.str_),
        "videos": np.concatenate([empty, *(part[2] for part in parts)]),
        "texts": np.concatenate([empty, *(part[3] for part in parts)]),
    }
    path = out.path(f"{name}.{settings.format}")
    if settings.format is FeatureFormat.PARQUET:
        write_parquet(path, columns, {"weights": settings.weights, "step": str(run.step)})
    else:
        with path.open("wb") as file:
            np.savez(file, **columns)
    return {"samples": len(columns["ids"]), "refused": [vars(skip) for skip in refused]}


@lru_cache(maxsize=1)
def _loaded(run_dir: str, weights: Weights, device: str) -> LoadedRun:
    return load_run(run_dir, weights=weights, device=device)


def _batches(dataset: ClipDataset, size: int, refused: list[Skip]) -> Iterator[ClipBatch]:
    clips = []
    for index in range(len(dataset)):
        try:
            clips.append(dataset.clip(index, None))
        except DataError as error:
            refused.append(Skip.of(dataset.ids[index], error))
        if len(clips) == size:
            yield dataset.collate(clips)
            clips = []
    if clips:
        yield dataset.collate(clips)


@torch.no_grad()
def _embedded(
    run: LoadedRun, batch: ClipBatch, device: str
) -> tuple[Sequence[str], Sequence[str], np.ndarray, np.ndarray]:
    encoder: Any = run.model.encoder
    outputs = VideoOutputs(groups=False, segments=False)
    video = encoder.encode_video(batch.frames.to(device), None, outputs).video
    text = encoder.encode_text(batch.text_tokens.to(device), batch.text_mask.to(device))
    return batch.ids, batch.captions, *(side.float().cpu().numpy() for side in (video, text))
