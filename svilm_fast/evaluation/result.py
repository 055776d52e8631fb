"""The result of a retrieval evaluation, as a table, as JSON and as metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from svilm_fast.core.console import Console
from svilm_fast.core.outcomes import Outcomes
from svilm_fast.core.text import counted
from svilm_fast.evaluation.baselines import ChanceInterval, ColourBaseline
from svilm_fast.evaluation.embed import Embeddings
from svilm_fast.evaluation.metrics import RECALL_AT, QueryRanks, RankSummary, summarise
from svilm_fast.evaluation.missing import MissingVideo
from svilm_fast.evaluation.protocols import protocol_lines


@dataclass
class RetrievalResult:
    """The result of a retrieval evaluation; `to_json` leaves the tensors out.

    protocol: title. facts: the mapping `protocol` of the JSON (`protocols.protocol_facts`).
    manifest: SHA-256 of the sorted (video id, caption) pairs; two results with the same manifest
    ranked the same queries against the same gallery. missing: videos that could not be read, by
    name; the protocol's rule says whether the figures count them. apart: summaries by row name of
    what is reported apart: set-level scores and re-ranking. top_videos, top_scores: [q, k] the best
    candidates of every caption. text_ranks: ranks of every caption's video; video_ranks: of every
    captioned video's best caption. extra: further values for the JSON file.
    """

    protocol: str
    manifest: str
    text_to_video: RankSummary
    video_to_text: RankSummary
    chance: list[ChanceInterval]
    colours: ColourBaseline | None
    distinct_captions: int
    missing: dict[str, MissingVideo]
    seconds: float
    embeddings: Embeddings
    text_ranks: QueryRanks
    top_videos: Tensor
    top_scores: Tensor
    video_ranks: QueryRanks
    facts: dict[str, Any] = field(default_factory=dict)
    apart: dict[str, RankSummary] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text_rank(self) -> Tensor:
        """Expected rank of every caption's video, float64 [q], 0-based."""
        return self.text_ranks.rank

    def add_apart(
        self, name: str, ranks: QueryRanks, *, by_video: bool = False, resamples: int = 1000
    ) -> None:
        """Add a row that is reported apart; by_video: its queries are videos, not captions."""
        failed = {name: each.queries for name, each in self.missing.items()}
        self.apart[name] = summarise_queries(
            ranks,
            None if by_video else self.embeddings.video_of_text,
            failed if self.counts_missing else {},
            resamples,
        )
        self.facts["reported_apart"] = list(self.apart)

    @property
    def counts_missing(self) -> bool:
        """Whether the figures count missing videos as failed queries."""
        return bool(self.facts.get("missing_counted"))

    @property
    def missing_queries(self) -> int:
        """Captions of the missing videos, one for a video whose captions are not known."""
        return sum(video.queries for video in self.missing.values())

    def recall_counting_missing(self, counted: bool = True) -> dict[int, float]:
        """Text-to-video recall with a failed query for every caption of a missing video.

        counted: False: with the queries of the other videos alone.
        """
        found = len(self.embeddings.captions)
        queries = found + (self.missing_queries if counted else 0)
        share = self.text_to_video.queries / queries
        return {k: value * share for k, value in self.text_to_video.recall.items()}

    def outcomes(self) -> list[Outcomes]:
        """Hits at 1, 5 and 10 of every query; empty where missing videos count as queries."""
        if self.counts_missing and self.missing:
            return []
        found = self.embeddings
        captioned = sorted(set(found.video_of_text.tolist()))
        owners = {"t2v": found.video_of_text.tolist(), "v2t": captioned}
        ranks = {"t2v": self.text_ranks, "v2t": self.video_ranks}
        return [
            Outcomes(
                [found.video_ids[video] for video in owners[name]],
                {f"retrieval/{name}_R@{k}": ranks[name].hits(k).numpy() for k in RECALL_AT},
            )
            for name in ranks
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values, with the rank of every query.

        `higher` and `ties` of a query count the wrong videos that score higher than the right one
        or the same; `rank` is `higher + ties / 2 + 1`.
        """
        found, ranks = self.embeddings, self.text_rank + 1
        return {
            **self.metrics(),
            "protocol": self.facts,
            "manifest": self.manifest,
            "videos": len(found.video_ids),
            "captions": len(found.captions),
            "distinct_captions": self.distinct_captions,
            "missing": {name: video.reason for name, video in self.missing.items()},
            "text_to_video_counting_missing": {
                f"R@{k}": value for k, value in self.recall_counting_missing().items()
            },
            "text_to_video": _summary_json(self.text_to_video),
            "video_to_text": _summary_json(self.video_to_text),
            "apart": {name: _summary_json(summary) for name, summary in self.apart.items()},
            "chance": [asdict(interval) for interval in self.chance],
            "colour_set_baseline": asdict(self.colours) if self.colours else None,
            "seconds": round(self.seconds, 3),
            "extra": self.extra,
            "outcomes": [each.to_json() for each in self.outcomes()],
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
        """Metrics for the training log: `retrieval/t2v_R@1`, ..., `retrieval/v2t_MeanR`.

        `retrieval/videos_not_decoded` is the number of videos in `missing`.
        """
        flat: dict[str, float] = {}
        for name, summary in (("t2v", self.text_to_video), ("v2t", self.video_to_text)):
            flat |= {f"retrieval/{name}_R@{k}": value for k, value in summary.recall.items()}
            flat[f"retrieval/{name}_MedR"] = summary.median_rank
            flat[f"retrieval/{name}_MeanR"] = summary.mean_rank
        return flat | {"retrieval/videos_not_decoded": float(len(self.missing))}

    def lines(self) -> list[str]:
        """The protocol as lines of text."""
        return [*missing_notes(self), *protocol_lines(self.facts)]

    def write(self, folder: Path, name: str = "retrieval") -> None:
        """Write `<name>.json`, and the table as `<name>.txt`, into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text)
        with (folder / f"{name}.txt").open("w") as file:
            Console(file=file, width=120).print(retrieval_table(self))


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
    measured = {"text to video": result.text_to_video, "video to text": result.video_to_text}
    for name, summary in (measured | result.apart).items():
        cells = [_with_interval(summary, f"R@{k}", summary.recall[k]) for k in RECALL_AT]
        cells += [f"{summary.median_rank:g}", f"{summary.mean_rank:.1f}"]
        rows.append((name, [*cells, str(summary.queries), str(summary.tied_queries)]))
    if result.colours:
        recalls = [f"{result.colours.recall[k]:.1f}" for k in RECALL_AT]
        rows.append(("colour sets only", [*recalls, "", "", "", ""]))
    recalls = [f"{c.expected:.1f} ({c.low:.1f} to {c.high:.1f})" for c in result.chance]
    rows.append(("chance (99.9 %)", [*recalls, "", "", "", ""]))
    return rows


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
    return "\n".join([*notes, *missing_notes(result), *protocol_lines(result.facts)])


