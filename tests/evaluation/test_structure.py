"""Structure of a model over batches: blended clips, pixels, missing parts, outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from svilm_fast.cli import main
from svilm_fast.core.outcomes import shares_of
from svilm_fast.data.config import CutPasteConfig
from svilm_fast.evaluation.pointing import NounPointing
from svilm_fast.evaluation.structure import StructureResult, measure_structure, most_alike
from tests.untrained_run import make_untrained_run

SEGMENTS, FRAMES = 4, 8


class MeanColours(torch.nn.Module):
    """A model whose segments are their mean colours, or all alike."""

    def __init__(self, sees: bool) -> None:
        super().__init__()
        self.sees = sees

    def encode_video(self, frames: torch.Tensor, seeds: Any = None, outputs: Any = None) -> Any:
        colours = frames.float().reshape(len(frames), SEGMENTS, -1, 3).mean(dim=2)
        segments = colours if self.sees else torch.ones_like(colours)
        return SimpleNamespace(segments=segments, grid=(SEGMENTS, 2, 2))


class Batch(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.ids)


def batch(count: int, first: int = 0) -> Batch:
    """Clips of one colour each."""
    colours = torch.rand(count, 1, 1, 1, 3, generator=torch.Generator().manual_seed(first)) * 255
    return Batch(
        ids=[f"clip {first + place}" for place in range(count)],
        frames=colours.expand(count, FRAMES, 4, 4, 3).to(torch.uint8).contiguous(),
        keys=torch.arange(first, first + count) * 7919,
        metadata=[],
    )


def measured(sees: bool, *batches: Batch) -> StructureResult:
    return measure_structure(MeanColours(sees), batches, CutPasteConfig())  # type: ignore[arg-type]


def test_a_model_that_sees_colours_finds_every_boundary() -> None:
    result = measured(True, batch(6), batch(5, first=6))
    found = result.metrics()
    assert found["structure/boundary"] == found["structure/boundary_pixels"] == 100
    assert found["structure/similarity"] == pytest.approx(1)
    assert found["structure/similarity_within"] == pytest.approx(1)
    assert found["structure/similarity_across"] < 0.999
    assert 100 / 11 <= found["structure/boundary_chance"] < 100
    assert not any("pointing" in name for name in found)


def test_a_model_that_sees_nothing_guesses() -> None:
    """Four boundaries are possible, and all explain nothing; the pixels still tell."""
    found = measured(False, batch(6)).metrics()
    assert found["structure/boundary"] == 25
    assert found["structure/boundary_pixels"] == 100


def test_every_model_gets_the_same_cuts() -> None:
    seen, blind = (measured(sees, batch(9)).true_boundaries for sees in (True, False))
    assert seen == blind


def test_the_partner_most_alike_has_the_nearest_mean_frame() -> None:
    colours = torch.tensor([0, 100, 110, 30, 255])
    frames = colours[:, None, None, None, None].expand(5, FRAMES, 4, 4, 3).to(torch.uint8)
    assert most_alike(frames).tolist() == [3, 2, 1, 0, 2]


def test_the_clip_most_alike_is_pasted() -> None:
    """A model that sees colours finds its boundary too; the parts are more alike."""
    clips = batch(12)
    near = measure_structure(MeanColours(True), [clips], CutPasteConfig(), "alike")  # type: ignore[arg-type, list-item]
    random = measured(True, clips)
    assert near.true_boundaries == random.true_boundaries
    assert near.metrics()["structure/boundary"] == 100
    across = [each.metrics()["structure/similarity_across"] for each in (near, random)]
    assert across[0] > across[1]


def test_a_batch_of_one_clip_is_not_blended() -> None:
    result = measured(True, batch(3), batch(1, first=3))
    assert len(result.clips) == 4
    assert result.blended == ["clip 0", "clip 1", "clip 2"]


def test_outcomes_have_the_mean_of_the_metric(tmp_path: Path) -> None:
    result = measured(True, batch(6))
    result.pointed = [
        {"ring": NounPointing(0.5, 0.1), "star": None},
        {"moon": NounPointing(1.0, 0.2)},
        {},
        {},
        {},
        {"ring": NounPointing(0.0, 0.3)},
    ]
    result.write(tmp_path, "structure")
    written = json.loads((tmp_path / "structure.json").read_text())
    assert written["structure/pointing"] == 50
    assert written["structure/pointing_chance"] == pytest.approx(20)
    found = {name: each for each in written["outcomes"] for name in each["shares"]}
    assert found["structure/pointing"]["clusters"] == ["clip 0", "clip 1", "clip 5"]
    for metric, outcome in found.items():
        shares = shares_of(outcome["shares"][metric])
        assert 100 * np.mean(shares) == pytest.approx(written[metric])
    assert "structure/boundary" in (tmp_path / "structure.txt").read_text()


def test_the_command_points_at_the_objects_of_the_world(tmp_path: Path) -> None:
    """A model with groups, and clips with masks: every scored noun is kept with its clip."""
    run = make_untrained_run(tmp_path / "run").config.parent
    for extra in ([], ["--partners", "alike"]):
        with pytest.raises(SystemExit) as left:
            main(["evaluate", "structure", "--run", str(run), "--device", "cpu", *extra])
        assert left.value.code == 0
    alike = json.loads((run / "evaluation" / "structure_alike.json").read_text())
    assert alike["partners"] == "alike"
    found = json.loads((run / "evaluation" / "structure.json").read_text())
    assert found["partners"] == "random"
    (pointed,) = found["outcomes"]
    hits = shares_of(pointed["shares"]["structure/pointing"])
    assert len(hits) == len(pointed["clusters"]) == found["structure/pointing_nouns"] > 0
    assert 100 * hits.mean() == pytest.approx(found["structure/pointing"], abs=0.01)
    assert 0 < found["structure/pointing_chance"] < 100
    assert set(pointed["clusters"]) <= {f"test-{number:06}" for number in range(6)}
