"""The blocks of docs/python.md run in order, with a run directory in `runs/demo`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tests.untrained_run import make_untrained_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    make_untrained_run(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.read_text().count("```") // 2 >= 4
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    width = names["run"].config.model.embed_dim
    assert names["videos"].shape == (1, width)
    assert names["texts"].shape == (2, width)
    assert "[[" in capsys.readouterr().out
