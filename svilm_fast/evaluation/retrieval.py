"""Retrieval between videos and texts in both directions, measured on a data set."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import build_loader
from svilm_fast.data.skips import SkipReport
from svilm_fast.evaluation.baselines import chance_interval, colour_set_baseline
from svilm_fast.evaluation.embed import (
    CaptionTable,
    Embeddings,
    VideoTextModel,
    embed_clips,
    encode_captions,
    gather,
    join,
)
from svilm_fast.evaluation.metrics import RECALL_AT, mid_ranks
from svilm_fast.evaluation.missing import MissingVideo, missing_videos, refused_videos
from svilm_fast.evaluation.protocols import ANY_LIST, RetrievalProtocol, protocol_facts
from svilm_fast.evaluation.query_bank import QueryBank
from svilm_fast.evaluation.ranking import Gather, rank_pairs
from svilm_fast.evaluation.rerank import encode_nouns, rerank_by_nouns
from svilm_fast.evaluation.result import RetrievalResult, summarise_queries
from svilm_fast.evaluation.set_level import set_level_ranks
from svilm_fast.evaluation.video_bank import VideoBank

log = logging.getLogger(__name__)

TOP = 5  # candidates kept for each caption


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieval is measured.

    protocol: title of the result (default: the split). rules: the named protocol that the data set
    was checked against. set_level: among `set_level.SET_LEVEL`; bank: training captions, which
    `qbnorm` needs; video_bank: training videos, without which `qbnorm` is measured from text to
    video only; rerank: candidates of a caption
    that are re-ranked by its nouns (0: none), with the sharpness of the nouns' softmax over the
    groups; both are reported apart. device: of the model's inputs (default: that
    of its parameters). autocast: dtype of mixed precision. keep_frames: number of small frames kept
    of each clip for pictures. resamples: bootstrap draws (0: no intervals). progress: whether to
    show a bar (default: only on a terminal).
    """

    protocol: str | None = None
    rules: RetrievalProtocol | None = None
    set_level: tuple[str, ...] = ()
    bank: QueryBank | None = None
    video_bank: VideoBank | None = None
    rerank: int = 0
    sharpness: float = 1.0
    device: torch.device | str | None = None
    autocast: torch.dtype | None = None
    keep_frames: int = 0
    resamples: int = 1000
    progress: bool | None = None


DEFAULTS = RetrievalOptions()


