"""Several views of a sample: clips x crops in evaluation, groups of crops in training."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch

from svilm_fast.data import dataset as datasets
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import ShortClipError
from svilm_fast.data.loader import build_loader
from svilm_fast.data.pipeline import shared_bytes
from svilm_fast.data.views import CropGroup, Views, crop_windows

# The videos of these tests have 12 frames of 40 x 32 pixels; frame f is grey 16 f + phase.
LOCAL = CropGroup(count=3, frames=2, image_size=8, crop_scale=(0.1, 0.3))
GLOBAL = CropGroup(count=1, frames=4, image_size=24, crop_scale=(0.5, 1.0))
SAME = ("frames", "keys", "text_tokens", "noun_tokens", "frame_index", "crop", "flipped")


@pytest.fixture
def open_views(make_shards):
    """Opens four samples with some views."""

    def build(views, *, train=False, name="train", replace=None, frames=4, **settings):
        folder = make_shards(4, name=name, replace=replace)
        config = DataConfig(train=str(folder), **{"workers": 0, **settings})
        tokenizer = prepare_tokenizer(config)
        return ClipDataset(
            config, "train", tokenizer, train, frames=frames, image_size=24, views=views
        )

    return build


def _grey(frames):
    return frames.float().mean(dim=(-3, -2, -1))


def test_the_windows_of_three_crops():
    def places(width, height):
        found = crop_windows(width, height, 8 / 7, 3)
        assert found[1:2] == crop_windows(width, height, 8 / 7, 1)
        assert {(w.width, w.height, w.flipped) for w in found} == {(28, 28, False)}
        return [(w.x, w.y) for w in found]

    assert places(40, 32) == [(0, 2), (6, 2), (12, 2)]
    assert places(32, 40) == [(2, 0), (2, 6), (2, 12)]
    assert places(32, 32) == [(0, 2), (2, 2), (4, 2)]


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ("interleaved", [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]),
        ("consecutive", [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
    ],
)
def test_clips_share_uniform_frames(open_views, spread, expected):
    batch = open_views(Views(clips=4, spread=spread), frames=3).batch([0])
    assert batch.frames.shape == (1, 4, 3, 24, 24, 3)
    assert batch.frame_index.tolist() == [expected]
    assert torch.allclose(_grey(batch.frames)[0], 16.0 * torch.tensor(expected), atol=4)


def test_views_are_ordered_by_clip_then_crop_and_the_centre_is_the_ordinary_view(open_views):
    one = open_views(Views()).batch([0, 1])
    batch = open_views(Views(clips=2, crops=3)).batch([0, 1])
    assert batch.frames.shape == (2, 6, 4, 24, 24, 3)
    clips = [[0, 3, 6, 9], [2, 5, 8, 11]]  # every second of eight middles
    assert batch.frame_index[0].tolist() == [clips[0]] * 3 + [clips[1]] * 3
    assert batch.crop.shape == (2, 6, 4)
    assert batch.flipped.tolist() == [[False] * 6] * 2
    # Frames are decoded as 34 x 27 pixels.
    assert batch.crop[0, :3, 0].tolist() == pytest.approx([0, 5 / 34, 10 / 34])
    crops = open_views(Views(crops=3)).batch([0, 1])
    for name in ("frames", "crop", "frame_index", "flipped"):
        assert torch.equal(getattr(crops, name)[:, 1], getattr(one, name)), name


def test_views_stay_in_their_segment_and_short_videos_repeat(open_views):
    data = json.dumps({"caption": "a dog", "segment": [0.5, 1.0]}).encode()
    dataset = open_views(Views(clips=2), replace={0: {"json": data}})
    batch = dataset.batch([0])  # frames 4 to 7 for two clips of four
    assert batch.frame_index.tolist() == [[[4, 5, 6, 7]] * 2]
    assert dataset.clip(0, None).notes == ()
    short = open_views(Views(clips=2), replace={0: {"json": data}}, short_clip="skip")
    assert short.batch([0]).frame_index.shape == (1, 2, 4)
    with pytest.raises(ShortClipError):
        open_views(Views(clips=2), replace={0: {"json": data}}, short_clip="skip", frames=5).batch(
            [0]
        )


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_further_views_leave_the_ordinary_one_as_it_is(open_views, cache):
    plain = open_views(Views(), train=True)
    dataset = open_views(Views(groups=(LOCAL, GLOBAL)), train=True, cache=cache)
    for epoch in range(2):
        expected = plain.batch([0, 1, 3], seed=3, epoch=epoch)
        batch = dataset.batch([0, 1, 3], seed=3, epoch=epoch)
        for name in SAME:
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        assert batch.captions == expected.captions
        local, large = batch.views
        assert local.frames.shape == (3, 3, 2, 8, 8, 3)
        assert large.frames.shape == (3, 1, 4, 24, 24, 3)
        assert local.frame_index.shape == (3, 3, 2)
        assert local.flipped.shape == (3, 3)
        assert expected.views == ()


def test_views_are_drawn_independently_inside_their_bounds(open_views):
    dataset = open_views(Views(groups=(LOCAL, LOCAL)), train=True)
    crops, flips = [], []
    for epoch in range(8):
        batch = dataset.batch([0, 1], seed=1, epoch=epoch)
        grey = 16.0 * batch.views[0].frame_index + torch.tensor([0.0, 3.0])[:, None, None]
        assert torch.allclose(_grey(batch.views[0].frames), grey, atol=5)
        crops += [view.crop for view in batch.views]
        flips += [view.flipped for view in batch.views]
    boxes = torch.cat(crops).reshape(-1, 4)
    assert len(torch.unique(boxes, dim=0)) > 0.9 * len(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.08 < areas.min() < 0.15 < 0.25 < areas.max() < 0.32
    assert 0.2 < torch.cat(flips).float().mean() < 0.8
    again = dataset.batch([1], seed=1, epoch=7).views[0]
    assert torch.equal(again.frames[0], batch.views[0].frames[1])


def test_a_sample_is_decoded_once_and_no_frame_twice(open_views, monkeypatch):
    asked = []
    decode = datasets.decode_limited

    def counting(data, choose, **settings):
        clip = decode(data, choose, **settings)
        asked.append(clip.index.tolist())
        return clip

    monkeypatch.setattr(datasets, "decode_limited", counting)
    batch = open_views(Views(groups=(LOCAL, GLOBAL)), train=True).batch([0])
    (decoded,) = asked
    wanted = [batch.frame_index, *(view.frame_index for view in batch.views)]
    assert decoded == sorted({frame for each in wanted for frame in each.flatten().tolist()})


def test_a_resumed_loader_draws_the_same_views(open_views):
    dataset = open_views(Views(groups=(LOCAL,)), train=True)
    with build_loader(dataset.config, dataset, batch_size=2) as loader:
        batches = loader.forever()
        next(batches)
        state, expected = loader.state_dict(), next(batches)
    with build_loader(dataset.config, dataset, batch_size=2, state=state) as loader:
        batch = next(loader.forever())
    assert batch.ids == expected.ids
    for name in vars(batch.views[0]):
        mine, other = (getattr(each.views[0], name) for each in (batch, expected))
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_the_loader_and_its_workers_give_the_same_views(open_views, workers, train):
    views = Views(groups=(LOCAL, GLOBAL)) if train else Views(clips=2, crops=3)
    dataset = open_views(views, train=train, workers=workers, unit=1)
    with build_loader(dataset.config, dataset, batch_size=2, seed=5) as loader:
        batch = next(iter(loader))
    places = [list(dataset.ids).index(name) for name in batch.ids]
    expected = dataset.batch(places, seed=5)
    for name in SAME:
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert len(batch.views) == len(expected.views) == len(views.groups)
    for mine, other in zip(batch.views, expected.views):
        for name in vars(mine):
            assert torch.equal(getattr(mine, name), getattr(other, name)), name
    joined = ClipBatch.joined([batch, pickle.loads(pickle.dumps(batch))]).to("meta")
    assert joined.frames.shape == (4, *batch.frames.shape[1:])
    assert [view.frames.shape[0] for view in joined.views] == [4] * len(views.groups)


def test_shared_memory_counts_every_view(open_views):
    dataset = open_views(Views(groups=(LOCAL,)), train=True, workers=3, unit=2)
    clip = 4 * 24 * 24 * 3 + 3 * 2 * 8 * 8 * 3
    assert shared_bytes(dataset.config, dataset) == 3 * 2 * 2 * clip
    assert sum(map(math.prod, open_views(Views(clips=2, crops=3)).frame_shapes)) == (
        6 * 4 * 24 * 24 * 3
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(clips=0), "clips must be at least 1"),
        (lambda: Views(crops=2), "crops 1 or 3"),
        (lambda: Views(spread="dense"), "interleaved or consecutive"),
        (lambda: CropGroup(0, 1, 8, (0.1, 0.2)), "at least 1"),
        (lambda: CropGroup(1, 1, 8, (0.3, 0.2)), "smallest <= largest"),
        (lambda: Views(clips=2).check(train=True), "views of evaluation"),
        (lambda: Views(groups=(LOCAL,)).check(train=False), "views of training"),
    ],
)
def test_impossible_views_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
