"""The batch that the loader hands to the trainer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


def sample_key(sample_id: str) -> int:
    """A stable non-negative 63-bit number for a sample's name; seeds everything random about it."""
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class ClipBatch:
    """b clips of F frames with captions (S tokens) and up to K prompted nouns (Sn tokens each).

    `crop` is the window that was cut out of the source frames, as fractions x0, y0, x1, y1 of
    their width and height, and `flipped` says whether it was mirrored afterwards: with
    `frame_index` they carry boxes and masks of the source over to `frames`.
    """

    frames: Tensor  # uint8 [b, F, H, W, 3]
    keys: Tensor  # int64 [b], sample_key of ids
    ids: list[str]
    captions: list[str]
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

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ClipBatch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        """The same batch in page-locked memory (torch's DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    @classmethod
    def joined(cls, parts: Sequence[ClipBatch], *, pin_memory: bool = False) -> ClipBatch:
        """The clips of several batches as one, in page-locked memory where `pin_memory`."""
        values: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(cls)):
            pieces = [getattr(part, name) for part in parts]
            if not isinstance(pieces[0], Tensor):
                values[name] = [value for piece in pieces for value in piece]
                continue
            shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
            whole = torch.empty(shape, dtype=pieces[0].dtype, pin_memory=pin_memory)
            values[name] = torch.cat(pieces, out=whole)
        return cls(**values)

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

    def _map(self, change: Any) -> ClipBatch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ClipBatch(
            **{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        )
