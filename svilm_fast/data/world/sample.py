"""One clip: its frames and the JSON that says all that is true of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from svilm_fast.data.world.captions import write_captions
from svilm_fast.data.world.config import WorldConfig, build_config
from svilm_fast.data.world.masks import encode_mask, mask_box
from svilm_fast.data.world.questions import write_questions
from svilm_fast.data.world.render import Rendered, render_scene
from svilm_fast.data.world.scene import Scene, draw_scene
from svilm_fast.data.world.vocabulary import SPLITS, Split

Sample = dict[str, Any]


def generate_clip(
    seed: int, split: Split = "train", config: WorldConfig | None = None, **settings: Any
) -> tuple[np.ndarray, Sample]:
    """One clip in memory: frames uint8 [F, H, W, 3] and its sample.

    `settings` are fields of `WorldConfig`, on top of `config`. The `seed` of a rendered sample,
    with the settings of its world, gives back its frames before compression. Raises ValueError for
    a wrong setting or split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose from {', '.join(SPLITS)}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}: give a whole number from 0 on")
    config = build_config(config, **settings)
    scene = draw_scene(config, split, seed)
    rendered = render_scene(scene, config.size)
    return rendered.frames, describe(scene, rendered, config, f"{split}-{seed}")


def describe(scene: Scene, rendered: Rendered, config: WorldConfig, name: str) -> Sample:
    """The sample JSON of a rendered scene (times in seconds, boxes and masks in pixels).

    `objects[i]["boxes"][f]` is [x0, y0, x1, y1] with x1 and y1 exclusive, or None where nothing of
    object i is seen in frame f; `masks[i][f]` holds the run lengths of `masks.encode_mask` of the
    part that is seen. `action` is the first action of the object that is named first.
    """
    captions, nouns = write_captions(scene, config)
    return {
        "id": name,
        "captions": captions,
        "nouns": nouns,
        "fps": config.fps,
        "num_frames": config.frames,
        "width": config.size,
        "height": config.size,
        "action": scene.objects[0].actions[0],
        "background": scene.background,
        "in_turn": scene.in_turn,
        "events": _events(scene, config),
        "objects": [
            {
                "shape": thing.shape,
                "color": thing.color,
                "size": thing.size,
                "motion": " then ".join(thing.actions),
                "boxes": [mask_box(mask) for mask in masks],
            }
            for thing, masks in zip(scene.objects, rendered.masks)
        ],
        "masks": [[encode_mask(mask) for mask in masks] for masks in rendered.masks],
        "questions": write_questions(scene, config),
        "split": scene.split,
        "seed": scene.seed,
    }


def _events(scene: Scene, config: WorldConfig) -> list[dict[str, Any]]:
    events = []
    for index, thing in enumerate(scene.objects):
        for event in thing.events:
            told: dict[str, Any] = {
                "label": event.action,
                "start_s": round(event.start / config.fps, 6),
                "end_s": round(event.end / config.fps, 6),
                "object": index,
            }
            if event.side is not None:
                told["side"] = event.side
            events.append(told)
    return sorted(events, key=lambda told: (told["start_s"], told["object"]))
