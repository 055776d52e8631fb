"""`svilm bench dropping` proves that dropping nothing changes nothing before it compares times."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from svilm_fast.bench import dropping
from svilm_fast.bench.cli import app
from svilm_fast.bench.errors import WrongResult
from svilm_fast.models.token_dropping import PATTERNS
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.small_model import SMALL_MODEL


def test_it_writes_times_ratios_and_selections(tmp_path) -> None:
    out = tmp_path / "dropping.json"
    options = ["--config", "viclip_demo", "--rounds", "2", "--out", str(out), *SMALL_MODEL]
    done = CliRunner().invoke(app, ["dropping", *options])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["tokens"] == {"plain": 64, "dropping": 7}
    assert result["flops"]["plain"] > 6 * result["flops"]["dropping"]
    assert {name: len(taken) for name, taken in result["seconds"].items()} == {
        "plain": 2,
        "dropping": 2,
    }
    assert len(result["ratios"]) == 2
    assert set(result["selection_seconds"]) == set(PATTERNS)
    assert "plain / dropping, by round" in done.output


def test_a_selection_that_changes_the_result_is_found(monkeypatch) -> None:
    recipe = load_config("viclip_demo", list(SMALL_MODEL))
    with pytest.raises(ValueError, match="drops no token"):
        dropping.compare(load_config("viclip_demo_unmasked", list(SMALL_MODEL)), 1, 1)
    monkeypatch.setattr(dropping, "keep_count", lambda *given: 9)
    with pytest.raises(WrongResult, match="7 tokens are kept, 9 expected"):
        dropping.compare(recipe, 1, 1)

    def leaves_one_out(seeds, grid, **settings):
        found = select(seeds, grid, **settings)
        return type(found)(found.ids[:, 1:], None)

    select = dropping.select_tokens
    monkeypatch.setattr("svilm_fast.models.token_dropping.select_tokens", leaves_one_out)
    with pytest.raises(WrongResult, match="dropping no token changes the result"):
        dropping.compare(recipe, 1, 1)