def evaluate_dataset(
    model: VideoTextModel,
    dataset: ClipDataset,
    options: RetrievalOptions = DEFAULTS,
    *,
    batch_size: int = 32,
    max_clips: int | None = None,
    distributed: bool = False,
) -> RetrievalResult:
    """Embed a data set in evaluation mode and rank captions and clips against each other.

    Every caption of a video is a query. Clips that cannot be read, or were refused when the data
    set was opened, are in `RetrievalResult.missing`. A protocol that ends videos early applies to
    clips that are whole videos.

    Args:
        model: a DualEncoder, or another VideoTextModel.
        dataset: made with `train=False`.
        batch_size: clips of one encoder call.
        max_clips: use only the first samples; None: all.
        distributed: each rank of the default process group embeds a part of the clips, all with
            the same number of encoder calls (ZeRO-3 needs this), and all return the same result.
            Otherwise the calling rank embeds all clips.

    Raises:
        ValueError: a training data set, or fewer clips than ranks.
    """
    if dataset.train:
        raise ValueError("retrieval needs an evaluation data set: ClipDataset(..., train=False)")
    rules = options.rules or replace(ANY_LIST, title=options.protocol or f"{dataset.split} split")
    if rules.first_seconds is not None:
        dataset = with_first_seconds(dataset, rules.first_seconds)
    first = max_clips if max_clips is not None and max_clips < len(dataset) else None
    if first is not None:
        dataset = select_samples(dataset, range(first))
    shared = distributed and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    captions = CaptionTable.of(dataset)
    videos = select_samples(
        dataset, [i for i, name in enumerate(dataset.ids) if captions.video[name] == name]
    )
    embedded = partial(
        _embedded, model, batch_size=batch_size, place=(rank, ranks) if shared else None
    )
    embeddings, skipped = embedded(videos, options, captions=captions)
    refused = refused_videos(dataset) if first is None else {}
    missing = missing_videos(embeddings.video_ids, captions, skipped, refused)
    encode = partial(
        encode_captions, model, dataset, device=options.device, autocast=options.autocast
    )
    others = [text for video in missing.values() for text in video.captions]
    bank = options.bank if "qbnorm" in options.set_level else None
    videos_of_bank, bank_videos = None, options.video_bank if bank is not None else None
    if bank_videos is not None:
        clips = bank_videos.dataset
        if rules.first_seconds is not None:
            clips = with_first_seconds(clips, rules.first_seconds)
        plain = replace(options, keep_frames=0, rerank=0)
        videos_of_bank, _ = embedded(clips, plain)
    result = rank_embeddings(
        embeddings,
        protocol=options.protocol or rules.title,
        rules=rules,
        missing=missing,
        other_texts=encode(others) if others and rules.missing == "failed" else None,
        split=split_facts(dataset),
        views=f"{dataset.frames} x 1 x 1",
        set_level=options.set_level,
        bank=None if bank is None else encode(bank.captions),
        video_bank=None if videos_of_bank is None else videos_of_bank.videos,
        resamples=options.resamples,
        part=(rank, ranks),
        gather=gather if shared else None,
        top=max(TOP, options.rerank),
    )
    result.facts["first_clips_only"] = first
    result.facts["text_tokens"] = dataset.config.tokenizer.length
    result.facts["captions_cut"] = captions.cut
    if bank is not None:
        result.facts["bank"] = bank.facts(embeddings.captions)
    if bank_videos is not None and videos_of_bank is not None:
        result.facts["video_bank"] = bank_videos.facts(videos_of_bank.video_ids, dataset)
    if options.rerank:
        nouns = encode_nouns(model, dataset, captions, embeddings, options.device, options.autocast)
        ranks_by_nouns = rerank_by_nouns(
            result.text_ranks,
            result.top_videos[:, : options.rerank],
            embeddings,
            nouns,
            sharpness=options.sharpness,
        )
        name = f"re-rank {options.rerank} by nouns t2v"
        result.add_apart(name, ranks_by_nouns, resamples=options.resamples)
    return result


