"""`svilm bench ranking` proves equal ranks before it compares times."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from svilm_fast.bench import ranking
from svilm_fast.bench.cli import app
from svilm_fast.bench.errors import WrongResult


def test_it_writes_times_and_ratios(tmp_path):
    out = tmp_path / "ranking.json"
    options = ["--pairs", "40", "--dim", "8", "--rounds", "2", "--out", str(out)]
    done = CliRunner().invoke(app, ["ranking", *options])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert {name: len(values) for name, values in result["seconds"].items()} == {
        "one pass": 2,
        "reference": 2,
    }
    assert len(result["ratios"]) == 2
    assert result["environment"]["torch"]


def test_a_wrong_rank_is_found(monkeypatch):
    real = ranking.rank_pairs

    def wrong(*inputs, **options):
        found = real(*inputs, **options)
        found.video_to_text.higher[3] += 1
        return found

    monkeypatch.setattr(ranking, "rank_pairs", wrong)
    with pytest.raises(WrongResult, match="1 ranks differ, video to text"):
        ranking.compare(40, 8, 1)
