"""Retrieval protocols: on what and by which rules a figure was measured, stored beside it.

Sizes and rules: CLIP4Clip (arXiv 2104.08860) and the papers of the data sets. A protocol accepts
only a list of its own size, because figures of other lists are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation.missing import refused_videos
from svilm_fast.evaluation.query_bank import bank_line
from svilm_fast.evaluation.video_bank import video_bank_line

TIE_RULE = (
    "expectation over a random order: a query with h candidates above the right one and e tied "
    "with it counts clip(k - h, 0, e + 1) / (e + 1) towards R@k"
)
MISSING_RULES = {
    "failed": "a video that cannot be read is a failed query, and so is each of its captions, "
    "which stay candidates of the other videos; failed queries have the last place of the list",
    "left out": "videos that cannot be read are listed, and are in neither queries nor gallery; "
    "figures that count their captions as failed queries are given too",
}
_BOTH = "text to video: every caption is a query; video to text: the best of a video's captions"
_SINGLE = "one caption a video, a query in both directions"
_PARAGRAPH = "all sentences of a video joined in file order are its one caption, in both directions"


@dataclass(frozen=True)
class RetrievalProtocol:
    """The list that a protocol prescribes, and its rules.

    videos: the sizes of its list, more than one where papers differ; empty: any. per_video:
    captions of every video; None: several. query_rule, tie_rule: how queries are made, how ties
    count. missing: what becomes of videos that cannot be read, a key of MISSING_RULES.
    first_seconds: the videos of the data set end there; None: they are used whole.
    """

    name: str | None
    title: str
    videos: tuple[int, ...] = ()
    per_video: int | None = None
    query_rule: str = _BOTH
    tie_rule: str = TIE_RULE
    missing: Literal["failed", "left out"] = "failed"
    first_seconds: float | None = None
    note: str = ""

    @property
    def missing_rule(self) -> str:
        return MISSING_RULES[self.missing]


PROTOCOLS = {
    str(protocol.name): protocol
    for protocol in (
        RetrievalProtocol("msrvtt-1ka", "MSR-VTT 1k-A", (1000,), 1, _SINGLE),
        RetrievalProtocol(
            "didemo-p2v",
            "DiDeMo paragraph to video",
            (1003, 1004, 1036),
            1,
            _PARAGRAPH,
            first_seconds=30.0,
            note="papers use 1,003, 1,004 or 1,036 test videos",
        ),
        RetrievalProtocol("lsmdc-1k", "LSMDC 1k", (1000,), 1, _SINGLE),
        RetrievalProtocol("msvd-670", "MSVD test", (670,), None, _BOTH),
        RetrievalProtocol("anet-val1", "ActivityNet Captions val_1", (4917,), 1, _PARAGRAPH),
        RetrievalProtocol(
            "vatex-1500",
            "VATEX 1,500",
            (1500,),
            10,
            _BOTH,
            missing="left out",  # videos disappear from YouTube: papers give the number found
            note="the usual split of 1,500 videos is not the official test set",
        ),
    )
}


ANY_LIST = RetrievalProtocol(None, "gallery", missing="left out")
"""The rules where no protocol is named."""


def listed_size(dataset: ClipDataset, per_video: int | None) -> tuple[int, int]:
    """Videos and captions that were listed; refused ones count.

    per_video: captions of a refused video whose captions are not known; None: one.
    """
    refused = refused_videos(dataset).values()
    accepted = len({(sample.video, sample.segment) for sample in dataset.table})
    captions = sum(len(sample.captions) for sample in dataset.table)
    captions += sum(len(video.captions) or per_video or 1 for video in refused)
    return accepted + len(refused), captions


def check_protocol(name: str, dataset: ClipDataset) -> RetrievalProtocol:
    """Return the protocol `name` if the data set has its size; refused samples count.

    Raises ValueError for an unknown name, and for a list of another size.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    per_video = protocol.per_video
    videos, captions = listed_size(dataset, per_video)
    fits = per_video is None or captions == videos * per_video
    if videos not in protocol.videos or not fits:
        *others, size = protocol.videos
        sizes = "".join(f"{other:,} or " for other in others) + counted(size, "video")
        each = "" if per_video is None else f" with {counted(size * per_video, 'caption')}"
        if others and per_video is not None:
            each = f" with {counted(per_video, 'caption')} each"
        raise ValueError(
            f"{protocol.title} has {sizes}{each}, the list has {videos:,} with {captions:,}: use "
            "the official list, or leave the protocol out"
        )
    return protocol


def protocol_facts(
    protocol: RetrievalProtocol,
    *,
    queries: int,
    videos: int,
    missing: int,
    manifest: str,
    split: dict[str, Any] | None = None,
    views: str | None = None,
) -> dict[str, Any]:
    """The mapping `protocol` of a result.

    queries, videos: text queries and gallery that were ranked. missing: videos that were not.
    manifest: of the ranked pairs. split: where the clips come from and their hash. views: frames x
    clips x crops. `reported_apart` will list the rows that are.
    """
    facts: dict[str, Any] = {
        "name": protocol.name,
        "title": protocol.title,
        "split": split,
        "manifest": manifest,
        "listed_videos": videos + missing,
        "videos": videos,
        "missing": missing,
        "queries": queries,
        "query_rule": protocol.query_rule,
        "tie_rule": protocol.tie_rule,
        "missing_rule": protocol.missing_rule,
        "first_seconds": protocol.first_seconds,
        "frames_clips_crops": views,
        "reported_apart": [],
    }
    return facts | ({"note": protocol.note} if protocol.note else {})


def protocol_lines(facts: dict[str, Any]) -> list[str]:
    """The mapping as lines for a table's footnote."""
    split, views = facts["split"], facts["frames_clips_crops"]
    found = f"{facts['videos']:,} of {counted(facts['listed_videos'], 'listed video')} found"
    lines = [f"protocol {facts['name'] or '(none named)'}: {facts['title']}; {found}"]
    if split is not None:
        lines[0] += f"; {split['source']}, samples {split['samples'][:12]}"
    if facts.get("first_clips_only") is not None:
        lines[0] += f"; only the first {counted(facts['first_clips_only'], 'sample')}"
    if views is not None:
        lines[0] += f"; frames x clips x crops {views}"
    if facts["first_seconds"] is not None:
        lines[0] += f"; the first {facts['first_seconds']:g} s of every video"
    lines += [f"queries: {facts['query_rule']}", f"ties: {facts['tie_rule']}"]
    lines += [f"missing videos: {facts['missing_rule']}"]
    if facts.get("captions_cut"):
        cut = counted(facts["captions_cut"], "caption")
        lines.append(f"texts: {cut} longer than {facts['text_tokens']} tokens, cut there")
    if (bank := facts.get("bank")) is not None:
        lines.append(bank_line(bank))
    if (bank := facts.get("video_bank")) is not None:
        lines.append(video_bank_line(bank))
    return [*lines, f"note: {facts['note']}"] if "note" in facts else lines
