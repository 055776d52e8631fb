"""Two gloo ranks: the average of their gradients is the gradient of the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.svilm import build_model

CASES = {
    "softmax": {"grounding": {"beta": {"learnable": True}}},
    "partner_excluded": {"contrast": {"exclude_partner": True}, "temporal": {"head": "rnn"}},
    "mlp_on_clean_video": {"grounding": {"similarity": "mlp", "video": "clean"}},
}
pytestmark = pytest.mark.slow


@pytest.fixture
def finished(tmp_path, make_config, inputs, take_rows) -> tuple[dict, list[dict]]:
    """What one process computes on six samples, and what two ranks do on three each."""
    whole, cases = {}, {}
    for name, objectives in CASES.items():
        config = make_config(objectives, drop_path=0.2)
        parts = [take_rows(inputs, slice(0, 3)), take_rows(inputs, slice(3, 6))]
        cases[name] = (config.model_dump(), parts)
        torch.manual_seed(0)
        model = build_model(SViLMConfig(**config.model_dump())).double()
        output = model(inputs)
        output.loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        whole[name] = {"loss": output.loss.detach(), "gradients": gradients}
    torch.save(cases, tmp_path / "cases.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(__file__).with_name("rank_program.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), "2", str(port), str(tmp_path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    return whole, [torch.load(tmp_path / f"rank_{rank}.pt") for rank in range(2)]


def test_averaged_gradients_equal_those_of_the_whole_batch(finished):
    whole, ranks = finished
    for name in CASES:
        losses = torch.stack([rank[name]["loss"] for rank in ranks])
        torch.testing.assert_close(losses.mean(), whole[name]["loss"], rtol=0, atol=1e-10)
        for key, expected in whole[name]["gradients"].items():
            for rank in ranks:
                got = rank[name]["gradients"][key]
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-10, msg=f"{name} {key}")
