"""Untrimmed videos of the world: actions one after another with rests between, and their truth.

Beside the videos lie `annotations.json` in ActivityNet's format and `classes.txt`. The background
stays the same over a video, and an object that rests is seen in part of the rests, so that neither
a cut nor the presence of an object gives an action away.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.core.machine import usable_cores
from svilm_fast.core.settings import Settings
from svilm_fast.core.text import counted
from svilm_fast.data.formats.activitynet import (
    AnnotatedSegment,
    AnnotatedVideo,
    annotations_json,
)
from svilm_fast.data.world.backgrounds import background
from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.motion import place_objects
from svilm_fast.data.world.progress import clip_progress
from svilm_fast.data.world.render import render_scene
from svilm_fast.data.world.scene import Scene, draw_scene
from svilm_fast.data.world.video import encode_mp4
from svilm_fast.data.world.vocabulary import ACTIONS, SPLITS, STAY, Split

FORMAT = "svilm-world-untrimmed/1"
SUBSETS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
_STREAM = 0x0417
_ATTEMPTS = 1000


class UntrimmedConfig(Settings):
    """What is rendered. Two worlds with equal settings are equal."""

    train: int = Field(60, ge=0, le=10**6, description="training videos")
    val: int = Field(20, ge=0, le=10**6, description="validation videos")
    test: int = Field(20, ge=0, le=10**6, description="test videos")
    seed: int = Field(0, ge=0, lt=2**53, description="draws every video")
    size: int = Field(64, ge=32, le=512, description="side of the square frames, pixels (even)")
    fps: float = Field(8.0, gt=0, le=120, description="frames per second")
    quality: int = Field(18, ge=0, le=40, description="H.264 constant rate factor")
    seconds: tuple[float, float] = Field(
        (20.0, 40.0), description="bounds of a video, which whole actions and rests may miss a bit"
    )
    action_seconds: tuple[float, float] = Field((2.0, 5.0), description="bounds of an action")
    rest_seconds: tuple[float, float] = Field((1.5, 5.0), description="bounds of a rest")
    resting_object: float = Field(0.6, ge=0, le=1, description="share of the rests with an object")
    actions: tuple[str, ...] = Field(
        tuple(action for action in ACTIONS if action != STAY), description="what is annotated"
    )

    @model_validator(mode="after")
    def _valid(self) -> UntrimmedConfig:
        for name in ("seconds", "action_seconds", "rest_seconds"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={low, high}: needs 0 < shortest <= longest")
        if self.action_seconds[0] * self.fps < 8:
            raise ValueError("action_seconds: the shortest action needs 8 frames or more")
        unknown = [action for action in self.actions if action not in ACTIONS or action == STAY]
        if unknown or not self.actions:
            raise ValueError(f"actions: {unknown or 'none'}: choose from {', '.join(ACTIONS[:-1])}")
        if self.size % 2:
            raise ValueError(f"size={self.size}: must be even for H.264")
        return self


@dataclass(frozen=True)
class UntrimmedReport:
    """What `render_untrimmed` left on disk."""

    out_dir: Path
    videos: int
    segments: int
    seconds: float
    reused: bool

    def __str__(self) -> str:
        content = f"{counted(self.videos, 'video')} with {counted(self.segments, 'action')}"
        how = "rendered before" if self.reused else f"{self.seconds:.1f} s"
        return f"untrimmed world in {self.out_dir}: {content}, {how}"


def render_untrimmed(
    out_dir: str | os.PathLike[str],
    config: UntrimmedConfig | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> UntrimmedReport:
    """Render `out_dir/videos/*.mp4`, `annotations.json`, `classes.txt` and `manifest.json`.

    The files depend on the settings alone, not on `workers` (processes; None: one per core, 1: this
    process). An equal, complete world is kept. Raises FileExistsError for a folder that holds
    anything else.
    """
    config = config or UntrimmedConfig()
    out = Path(out_dir)
    settings = json.loads(config.model_dump_json())
    earlier = _earlier(out, settings)
    if earlier is not None:
        return earlier
    started = time.perf_counter()
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"format": FORMAT, "config": settings, "sha256": None}
    # It comes first, and says whose files these are should the rendering be stopped.
    write_json(out / "manifest.json", manifest)
    names = [(split, number) for split in SPLITS for number in range(getattr(config, split))]
    render = partial(_write_video, config, videos)
    annotated: dict[str, AnnotatedVideo] = {}
    processes = min(workers or usable_cores(), max(1, len(names)))
    with clip_progress(len(names), progress, "rendering videos") as advance:
        for video in _mapped(render, names, processes):
            annotated[video.name] = video
            advance(1)
    content = json.dumps(annotations_json(annotated, FORMAT), indent=1).encode()
    write_atomically(out / "annotations.json", content)
    write_atomically(out / "classes.txt", "".join(f"{a}\n" for a in config.actions).encode())
    manifest |= {
        "sha256": hashlib.sha256(content).hexdigest(),
        "videos": len(annotated),
        "segments": sum(len(video.segments) for video in annotated.values()),
    }
    write_json(out / "manifest.json", manifest)
    seconds = time.perf_counter() - started
    return UntrimmedReport(out, manifest["videos"], manifest["segments"], seconds, False)


def _mapped(render: Callable[..., AnnotatedVideo], names: list, processes: int) -> Any:
    if processes == 1:
        yield from map(render, names)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(render, names)


def _earlier(out: Path, settings: dict[str, Any]) -> UntrimmedReport | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("format") != FORMAT:
        raise FileExistsError(f"{out} holds files that are no untrimmed world: choose another one")
    if manifest["config"] != settings:
        raise FileExistsError(f"{out} holds another untrimmed world: choose another folder")
    if manifest["sha256"] is None:
        return None
    return UntrimmedReport(out, manifest["videos"], manifest["segments"], 0.0, True)


def _write_video(config: UntrimmedConfig, folder: Path, which: tuple[Split, int]) -> AnnotatedVideo:
    split, number = which
    name = f"{split}-{number:05d}"
    frames, segments = untrimmed_video(config, split, number)
    write_atomically(folder / f"{name}.mp4", encode_mp4(frames, config.fps, config.quality))
    duration = len(frames) / config.fps
    return AnnotatedVideo(name, SUBSETS[split], duration, segments)


def untrimmed_video(
    config: UntrimmedConfig, split: Split, number: int
) -> tuple[np.ndarray, tuple[AnnotatedSegment, ...]]:
    """The frames uint8 [F, size, size, 3] of a video and its actions."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), number, _STREAM])
    place = str(rng.choice(WorldConfig().backgrounds)), int(rng.integers(2**53))
    total = round(rng.uniform(*config.seconds) * config.fps)
    parts: list[np.ndarray] = []
    segments: list[AnnotatedSegment] = []
    done = 0
    while done < total:
        rest = max(1, round(rng.uniform(*config.rest_seconds) * config.fps))
        shown = rng.random() < config.resting_object
        parts.append(
            _rest(config, split, rest, rng, place) if shown else _empty(config, rest, place)
        )
        done += rest
        length = round(rng.uniform(*config.action_seconds) * config.fps)
        if segments and done + length > total:
            break
        scene = _scene(config, split, length, rng, place)
        parts.append(render_scene(scene, config.size).frames)
        event = scene.objects[0].events[0]
        start, end = ((done + frame) / config.fps for frame in (event.start, event.end))
        segments.append(AnnotatedSegment(start, end, event.action))
        done += length
    return np.concatenate(parts), tuple(segments)


