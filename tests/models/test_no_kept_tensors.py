"""A step under a mode of torch leaves nothing that a later, ordinary step uses."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from svilm_fast.models.config import VideoConfig
from svilm_fast.models.tubelet_embedding import (
    PIXELS,
    TubeletEmbedding,
    _pixel_affine,
)

CONFIG = VideoConfig(frames=2, image_size=32, tubelet=1, patch=16, width=8, heads=2, num_segments=2)


def _tokens() -> torch.Tensor:
    module = TubeletEmbedding(CONFIG)
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
    frames = torch.ones(1, 2, 32, 32, 3, dtype=torch.uint8)
    return module(frames, torch.arange(8))


def test_after_a_fake_step_a_real_one_is_real():
    with FakeTensorMode():
        assert isinstance(_tokens(), FakeTensor)
    real = _tokens()
    assert not isinstance(real, FakeTensor)
    assert torch.isfinite(real).all()


def test_after_inference_a_step_can_be_trained():
    with torch.inference_mode():
        _tokens()
    _tokens().sum().backward()


def test_pixels_are_normalised_with_the_float64_quotients():
    for values in PIXELS.values():
        gain, shift = _pixel_affine(torch.zeros(1, dtype=torch.float32), *values)
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in values)
        assert torch.equal(gain, (1 / (255 * std)).float())
        assert torch.equal(shift, (-mean / std).float())
