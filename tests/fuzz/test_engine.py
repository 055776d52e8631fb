"""The fuzzer finds planted faults: crashes, hangs, memory use, escapes and wrong values."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from svilm_fast.core.errors import ConfigError
from svilm_fast.data.errors import ShardError
from tests.fuzz.engine import Target, run_batch

ROOT = Path(__file__).parents[2]


def batch(check, **options):
    return run_batch(Target("planted", st.integers(0, 1000), check, **options), 200, seed=1)


def crash(value: int) -> None:
    if value >= 300:
        raise KeyError(value)


def hang(value: int) -> None:
    try:
        while True:
            time.sleep(0.05)
    except Exception:  # also catches the alarm's exception
        return


def swallowed_write(value: int, at: Path) -> None:
    try:
        at.write_text("x")
    except AssertionError:
        return


def connect() -> None:
    with socket.socket() as client:
        client.connect(("127.0.0.1", 9))


def test_nothing_wrong_is_no_finding():
    outcome = batch(lambda value, folder: None)
    assert (outcome.inputs, outcome.refused, outcome.finding) == (200, 0, None)


@pytest.mark.parametrize("kind", [ShardError, ConfigError])
def test_a_refusal_is_counted_and_no_finding(kind):
    def check(value, folder):
        raise kind("the file is damaged: write it again")

    outcome = batch(check)
    assert (outcome.inputs, outcome.refused, outcome.finding) == (200, 200, None)


def test_a_refusal_without_a_message_is_a_finding():
    def check(value, folder):
        raise ShardError("")

    assert "without a message" in batch(check).finding


def test_another_exception_is_a_finding_and_made_small():
    outcome = batch(lambda value, folder: crash(value))
    assert isinstance(outcome.error, KeyError)
    assert "value=300" in outcome.finding
    assert 0 < outcome.inputs < 200


def test_a_wrong_value_is_a_finding():
    def check(value, folder):
        assert value < 900, "too large"

    assert "too large" in batch(check).finding


def test_a_hang_is_a_finding():
    outcome = batch(lambda value, folder: hang(value), seconds=0.2, shrink=False)
    assert outcome.finding.startswith("Hang")


def test_too_much_memory_is_a_finding():
    outcome = batch(lambda value, folder: bytearray(64 << 30), shrink=False)
    assert outcome.finding.startswith("MemoryError")


def test_a_file_outside_the_folder_is_a_finding_and_not_written(tmp_path):
    at = tmp_path / "outside"
    outcome = batch(lambda value, folder: swallowed_write(value, at), shrink=False)
    assert outcome.finding.startswith("Escape")
    assert str(at) in outcome.finding
    assert not at.exists()


def test_files_inside_the_folder_are_allowed_and_removed():
    seen = []

    def check(value, folder):
        (folder / "inside").write_text("x")
        Path("here").mkdir()
        seen.append(folder)

    assert batch(check).finding is None
    assert not any(folder.exists() for folder in seen)


@pytest.mark.parametrize(
    "act", [connect, lambda: os.system("true"), lambda: os.mkdir("../fuzz-outside")]
)
def test_sockets_processes_and_folders_outside_are_findings(act):
    outcome = batch(lambda value, folder: act(), shrink=False)
    assert outcome.finding.startswith("Escape")


def run_command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=200, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_counts_resumes_and_replays(tmp_path):
    record = tmp_path / "fuzz.json"
    for inputs in (3, 5):
        done = run_command("--target", "tar", "--inputs", str(inputs), "--out", str(record))
        assert done.returncode == 0, done.stderr
        entry = json.loads(record.read_text())["targets"]["tar"]
        assert (entry["inputs"], entry["findings"]) == (inputs, [])
    assert entry["batches"] == 2
    assert "tar" in done.stdout
    content = json.loads(record.read_text())
    content["targets"]["tar"]["findings"] = [{"batch": 1, "text": "planted finding"}]
    record.write_text(json.dumps(content))
    done = run_command("--target", "tar", "--inputs", "5", "--out", str(record))
    assert done.returncode == 1
    assert "planted finding" in done.stdout
    assert run_command("--target", "nothing").returncode == 2
