"""A result file replaces a result file and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svilm_fast.bench.run.file import write_json
from svilm_fast.cli import main


@pytest.mark.parametrize("content", [b"# Notes", b'{"mine": 1}', b"[1]", b"\xff", b"[" * 9999])
def test_another_file_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a result file and would be overwritten"):
        write_json(path, {"schema": 1})
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]


def test_a_result_file_is_replaced_and_an_empty_one_filled(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.touch()
    for number in range(2):
        write_json(path, {"schema": 1, "records": [number]})
    assert json.loads(path.read_text())["records"] == [1]


def test_the_command_refuses_before_it_measures(tmp_path: Path, capsys) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["bench", "run", "--suite", "data", "--device", "cpu", "--out", str(path)])
    assert end.value.code == 2
    assert "thesis.tex is not a result file" in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == "mine"
