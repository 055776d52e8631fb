"""Counts what is really alive and really kept, to hold the estimates against."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.train.config.schema import RunConfig


class AliveBytes(TorchDispatchMode):
    """Bytes of all storages that operators make while the mode is on: now, and at most.

    It counts as a GPU's allocator would, without its rounding; `add` counts older tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._known.get(storage._cdata)
            if tensor.device.type == "meta" or (known is not None and known() is not None):
                continue
            self._known[storage._cdata] = weakref.ref(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[override]
        out = function(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)))
        return out


@pytest.fixture
def alive() -> AliveBytes:
    return AliveBytes()


@pytest.fixture
def batch_of_pairs() -> Callable[[RunConfig, int], ModelInputs]:
    """Random inputs of the shapes that a configuration loads."""

    def make(config: RunConfig, pairs: int) -> ModelInputs:
        video, tokenizer = config.video, config.data.tokenizer
        nouns, sources = config.data.nouns.per_caption, config.objectives.reads().views
        shape = (pairs, video.frames, video.image_size, video.image_size, 3)
        paste = torch.zeros(pairs, video.num_segments, dtype=torch.bool)
        paste[:, : video.num_segments // 2] = True
        inputs: dict[str, Any] = {
            "text_tokens": torch.randint(0, config.text.vocab_size, (pairs, tokenizer.length)),
            "text_mask": torch.ones(pairs, tokenizer.length, dtype=torch.bool),
            "noun_tokens": torch.randint(
                0, config.text.vocab_size, (pairs, nouns, tokenizer.noun_length)
            ),
            "noun_token_mask": torch.ones(pairs, nouns, tokenizer.noun_length, dtype=torch.bool),
            "noun_mask": torch.ones(pairs, nouns, dtype=torch.bool),
            "seeds": StepSeeds(0, 0, torch.arange(pairs)),
        }
        if "clean" in sources:
            inputs["frames"] = torch.randint(0, 256, shape, dtype=torch.uint8)
        if "blended" in sources:
            inputs["blended"] = torch.randint(0, 256, shape, dtype=torch.uint8)
            inputs |= {"paste_mask": paste, "pair_ids": torch.arange(pairs)}
        return ModelInputs(**inputs)

    return make
