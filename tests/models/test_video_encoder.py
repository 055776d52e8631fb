"""The video encoder: shapes, what it leaves out, positions, pooling, gradients."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.models.config import VideoConfig
from svilm_fast.models.video_encoder import VideoEncoder, VideoOutputs


def test_shapes_and_unit_norms(make_encoder, frames, seeds):
    features = make_encoder().encode_video(frames, seeds)
    assert features.video.shape == (4, 8)
    assert features.segments.shape == (4, 2, 8)
    assert features.groups.shape == (4, 4, 8)
    assert features.pooled.shape == (4, 24)
    assert features.segment_mask.all()
    assert features.grid == (4, 4, 4)
    assert features.token_mask is None
    for embedding in (features.video, features.segments, features.groups):
        torch.testing.assert_close(
            embedding.norm(dim=-1), torch.ones(embedding.shape[:-1], dtype=torch.float64)
        )


def test_every_grouping_block_reports_its_assignment(make_encoder, frames, seeds):
    features = make_encoder(depth=4).encode_video(frames, seeds)
    assert [found.layer for found in features.assignments] == [2, 3, 4]
    for found in features.assignments:
        assert found.index.shape == (4, 64)
        assert not found.counts.requires_grad
        expected = torch.stack([torch.bincount(row, minlength=4) for row in found.index.long()])
        torch.testing.assert_close(found.counts, expected.to(found.counts.dtype))


def test_float32_model_gives_float32_features(make_encoder, frames):
    features = make_encoder().float().encode_video(frames)
    assert features.video.dtype == features.groups.dtype == torch.float32


def test_evaluation_is_deterministic_and_ignores_rates(make_encoder, frames):
    noisy = make_encoder(drop_path=0.5, dropout=0.5, drop={"rate": 0.5})
    plain = make_encoder()
    torch.testing.assert_close(noisy.encode_video(frames).video, plain.encode_video(frames).video)


def test_outputs_left_out_do_not_run(make_encoder, frames, monkeypatch):
    encoder = make_encoder()
    full = encoder.encode_video(frames)
    last = encoder.video.grouping_blocks["3"]
    monkeypatch.setattr(last, "forward", lambda *a, **k: pytest.fail("the last block ran"))
    monkeypatch.setattr(
        "svilm_fast.models.video_encoder.segment_pool", lambda *a, **k: pytest.fail("pooled")
    )
    few = encoder.encode_video(frames, None, VideoOutputs(groups=False, segments=False))
    assert few.groups is None
    assert few.segments is None
    assert few.segment_mask is None
    assert [found.layer for found in few.assignments] == [1, 2]
    torch.testing.assert_close(few.video, full.video)


@pytest.mark.parametrize("segments", [True, False])
def test_token_states_are_given_on_demand(make_encoder, frames, seeds, segments):
    encoder = make_encoder(drop={"rate": 0.25, "rate_max": 0.75}).float()
    asked = VideoOutputs(groups=False, segments=segments, tokens=True)
    found = encoder.encode_video(frames, seeds, asked)
    assert found.tokens.shape == (*found.token_ids.shape, 24)
    assert found.tokens.dtype == torch.float32
    weights = found.token_mask[..., None].float()
    torch.testing.assert_close(
        (found.tokens * weights).sum(dim=1) / weights.sum(dim=1), found.pooled
    )
    assert encoder.encode_video(frames, seeds).tokens is None
    half = encoder.bfloat16().encode_video(frames, seeds, asked)
    assert half.tokens.dtype == torch.float32


def test_without_group_tokens_there_are_no_group_parameters(make_encoder, frames):
    encoder = make_encoder(groups=False)
    assert not [name for name, _ in encoder.named_parameters() if "group" in name]
    features = encoder.encode_video(frames)
    assert features.groups is None
    assert features.assignments == ()


def test_video_tokens_reach_the_last_layer_past_the_grouping_blocks(make_encoder, frames):
    """Grouping must not replace the patch tokens: the mean over tokens still tells them apart."""
    encoder = make_encoder()
    changed = frames.clone()
    changed[:, 0, :4, :4] = 255 - changed[:, 0, :4, :4]
    before, after = encoder.encode_video(frames), encoder.encode_video(changed)
    first, second = 0, 1
    moved = (before.segments - after.segments).norm(dim=-1)
    assert (moved[:, first] > moved[:, second]).all()
    assert (moved > 0).all()


def test_segments_are_means_of_their_frames_tokens(make_encoder, frames):
    encoder = make_encoder(depth=1, grouping={"layers": [1]}, groups=False).video
    features = encoder(frames)
    # Segment means of equal size average to the mean over all tokens.
    with torch.no_grad():
        torch.manual_seed(0)
        half = VideoEncoder(
            VideoConfig(**encoder.config.model_dump() | {"num_segments": 1}), 8, groups=False
        ).double()
        half.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(half(frames).segments[:, 0], features.video)


@pytest.mark.parametrize("pool", ["tokens", "groups", "class_token"])
def test_gradients_reach_every_parameter(make_encoder, frames, seeds, text, pool):
    encoder = make_encoder(pool=pool, dropout=0.1, drop_path=0.1)
    features = encoder.encode_video(frames, seeds)
    loss = sum(
        (embedding * torch.randn_like(embedding)).sum()
        for embedding in (
            features.video,
            features.segments,
            features.groups,
            encoder.encode_text(*text),
        )
    )
    loss.backward()
    missing = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_positions_tell_time_and_place_apart(make_encoder):
    encoder = make_encoder(groups=False).video
    one_frame = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8)
    still = one_frame.expand(1, 4, -1, -1, -1)
    shuffled = still.clone()
    shuffled[:, :, :4], shuffled[:, :, 4:8] = still[:, :, 4:8], still[:, :, :4]
    assert not torch.allclose(encoder(still).video, encoder(shuffled).video, atol=1e-6)
    segments = encoder(still).segments[0]
    assert not torch.allclose(segments[0], segments[1], atol=1e-6)


def test_checkpointing_changes_neither_values_nor_gradients(make_encoder, frames, seeds):
    settings = {"drop_path": 0.3, "dropout": 0.2, "drop": {"rate": 0.25}}
    gradients = []
    for recompute in (False, True):
        encoder = make_encoder(**settings, checkpoint_activations=recompute)
        features = encoder.encode_video(frames, seeds)
        (features.video[:, 0].sum() + features.groups[..., 1].sum()).backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 16, 16, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 16, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 16, 16, 3),
    ],
)
def test_wrong_frames_are_named(make_encoder, wrong):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[b, 4, 16, 16, 3\]"):
        make_encoder().encode_video(wrong)
