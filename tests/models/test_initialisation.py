"""Initial weights: of one standard deviation, or scaled so that signals keep their size."""

from __future__ import annotations

import math

import pytest
import torch

from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder

CUT = 0.8796  # standard deviation of a normal distribution that is cut at two deviations
VIDEO = {"frames": 8, "image_size": 48, "tubelet": 2, "patch": 16, "width": 64, "depth": 3}
TEXT = {"width": 64, "depth": 2, "heads": 4, "length": 12, "vocab_size": 500}


def dual_encoder(**settings):
    video = VideoConfig(**VIDEO, heads=4, num_groups=8, num_segments=4)
    return DualEncoder(ModelConfig(embed_dim=32, **settings), video, TextConfig(**TEXT))


def wave(position, channel, channels):
    rate = 10_000 ** -((channel % (channels // 2)) / (channels / 2))
    return (math.sin if channel < channels // 2 else math.cos)(position * rate)


def table(positions, channels):
    return torch.tensor([[wave(at, c, channels) for c in range(channels)] for at in positions])


def test_the_default_has_one_standard_deviation():
    torch.manual_seed(0)
    for name, value in dual_encoder().named_parameters():
        if value.dim() == 2 and value.numel() > 500:
            assert value.detach().std().item() == pytest.approx(0.02 * CUT, rel=0.1), name


def test_scaled_maps_keep_the_size_of_their_input():
    torch.manual_seed(0)
    parameters = dict(dual_encoder(initialisation="scaled").named_parameters())
    for name, value in parameters.items():
        if name.endswith("weight") and value.dim() == 2 and value.numel() > 500:
            layers = {"video.blocks": 3, "text.blocks": 2}.get(".".join(name.split(".")[:2]))
            branch = layers and name.endswith(("attention.output.weight", "contract.weight"))
            wanted = CUT * (value.shape[1] * (2 * layers if branch else 1)) ** -0.5
            assert value.detach().std().item() == pytest.approx(wanted, rel=0.1), name
    for name in ("text.embedding.tokens", "video.groups.tokens"):
        assert parameters[name].detach().std().item() == pytest.approx(CUT, rel=0.1)


def test_scaled_positions_are_sines_and_cosines():
    model = dual_encoder(initialisation="scaled")
    rows = [row for row in range(3) for _ in range(3)]
    space = torch.cat([table(rows, 32), table([*range(3)] * 3, 32)], dim=1)
    # Four times over a frame of three rows: a time step is three quarters of a row.
    for found, wanted in (
        (model.video.embedding.space_position, space),
        (model.video.embedding.time_position, table([0, 0.75, 1.5, 2.25], 64)),
        (model.text.embedding.position, table(range(12), 64)),
    ):
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-5)
        assert found.requires_grad
