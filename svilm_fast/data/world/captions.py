"""Captions in three grains, with the spans of their nouns."""

from __future__ import annotations

from typing import Any

import numpy as np

from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.motion import Event
from svilm_fast.data.world.scene import Scene
from svilm_fast.data.world.vocabulary import PHRASES, SIDE_PHRASES, STAY, with_article

_OPENINGS = ("", "there is ", "we see ")
_MEANWHILE = (" while ", " as ")
_AFTERWARDS = (", then ", ", and then ")


class _Sentence:
    """Text that remembers where its nouns stand."""

    def __init__(self) -> None:
        self.text = ""
        self.nouns: list[dict[str, Any]] = []

    def add(self, words: str) -> None:
        self.text += words

    def add_noun(self, noun: str, of: int | None, article: str | None = None) -> None:
        """Append `noun` of object `of` (None: the background) behind its article."""
        self.text += with_article(noun).removesuffix(noun) if article is None else article
        span = [len(self.text), len(self.text) + len(noun)]
        self.nouns.append({"text": noun, "span": span, "object": of})
        self.text += noun


def write_captions(
    scene: Scene, config: WorldConfig
) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """Captions and nouns of a scene, by grain.

    coarse names the objects and the background, as one frame shows them; fine tells what happens
    over time; fused does both. A noun is {"text", "span": [start, end) in characters, "object":
    index or None for the background}.
    """
    rng = np.random.default_rng([scene.seed, 0xCA9])
    fine = _tell(scene, config, rng, article="the ")
    fused = _tell(scene, config, rng, article=None)
    coarse = _Sentence()
    coarse.add(_pick(rng, config, _OPENINGS))
    for index, thing in enumerate(scene.objects):
        coarse.add(_joint(index, len(scene.objects)))
        coarse.add_noun(thing.name, index)
    if config.mention_background:
        for sentence in (coarse, fused):
            sentence.add(" on ")
            sentence.add_noun(f"{scene.background} background", None)
    grains = {"coarse": coarse, "fine": fine, "fused": fused}
    return (
        {grain: sentence.text for grain, sentence in grains.items()},
        {grain: sentence.nouns for grain, sentence in grains.items()},
    )


def _tell(
    scene: Scene, config: WorldConfig, rng: np.random.Generator, article: str | None
) -> _Sentence:
    sentence = _Sentence()
    afterwards = _pick(rng, config, _AFTERWARDS)
    meanwhile = _pick(rng, config, _MEANWHILE)
    for index, thing in enumerate(scene.objects):
        if index:
            sentence.add(afterwards if scene.in_turn else meanwhile if index == 1 else " and ")
        sentence.add_noun(thing.name, index, article)
        sentence.add(" ")
        phrases = [_phrase(event, rng, config) for event in thing.events]
        sentence.add(afterwards.join(phrases or [_pick(rng, config, PHRASES[STAY])]))
    return sentence


def _phrase(event: Event, rng: np.random.Generator, config: WorldConfig) -> str:
    return _pick(rng, config, PHRASES[event.action]) + _place(event)


def _place(event: Event) -> str:
    return SIDE_PHRASES[event.action].format(event.side) if event.side else ""


def _pick(rng: np.random.Generator, config: WorldConfig, phrases: tuple[str, ...]) -> str:
    return phrases[int(rng.integers(len(phrases)))] if config.wording == "varied" else phrases[0]


def _joint(index: int, count: int) -> str:
    if index == 0:
        return ""
    return " and " if index == count - 1 else ", "