def _empty(config: UntrimmedConfig, frames: int, place: tuple[str, int]) -> np.ndarray:
    still = background(place[0], place[1], config.size)
    return np.repeat((still * 255 + 0.5).astype(np.uint8)[None], frames, axis=0)


def _scene(
    config: UntrimmedConfig,
    split: Split,
    frames: int,
    rng: np.random.Generator,
    place: tuple[str, int],
) -> Scene:
    """A scene of one object that acts in most of its frames, and rests before and after.

    The split shows the same combinations of object and action as in the world of clips.
    """
    world = _world(config, frames)
    for _ in range(_ATTEMPTS):
        scene = draw_scene(world, split, int(rng.integers(2**53)))
        if scene.objects[0].actions[0] in config.actions:
            return replace(scene, background=place[0], background_seed=place[1])
    raise ValueError(f"the {split} split shows none of the actions {', '.join(config.actions)}")


def _rest(
    config: UntrimmedConfig,
    split: Split,
    frames: int,
    rng: np.random.Generator,
    place: tuple[str, int],
) -> np.ndarray:
    """An object that does nothing."""
    world = _world(config, max(frames, 8))
    scene = _scene(config, split, world.frames, rng, place)
    thing = scene.objects[0]
    (path,) = place_objects(rng, world, [()], [thing.size])
    scene = replace(scene, objects=(replace(thing, events=(), path=path),))
    return render_scene(scene, config.size).frames[:frames]


def _world(config: UntrimmedConfig, frames: int) -> WorldConfig:
    """The world of clips with one object and one action each."""
    return WorldConfig(
        size=config.size, frames=frames, fps=config.fps, object_counts=(1.0,), sequences=0.0
    )
