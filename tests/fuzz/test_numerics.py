"""The comparison of fuzzed ops detects wrong values."""

import pytest
import torch

from tests.fuzz.numerics import assert_close

TRUTH = torch.tensor([1e5, 1.0, -2.0, 3.0], dtype=torch.float64)
FOUND = torch.tensor([float("inf"), 1.0, -2.0, 3.0], dtype=torch.float16)


def test_what_the_type_cannot_hold_is_infinite():
    assert_close("x", FOUND, TRUTH, 1e-3)


@pytest.mark.parametrize(
    "place, value", [(0, 0.0), (0, float("-inf")), (0, float("nan")), (2, 2e4), (3, float("nan"))]
)
def test_wrong_values_beside_those_beyond_the_type_are_found(place, value):
    found = FOUND.clone()
    found[place] = value
    with pytest.raises(AssertionError):
        assert_close("x", found, TRUTH, 1e-3)


def test_a_value_beyond_the_type_does_not_widen_the_bar_of_the_others():
    truth = torch.tensor([[1e9, 1, 2, 3], [5, 6, 7, 8]], dtype=torch.float64)
    found = torch.tensor([[float("inf"), -1, 0, 99], [0, 0, 0, -8]], dtype=torch.float16)
    with pytest.raises(AssertionError, match="rms error"):
        assert_close("x", found, truth, 1e-3)


def test_one_bad_element_among_many_is_found():
    truth = torch.ones(1000, 8, dtype=torch.float64)
    found = truth.float()
    found[500, 3] = 1.1
    with pytest.raises(AssertionError, match="an element is off"):
        assert_close("x", found, truth, 2e-3)
