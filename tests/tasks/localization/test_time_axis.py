"""Steps and seconds, before and after a sequence is resized."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svilm_fast.data.feature_files import FeatureLayout
from svilm_fast.tasks.localization.time_axis import TimeAxis, resized

LAYOUT = FeatureLayout(stride=16, clip=16, fps=15.0)


def test_the_middle_of_a_vector_is_half_a_clip_behind_its_first_frame():
    assert LAYOUT.centre(0) == pytest.approx(8 / 15)
    assert LAYOUT.centre(3) == pytest.approx((3 * 16 + 8) / 15)
    assert LAYOUT.index(LAYOUT.centre(3.25)) == pytest.approx(3.25)


def test_without_resizing_steps_are_vectors():
    axis = TimeAxis.of(LAYOUT, vectors=50)
    assert axis.seconds(np.arange(3)) == pytest.approx(LAYOUT.centre(np.arange(3)))


@pytest.mark.parametrize("vectors, steps", [(50, 192), (192, 50), (7, 7), (1, 4)])
def test_a_resized_ramp_shows_the_time_of_every_step(vectors, steps):
    # A feature that holds its own time: what step x shows is the time of step x.
    times = torch.from_numpy(LAYOUT.centre(np.arange(vectors, dtype=np.float64)))[:, None]
    shown = resized(times.float(), steps)[:, 0].double().numpy()
    axis = TimeAxis.of(LAYOUT, vectors, steps)
    expected = axis.seconds(np.arange(steps))
    # Beyond the first and the last middle, interpolation repeats the end.
    inside = expected.clip(float(times[0, 0]), float(times[-1, 0]))
    if steps >= vectors:
        assert shown == pytest.approx(inside, abs=1e-4)
    assert axis.steps(axis.seconds(2.5)) == pytest.approx(2.5)


def test_the_edges_stay_where_they_are():
    # Steps have the length of the whole sequence, whatever their number.
    for steps in (10, 96, 192):
        axis = TimeAxis.of(LAYOUT, vectors=48, steps=steps)
        assert axis.seconds(-0.5) == pytest.approx(LAYOUT.centre(-0.5))
        assert axis.seconds(steps - 0.5) == pytest.approx(LAYOUT.centre(47.5))
