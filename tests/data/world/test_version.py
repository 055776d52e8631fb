"""The world that the tables were run on: its words exactly, its pixels up to rounding.

If this fails, the world has changed: raise the version in `FORMAT` and run the tables again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from svilm_fast.data.world import generate_clip
from svilm_fast.data.world.write import FORMAT

VERSION = "svilm-world/1"
# split, hash of the words, mean of the channels, standard deviation of all pixels, of seed 7
CLIPS = [
    ("train", "d48d45e9f3a1ccd4", (95.74, 80.50, 101.54), 27.42),
    ("val", "f023d4eb3c8de6ff", (117.19, 114.06, 118.63), 31.56),
    ("test", "fa7b15ffba81098d", (90.25, 93.72, 113.60), 42.35),
]


def words_of(sample: dict[str, Any]) -> str:
    told = {
        key: sample[key]
        for key in ("captions", "nouns", "action", "background", "in_turn", "questions")
    }
    told["objects"] = [[each["color"], each["shape"], each["motion"]] for each in sample["objects"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("split", "words", "mean", "deviation"), CLIPS)
def test_the_world_of_this_version(split, words, mean, deviation) -> None:
    assert FORMAT == VERSION
    frames, sample = generate_clip(7, split)
    assert words_of(sample) == words
    assert frames.reshape(-1, 3).mean(axis=0) == pytest.approx(mean, abs=0.05)
    assert np.std(frames) == pytest.approx(deviation, abs=0.05)