def missing_notes(result: RetrievalResult) -> list[str]:
    """One line on the missing videos; empty if every video was ranked."""
    if not result.missing:
        return []
    some = ", ".join(list(result.missing)[:3]) + (", ..." if len(result.missing) > 3 else "")
    other = not result.counts_missing
    figures = result.recall_counting_missing(counted=other).items()
    recall = ", ".join(f"R@{k} {v:.1f}" for k, v in figures)
    videos = counted(len(result.missing), "video")
    if other:
        return [f"{videos} missing ({some}); counted as failed queries they give {recall}"]
    failed = counted(result.missing_queries, "caption")
    return [
        f"{videos} missing ({some}); their {failed} count as failed queries; without them text to "
        f"video has {recall}"
    ]


def summarise_queries(
    ranks: QueryRanks, clusters: Tensor | None, failed: Mapping[str, int], resamples: int
) -> RankSummary:
    """Summarise a direction, with the failed queries of missing videos.

    clusters: video of every query, int64 [q]; None: every query is a video, and so is every
    missing one. failed: captions of each missing video; empty: they do not count.
    """
    captions = list(failed.values()) if clusters is not None else [1] * len(failed)
    if failed:
        last = ranks.gallery_size - 1 + (len(failed) if clusters is not None else 0)
        ranks = replace(ranks, failed=sum(captions), last=last)
        if clusters is not None:
            others = torch.arange(len(failed)) + int(clusters.max()) + 1
            clusters = torch.cat([clusters, others.repeat_interleave(torch.tensor(captions))])
    return summarise(ranks, clusters=clusters, resamples=resamples)
