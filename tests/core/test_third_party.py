"""What other packages log goes to a file; errors and what is ours stay on the console."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from svilm_fast.core.terminal import print
from svilm_fast.core.third_party import (
    MOST_HELD,
    ThirdPartyLog,
    redirect,
    third_party_log,
    write_third_party,
)


class Console(logging.StreamHandler):
    """Writes to what is the error output at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@pytest.fixture(autouse=True)
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A root logger as a run sets it up."""
    root = logging.getLogger()
    handler = Console()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    monkeypatch.delenv("RANK", raising=False)
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]
    yield
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]


def speak() -> None:
    other = logging.getLogger("otherpackage.core")
    other.info("other info")
    other.warning("other warning \x1b[2J")
    other.error("other error")
    logging.getLogger("svilm_fast.test").info("own info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a python warning", UserWarning, stacklevel=1)


def test_other_packages_write_to_the_file_and_errors_to_both(tmp_path: Path, capsys) -> None:
    path = tmp_path / "third_party.log"
    with third_party_log():
        speak()
        write_third_party(path)
        logging.getLogger("otherpackage").info("later")
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "ERROR otherpackage.core: other error",
        "INFO svilm_fast.test: own info",
    ]
    assert shown.out == f"other packages logged 2 warnings: see {path}\n"
    text = path.read_text()
    for part in ("INFO otherpackage.core: other info", "a python warning", "other error", "later"):
        assert part in text
    assert "own info" not in text
    assert "\\x1b[2J" in text
    assert "\x1b" not in text


def test_a_plug_in_stays_on_the_console(tmp_path: Path, monkeypatch, capsys) -> None:
    package = tmp_path / "plugin-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[svilm_fast.tasks]\nours = ours.tasks:Task\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with third_party_log():
        write_third_party(tmp_path / "log")
        logging.getLogger("ours.data").info("from the plug-in")
        logging.getLogger("oursimilar").info("from another package")
    assert capsys.readouterr().err.splitlines() == ["INFO ours.data: from the plug-in"]
    text = (tmp_path / "log").read_text()
    assert "from another package" in text
    assert "from the plug-in" not in text


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "third_party.log"
    path.write_text("before\n")
    with third_party_log():
        write_third_party(path)
        logging.getLogger("otherpackage").info("after")
    first, second = path.read_text().splitlines()
    assert first == "before"
    assert second.endswith("INFO otherpackage: after")


def test_without_a_file_the_warnings_are_shown_at_the_end(capsys) -> None:
    with third_party_log():
        logging.getLogger("otherpackage").warning("why it failed")
        assert "why it failed" not in capsys.readouterr().err
    assert "otherpackage: why it failed" in capsys.readouterr().err


def test_other_ranks_show_errors_alone(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    with third_party_log():
        write_third_party(tmp_path / "third_party.log")
        speak()
    shown = capsys.readouterr()
    assert "other error" in shown.err
    assert "warning" not in shown.err + shown.out
    assert not list(tmp_path.iterdir())


def test_a_logger_with_its_own_console_is_redirected(tmp_path: Path, capsys) -> None:
    """As DeepSpeed's, which does not propagate."""
    logger = logging.Logger("DeepSpeedLike", logging.INFO)
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(sys.stdout))
    with third_party_log():
        redirect(logger, logging.ERROR)
        redirect(logger, logging.ERROR)  # DeepSpeed is imported in several places
        write_third_party(tmp_path / "log")
        logger.info("configuration")
        logger.error("broken")
    assert capsys.readouterr().out == "broken\n"
    assert (tmp_path / "log").read_text().count("configuration") == 1


def test_a_handler_of_the_root_logger_keeps_its_level() -> None:
    """pytest attaches the one that captures records to loggers that do not propagate, too."""
    logger = logging.Logger("DeepSpeedLike", logging.INFO)
    logger.propagate = False
    shared = logging.getLogger().handlers[0]
    logger.addHandler(shared)
    redirect(logger, logging.ERROR)
    assert shared.level == logging.NOTSET


def test_everything_is_as_before_after_the_block(capsys) -> None:
    before, shown = warnings.showwarning, list(logging.getLogger().handlers)
    with pytest.raises(RuntimeError), third_party_log():
        raise RuntimeError
    assert warnings.showwarning is before
    assert logging.getLogger().handlers == shown
    logging.getLogger("otherpackage").warning("shown again")
    assert "shown again" in capsys.readouterr().err


def test_a_full_disk_costs_the_log_alone(tmp_path: Path, capsys) -> None:
    with third_party_log():
        write_third_party(tmp_path / "no folder" / "log")
        logging.getLogger("otherpackage").warning("lost")
        print("goes on")
    shown = capsys.readouterr()
    assert "cannot write the log of other packages" in shown.err
    assert shown.out == "goes on\n"


def test_a_warning_is_kept_whatever_came_before(tmp_path: Path) -> None:
    kept = ThirdPartyLog()
    for number in range(MOST_HELD + 10):
        kept.emit(logging.makeLogRecord({"name": "other", "levelno": logging.INFO, "msg": number}))
    late = {"name": "other", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "late"}
    kept.emit(logging.makeLogRecord(late))
    kept.open(tmp_path / "third_party.log")
    assert "WARNING other: late" in (tmp_path / "third_party.log").read_text()
    kept.close()
