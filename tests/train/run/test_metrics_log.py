"""A damaged log never blocks a resume: what is no record is dropped and counted."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.run.metrics_log import MetricsLog, TensorBoard, drop_after, tracking_id

GOOD = b'{"step": 1, "loss": 2.5}'


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b'{"step": 1, "note": "\xc3"}',
        b"[1, 2]",
        b"null",
        b'{"loss": 1}',
        b'{"step": null}',
        b'{"step": "1"}',
        b'{"step": 1.5}',
        b'{"step": 2, "lo',
        b"[" * 100_000,
        b"\0" * 4096,
    ],
)
def test_a_damaged_line_is_dropped_and_counted(tmp_path: Path, caplog, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, b'{"step": 2}', b'{"step": 3}', b""]))
    assert drop_after(path, 2) == [{"step": 1, "loss": 2.5}, {"step": 2}]
    assert path.read_bytes() == GOOD + b'\n{"step": 2}\n'
    assert "1 damaged line left out" in caplog.text


def test_a_log_that_needs_no_change_is_not_written_again(tmp_path: Path, caplog) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b"\n")
    before = path.stat()
    drop_after(path, 1)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"id": 1'])
def test_a_damaged_identity_starts_a_new_one(tmp_path: Path, caplog, content: bytes) -> None:
    files = RunFiles(tmp_path)
    files.tracking.write_bytes(content)
    identity = tracking_id(files, resumed=True)
    assert tracking_id(files, resumed=True) == identity
    assert "tracking.json is damaged" in caplog.text


def test_evaluations_of_any_version_are_found_in_the_log(tmp_path: Path) -> None:
    """Earlier versions wrote `retrieval_` in place of `retrieval/`."""
    files = RunFiles(tmp_path)
    files.metrics.write_text(
        '{"step": 2, "loss": 1.0}\n'
        '{"step": 2, "retrieval_t2v_R@1": 1.0, "retrieval_t2v_R@5": 2.0}\n'
        '{"step": 4, "retrieval/t2v_R@1": 1.0}\n'
        '{"step": 4, "classification/top1": 50.0}\n'
    )
    config = load_config(None, ["logging.tensorboard=false"])
    log = MetricsLog(config, files, first=True, start_step=4)
    log.close()
    assert log.evaluated == [("retrieval", 2), ("retrieval", 4), ("classification", 4)]


def test_tensorboard_groups_by_evaluator_or_first_word() -> None:
    class Writer:
        tags: ClassVar[list[str]] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.tags.append(tag)

    board = TensorBoard.__new__(TensorBoard)
    board.writer = Writer()
    board.write(1, {"loss": 0.0, "loss_contrast": 0.0, "retrieval/t2v_R@1": 0.0})
    assert Writer.tags == ["loss", "loss/contrast", "retrieval/t2v_R@1"]