def _embedded(
    model: VideoTextModel,
    videos: ClipDataset,
    options: RetrievalOptions,
    *,
    batch_size: int,
    place: tuple[int, int] | None,
    captions: CaptionTable | None = None,
) -> tuple[Embeddings, dict[str, str]]:
    """Embed the clips of a data set, and say why others could not be; place: rank and ranks."""
    rank, ranks = place or (0, 1)
    if len(videos) < ranks:
        raise ValueError(
            f"{counted(len(videos), 'clip')} cannot be divided among {ranks} ranks: use more clips"
        )
    loader = build_loader(videos.config, videos, batch_size=batch_size, rank=rank, world_size=ranks)
    largest_part = -(-len(videos) // ranks)
    with loader:
        embeddings = embed_clips(
            model,
            loader,
            captions=captions,
            device=options.device,
            autocast=options.autocast,
            keep_frames=options.keep_frames,
            total=len(videos),
            progress=options.progress,
            calls=-(-largest_part // batch_size),
            keep_groups=options.rerank > 0,
        )
    skipped = {skip.sample: skip.message for skip in loader.skips.skipped.values()}
    if place is None:
        return embeddings, skipped
    parts = gather((embeddings, skipped))
    reasons = {name: reason for _, part in parts for name, reason in part.items()}
    return join([part for part, _ in parts]), reasons


def split_facts(dataset: ClipDataset) -> dict[str, Any]:
    """Where the clips of a data set come from, and the hash of its samples and captions."""
    source = getattr(dataset.config, dataset.split)
    sources = [source] if isinstance(source, str) else list(source)
    names = ", ".join(os.path.basename(str(each).rstrip("/")) for each in sources)
    return {
        "name": dataset.split,
        "source": names,
        "captions": dataset.config.captions,
        "samples": dataset.table.fingerprint,
    }


def with_first_seconds(dataset: ClipDataset, seconds: float) -> ClipDataset:
    """The data set with only the first seconds of every video."""
    part = copy.copy(dataset)
    part.config = dataset.config.model_copy(update={"first_seconds": seconds})
    return part


def select_samples(dataset: ClipDataset, indices: Sequence[int]) -> ClipDataset:
    """Some samples of a data set, without reading anything again."""
    part = copy.copy(dataset)
    part.table, part.report = dataset.table.select(indices), SkipReport(seen=len(indices))
    return part


def rank_embeddings(
    embeddings: Embeddings,
    *,
    protocol: str = "gallery",
    rules: RetrievalProtocol | None = None,
    missing: Mapping[str, MissingVideo] | None = None,
    other_texts: Tensor | None = None,
    split: dict[str, Any] | None = None,
    views: str | None = None,
    set_level: Sequence[str] = (),
    bank: Tensor | None = None,
    video_bank: Tensor | None = None,
    resamples: int = 1000,
    part: tuple[int, int] = (0, 1),
    gather: Gather | None = None,
    top: int = TOP,
) -> RetrievalResult:
    """Rank captions and clips against each other by their embeddings.

    protocol: title of the result. rules: of the protocol; None: those of any gallery. missing:
    videos without an embedding. other_texts: float32 [p, D] of their captions, which are candidates
    where the rules count missing videos. split, views: as in `protocol_facts`. set_level,
    resamples: as in `RetrievalOptions`. bank: float32 [B, D] of the captions for `qbnorm`;
    video_bank: of the videos for its other direction, which is left out without them. part, gather,
    top: as in `rank_pairs`; all ranks have the same embeddings and return the same result.
    """
    texts, videos, owner = embeddings.texts, embeddings.videos, embeddings.video_of_text
    rules = rules or replace(ANY_LIST, title=protocol)
    ranks = rank_pairs(texts, videos, owner, top=top, part=part, gather=gather)
    if missing:
        log.warning("%s: %s missing from the evaluation", protocol, counted(len(missing), "video"))
    missing = dict(missing or {})
    counts = rules.missing == "failed"
    failed = {name: video.queries for name, video in missing.items()} if counts else {}
    captions, labels, captioned = texts, owner, torch.unique(owner)
    by_video = ranks.video_to_text
    if counts and other_texts is not None:
        captions = torch.cat([texts, other_texts])
        labels = torch.cat([owner, owner.new_full((len(other_texts),), -1)])
        by_video = mid_ranks(videos[captioned], captions, captioned, labels)
    manifest = manifest_hash(embeddings.video_ids, embeddings.captions, owner.tolist())
    facts = protocol_facts(
        rules,
        queries=len(texts) + sum(failed.values()),
        videos=len(videos),
        missing=len(missing),
        manifest=manifest,
        split=split,
        views=views,
    )
    result = RetrievalResult(
        protocol=protocol,
        facts=facts | {"missing_counted": counts},
        manifest=manifest,
        text_to_video=summarise_queries(ranks.text_to_video, owner, failed, resamples),
        video_to_text=summarise_queries(by_video, None, failed, resamples),
        chance=[chance_interval(len(texts), len(videos), k) for k in RECALL_AT],
        colours=colour_set_baseline(embeddings.captions, embeddings.metadata, owner),
        distinct_captions=len(set(embeddings.captions)),
        missing=missing,
        seconds=embeddings.seconds,
        embeddings=embeddings,
        text_ranks=ranks.text_to_video,
        video_ranks=by_video,
        top_videos=ranks.top_videos,
        top_scores=ranks.top_scores,
    )
    places = torch.arange(len(videos))
    for method in set_level:
        by_text = set_level_ranks(texts, videos, owner, places, method, bank=bank)
        result.add_apart(f"set-level {method} t2v", by_text, resamples=resamples)
        if method != "qbnorm" or video_bank is not None:
            back = set_level_ranks(
                videos[captioned], captions, captioned, labels, method, bank=video_bank
            )
            result.add_apart(f"set-level {method} v2t", back, by_video=True, resamples=resamples)
    return result


def manifest_hash(
    video_ids: Sequence[str], captions: Sequence[str], video_of_text: Sequence[int]
) -> str:
    """SHA-256 of the sorted (video id, caption) pairs and of the ids without a caption."""
    pairs = {(video_ids[video], text) for video, text in zip(video_of_text, captions, strict=True)}
    pairs |= {(video, "") for video in set(video_ids) - {video for video, _ in pairs}}
    lines = "\n".join(json.dumps(pair) for pair in sorted(pairs))
    return hashlib.sha256(lines.encode()).hexdigest()
