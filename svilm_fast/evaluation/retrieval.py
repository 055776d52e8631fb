"""Text-to-video and video-to-text retrieval: one call from a model to a table and a JSON file."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor

from svilm_fast.core.console import Console
from svilm_fast.core.text import counted
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import ClipLoader, build_loader
from svilm_fast.data.skips import SkipReport
from svilm_fast.evaluation.baselines import (
    ChanceInterval,
    ColourBaseline,
    chance_interval,
    colour_set_baseline,
)
from svilm_fast.evaluation.embed import (
    CaptionTable,
    Embeddings,
    VideoTextModel,
    embed_clips,
    merge_ranks,
)
from svilm_fast.evaluation.metrics import (
    RECALL_AT,
    QueryRanks,
    RankSummary,
    summarise,
    text_to_video_ranks,
    top_matches,
    video_to_text_ranks,
)

log = logging.getLogger(__name__)


@dataclass
class RetrievalResult:
    """Everything a retrieval evaluation found; `to_json` leaves the tensors out.

    manifest: SHA-256 over the sorted (video id, caption) pairs: two results with one manifest
    ranked the same queries against the same gallery. missing: ids that were asked for but could not
    be read, with the reason; they are in neither queries nor gallery. top_videos, top_scores:
    [q, k] the best candidates of every caption. text_ranks: where every caption's video stands.
    """

    protocol: str
    manifest: str
    text_to_video: RankSummary
    video_to_text: RankSummary
    chance: list[ChanceInterval]
    colours: ColourBaseline | None
    distinct_captions: int
    missing: dict[str, str]
    seconds: float
    embeddings: Embeddings
    text_ranks: QueryRanks
    top_videos: Tensor
    top_scores: Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text_rank(self) -> Tensor:
        """Expected rank of every caption's video, float64 [q], 0-based."""
        return self.text_ranks.rank

    @property
    def complete(self) -> bool:
        """Whether every video of the protocol was ranked."""
        return not self.missing

    def recall_counting_missing(self) -> dict[int, float]:
        """Text-to-video recall where every missing video is a query that failed."""
        asked = self.text_to_video.queries
        share = asked / (asked + len(self.missing))
        return {k: value * share for k, value in self.text_to_video.recall.items()}

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values, with the rank of every query.

        Of a query, `higher` and `ties` count the wrong videos above its own and level with it;
        `rank` is `higher + ties / 2 + 1`.
        """
        found, ranks = self.embeddings, self.text_rank + 1
        return {
            "protocol": self.protocol,
            "manifest": self.manifest,
            "videos": len(found.video_ids),
            "captions": len(found.captions),
            "distinct_captions": self.distinct_captions,
            "missing": self.missing,
            "text_to_video_counting_missing": {
                f"R@{k}": value for k, value in self.recall_counting_missing().items()
            },
            "text_to_video": _summary_json(self.text_to_video),
            "video_to_text": _summary_json(self.video_to_text),
            "chance": [asdict(interval) for interval in self.chance],
            "colour_set_baseline": asdict(self.colours) if self.colours else None,
            "seconds": round(self.seconds, 3),
            "extra": self.extra,
            "queries": [
                {
                    "video": found.video_ids[int(found.video_of_text[row])],
                    "caption": caption,
                    "rank": float(ranks[row]),
                    "higher": int(self.text_ranks.higher[row]),
                    "ties": int(self.text_ranks.ties[row]),
                    "best": [found.video_ids[int(video)] for video in self.top_videos[row]],
                }
                for row, caption in enumerate(found.captions)
            ],
        }

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a training log: `retrieval/t2v_R@1`, ..., `retrieval/v2t_MeanR`."""
        flat: dict[str, float] = {}
        for name, summary in (("t2v", self.text_to_video), ("v2t", self.video_to_text)):
            flat |= {f"retrieval/{name}_R@{k}": value for k, value in summary.recall.items()}
            flat[f"retrieval/{name}_MedR"] = summary.median_rank
            flat[f"retrieval/{name}_MeanR"] = summary.mean_rank
        return flat


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieval is measured, whatever the clips come from.

    protocol: the name the numbers go by (default: the split). autocast: dtype of mixed precision.
    keep_frames, frame_size: small pictures kept for the report (0: none). top: candidates kept for
    each caption. resamples: bootstrap draws (0: no intervals). progress: whether a bar is shown
    (default: on a terminal).
    """

    protocol: str | None = None
    device: torch.device | str | None = None
    autocast: torch.dtype | None = None
    keep_frames: int = 0
    frame_size: int = 96
    top: int = 5
    resamples: int = 1000
    progress: bool | None = None


DEFAULTS = RetrievalOptions()


def evaluate_retrieval(
    model: VideoTextModel,
    batches: Iterable[ClipBatch],
    options: RetrievalOptions = DEFAULTS,
    *,
    dataset: ClipDataset | None = None,
    captions: CaptionTable | None = None,
    expected_ids: Sequence[str] | None = None,
    merge: bool = False,
    calls: int = 0,
) -> RetrievalResult:
    """Embed clips in evaluation mode and rank captions and clips against each other.

    model: a DualEncoder. batches: a ClipLoader (or any batches, then with the `dataset` they come
    from, where it is known: it knows every caption of a clip, each of which is a query).
    captions: those captions, where they are not all in the data set of the loader. expected_ids:
    the samples that should arrive (default: those of the data set). merge: every rank of the
    default process group brings its own part, and all return the same result. calls: least number
    of encoder calls, as in `embed_clips`.

    Clips that cannot be read are reported in `missing`, together with those that were refused when
    the data set was opened.
    """
    if isinstance(batches, ClipLoader):
        dataset = batches.dataset
    if captions is None and dataset is not None:
        captions = CaptionTable.of(dataset)
    embeddings = embed_clips(
        model,
        batches,
        captions=captions,
        device=options.device,
        autocast=options.autocast,
        keep_frames=options.keep_frames,
        frame_size=options.frame_size,
        total=None if captions is None else len(captions.rows),
        progress=options.progress,
        calls=calls,
    )
    reports = [dataset.report] if dataset is not None else []
    if isinstance(batches, ClipLoader):
        reports.append(batches.skips)
    skipped = {skip.sample: skip.message for report in reports for skip in report.skipped.values()}
    if merge:
        embeddings, skipped = merge_ranks(embeddings), _merge_skips(skipped)
    names = {} if captions is None else captions.video
    if expected_ids is None:
        expected_ids = [] if captions is None else list(captions.rows)
    return rank_embeddings(
        embeddings,
        protocol=options.protocol or ("gallery" if dataset is None else f"{dataset.split} split"),
        missing=_missing(embeddings.video_ids, expected_ids, skipped, names),
        top=options.top,
        resamples=options.resamples,
    )


def evaluate_dataset(
    model: VideoTextModel,
    dataset: ClipDataset,
    options: RetrievalOptions = DEFAULTS,
    *,
    batch_size: int = 32,
    max_clips: int | None = None,
    distributed: bool = False,
) -> RetrievalResult:
    """`evaluate_retrieval` with a loader of its own.

    dataset: made with `train=False`. batch_size: clips of one encoder call. max_clips: only the
    first so many samples. distributed: each rank of the default process group embeds its part of
    the clips, with equally many encoder calls (ZeRO-3); otherwise a rank that calls does it all.
    Raises ValueError for a training data set, or one smaller than the number of ranks.
    """
    if dataset.train:
        raise ValueError("retrieval needs an evaluation data set: ClipDataset(..., train=False)")
    if max_clips is not None and max_clips < len(dataset):
        dataset = select_samples(dataset, range(max_clips))
    shared = distributed and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    captions = CaptionTable.of(dataset)
    videos = select_samples(
        dataset, [i for i, name in enumerate(dataset.ids) if captions.video[name] == name]
    )
    videos.report = dataset.report
    if len(videos) < ranks:
        raise ValueError(
            f"{counted(len(videos), 'clip')} cannot be shared by {ranks} ranks: take more clips"
        )
    loader = build_loader(videos.config, videos, batch_size=batch_size, rank=rank, world_size=ranks)
    largest_part = -(-len(videos) // ranks)
    with loader:
        return evaluate_retrieval(
            model,
            loader,
            options,
            captions=captions,
            merge=shared,
            calls=-(-largest_part // batch_size),
        )


def select_samples(dataset: ClipDataset, indices: Sequence[int]) -> ClipDataset:
    """Some samples of a data set, without reading anything again."""
    part = copy.copy(dataset)
    part.table, part.report = dataset.table.select(indices), SkipReport(seen=len(indices))
    return part


def rank_embeddings(
    embeddings: Embeddings,
    *,
    protocol: str = "gallery",
    missing: Mapping[str, str] | None = None,
    top: int = 5,
    resamples: int = 1000,
) -> RetrievalResult:
    """The part of `evaluate_retrieval` after the encoders, for embeddings that exist already."""
    texts, videos, owner = embeddings.texts, embeddings.videos, embeddings.video_of_text
    text_ranks = text_to_video_ranks(texts, videos, owner)
    video_ranks = video_to_text_ranks(texts, videos, owner)
    top_videos, top_scores = top_matches(texts, videos, top)
    if missing:
        log.warning("%s: %s missing from the evaluation", protocol, counted(len(missing), "video"))
    return RetrievalResult(
        protocol=protocol,
        manifest=manifest_hash(embeddings.video_ids, embeddings.captions, owner.tolist()),
        text_to_video=summarise(text_ranks, clusters=owner, resamples=resamples),
        video_to_text=summarise(video_ranks, resamples=resamples),
        chance=[chance_interval(len(texts), len(videos), k) for k in RECALL_AT],
        colours=colour_set_baseline(embeddings.captions, embeddings.metadata, owner),
        distinct_captions=len(set(embeddings.captions)),
        missing=dict(missing or {}),
        seconds=embeddings.seconds,
        embeddings=embeddings,
        text_ranks=text_ranks,
        top_videos=top_videos,
        top_scores=top_scores,
    )


def manifest_hash(
    video_ids: Sequence[str], captions: Sequence[str], video_of_text: Sequence[int]
) -> str:
    """SHA-256 of the sorted (video id, caption) pairs and of the ids without a caption."""
    pairs = {(video_ids[video], text) for video, text in zip(video_of_text, captions, strict=True)}
    pairs |= {(video, "") for video in set(video_ids) - {video for video, _ in pairs}}
    lines = "\n".join(json.dumps(pair) for pair in sorted(pairs))
    return hashlib.sha256(lines.encode()).hexdigest()


def retrieval_table(result: RetrievalResult) -> Table:
    """A rich table: both directions with intervals, the colour baseline and chance."""
    table = Table(
        title=f"{result.protocol}: {counted(result.text_to_video.gallery_size, 'video')}",
        caption=_footnote(result),
        caption_justify="left",
    )
    table.add_column("direction")
    for name in (*(f"R@{k}" for k in RECALL_AT), "MedR", "MeanR", "queries", "ties"):
        table.add_column(name, justify="right")
    for name, summary in table_rows(result):
        table.add_row(name, *summary)
    return table


def table_rows(result: RetrievalResult) -> list[tuple[str, list[str]]]:
    """The rows of the table as text: R@1, R@5, R@10, MedR, MeanR, queries, tied queries."""
    rows = []
    for name, summary in (
        ("text to video", result.text_to_video),
        ("video to text", result.video_to_text),
    ):
        cells = [_with_interval(summary, f"R@{k}", summary.recall[k]) for k in RECALL_AT]
        cells += [f"{summary.median_rank:g}", f"{summary.mean_rank:.1f}"]
        rows.append((name, [*cells, str(summary.queries), str(summary.tied_queries)]))
    if result.colours:
        recalls = [f"{result.colours.recall[k]:.1f}" for k in RECALL_AT]
        rows.append(("colour sets only", [*recalls, "", "", "", ""]))
    recalls = [f"{c.expected:.1f} ({c.low:.1f} to {c.high:.1f})" for c in result.chance]
    rows.append(("chance (99.9 %)", [*recalls, "", "", "", ""]))
    return rows


def write_retrieval(
    result: RetrievalResult, out_dir: str | Path, *, name: str = "retrieval"
) -> Path:
    """Write `<name>.json` and the table as `<name>.txt` into `out_dir`; returns the JSON path."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    with (folder / f"{name}.txt").open("w") as file:
        Console(file=file, width=120).print(retrieval_table(result))
    return path


