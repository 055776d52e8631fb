"""Two gloo ranks: the average of their gradients is the gradient of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.svilm import build_model

CASES = {
    "softmax": {"grounding": {"beta": {"learnable": True}}},
    "partner_excluded": {"contrast": {"exclude_partner": True}, "temporal": {"head": "rnn"}},
    "distilled": {"distill": {"loss": "relations"}, "contrast": {"video": "clean"}},
    "distilled_videos": {"distill": {"loss": "relations", "texts": False}},
    "same_source_masked": {"grounding": {"beta": {"learnable": True}}},
    "mlp_on_clean_video": {"grounding": {"similarity": "mlp", "video": "clean"}},
}
STORED = torch.nn.functional.normalize(
    torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=-1
)
CHANGES = {
    "distilled": {"teacher_videos": STORED[0], "teacher_texts": STORED[1]},
    "distilled_videos": {"teacher_videos": STORED[0]},
    # A class on both ranks, one of captions without nouns, and samples alone.
    "same_source_masked": {"source_ids": torch.tensor([5, 9, 5, 7, 9, 5])},
}
pytestmark = pytest.mark.slow


@pytest.fixture
def finished(tmp_path, run_on_ranks, make_config, inputs, take_rows) -> tuple[dict, list[dict]]:
    """What one process computes on six samples, and what two ranks do on three each."""
    whole, cases = {}, {}
    given = inputs
    for name, objectives in CASES.items():
        inputs = replace(given, **CHANGES.get(name, {}))
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
    run_on_ranks(2, Path(__file__).with_name("rank_program.py"), tmp_path)
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
