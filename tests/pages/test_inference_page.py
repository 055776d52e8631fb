"""The Python blocks of docs/inference.md run in order, and its commands are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.data.world import generate_clip
from svilm_fast.data.world.video import encode_mp4
from svilm_fast.train.run.export import export_run
from tests.command_lines import parse
from tests.untrained_run import make_untrained_run

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("huggingface_hub")
    export_run(make_untrained_run(tmp_path / "run").root, tmp_path / "models" / "demo")
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(generate_clip(7, "test")[0], 8.0))
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "inference.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"inference.md, block {number}", "exec"), names)
    assert names["scores"].shape == (1, 2)
    assert names["found"].masks.shape[0] == 2
    assert (tmp_path / "models" / "copy" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", ["inference.md", "search.md"])
def test_the_commands_of_the_pages_can_be_parsed(page: str) -> None:
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        parse(shlex.split(line)[1:])
