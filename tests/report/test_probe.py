"""What is read from a model: groups on the grid, nouns, segments, blended clips."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.errors import DataError
from svilm_fast.data.keys import sample_key
from svilm_fast.evaluation.pointing import group_grid
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.report.probe import (
    noun_weights,
    probe_clips,
    spread_clips,
    temporal_assignment,
)


def encoder(groups: int = 3, segments: int = 4) -> DualEncoder:
    torch.manual_seed(0)
    video = VideoConfig(
        frames=8,
        image_size=16,
        tubelet=2,
        patch=8,
        width=16,
        depth=2,
        heads=2,
        num_groups=groups,
        num_segments=segments,
    )
    text = TextConfig(vocab_size=50, width=16, depth=1, heads=2)
    return DualEncoder(ModelConfig(embed_dim=8), video, text)


def batch(count: int = 3) -> ClipBatch:
    generator = torch.Generator().manual_seed(1)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, high, shape, generator=generator)

    noun_mask = torch.tensor([[True, True], [True, False], [False, False]])[:count]
    return ClipBatch(
        frames=integers(256, count, 8, 16, 16, 3).to(torch.uint8),
        keys=torch.tensor([sample_key(f"v{i}") for i in range(count)]),
        ids=[f"v{i}" for i in range(count)],
        captions=[f"caption {i}" for i in range(count)],
        nouns=[["a ring", "a star"], ["a moon"], []][:count],
        text_tokens=integers(50, count, 6),
        text_mask=torch.ones(count, 6, dtype=torch.bool),
        noun_tokens=integers(50, count, 2, 5),
        noun_token_mask=noun_mask[..., None].expand(count, 2, 5).clone(),
        noun_mask=noun_mask,
        frame_index=torch.zeros(count, 8, dtype=torch.int64),
        crop=torch.zeros(count, 4),
        flipped=torch.zeros(count, dtype=torch.bool),
    )


def test_probes_hold_what_the_model_says() -> None:
    model, clips = encoder(), batch()
    model.train()
    probes = probe_clips(model, clips, beta=7.0)
    assert model.training
    model.eval()
    with torch.no_grad():
        features = model.encode_video(clips.frames)
        nouns = model.encode_text(clips.noun_tokens[0], clips.noun_token_mask[0])
    first = probes[0]
    assert first.nouns == ("a ring", "a star")
    assert first.groups is not None
    assert first.groups.shape == (4, 2, 2)
    assert first.groups.ravel().tolist() == features.assignments[-1].index[0].tolist()
    expected = (7.0 * nouns @ features.groups[0].T).softmax(dim=1)
    np.testing.assert_allclose(first.noun_weights, expected.numpy(), atol=1e-6)
    segments = features.segments[0]
    np.testing.assert_allclose(first.clean, (segments @ segments.T).numpy(), atol=1e-6)
    assert [probe.nouns for probe in probes[1:]] == [("a moon",), ()]
    assert probes[2].noun_weights.shape == (0, 3)
    assert [probe.caption for probe in probes] == clips.captions


def test_blended_clips_are_the_own_and_another_one() -> None:
    model, clips = encoder(), batch()
    probes = probe_clips(model, clips, temperature=0.3)
    for row, probe in enumerate(probes):
        blended = probe.blended
        assert blended is not None
        frames = clips.frames[row].numpy()
        for segment in range(4):
            part = slice(2 * segment, 2 * segment + 2)
            same = np.array_equal(blended.frames[part], frames[part])
            assert same == bool(blended.own[segment])
        np.testing.assert_allclose(blended.assignment.sum(axis=1), 1, atol=1e-6)
        with torch.no_grad():
            z = model.eval().encode_video(torch.from_numpy(blended.frames)[None]).segments[0]
        own = torch.from_numpy(blended.own)
        centres = torch.stack([z[own].mean(0), z[~own].mean(0)])
        expected = (z @ centres.T / 0.3).softmax(dim=1)
        np.testing.assert_allclose(blended.assignment, expected.numpy(), atol=1e-5)


def test_probes_are_repeatable_and_follow_the_seed() -> None:
    model, clips = encoder(), batch()
    first, again = probe_clips(model, clips, seed=1), probe_clips(model, clips, seed=1)
    assert all(np.array_equal(a.blended.frames, b.blended.frames) for a, b in zip(first, again))
    others = [probe_clips(model, clips, seed=seed) for seed in (2, 3, 4)]
    assert any(not np.array_equal(first[0].blended.own, other[0].blended.own) for other in others)


def test_the_pasted_part_has_the_length_that_the_run_pastes() -> None:
    model, clips = encoder(), batch()
    for seed in range(4):
        for probe in probe_clips(model, clips, seed=seed, paste_lengths=(0.2, 0.3)):
            assert 0 < probe.blended.own.mean() < 0.5
        assert all(p.blended.own.mean() >= 0.5 for p in probe_clips(model, clips, seed=seed))


def test_a_lone_clip_or_segment_is_not_blended() -> None:
    assert probe_clips(encoder(), batch(1))[0].blended is None
    assert probe_clips(encoder(segments=1), batch())[0].blended is None


def test_a_model_without_groups_has_none() -> None:
    probe = probe_clips(encoder(groups=0), batch())[0]
    assert probe.groups is None
    assert probe.nouns == ()


def test_untrained_weights_are_shown_beside() -> None:
    model = encoder()
    blended = probe_clips(model, batch(), untrained=model)[0].blended
    np.testing.assert_allclose(blended.untrained_similarity, blended.similarity)


def test_dropped_tokens_leave_holes() -> None:
    features = SimpleNamespace(
        assignments=[SimpleNamespace(index=torch.tensor([[2, 0, -1], [1, 1, 0]]))],
        token_ids=torch.tensor([[3, 1, 0], [0, 2, 3]]),
        token_mask=torch.tensor([[True, True, False], [True, True, True]]),
        grid=(1, 2, 2),
    )
    grid = group_grid(features)  # type: ignore[arg-type]
    assert grid is not None
    assert grid.tolist() == [[[[-1, 0], [-1, 2]]], [[[1, -1], [1, 0]]]]


def test_assignment_of_a_hand_case() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    own = torch.tensor([True, False])
    a = temporal_assignment(z, own, temperature=0.5)
    high = float(torch.tensor([2.0, 0.0]).softmax(0)[0])
    torch.testing.assert_close(a, torch.tensor([[high, 1 - high], [1 - high, high]]))
    alone = temporal_assignment(z, torch.tensor([True, True]), 0.5)
    assert alone.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_noun_weights_without_groups() -> None:
    assert noun_weights(None, torch.ones(1, 1, 2), 1.0) is None


class Shelf:
    """A data set of numbered clips, some of which cannot be read."""

    split = "test"

    def __init__(self, count: int, broken: set[int]) -> None:
        self.ids = [f"v{i}" for i in range(count)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.ids)

    def clip(self, index: int, draw: None) -> int:
        if index in self.broken:
            raise DataError("cut short")
        return index


def test_clips_come_from_all_over_and_broken_ones_are_passed_over() -> None:
    assert spread_clips(Shelf(12, set()), 4) == [0, 3, 6, 9]  # type: ignore[comparison-overlap, arg-type]
    assert spread_clips(Shelf(12, {3}), 4) == [0, 6, 9, 1]  # type: ignore[comparison-overlap, arg-type]
    assert spread_clips(Shelf(2, set()), 4) == [0, 1]  # type: ignore[comparison-overlap, arg-type]
    with pytest.raises(ValueError, match="no clip of the test split can be read"):
        spread_clips(Shelf(3, {0, 1, 2}), 2)  # type: ignore[arg-type]


def test_a_temporal_head_predicts_in_place_of_the_centres() -> None:
    model, clips = encoder(), batch()

    def head(segments: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert mask.shape == segments.shape[:2]
        return torch.arange(4.0).expand(len(segments), -1)

    own = torch.arange(4.0).sigmoid()
    for probe in probe_clips(model, clips, temporal_head=head):
        assert probe.blended is not None
        np.testing.assert_allclose(probe.blended.assignment[:, 0], own.numpy(), atol=1e-6)
        np.testing.assert_allclose(probe.blended.assignment.sum(axis=1), 1, atol=1e-6)
