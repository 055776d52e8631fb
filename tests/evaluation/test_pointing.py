"""The pointing game with known values: hits, ties, chance, small objects, crops and mirrors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svilm_fast.data.world.masks import encode_mask
from svilm_fast.evaluation.pointing import (
    NounPointing,
    PointingScore,
    measure_pointing,
    objects_of_noun,
    score_noun,
    tokens_on_objects,
)

ON_OBJECT = np.array([[[True, False], [False, False]]])  # one of four tokens


def clip_json(mask: np.ndarray, frames: int = 2) -> dict:
    """A sample of the world: a ring that stays at `mask`, and a background."""
    nouns = [{"text": "ring", "object": 0}, {"text": "plain background", "object": None}]
    return {
        "nouns": {"coarse": nouns},
        "masks": [[encode_mask(mask)] * frames],
        "width": mask.shape[1],
        "height": mask.shape[0],
    }


def test_the_group_of_the_noun_decides() -> None:
    groups = np.array([[[1, 0], [0, 0]]])
    assert score_noun(groups, 1, ON_OBJECT) == NounPointing(1.0, 0.25)
    assert score_noun(groups, 0, ON_OBJECT) == NounPointing(0.0, 0.25)


def test_ties_count_in_expectation() -> None:
    groups = np.array([[[0, 0], [0, 1]]])
    assert score_noun(groups, 0, ON_OBJECT) == NounPointing(1 / 3, 0.25)
    assert score_noun(groups, 1, ON_OBJECT) == NounPointing(0.0, 0.25)


def test_an_empty_group_is_a_tie_of_all_tokens() -> None:
    groups = np.zeros((1, 2, 2), int)
    assert score_noun(groups, 5, ON_OBJECT) == NounPointing(0.25, 0.25)


def test_dropped_tokens_do_not_count() -> None:
    groups = np.array([[[0, -1], [-1, 1]]])
    assert score_noun(groups, 0, ON_OBJECT) == NounPointing(1.0, 0.5)
    gone = np.array([[[-1, 0], [0, 0]]])
    assert score_noun(gone, 0, ON_OBJECT) is None


def test_guessing_reaches_the_chance_level() -> None:
    """Groups drawn at random score what `chance` says, in the mean."""
    generator = np.random.default_rng(0)
    truth = generator.random((4, 8, 8)) < 0.2
    found = [score_noun(generator.integers(0, 8, (4, 8, 8)), 3, truth) for _ in range(300)]
    score = PointingScore.of(found)
    assert score.score == pytest.approx(score.chance, abs=0.01)
    assert score.chance == pytest.approx(truth.mean())


def test_small_objects_are_left_out_and_counted() -> None:
    score = PointingScore.of([NounPointing(1.0, 0.1), None, NounPointing(0.0, 0.3)])
    assert (score.score, score.chance, score.nouns, score.too_small) == (0.5, 0.2, 2, 1)
    with pytest.raises(ValueError, match="no noun has an object"):
        PointingScore.of([None])


def test_nouns_name_their_objects() -> None:
    metadata = clip_json(np.zeros((4, 4), bool))
    assert objects_of_noun(metadata, "ring") == [0]
    assert objects_of_noun(metadata, "plain background") == []
    assert objects_of_noun(metadata, "star") == []


def tokens(mask: np.ndarray, crop: tuple[float, ...] = (0, 0, 1, 1), flipped: bool = False):
    return tokens_on_objects(
        clip_json(mask),
        [0],
        frame_index=np.array([0, 1]),
        crop=crop,
        flipped=flipped,
        image_size=8,
        grid=(1, 2, 2),
    )[0]


def test_a_quarter_of_a_token_is_on_the_object() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:2, :2] = True  # 4 of the 16 pixels of the first token
    assert tokens(mask).tolist() == [[True, False], [False, False]]
    mask[0, 0] = False
    assert not tokens(mask).any()


def test_crop_and_mirror_are_those_of_the_view() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4, 4:] = True
    assert tokens(mask).tolist() == [[False, True], [False, False]]
    assert tokens(mask, flipped=True).tolist() == [[True, False], [False, False]]
    # The right half of the frame fills the view: all of its upper part is the object.
    assert tokens(mask, crop=(0.5, 0, 1, 1)).tolist() == [[True, True], [False, False]]


class PointsAt:
    """A model whose token t is in group t, and whose nouns attend to the group `best`."""

    def __init__(self, best: int) -> None:
        self.best = best

    def encode_video(self, frames: torch.Tensor, seeds: object = None) -> SimpleNamespace:
        count = len(frames)
        return SimpleNamespace(
            groups=torch.eye(4).expand(count, 4, 4),
            assignments=[
                SimpleNamespace(index=torch.arange(4, dtype=torch.int32).expand(count, 4))
            ],
            token_ids=torch.arange(4).expand(count, 4),
            token_mask=None,
            grid=(1, 2, 2),
        )

    def encode_nouns(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[self.best].expand(len(tokens), 4)


class Clips(SimpleNamespace):
    """What is read of a batch of one clip."""

    def __len__(self) -> int:
        return 1


def clips(mask: np.ndarray, **changes: object) -> Clips:
    values: dict[str, object] = {
        "frames": torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8),
        "nouns": [["ring", "plain background"]],
        "noun_tokens": torch.ones(1, 2, 3, dtype=torch.int64),
        "noun_token_mask": torch.ones(1, 2, 3, dtype=torch.bool),
        "noun_mask": torch.ones(1, 2, dtype=torch.bool),
        "frame_index": torch.arange(2)[None],
        "crop": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        "flipped": torch.tensor([False]),
        "metadata": [clip_json(mask)],
    }
    return Clips(**{**values, **changes})


@pytest.mark.parametrize(("best", "score"), [(1, 1.0), (2, 0.0)])
def test_a_model_is_scored_on_the_nouns_whose_object_is_known(best: int, score: float) -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4, 4:] = True
    found = measure_pointing(PointsAt(best), [clips(mask)])  # type: ignore[arg-type, list-item]
    assert found == PointingScore(score, 0.25, nouns=1, too_small=0)


def test_without_masks_nothing_is_scored() -> None:
    batch = clips(np.zeros((8, 8), bool), metadata=[{"id": "a video"}])
    assert measure_pointing(PointsAt(0), [batch]) is None  # type: ignore[arg-type, list-item]
