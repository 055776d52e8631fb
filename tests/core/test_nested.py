"""Layers of nested dictionaries."""

from svilm_fast.core.nested import merge


def test_blocks_are_merged_and_values_replaced():
    below = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": {"x": 1}}
    above = {"a": {"y": {"w": 3}}, "b": [3], "c": 5, "d": None}
    kept = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": {"x": 1}}
    assert merge(below, above) == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "b": [3],
        "c": 5,
        "d": None,
    }
    assert below == kept
