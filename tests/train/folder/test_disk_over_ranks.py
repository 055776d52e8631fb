"""Where one rank cannot write its share of a checkpoint, all ranks say so and can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "disk_program.py"
STAGES = 2
WANTED = (
    (
        "DiskFullError",
        "not enough disk space for the checkpoint of step 2 (rank 1): it needs about ",
    ),
    (
        "DiskFullError",
        "not enough disk space for the checkpoint of step 2 (rank 1): it needs about ",
    ),
    ("CheckpointError", "the checkpoint of step 2 (rank 1) could not be written: [Errno 13] "),
    ("CheckpointError", "the checkpoint of step 2 (rank 1) could not be written: Pytorch"),
)


@pytest.mark.slow
def test_a_failed_write_of_one_rank_is_told_by_all_and_costs_one_checkpoint(
    run_on_ranks, tmp_path: Path
) -> None:
    run_on_ranks(2, PROGRAM, tmp_path)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first) == STAGES * len(WANTED)
    for (kind, text), (found_kind, found_text) in zip(WANTED * STAGES, first, strict=True):
        assert found_kind == kind, found_text
        assert found_text.startswith(text)
        assert "earlier checkpoints are intact" in found_text
