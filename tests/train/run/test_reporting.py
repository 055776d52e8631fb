"""A run ends with its report, and loses nothing when the report fails."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.report import page
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.run import session
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.reporting import _environment
from svilm_fast.train.run.session import Start, train

SHORT = ("training.steps=2", "evaluation.at_end=false")


@pytest.fixture
def train_whole(ranks, monkeypatch):
    """`train` inside the group that the tests share."""
    monkeypatch.setattr(session, "joined_ranks", lambda config: contextlib.nullcontext(ranks))
    return lambda config: train(config, Start())


def page_of(config: RunConfig) -> Path:
    return Path(config.run.dir) / "report.html"


def test_a_run_ends_with_its_report(configure, train_whole, capsys) -> None:
    config = configure(*SHORT, "evaluation.max_clips=3")
    assert train_whole(config).finished
    page = page_of(config).read_text()
    assert "of 3 videos" in page
    assert "Groups and nouns" in page
    assert f"wrote {page_of(config)}" in capsys.readouterr().out


def test_the_report_can_be_switched_off(configure, train_whole) -> None:
    config = configure(*SHORT, "report.at_end=false")
    assert train_whole(config).finished
    assert not page_of(config).exists()


def test_a_run_that_stops_early_is_not_reported_yet(configure, train_whole) -> None:
    config = configure("training.steps=2", "training.stop_after_steps=1")
    assert not train_whole(config).finished
    assert not page_of(config).exists()


def test_without_held_out_clips_the_report_shows_the_curves(configure, train_whole, caplog) -> None:
    config = configure(*SHORT, "data.val=null")
    train_whole(config)
    page = page_of(config).read_text()
    assert "Training" in page
    assert "Groups and nouns" not in page
    assert "data.val is not set" in caplog.text


def test_without_a_portable_checkpoint_the_missing_report_is_explained(
    configure, train_whole, caplog
) -> None:
    config = configure(*SHORT, "checkpoint.portable_at_end=false")
    assert train_whole(config).finished
    assert not page_of(config).exists()
    assert "checkpoint.portable_at_end is false" in caplog.text


def test_a_report_that_fails_is_a_warning_and_the_run_is_kept(
    configure, train_whole, monkeypatch, caplog
) -> None:
    def broken(*arguments: object, **options: object) -> Path:
        raise RuntimeError("no space for pictures")

    monkeypatch.setattr(page, "write_page", broken)
    config = configure(*SHORT)
    assert train_whole(config).finished
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    (warning,) = [r for r in warnings if "report" in r.getMessage()]  # others tell of the data
    assert "no space for pictures" in warning.getMessage()
    assert f"svilm report --run {config.run.dir}" in warning.getMessage()
    assert load_run(config.run.dir).step == 2


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[" * 10_000, None])
def test_a_damaged_description_of_the_machine_is_named(tmp_path: Path, content) -> None:
    files = RunFiles(tmp_path)
    if content is not None:
        files.environment.write_bytes(content)
    with pytest.raises(UserError, match=r"env\.json is (damaged|missing)"):
        _environment(files)
