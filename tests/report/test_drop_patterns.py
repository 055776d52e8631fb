"""The picture of the drop patterns, and the command that writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svilm_fast.cli import app
from svilm_fast.models.token_dropping import PATTERNS, keep_count
from svilm_fast.report.drop_patterns import kept_grids
from svilm_fast.report.strips import keep_lit
from svilm_fast.train.run_app import run_app


def test_every_pattern_is_drawn_with_its_count() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    found = kept_grids(frames, (8, 4, 4), 0.75, seed=1)
    assert list(found) == list(PATTERNS)
    for pattern, kept in found.items():
        assert kept.shape == (8, 4, 4)
        assert kept.sum() == keep_count((8, 4, 4), 0.75, pattern)


def test_kept_tokens_keep_their_pixels_and_the_others_fade() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    lit = keep_lit(frame, np.array([[True, False], [False, False]]))
    assert (lit[:2, :2] == 0).all()
    assert (lit[2:] > 150).all()


def test_the_command_replaces_its_own_picture_only(tmp_path: Path, capsys) -> None:
    out = tmp_path / "pictures" / "patterns.png"
    words = ["drop-patterns", "--size", "32", "--patch", "8", "--out", str(out)]
    for _ in range(2):
        assert run_app(app, words) == 0, capsys.readouterr().err
    assert out.read_bytes().startswith(b"\x89PNG")
    out.write_bytes(b"\x89PNG of mine")
    assert run_app(app, words) == 2
    assert "is not an earlier result of this command" in capsys.readouterr().err
    assert run_app(app, [*words, "--patch", "5"]) == 2
    assert "--patch 5 --size 32" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_all_rates_of_the_option_can_be_drawn(rate: float) -> None:
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    assert all(kept.any() for kept in kept_grids(frames, (4, 2, 2), rate, seed=0).values())
