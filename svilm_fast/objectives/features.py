"""What objectives read of a batch: the declaration (`Reads`) and the tensors (`Features`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from svilm_fast.models.config import CropView, VideoConfig
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.video_encoder import VideoOutputs

# clean: the clips as they are. blended: after cut-and-paste. crops: further views of a clip.
View = Literal["clean", "blended", "crops"]
Feature = Literal["video", "groups", "segments", "tokens", "pixels"]
StoredSide = Literal["video", "text"]


@dataclass(frozen=True)
class Reads:
    """What an objective reads; `|` gives what two of them read together.

    Attributes:
        video: pairs of a view and a feature of its clips.
        texts: embeddings of the captions.
        nouns: embeddings of the captions' nouns.
        teacher: the tokens of the clean clips from a teacher, whose weights are the moving average.
        stored: which embeddings of a teacher, stored on disk.
        partners: which clips were blended with each other.
        spread: a state of every clip, for the measures of collapse.
        crops: sizes of the small views; None: there are none.
    """

    video: frozenset[tuple[View, Feature]] = frozenset()
    texts: bool = False
    nouns: bool = False
    teacher: bool = False
    stored: frozenset[StoredSide] = frozenset()
    partners: bool = False
    spread: bool = False
    crops: CropView | None = None

    @classmethod
    def of(cls, view: View, *features: Feature, texts: bool = False, nouns: bool = False) -> Reads:
        """Features of one view, and texts."""
        return cls(frozenset((view, feature) for feature in features), texts, nouns)

    def __or__(self, other: Reads) -> Reads:
        if None not in (self.crops, other.crops) and self.crops != other.crops:
            raise ValueError(
                f"two objectives read different small views ({self.crops} and {other.crops}): give "
                "both the same settings `crops`"
            )
        return Reads(
            self.video | other.video,
            self.texts or other.texts,
            self.nouns or other.nouns,
            self.teacher or other.teacher,
            self.stored | other.stored,
            self.partners or other.partners,
            self.spread or other.spread,
            self.crops or other.crops,
        )

    @property
    def views(self) -> set[View]:
        """The views that an encoder has to embed."""
        return {view for view, _ in self.video}

    def features_of(self, view: View) -> set[Feature]:
        """The features that are read of one view."""
        return {feature for read, feature in self.video if read == view}

    def reads_feature(self, feature: Feature) -> bool:
        """Whether the feature is read of any view."""
        return any(read == feature for _, read in self.video)

    def uses_groups(self, video: VideoConfig) -> bool:
        """Whether a video encoder that serves these reads has group tokens."""
        needed = self.reads_feature("groups") or video.pool == "groups"
        return video.num_groups > 0 and (needed or video.grouping.in_encoder == "always")

    def outputs(self, view: View) -> VideoOutputs:
        """What the video encoder has to compute of a view, besides the video embedding."""
        read = self.features_of(view)
        return VideoOutputs(
            groups="groups" in read,
            segments="segments" in read,
            tokens="tokens" in read,
            pixels="pixels" in read,
        )

    def shown(self, view: View, video: VideoConfig) -> VideoConfig:
        """Sizes, dropping and masking of the clips of a view."""
        if view != "crops":
            return video
        assert self.crops is not None
        return video.cropped(self.crops)

    def clips(self, view: View) -> int:
        """Clips of a sample in a view."""
        return self.crops.count if view == "crops" and self.crops is not None else 1


class ViewFeatures(NamedTuple):
    """Features of one view of b clips; see `VideoFeatures`. What no objective reads is None."""

    video: Tensor | None = None
    groups: Tensor | None = None
    segments: Tensor | None = None
    tokens: Tensor | None = None
    segment_mask: Tensor | None = None
    token_mask: Tensor | None = None
    token_ids: Tensor | None = None
    pixels: Tensor | None = None
    masked: Tensor | None = None

    @classmethod
    def of(cls, found: VideoFeatures, read: set[Feature]) -> ViewFeatures:
        """Keep the part of an encoder's output that is read."""
        return cls(*(getattr(found, name) for name in cls._fields)).only(read)

    def only(self, read: set[Feature]) -> ViewFeatures:
        """The features in `read` and the masks that belong to them."""
        kept: set[str] = set(read)
        kept |= {"segment_mask"} if "segments" in read else set()
        kept |= {"token_mask", "token_ids", "masked"} if "tokens" in read else set()
        return self._replace(**{name: None for name in self._fields if name not in kept})


