"""From a head's proposals to labelled segments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from svilm_fast.data.feature_files import FeatureLayout, VideoFeatureSequence
from svilm_fast.data.formats.cuhk import VideoClassScores
from svilm_fast.tasks.localization.heads import Proposals
from svilm_fast.tasks.localization.predict import predicted_segments
from svilm_fast.tasks.localization.raw_video import sequence_batch
from svilm_fast.tasks.localization.settings import LocalizationSettings


class FixedProposals(nn.Module):
    """A head that finds two segments that overlap."""

    def proposals(self, features: torch.Tensor, mask: torch.Tensor) -> list[Proposals]:
        segments = torch.tensor([[10.0, 20.0], [10.0, 25.0]])
        return [Proposals(segments, torch.tensor([0.81, 0.64]), torch.zeros(2, dtype=torch.int64))]


class FixedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = FixedProposals()


@pytest.mark.parametrize("rule", ["sqrt", "product"])
def test_the_classes_of_a_video_do_not_suppress_each_other(rule) -> None:
    settings = LocalizationSettings(
        name="localization", width=3, length=32, labels="external", fusion=rule, nms={"voting": 0}
    )
    sequence = VideoFeatureSequence(
        "video", np.zeros((32, 3), np.float32), FeatureLayout(1, 1, 1.0), 32.0
    )
    scores = VideoClassScores(("a", "b", "c"), {"video": np.array([0.25, 0.01, 0.64])})
    (found,) = predicted_segments(
        FixedModel(), sequence_batch(sequence, settings), settings, (), scores, torch.device("cpu")
    )
    # IoU 2/3 of the two: soft-NMS sees both once, and then each has the two best classes.
    second = 0.64 * math.exp(-((2 / 3) ** 2) / 0.75)
    root = math.sqrt if rule == "sqrt" else float
    expected = sorted(
        ((root(share * score), label)
         for share in (0.81, second) for score, label in ((0.64, "c"), (0.25, "a"))),
        reverse=True,
    )  # fmt: skip
    assert [one.label for one in found] == [label for _, label in expected]
    assert [one.score for one in found] == pytest.approx([s for s, _ in expected], rel=1e-4)
