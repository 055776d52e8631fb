"""The batch that the loader hands to the trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from svilm_fast.data.annotations import Label


class SampleBatch:
    """Fields of b samples: tensors [b, ...], lists of b values, or tuples of such objects."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> Self:
        """The same batch with copies of its tensors, in memory of this process."""
        return self._map(Tensor.clone)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory (torch's DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    @classmethod
    def joined(cls, parts: Sequence[Self], *, pin_memory: bool = False) -> Self:
        """The samples of several batches as one, in page-locked memory where `pin_memory`."""
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(
            **{name: _joined([getattr(part, name) for part in parts], pin_memory) for name in names}
        )

    # Between processes torch shares every tensor through a file descriptor of its own: worth it
    # for the frames alone.
    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value.numpy() if isinstance(value, Tensor) and name != "frames" else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            (name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)
            for name, value in state.items()
        )

    def _map(self, change: Any) -> Self:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(part._map(change) for part in value)
            return change(value) if isinstance(value, Tensor) else value

        return type(self)(**{name: changed(value) for name, value in self.__dict__.items()})


def _joined(pieces: list[Any], pin_memory: bool) -> Any:
    first = pieces[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        groups = zip(*pieces, strict=True)
        return tuple(type(each[0]).joined(each, pin_memory=pin_memory) for each in groups)
    if not isinstance(first, Tensor):
        return [value for piece in pieces for value in piece]
    shape = (sum(len(piece) for piece in pieces), *first.shape[1:])
    whole = torch.empty(shape, dtype=first.dtype, pin_memory=pin_memory)
    return torch.cat(pieces, out=whole)


@dataclass
class ViewBatch(SampleBatch):
    """V further views of b clips, all of one size (`views.CropGroup`)."""

    frames: Tensor  # uint8 [b, V, F, H, W, 3]
    frame_index: Tensor  # int64 [b, V, F], frames of the source video
    crop: Tensor  # float32 [b, V, 4]
    flipped: Tensor  # bool [b, V]


@dataclass
class ClipBatch(SampleBatch):
    """b clips of F frames with captions (S tokens) and up to K prompted nouns (Sn tokens each).

    `crop` is the window that was cut out of the source frames, as fractions x0, y0, x1, y1 of
    their width and height, and `flipped` says whether it was mirrored afterwards: with
    `frame_index` they carry boxes and masks of the source over to `frames`.

    With several evaluation views, `frames`, `frame_index`, `crop` and `flipped` have a second
    dimension V = clips * crops: every crop of clip 0, then of clip 1, and so on (`views.Views`).
    """

    frames: Tensor  # uint8 [b, F, H, W, 3], or [b, V, F, H, W, 3]; with `palettes`, codes
    keys: Tensor  # int64 [b], sample_key of ids
    ids: list[str]
    captions: list[str]  # empty texts with data.captions=none
    nouns: list[list[str]]  # at most K per caption, as `noun_tokens` holds them
    text_tokens: Tensor  # int64 [b, S]
    text_mask: Tensor  # bool [b, S]
    noun_tokens: Tensor  # int64 [b, K, Sn]
    noun_token_mask: Tensor  # bool [b, K, Sn]
    noun_mask: Tensor  # bool [b, K]
    frame_index: Tensor  # int64 [b, F], frames of the source video
    crop: Tensor  # float32 [b, 4]
    flipped: Tensor  # bool [b]
    metadata: list[dict[str, Any]] = field(default_factory=list)  # the samples' json, or empty
    # Of a data set with `annotations`, else empty: a value for each sample.
    labels: list[Label | list[Label] | None] = field(default_factory=list)
    questions: list[str | None] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    embeddings: Tensor | None = None  # float32 [b, D], stored ones
    text_embeddings: Tensor | None = None  # float32 [b, D], a teacher's of first captions
    source_ids: Tensor | None = None  # int64 [b], equal for clips of one source video
    views: tuple[ViewBatch, ...] = ()  # of each `views.CropGroup`
    # uint8 [b, 256, V] of compressed clips, whose codes `frames` holds (`palettes.frames`).
    palettes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)
