"""What the tests of fine-tuned runs share."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

PROGRAM = Path(__file__).parent / "rank_program.py"
OFF = ("report.at_end=false", "evaluation.at_end=false")


def weights(run: Path) -> dict[str, Tensor]:
    """The weights at the end of a run."""
    return load_file(run / "portable" / "model.safetensors")


def losses(records: list[dict], metric: str) -> list[tuple]:
    """Step, loss and a metric of every recorded step."""
    return [(r["step"], r["loss"], r[metric]) for r in records if "loss" in r]
