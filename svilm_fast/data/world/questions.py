"""Question-answer pairs about a scene, each with one right answer."""

from __future__ import annotations

from collections import Counter

import numpy as np

from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.scene import Scene
from svilm_fast.data.world.vocabulary import NUMBERS, PHRASES, STAY

Question = dict[str, str]


def write_questions(scene: Scene, config: WorldConfig) -> list[Question]:
    """All questions that a scene answers without ambiguity: {"question", "answer", "type"}.

    Types: count, background, color, shape, action, actor_color, actor_shape, side, order, yes_no.
    Answers are single words of the vocabulary, action labels, or yes and no.
    """
    rng = np.random.default_rng([scene.seed, 0x0A])
    asked = [
        _question("count", "how many objects are there?", NUMBERS[len(scene.objects)]),
        _question("background", "what is the background like?", scene.background),
        *_about_looks(scene),
        *_about_deeds(scene),
        *_about_order(scene),
        _yes_or_no(scene, config, rng),
    ]
    return asked


def _question(kind: str, question: str, answer: str) -> Question:
    return {"question": question, "answer": answer, "type": kind}


def _about_looks(scene: Scene) -> list[Question]:
    colors = Counter(thing.color for thing in scene.objects)
    shapes = Counter(thing.shape for thing in scene.objects)
    asked = []
    for thing in scene.objects:
        if shapes[thing.shape] == 1:
            asked.append(_question("color", f"what color is the {thing.shape}?", thing.color))
        if colors[thing.color] == 1:
            asked.append(
                _question("shape", f"what shape is the {thing.color} object?", thing.shape)
            )
    return asked


def _about_deeds(scene: Scene) -> list[Question]:
    doers = Counter(action for thing in scene.objects for action in thing.actions)
    asked = []
    for thing in scene.objects:
        if len(thing.events) < 2:
            asked.append(_question("action", f"what does the {thing.name} do?", thing.actions[0]))
        for event in thing.events:
            if event.side is not None:
                where = f"at which side does the {thing.name} {event.action}?"
                asked.append(_question("side", where, event.side))
        for action in thing.actions:
            if doers[action] == 1:
                doer = f"the object that {PHRASES[action][0]}?"
                asked.append(_question("actor_color", f"what color is {doer}", thing.color))
                asked.append(_question("actor_shape", f"what shape is {doer}", thing.shape))
    return asked


def _about_order(scene: Scene) -> list[Question]:
    if not scene.in_turn:
        return []
    events = sorted(
        (event for thing in scene.objects for event in thing.events),
        key=lambda event: event.start,
    )
    return [
        _question("order", "what happens first?", events[0].action),
        _question("order", "what happens last?", events[-1].action),
    ]


def _yes_or_no(scene: Scene, config: WorldConfig, rng: np.random.Generator) -> Question:
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    others = [action for action in config.actions if action != STAY and action not in thing.actions]
    truthful = not others or (bool(thing.events) and rng.random() < 0.5)
    choices = [event.action for event in thing.events] if truthful else others
    action = choices[int(rng.integers(len(choices)))]
    return _question("yes_no", f"does the {thing.name} {action}?", "yes" if truthful else "no")
