"""Two nodes with their own networks on this machine train exactly as one node does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.launch import two_nodes
from tests.train.launch.nodes import why_not_isolated


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [("torchrun", 1), ("deepspeed", 2)])
def test_a_run_on_two_nodes_is_that_on_one_node(tmp_path: Path, launcher: str, stage: int) -> None:
    isolated = why_not_isolated() is None
    result = two_nodes.compare(
        tmp_path,
        launcher=launcher,
        steps=3,
        isolated=isolated,
        overrides=[f"deepspeed.zero_stage={stage}"],
    )
    assert result["one_node"] == result["two_nodes"]
    assert [record["step"] for record in result["two_nodes"]] == [1, 2, 3]
    assert result["largest_weight_difference"] == 0.0
    described = json.loads((tmp_path / "two_nodes" / "env.json").read_text())
    assert described["world_size"] == 2
    if isolated:
        # At least the gradients of three steps, in fp32, went over the cable.
        weights = (tmp_path / "two_nodes" / "portable" / "model.safetensors").stat().st_size
        assert result["received_bytes"] > 3 * weights


def test_without_namespaces_the_trial_says_so_and_uses_loopback(monkeypatch, capsys) -> None:
    seen = {}

    def compare(folder: Path, **settings) -> dict:
        seen.update(settings)
        return {
            "launcher": "torchrun",
            "isolated": settings["isolated"],
            "addresses": ["127.0.0.1", "127.0.0.2"],
            "one_node": [{"step": 1, "loss": 2.0}],
            "two_nodes": [{"step": 1, "loss": 2.5}],
            "received_bytes": None,
            "largest_weight_difference": 0.0,
        }

    monkeypatch.setattr(two_nodes, "compare", compare)
    monkeypatch.setattr(two_nodes, "why_not_isolated", lambda: "not permitted")
    assert two_nodes.main([]) == 1
    assert seen["isolated"] is False
    said = capsys.readouterr().out
    assert "no network namespaces (not permitted): two agents on loopback" in said
    assert "one node and two nodes: NOT the same" in said
