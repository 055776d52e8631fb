"""Clips with few and many colours, and their compressed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from svilm_fast.data.compress import report, shard
from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.vectors import compressed, vectors_of
from svilm_fast.data.decode import Choose, DecodedClip, decode_clip
from svilm_fast.data.palettes.format import PaletteClip, PixelBlock
from svilm_fast.data.timeline import Timeline

COLOURS = PixelBlock(1, 1, 1)


def clip_of(
    block: PixelBlock = COLOURS,
    bits: int = 8,
    shape: tuple[int, ...] = (5, 13, 18),
    seed: int = 0,
) -> tuple[PaletteClip, np.ndarray]:
    """A compressed clip of random colours, and the frames it was made of."""
    frames = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    index = np.arange(shape[0], dtype=np.int64) * 3
    timeline = Timeline(shape[0], np.arange(shape[0] + 1) * 0.3, 0.1)
    clip = DecodedClip(frames, index, timeline, 10.0, (shape[2], shape[1]))
    how = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 1 << bits, 100, 0)
    vectors = vectors_of(frames, block)
    return compressed(clip, timeline, vectors, vectors[: 1 << bits], how, block), frames


@pytest.fixture(scope="session", autouse=True)
def decoding_here() -> Iterator[None]:
    """The videos of these tests are harmless: no process is started to decode them."""

    def decode(data: bytes, choose: Choose, **settings: Any) -> DecodedClip:
        return decode_clip(data, choose, **settings)

    with pytest.MonkeyPatch.context() as patch:
        for module in (shard, report):
            patch.setattr(module, "decode_limited", decode)
        yield


@pytest.fixture
def make_clip() -> Callable[..., tuple[PaletteClip, np.ndarray]]:
    return clip_of
