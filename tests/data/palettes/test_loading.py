"""The ordinary loader reads compressed shards: as frames in the worker, or as codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.run import compress
from svilm_fast.data.compress.shard import CompressSettings, Scope
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import PaletteError
from svilm_fast.data.loader import ClipLoader
from svilm_fast.data.palettes.decode import check_compression
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.data.shards import ShardWriter

HOW = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 16, 500, 0)
BLOCK = PixelBlock(2, 2, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, videos):
    """Six clips of 12 frames of 40 x 32 pixels."""
    folder = tmp_path_factory.mktemp("palettes")
    with ShardWriter(folder / "videos", max_samples=5) as writer:
        for number in range(6):
            caption = f'{{"caption": "clip {number}: a red circle spins."}}'
            writer.write(f"s{number}", {"mp4": videos[number % 4], "json": caption.encode()})
    settings = CompressSettings(HOW, BLOCK, Scope.SHARD, 32, 32, 2)
    compress(str(folder / "videos"), folder / "out", settings, workers=1)
    return folder


def dataset_of(folder, *, train=True, codes=False, image_size=24, **settings):
    config = DataConfig(train=str(folder), **{"workers": 0, "compression": "kmeans", **settings})
    return ClipDataset(
        config,
        "train",
        prepare_tokenizer(config),
        train,
        frames=4,
        image_size=image_size,
        codes=codes,
    )


def decoded(batch):
    return PaletteFrames.of(batch.frames, batch.palettes, BLOCK).decoded()


def test_codes_show_the_pixels_that_a_worker_decodes(shards):
    # Without a margin the evaluation crop of a worker has the size of the frame.
    settings = {"train": False, "image_size": 32, "resize_margin": 1.0}
    frames = dataset_of(shards / "out", **settings).batch(range(6)).frames
    batch = dataset_of(shards / "out", codes=True, **settings).batch(range(6))
    assert batch.frames.shape == (6, 2, 16, 16)
    # Frames are chosen in runs of two there.
    clip = dataset_of(shards / "out", **{**settings, "frames_by": "index"})
    assert batch.frame_index.tolist() == [[2, 3, 8, 9]] * 6
    every = ClipDataset(
        clip.config, "train", clip.tokenizer, False, frames=12, image_size=32, table=clip.table
    )
    assert torch.equal(decoded(batch), every.batch(range(6)).frames[:, [2, 3, 8, 9]])
    assert frames.shape == (6, 4, 32, 32, 3)


def test_training_crops_are_mirrored_windows_of_the_stored_frames(shards):
    dataset = dataset_of(shards / "out", codes=True, augment={"flip": 0.5})
    whole = ClipDataset(dataset.config, "train", dataset.tokenizer, False, frames=12, image_size=32)
    stored = whole.table
    crops, mirrored = set(), set()
    for epoch in range(4):
        batch = dataset.batch(range(6), seed=3, epoch=epoch)
        again = dataset.batch(range(6), seed=3, epoch=epoch)
        assert torch.equal(decoded(batch), decoded(again))
        for row in range(6):
            x, y = (batch.crop[row, :2] * torch.tensor([40, 32])).round().int().tolist()
            assert x % 2 == y % 2 == 0
            clip = decode_limited(stored.read_video(row), _every)
            window = clip.frames[batch.frame_index[row], y : y + 24, x : x + 24]
            if batch.flipped[row]:
                window = window[:, :, ::-1]
            assert np.array_equal(decoded(batch)[row].numpy(), window)
            crops.add((x, y))
            mirrored.add(bool(batch.flipped[row]))
    assert len(crops) > 5
    assert mirrored == {True, False}


def _every(timeline):
    return np.arange(timeline.total)


@pytest.mark.parametrize("codes", [False, True])
def test_the_loader_gives_the_same_batches_with_any_number_of_workers(shards, codes):
    batches = []
    for workers in (0, 1):
        dataset = dataset_of(shards / "out", codes=codes, workers=workers)
        loader = ClipLoader(dataset.config, dataset, batch_size=3)
        stream = loader.forever()
        batches.append([next(stream) for _ in range(2)])
        loader.close()
    for one, other in zip(*batches, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.frames, other.frames)
        assert (one.palettes is None) is not codes
        if codes:
            assert torch.equal(one.palettes, other.palettes)


def test_clips_of_another_compression_are_refused_with_both_names(shards):
    for compression in ("none", "gmm"):
        dataset = dataset_of(shards / "out", compression=compression)
        with pytest.raises(PaletteError, match=rf"s0 in .*\.tar: .*kmeans.*{compression}"):
            dataset.batch([0])
    with pytest.raises(PaletteError, match="svilm data compress"):
        dataset_of(shards / "videos").batch([0])
    video = dataset_of(shards / "videos").table.read_video(0)
    # Evaluation may be on videos.
    check_compression(video, DataConfig(compression="kmeans"), required=False)


def test_clips_that_cannot_be_cut_for_the_device_say_what_to_do(shards):
    with pytest.raises(PaletteError, match=r"s0 in .*40 x 32 .*image_size=36.*--short-side 36"):
        dataset_of(shards / "out", codes=True, image_size=36).batch([0])
    with pytest.raises(PaletteError, match="2x2x2 do not fill 4 frames of 25 pixels"):
        dataset_of(shards / "out", codes=True, image_size=25)
    dataset = dataset_of(shards / "out", codes=True)
    dataset.codes = dataclasses.replace(dataset.codes, block=PixelBlock(1, 4, 4))
    with pytest.raises(PaletteError, match="the same --vectors"):
        dataset.batch([0])
