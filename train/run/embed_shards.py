"""Embeds the samples of shards or of a list with a finished run, resumable.

One .npz file is written for each shard, or for each thousand samples of a list.
"""

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

from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.data.list_embeddings import check_storable, write_list_embeddings
from svilm_fast.data.lists import is_list
from svilm_fast.data.offline.engines import OfflineEngine, worker_number
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.offline.work import do_work
from svilm_fast.data.sample_units import ListPiece, list_units, shard_units
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.skips import Skip, refused_lines
from svilm_fast.inference.features import FeatureFormat, require_pyarrow, write_parquet
from svilm_fast.models.tower_digest import video_tower_digest
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.clips import evaluation_clips
from svilm_fast.train.config.options import Weights
from svilm_fast.train.folder.manifest import MANIFEST
from svilm_fast.train.ranks.process_group import choose_device
from svilm_fast.train.run.embedding import dual_encoder
from svilm_fast.train.run.loaded_run import LoadedRun, load_run

_INPUTS = "by content"  # before, shards were told apart by name and size


@dataclass(frozen=True)
class EmbedSettings:
    """What every shard is embedded with; `device`, as the worker chooses it, changes rounding.

    tower: `video_tower_digest` of the run.
    """

    run: str
    weights: Weights
    batch_size: int
    device: str
    tower: str
    captions: str | None = None
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
    videos: str | None = None,
    captions: str | None = None,
    store: bool = False,
    progress: bool | None = None,
) -> list[str]:
    """Write the embeddings of every sample of `source` (shards or a list) to `out_dir`.

    `{shard}.npz`, or `{list}-000000.npz` and so on of a list, holds ids and captions [n] (text),
    videos and texts float32 [n, D], rows of unit norm: the evaluation view of a sample and its
    first caption; and tower, the `video_tower_digest` of the run as text. Those of a list also hold
    rows int64 [n], of its index. Samples that cannot be loaded are left out and listed in
    `embed_manifest.jsonl`. Work that was stopped continues.
    As Parquet, the columns are id, caption, video, text and row.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`, chosen in each worker. Workers of one machine
            take its GPUs in turn; Ray gives each unit a GPU where the cluster has any.
        workers: files at a time; every worker loads the model.
        videos: the folder of a list's videos (default: the list's own).
        captions: of which grain, `none` for samples without captions (default: the run's).
        store: also write the videos' embeddings beside the list, for `ClipDataset(embeddings=D)`.

    Returns lines that say what was embedded and refused. Raises DataError for sources without
    shards and for a folder of other work, UserError for a run that cannot be loaded, and for
    Parquet without pyarrow or with `store`.
    """
    if format is FeatureFormat.PARQUET:
        require_pyarrow()
        if store:
            raise UserError("--store reads the .npz files: leave out --format parquet, or --store")
    if store and not is_list(source):
        raise DataError(f"{source!r}: embeddings are stored beside lists alone, not shards")
    if store:
        check_storable(source)
    if engine is OfflineEngine.LOCAL:
        choose_device(device, 0)  # raises now; nodes of a cluster may have other devices
    run = load_run(run_dir, weights=weights)
    grain = captions or run.config.evaluation.captions or run.config.data.captions
    table = table_of(source, videos, grain, run) if is_list(source) else None
    units = shard_units(source) if table is None else list_units(source, videos, table)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    model = hashlib.sha256((run.files.portable / MANIFEST).read_bytes()).hexdigest()
    tower = video_tower_digest(dual_encoder(run).video)
    settings = EmbedSettings(
        os.path.abspath(run_dir), run.weights, batch_size, device, tower, captions, format
    )
    parameters = {"model": model, "weights": run.weights, "batch_size": batch_size}
    parameters["tower"] = tower
    parameters["inputs"] = _INPUTS
    parameters |= {} if captions is None else {"captions": captions}
    # Folders of earlier versions say no format.
    parameters |= {} if format is FeatureFormat.NPZ else {"format": format}
    reports = do_work(
        "embed",
        embed_shard,
        units,
        settings,
        out,
        parameters=parameters,
        engine=engine,
        workers=workers,
        gpu=device != "cpu",
        progress=progress,
    )
    refused = [Skip(**skip) for report in reports for skip in report["refused"]]
    of = counted(len(units), "shard") if table is None else source
    stored = []
    if store and table is not None:
        identity = table.list_identity(0)
        vectors = np.full((identity.samples, run.config.model.embed_dim), np.nan, np.float32)
        for unit in units:
            with np.load(out / f"{unit.name}.npz") as found:
                vectors[found["rows"]] = found["videos"]
        stored = [f"stored in {write_list_embeddings(source, identity, vectors)}"]
    return [
        f"embedded {counted(sum(report['samples'] for report in reports), 'sample')} of {of}; "
        f"refused {len(refused)}",
        *stored,
        *refused_lines(refused, "embed_manifest.jsonl"),
    ]