def _missing(
    found: Sequence[str],
    expected: Sequence[str],
    skipped: Mapping[str, str],
    video_of: Mapping[str, str],
) -> dict[str, str]:
    present = set(found)
    reasons = {video_of.get(name, name): reason for name, reason in skipped.items()}
    wanted = dict.fromkeys([*(video_of.get(name, name) for name in expected), *reasons])
    return {
        name: reasons.get(name, "not delivered by the loader")
        for name in wanted
        if name not in present
    }


def _merge_skips(skipped: dict[str, str]) -> dict[str, str]:
    if not dist.is_initialized():
        return skipped
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, skipped)
    return {name: reason for part in parts for name, reason in part.items()}


def _with_interval(summary: RankSummary, name: str, value: float) -> str:
    if name not in summary.intervals:
        return f"{value:.1f}"
    low, high = summary.intervals[name]
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _summary_json(summary: RankSummary) -> dict[str, Any]:
    values = asdict(summary)
    values["recall"] = {f"R@{k}": v for k, v in summary.recall.items()}
    return values


def _footnote(result: RetrievalResult) -> str:
    notes = [
        f"{counted(result.distinct_captions, 'distinct caption')}; in brackets "
        f"{100 * result.text_to_video.confidence:g} % bootstrap intervals; "
        f"manifest {result.manifest[:12]}"
    ]
    return "\n".join([*notes, *missing_notes(result)])


def missing_notes(result: RetrievalResult) -> list[str]:
    """One line about videos that could not be ranked; none where all of them were."""
    if result.complete:
        return []
    some = ", ".join(list(result.missing)[:3]) + (", ..." if len(result.missing) > 3 else "")
    recall = ", ".join(f"R@{k} {v:.1f}" for k, v in result.recall_counting_missing().items())
    videos = counted(len(result.missing), "video")
    return [f"{videos} missing ({some}); as misses they would give {recall}"]
