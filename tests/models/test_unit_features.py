"""Segments and groups leave the video encoder with length 1, or as they are projected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("part", ["segments", "groups"])
def test_a_switch_leaves_out_the_scaling_of_one_part(make_encoder, part: str) -> None:
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    unit = make_encoder().encode_video(frames)
    free = make_encoder(**{f"unit_{part}": False}).encode_video(frames)
    for name in ("video", "segments", "groups"):
        found, wanted = getattr(free, name), getattr(unit, name)
        assert found.dtype == torch.float64
        torch.testing.assert_close(F.normalize(found, dim=-1), wanted)
        lengths = found.norm(dim=-1)
        one = torch.ones_like(lengths)
        assert torch.allclose(lengths, one) == (name != part)