def table_of(source: str, videos: str | None, grain: str, run: LoadedRun) -> SampleTable:
    changed = {"test": source, "videos": videos, "captions": grain}
    config = DataConfig.model_validate(run.config.data.model_dump() | changed)
    return open_split(config, "test")


def embed_shard(
    name: str, source: str | ListPiece, settings: EmbedSettings, out: Outputs
) -> dict[str, Any]:
    """Embed one shard, or a piece of a list; a unit of off-line work."""
    columns, refused, step = embedded_columns(source, settings)
    del columns["places"]
    path = out.path(f"{name}.{settings.format}")
    if settings.format is FeatureFormat.PARQUET:
        metadata = {"weights": settings.weights, "step": str(step), "tower": settings.tower}
        write_parquet(path, columns, metadata)
    else:
        columns["tower"] = np.array(settings.tower)
        with path.open("wb") as file:
            np.savez(file, **columns)
    return {"samples": len(columns["ids"]), "refused": [vars(skip) for skip in refused]}


def embedded_columns(
    source: str | ListPiece, settings: EmbedSettings
) -> tuple[dict[str, Any], list[Skip], int]:
    """Embed one shard, or a piece of a list.

    Returns ids and captions [n], videos and texts [n, D], places int64 [n] in the table of the
    shard or list, rows int64 [n] of a list's index; the refused samples; the step of the model.
    A shard without a usable sample gives empty columns, and the other shards are embedded.
    """
    device = _device(settings.device)
    run = _loaded(settings.run, settings.weights, device)
    piece = source if isinstance(source, ListPiece) else None
    changed: dict[str, Any] = {
        "test": source if piece is None else piece.path,
        "cache": "none",
        # Refused samples are reported at the end; the share of one shard says nothing.
        "skips": run.config.data.skips.model_copy(update={"fraction": 1.0}),
    }
    if piece is not None:
        changed["videos"] = piece.videos
    if settings.captions is not None:
        changed["captions"] = settings.captions
    config = run.config.model_copy(update={"data": run.config.data.model_copy(update=changed)})
    if settings.captions is not None:
        evaluation = config.evaluation.model_copy(update={"captions": settings.captions})
        config = config.model_copy(update={"evaluation": evaluation})
    dataset = evaluation_clips(config, "test", run.tokenizer, nouns=False, may_be_empty=True)
    places = range(len(dataset)) if piece is None else range(piece.first, piece.stop)
    # The pieces of a list share its table: the first one tells what was refused in it.
    refused = list(dataset.table.rejected) if piece is None or piece.first == 0 else []
    loaded: list[int] = []
    parts = [
        _embedded(run, batch, device)
        for batch in _batches(dataset, places, settings.batch_size, refused, loaded)
    ]
    empty = np.empty((0, run.config.model.embed_dim), np.float32)
    columns: dict[str, Any] = {
        "ids": np.array([name for part in parts for name in part[0]], dtype=np.str_),
        "captions": np.array([text for part in parts for text in part[1]], dtype=np.str_),
        "videos": np.concatenate([empty, *(part[2] for part in parts)]),
        "texts": np.concatenate([empty, *(part[3] for part in parts)]),
        "places": np.array(loaded, np.int64),
    }
    if piece is not None:
        columns["rows"] = np.array([dataset.table.index_row(place) for place in loaded], np.int64)
    return columns, refused, run.step


def _device(wanted: str) -> str:
    """The device of this worker: workers of one machine take its GPUs in turn."""
    return str(choose_device(wanted, worker_number() % max(1, torch.cuda.device_count())))


@lru_cache(maxsize=1)
def _loaded(run_dir: str, weights: Weights, device: str) -> LoadedRun:
    return load_run(run_dir, weights=weights, device=device)


def _batches(
    dataset: ClipDataset, places: range, size: int, refused: list[Skip], loaded: list[int]
) -> Iterator[ClipBatch]:
    """Batches of the samples that can be loaded; `loaded` gets their places."""
    clips = []
    for index in places:
        try:
            clips.append(dataset.clip(index, None))
            loaded.append(index)
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
