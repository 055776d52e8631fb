"""Pre-training on compressed clips: kept tokens alone are decoded, and every weight is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.run import compress
from svilm_fast.data.compress.shard import CompressSettings, Scope
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.tubelet_embedding import TubeletEmbedding
from svilm_fast.train.run.session import Start, train_as_rank


@pytest.mark.slow
@pytest.mark.parametrize("block", [PixelBlock(1, 1, 1), PixelBlock(2, 2, 2)])
def test_kept_tokens_alone_train_the_weights_of_whole_clips(
    configure, ranks, world: Path, tmp_path: Path, monkeypatch, block
) -> None:
    how = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 16, 200, 0)
    settings = CompressSettings(how, block, Scope.CLIP, 32, 64, 8)
    compress(str(world / "train"), tmp_path / "palettes", settings, workers=1)
    overrides = (
        f"data.train={tmp_path / 'palettes'}",
        "data.compression=kmeans",
        "video.tubelet=2",
        "video.num_segments=2",
        "video.drop.rate=0.5",
        "evaluation.at_end=false",
        "training.steps=2",
    )
    train_as_rank(configure(*overrides, run="kept"), Start(), ranks)

    given = TubeletEmbedding._tubelets
    whole = []

    def of_whole_clips(self, frames, token_ids, shown):
        assert isinstance(frames, PaletteFrames)
        whole.append(len(frames))
        return given(self, frames.decoded(), token_ids, shown)

    monkeypatch.setattr(TubeletEmbedding, "_tubelets", of_whole_clips)
    train_as_rank(configure(*overrides, run="whole"), Start(), ranks)
    assert whole
    kept, expected = (
        load_file(tmp_path / run / "portable/model.safetensors") for run in ("kept", "whole")
    )
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
