"""What a model knows about regions and time: pointing, boundaries, similarity of segments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from svilm_fast.core.outcomes import Outcomes
from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import CutPasteConfig
from svilm_fast.data.cut_paste import cut_and_paste, pasted
from svilm_fast.evaluation.boundaries import (
    SegmentSimilarity,
    boundaries_of,
    found_boundaries,
    possible_boundaries,
    similarity_across,
)
from svilm_fast.evaluation.embed import VideoTextModel, device_of, evaluation_mode
from svilm_fast.evaluation.pointing import NounPointing, PointingScore, point_clips
from svilm_fast.models.video_encoder import VideoOutputs

ALONE = VideoOutputs(groups=False, segments=True)
PASTE_SEED = 0  # the same cuts for every model
Partners = Literal["random", "alike"]


@dataclass
class StructureResult:
    """Results by clip; percentages are over all of them.

    pointed: of each clip the nouns whose object is known; None where the model has no groups or the
    clips have no masks. boundaries, pixel_boundaries: how probably the boundaries of each blended
    clip were found, from features and from mean pixels; both empty where cut-and-paste can make
    one boundary only. true_boundaries: of each blended clip. similarities: of each unchanged
    clip. across: mean similarity within the parts of each blended clip, and between them. partners:
    whose frames were pasted.
    """

    clips: list[str] = field(default_factory=list)
    pointed: list[dict[str, NounPointing | None]] | None = field(default_factory=list)
    blended: list[str] = field(default_factory=list)
    boundaries: list[float] = field(default_factory=list)
    pixel_boundaries: list[float] = field(default_factory=list)
    true_boundaries: list[tuple[int, ...]] = field(default_factory=list)
    similarities: list[SegmentSimilarity] = field(default_factory=list)
    across: list[tuple[float, float]] = field(default_factory=list)
    partners: Partners = "random"

    def scored_nouns(self) -> list[tuple[str, NounPointing]]:
        """Return the nouns whose object is large enough, with the clip of each."""
        pairs = zip(self.clips, self.pointed or [], strict=bool(self.pointed))
        return [
            (clip, noun) for clip, nouns in pairs for noun in nouns.values() if noun is not None
        ]

    def metrics(self) -> dict[str, float]:
        """Percentages, and cosine similarities; what the model does not have is left out.

        `structure/pointing` and `structure/boundary` are accuracies. `pointing_chance` is that of a
        token drawn at random, `boundary_chance` that of always naming the most frequent boundaries,
        `boundary_pixels` that of the same search on mean pixels.
        """
        found: dict[str, float] = {}
        if self.scored_nouns():
            every = [noun for nouns in self.pointed or [] for noun in nouns.values()]
            score = PointingScore.of(every)
            found |= {
                "pointing": 100 * score.score,
                "pointing_chance": 100 * score.chance,
                "pointing_nouns": float(score.nouns),
            }
        if self.boundaries:
            usual = max(self.true_boundaries.count(each) for each in set(self.true_boundaries))
            found |= {
                "boundary": 100 * float(np.mean(self.boundaries)),
                "boundary_pixels": 100 * float(np.mean(self.pixel_boundaries)),
                "boundary_chance": 100 * usual / len(self.true_boundaries),
            }
        for name, values in (
            ("similarity", [each.mean for each in self.similarities]),
            ("similarity_low", [each.low for each in self.similarities]),
            ("similarity_high", [each.high for each in self.similarities]),
            ("similarity_within", [within for within, _ in self.across]),
            ("similarity_across", [between for _, between in self.across]),
        ):
            if values:
                found[name] = float(np.mean(values))
        return {f"structure/{name}": value for name, value in found.items()}

    def outcomes(self) -> list[Outcomes]:
        """Hits of every noun, and of every blended clip."""
        found, nouns = [], self.scored_nouns()
        if nouns:
            hits = np.array([noun.hit for _, noun in nouns])
            found.append(Outcomes([clip for clip, _ in nouns], {"structure/pointing": hits}))
        if self.boundaries:
            hits = np.array(self.boundaries)
            found.append(Outcomes(self.blended, {"structure/boundary": hits}))
        return found

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = self.metrics()
        content |= {
            "clips": len(self.clips),
            "blended_clips": len(self.blended),
            "partners": self.partners,
            "outcomes": [each.to_json() for each in self.outcomes()],
        }
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        (folder / f"{name}.txt").write_text("\n".join(self.lines()) + "\n", "utf-8")

    def lines(self) -> list[str]:
        """One line for each metric."""
        return [f"{name:28} {value:.4g}" for name, value in self.metrics().items()]


@torch.no_grad()
def measure_structure(
    model: VideoTextModel,
    batches: Iterable[ClipBatch],
    paste: CutPasteConfig,
    partners: Partners = "random",
) -> StructureResult:
    """Measure a dual encoder over batches of clips.

    paste: how long the own part of a blended clip may be. partners: whose frames are pasted; random
    ones are drawn with the same seed for every model, the one most alike has the nearest mean frame
    of the batch. A batch of one clip is not blended.

    Raises ValueError for clips with a single segment.
    """
    device, result = device_of(model), StructureResult(partners=partners)
    with evaluation_mode(model):
        for batch in batches:
            result.clips += batch.ids
            if result.pointed is not None:
                pointed = point_clips(model, batch, device)
                result.pointed = None if pointed is None else result.pointed + pointed
            frames = batch.frames.to(device)
            clean = model.encode_video(frames, None, ALONE)
            assert clean.segments is not None
            count = clean.segments.shape[1]
            if count < 2:
                raise ValueError("a clip needs at least two segments: raise video.num_segments")
            rows = clean.segments.float().cpu().numpy()
            result.similarities += [SegmentSimilarity.of(row) for row in rows]
            if len(batch) > 1 and count > 2:
                seeds = StepSeeds(PASTE_SEED, 0, batch.keys.to(device)).at(Site.CUT_PASTE)
                blended = cut_and_paste(
                    frames,
                    seeds,
                    count,
                    frames.shape[1] // clean.grid[0],
                    shortest=paste.shortest,
                    longest=paste.longest,
                )
                clips = blended.blended
                if partners == "alike":
                    clips = pasted(frames, blended.paste_mask, most_alike(frames))
                masks = blended.paste_mask.cpu().numpy()
                features = model.encode_video(clips, None, ALONE).segments
                assert features is not None
                pixels = clips.float().reshape(len(batch), count, -1, *frames.shape[2:])
                _add_blended(
                    result,
                    batch.ids,
                    features.float().cpu().numpy(),
                    pixels.mean(dim=2).flatten(2).cpu().numpy(),
                    masks,
                    paste,
                )
    return result


def most_alike(frames: torch.Tensor) -> torch.Tensor:
    """Return for each of at least two clips the other one with the nearest mean frame, int64 [b].

    frames: [b, F, H, W, 3].
    """
    means = frames.float().mean(dim=1).flatten(1)
    return torch.cdist(means, means).fill_diagonal_(float("inf")).argmin(dim=1)


def _add_blended(
    result: StructureResult,
    clips: list[str],
    features: np.ndarray,
    pixels: np.ndarray,
    masks: np.ndarray,
    paste: CutPasteConfig,
) -> None:
    candidates = possible_boundaries(features.shape[1], paste.shortest, paste.longest)
    result.across += [similarity_across(row, own) for row, own in zip(features, masks, strict=True)]
    if len(candidates) < 2:
        return
    result.blended += clips
    result.true_boundaries += [boundaries_of(own) for own in masks]
    for values, found in (
        (features, result.boundaries),
        (pixels, result.pixel_boundaries),
    ):
        pairs = zip(values, masks, strict=True)
        found += [found_boundaries(row, own, candidates) for row, own in pairs]
