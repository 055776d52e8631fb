"""Metric names in logs of older versions."""

from __future__ import annotations

import pytest

from svilm_fast.core.metric_names import current_name, namespace_of


@pytest.mark.parametrize(
    ("logged", "name", "namespace"),
    [
        ("retrieval_t2v_R@1", "retrieval/t2v_R@1", "retrieval"),
        ("retrieval_v2t_MedR", "retrieval/v2t_MedR", "retrieval"),
        ("retrieval/t2v_R@1", "retrieval/t2v_R@1", "retrieval"),
        ("retrieval_msrvtt/t2v_R@1", "retrieval_msrvtt/t2v_R@1", "retrieval_msrvtt"),
        ("retrieval_temperature", "retrieval_temperature", ""),
        ("loss", "loss", ""),
    ],
)
def test_only_the_old_names_of_retrieval_are_renamed(
    logged: str, name: str, namespace: str
) -> None:
    assert current_name(logged) == name
    assert namespace_of(logged) == namespace
