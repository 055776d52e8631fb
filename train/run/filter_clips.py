"""Chooses clips by the similarity of video and caption under a model: scores, then a selection."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.data.config import DataConfig, build_data_config
from svilm_fast.data.errors import DataError
from svilm_fast.data.lists import is_list
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.manifest import digest
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.offline.work import Unit, do_work
from svilm_fast.data.sample_units import ListPiece, list_units, shard_units
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.selection import SUFFIX, write_selection
from svilm_fast.data.skips import Skip, refused_lines
from svilm_fast.train.config.options import Weights
from svilm_fast.train.folder.manifest import MANIFEST
from svilm_fast.train.ranks.process_group import choose_device
from svilm_fast.train.run.embed_shards import EmbedSettings, embedded_columns
from svilm_fast.train.run.loaded_run import load_run

_KIND = "filter"
_BINS = 24
_WIDTH = 40  # characters of the longest bar
_EMBED_MANIFEST = "embed_manifest.jsonl"


@dataclass(frozen=True)
class ScoreSettings:
    """What a unit is scored with: a model, or a folder of embeddings that one has written."""

    model: EmbedSettings | None
    embeddings: str | None
    captions: str


@dataclass(frozen=True)
class Chosen:
    """Kept places [kept], ascending, and scores [n] of all samples, NaN where there is none."""

    places: np.ndarray
    scores: np.ndarray
    threshold: float


def filter_clips(
    source: str,
    out_dir: str | Path,
    *,
    run_dir: str | Path | None = None,
    embeddings: str | Path | None = None,
    share: float | None = None,
    threshold: float | None = None,
    weights: Weights | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    engine: OfflineEngine = OfflineEngine.LOCAL,
    workers: int | None = 1,
    videos: str | None = None,
    captions: str | None = None,
    progress: bool | None = None,
) -> list[str]:
    """Score every sample of `source` and write the selection of the best to `out_dir`.

    A score is the cosine of a sample's video and first caption. Samples that cannot be loaded have
    none and are not kept. Nothing of the source changes. Work that was stopped continues, and
    scores are kept for selections of other sizes.

    Args:
        run_dir: a finished run that embeds the clips. embeddings: a folder of `svilm embed` (.npz)
            of the same source, instead: no model runs.
        share: of the scored samples that is kept, the best ones; of equal scores the first.
        threshold: keep scores of at least this, instead.
        captions: grain (default: the run's, or fused).

    Returns lines for the terminal, with a histogram. Raises UserError and DataError.
    """
    if (run_dir is None) == (embeddings is None):
        raise UserError("give --run RUN, or --embeddings FOLDER of `svilm embed`")
    if (share is None) == (threshold is None):
        raise UserError("give --keep-share (such as 0.3), or --threshold")
    model, parameters = None, {}
    config = DataConfig()
    if run_dir is not None:
        if engine is OfflineEngine.LOCAL:
            choose_device(device, 0)  # raises now
        run = load_run(run_dir, weights=weights)
        config = run.config.data
        captions = captions or run.config.evaluation.captions or config.captions
        model = EmbedSettings(
            os.path.abspath(run_dir), run.weights, batch_size, device, tower="", captions=captions
        )
        files = hashlib.sha256((run.files.portable / MANIFEST).read_bytes()).hexdigest()
        parameters = {"model": files, "weights": run.weights, "batch_size": batch_size}
    captions = captions or config.captions
    if captions == "none":
        raise UserError("--captions none: the filter compares videos with captions")
    changed = {"test": source, "videos": videos, "captions": captions}
    table = open_split(build_data_config(**{**config.model_dump(), **changed}), "test")
    units = list_units(source, videos, table) if is_list(source) else shard_units(source)
    if embeddings is not None:
        units = _with_embeddings(units, Path(embeddings))
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    folder = None if embeddings is None else os.path.abspath(embeddings)
    reports = do_work(
        _KIND,
        score_unit,
        units,
        ScoreSettings(model, folder, captions),
        out,
        parameters={**parameters, "captions": captions},
        engine=engine,
        workers=workers,
        gpu=model is not None and device != "cpu",
        progress=progress,
    )
    chosen = _choose(_scores(out, units, table), share, threshold)
    name = f"top-{share:g}" if share is not None else f"from-{threshold:g}"
    written = Outputs(out, _KIND)
    try:
        write_selection(
            written.path(name + SUFFIX),
            chosen.places,
            samples=len(table),
            fingerprint=table.fingerprint,
            captions=captions,
            threshold=chosen.threshold,
        )
        if not (out / f"{name}.png").exists():
            _draw(chosen, written.path(f"{name}.png"))
        written.publish()
    finally:
        written.discard()
    refused = [Skip(**skip) for report in reports for skip in report["refused"]]
    return [
        *_histogram(chosen),
        f"kept {len(chosen.places):,} of {counted(len(table), 'sample')}, with scores of at least "
        f"{chosen.threshold:.4f}; {len(refused):,} could not be scored",
        *refused_lines(refused, f"{_KIND}_manifest.jsonl"),
        f"picture: {out / name}.png",
        f"train on them with data.select={out / name}{SUFFIX} data.train={source} "
        f"data.captions={captions}",
    ]


def score_unit(
    name: str, source: str | ListPiece, settings: ScoreSettings, out: Outputs
) -> dict[str, Any]:
    """Score one shard, or a piece of a list; a unit of off-line work."""
    refused: Sequence[Any] = ()
    if settings.model is not None:
        columns, refused, _ = embedded_columns(source, settings.model)
        places = columns["places"]
    else:
        assert settings.embeddings is not None
        columns = _stored(Path(settings.embeddings) / f"{name}.npz")
        places = _places(source, columns, settings.captions)
    # In float64: rounding then does not depend on how a library sums.
    scores = np.einsum("nd,nd->n", *(columns[k].astype(np.float64) for k in ("videos", "texts")))
    with out.path(f"{name}.scores.npz").open("wb") as file:
        np.savez(file, places=places, scores=scores.astype(np.float32))
    return {"samples": len(places), "refused": [vars(skip) for skip in refused]}


def _with_embeddings(units: Sequence[Unit], folder: Path) -> list[Unit]:
    """The units, whose input is also the file of their embeddings. Raises DataError."""
    path = folder / _EMBED_MANIFEST
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        known = {line["unit"]: (line["input"], line["outputs"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder} is no folder of `svilm embed`: no readable {path.name}"
        ) from None
    found = []
    for unit in units:
        given, outputs = known.get(unit.name, (None, []))
        files = [each["sha256"] for each in outputs if each["name"] == f"{unit.name}.npz"]
        if given != digest(unit.description) or not files:
            raise DataError(
                f"{folder} holds no embeddings (.npz) of {unit.name} as it is now: finish `svilm "
                "embed` of this source with these captions first, or give --run"
            )
        found.append(replace(unit, description=[unit.description, files[0]]))
    return found


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            names = ("ids", "captions", "videos", "texts", *(["rows"] if "rows" in found else []))
            return {name: found[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} was not written by `svilm embed`: {error}") from None


def _places(source: str | ListPiece, columns: dict[str, np.ndarray], captions: str) -> np.ndarray:
    """The places int64 [m] in the table of a shard or list that embeddings belong to."""
    where, videos = (
        (source.path, source.videos) if isinstance(source, ListPiece) else (source, None)
    )
    config = DataConfig(test=where, videos=videos, captions=captions)
    table = open_split(config, "test", may_be_empty=True)
    if isinstance(source, ListPiece):
        found = table.places_of_rows(columns["rows"])
        _require_captions(table, found, columns["captions"], where, captions)
        return found
    names = columns["ids"].tolist()  # in the order of the shard, those that were refused left out
    places: list[int] = []
    for place, name in enumerate(table.encoded_ids()):
        if len(places) < len(names) and name.decode() == names[len(places)]:
            places.append(place)
    if len(places) < len(names):
        raise DataError(f"{where} has no sample {names[len(places)]!r}: embed it again")
    _require_captions(table, places, columns["captions"], where, captions)
    return np.array(places, np.int64)


def _require_captions(
    table: SampleTable,
    places: Sequence[int] | np.ndarray,
    embedded: np.ndarray,
    where: str,
    grain: str,
) -> None:
    """Raise DataError unless the first captions of these samples are those that were embedded."""
    for place, caption in zip(places, embedded.tolist(), strict=True):
        own = table.caption(table.captions_of(int(place))[0])
        if caption != own:
            raise DataError(
                f"the embeddings are of other captions than the {grain} ones of {where}: "
                f"{table.id(int(place))!r} was embedded with {caption!r:.60} and has {own!r:.60}; "
                f"embed it again with --captions {grain}, or name the captions that were embedded"
            )


def _scores(out: Path, units: Sequence[Unit], table: SampleTable) -> np.ndarray:
    """The scores float32 [n] of all samples, NaN where there is none."""
    scores = np.full(len(table), np.nan, np.float32)
    starts = table.shard_starts()
    for number, unit in enumerate(units):
        first = 0 if isinstance(unit.content, ListPiece) else int(starts[number])
        with np.load(out / f"{unit.name}.scores.npz", allow_pickle=False) as found:
            scores[first + found["places"]] = found["scores"]
    return scores


def _choose(scores: np.ndarray, share: float | None, threshold: float | None) -> Chosen:
    known = np.flatnonzero(np.isfinite(scores))
    if threshold is not None:
        places = known[scores[known] >= threshold]
    else:
        assert share is not None
        count = max(1, math.floor(share * len(known) + 0.5))
        order = np.argsort(-scores[known], kind="stable")[:count]
        places = np.sort(known[order])
    if not len(places):
        best = f"; the highest score is {scores[known].max():.4f}" if len(known) else ""
        raise DataError(f"nothing would be kept of {counted(len(scores), 'sample')}{best}")
    return Chosen(places, scores, float(scores[places].min()))


def _bins(chosen: Chosen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges [bins + 1], and in each bin the scored and the kept samples."""
    known = chosen.scores[np.isfinite(chosen.scores)]
    edges = np.histogram_bin_edges(known, _BINS)
    kept = np.histogram(chosen.scores[chosen.places], edges)[0]
    return edges, np.histogram(known, edges)[0], kept


def _histogram(chosen: Chosen) -> list[str]:
    edges, every, kept = _bins(chosen)
    lines = ["score    samples (█ kept, ░ not)"]
    for low, count, of_them in zip(edges, every, kept):
        length = math.ceil(_WIDTH * count / every.max())
        solid = round(length * of_them / count) if count else 0
        lines.append(f"{low:7.3f}  {'█' * solid}{'░' * (length - solid)} {count:,}")
    return lines


def _draw(chosen: Chosen, path: Path) -> None:
    from matplotlib.figure import Figure

    edges, every, kept = _bins(chosen)
    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    widths = np.diff(edges)
    axes.bar(edges[:-1], every, widths, align="edge", color="#c9ced6", label="left out")
    axes.bar(edges[:-1], kept, widths, align="edge", color="#2f6fab", label="kept")
    axes.axvline(chosen.threshold, color="#b3402a", linewidth=1.2)
    axes.set(
        xlabel="cosine of video and caption",
        ylabel="samples",
        title=f"kept {len(chosen.places):,} of {len(chosen.scores):,}: from {chosen.threshold:.3f}",
    )
    axes.legend(frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, format="png", metadata={"Software": None})
