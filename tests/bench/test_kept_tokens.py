"""`svilm bench kept-tokens` compares the bytes before it times, and writes every round."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from svilm_fast.bench import kept_tokens
from svilm_fast.bench.cli import app
from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites import palettes


def test_it_writes_every_round_and_the_ratios(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(palettes, "_CLIPS", 1)
    out = tmp_path / "kept.json"
    done = CliRunner().invoke(app, ["kept-tokens", "--rounds", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert {name: len(taken) for name, taken in result["seconds"].items()} == dict.fromkeys(
        palettes.CASES, 2
    )
    assert set(result["median_ratio"]) == set(palettes.BLOCKS)


def test_tokens_that_differ_are_found(monkeypatch) -> None:
    monkeypatch.setattr(palettes, "_CLIPS", 1)
    whole = palettes.PaletteFrames.tubelets

    def wrong(self, tubelet, patch, token_ids=None):
        found = whole(self, tubelet, patch, token_ids)
        return found if token_ids is None else torch.zeros_like(found)

    monkeypatch.setattr(palettes.PaletteFrames, "tubelets", wrong)
    with pytest.raises(WrongResult, match="kept tokens differ"):
        kept_tokens.compare(1)