class LocalTerms(NamedTuple):
    """Sum of the weighted local losses and their metrics (0-dim), averaged over b samples.

    loss: with graph where gradients are on. metrics: detached.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Features(NamedTuple):
    """What the active objectives read of b samples; the rest is None.

    Attributes:
        clean: features of the clips as they are.
        blended: features of the clips after cut-and-paste.
        texts: [b, D], unit norm.
        nouns: [b, K, D], unit norm unless `text.unit_nouns` is off.
        noun_mask: bool [b, K].
        paste_mask: bool [b, T], true where a segment of the blended clip is the clip's own.
        pair_ids: int64 [b], equal for clips that were blended with each other.
        source_ids: int64 [b], equal for clips of one source video; None: all are negatives.
        teacher_videos, teacher_texts: float32 [b, Dt], stored ones; any length.
        empty_groups: fp32 [b], share of a clip's groups without a token; no gradient.
        local: losses and metrics of the local objectives for these samples.
        crops: features of the V small views of each clip, b * V rows, for local objectives.
        teacher: tokens of the clean clips from the teacher, no gradient, for local objectives.
        spread: fp32 [b, 2, C], mean tokens of two halves of each clean clip, no gradient.
    """

    clean: ViewFeatures | None = None
    blended: ViewFeatures | None = None
    texts: Tensor | None = None
    nouns: Tensor | None = None
    noun_mask: Tensor | None = None
    paste_mask: Tensor | None = None
    pair_ids: Tensor | None = None
    source_ids: Tensor | None = None
    teacher_videos: Tensor | None = None
    teacher_texts: Tensor | None = None
    empty_groups: Tensor | None = None
    local: LocalTerms | None = None
    crops: ViewFeatures | None = None
    teacher: ViewFeatures | None = None
    spread: Tensor | None = None

    def view(self, view: View | Literal["teacher"]) -> ViewFeatures:
        """Return the features of a view, or the teacher's; all are None if nothing is read."""
        found: ViewFeatures | None = getattr(self, view, None)
        return ViewFeatures() if found is None else found

    def read(self, view: View | Literal["teacher"], feature: str) -> Tensor:
        """Return a feature or mask of a view; raises ValueError if it is missing."""
        return required(getattr(self.view(view), feature), f"{view}.{feature}")

    def only(self, reads: Reads) -> Features:
        """Keep only the features in `reads`, and all masks and ids."""
        clean, blended = self.clean, self.blended
        return self._replace(
            clean=None if clean is None else clean.only(reads.features_of("clean")),
            blended=None if blended is None else blended.only(reads.features_of("blended")),
            crops=None,
            teacher=None,
            texts=self.texts if reads.texts else None,
            nouns=self.nouns if reads.nouns else None,
        )

    def differentiable(self) -> Iterator[Tensor]:
        """Yield the tensors that pass gradients to the encoders, always in the same order."""
        views = [view for view in (self.clean, self.blended) if view is not None]
        found = [view.video for view in views] + [self.texts]
        found += [view.groups for view in views] + [self.nouns]
        found += [view.segments for view in views] + [view.tokens for view in views]
        return (tensor for tensor in found if tensor is not None)

    @staticmethod
    def joined(parts: Sequence[Features], shares: Sequence[float]) -> Features:
        """Concatenate the features of consecutive parts of a batch.

        shares: each part's share of the samples, which weights its `local`.
        """
        bare = _concatenated([part._replace(local=None) for part in parts])
        terms = [part.local for part in parts if part.local is not None]
        if not terms:
            return bare
        return bare._replace(
            local=LocalTerms(
                _weighted([term.loss for term in terms], shares),
                {
                    name: _weighted([term.metrics[name] for term in terms], shares)
                    for name in terms[0].metrics
                },
            )
        )


def required(tensor: Tensor | None, name: str) -> Tensor:
    """Return the tensor; raises ValueError if it is None."""
    if tensor is None:
        raise ValueError(f"an active objective reads `{name}` of the features, which is missing")
    return tensor


def _weighted(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()


def _concatenated(values: Sequence[Any]) -> Any:
    """Concatenate tensors, also inside named tuples, along their first axis; None stays None."""
    if values[0] is None:
        return None
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return type(values[0])(*(_concatenated(fields) for fields in zip(*values, strict=True)))
