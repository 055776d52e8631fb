"""Painting: anti-aliased, shaded shapes with shadows on a textured background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svilm_fast.data.world.backgrounds import background
from svilm_fast.data.world.scene import Scene, SceneObject
from svilm_fast.data.world.shapes import DISTANCES
from svilm_fast.data.world.vocabulary import COLORS

# The window painted around an object, in radii: shapes reach 1.15, the shadow adds the rest.
_REACH = 1.4
_SHADOW_SHIFT, _SHADOW_SOFTNESS, _SHADOW_DEPTH = 0.13, 0.24, 0.42


@dataclass(frozen=True)
class Rendered:
    """frames uint8 [F, H, W, 3]; masks bool [objects, F, H, W] of what is seen of each object."""

    frames: np.ndarray
    masks: np.ndarray


def render_scene(scene: Scene, size: int) -> Rendered:
    """The pixels of a scene, later objects in front of earlier ones."""
    frames = len(scene.objects[0].path.lit)
    canvas = np.repeat(background(scene.background, scene.background_seed, size)[None], frames, 0)
    masks = np.zeros((len(scene.objects), frames, size, size), bool)
    for index, thing in enumerate(scene.objects):
        _paint(canvas, masks, index, thing, size)
    return Rendered((canvas * 255 + 0.5).astype(np.uint8), masks)


def _paint(
    canvas: np.ndarray, masks: np.ndarray, index: int, thing: SceneObject, size: int
) -> None:
    path = thing.path
    side = 2 * int(np.ceil(_REACH * path.radii.max() * size)) + 2
    corners = np.floor(path.centres * size).astype(int) - side // 2
    seen = path.lit & ((corners < size) & (corners + side > 0)).all(axis=1)
    shown = np.flatnonzero(seen)
    if not len(shown):
        return
    corners = corners[shown]
    radii = (path.radii[shown] * size).astype(np.float32)
    offsets = path.centres[shown] * size - corners - 0.5
    colors, alpha, shadow = _layers(
        thing, offsets.astype(np.float32), radii, path.angles[shown].astype(np.float32), side
    )
    inside = alpha >= 0.5
    keep = (1 - shadow) * (1 - alpha)
    for place, frame in enumerate(shown):
        x, y = corners[place]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + side, size), min(y + side, size)
        here = (slice(top, bottom), slice(left, right))
        there = (place, slice(top - y, bottom - y), slice(left - x, right - x))
        patch = canvas[frame][here]
        patch *= keep[there][..., None]
        patch += colors[there]
        masks[index, frame][here] = inside[there]
        masks[:index, frame, here[0], here[1]] &= ~inside[there]


def _layers(
    thing: SceneObject, offsets: np.ndarray, radii: np.ndarray, angles: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour times coverage [n, side, side, 3], coverage and shadow [n, side, side]."""
    grid = np.arange(side, dtype=np.float32)
    x = (grid[None, None, :] - offsets[:, 0, None, None]) / radii[:, None, None]
    y = (grid[None, :, None] - offsets[:, 1, None, None]) / radii[:, None, None]
    distance = _turned_distance(thing.shape, x, y, angles)
    cast = _turned_distance(thing.shape, x - _SHADOW_SHIFT, y - _SHADOW_SHIFT, angles)
    pixels = radii[:, None, None]
    alpha = np.clip(0.5 - distance * pixels, 0, 1)
    shadow = _SHADOW_DEPTH * np.clip(0.5 - cast / _SHADOW_SOFTNESS, 0, 1)
    # Light from the upper left, a dark rim whose width grows with the object, a bright bevel.
    light = 1.02 - 0.13 * (x + y)
    rim = np.clip((-distance - 0.075) * pixels + 0.5, 0, 1)
    bevel = np.clip(1 - np.abs(distance + 0.2) / 0.1, 0, 1) * np.clip(-(x + y), 0, 1)
    tone = light * (0.42 + 0.58 * rim)
    base = np.asarray(COLORS[thing.color], np.float32) / 255
    shine = (0.22 * bevel * rim)[..., None]
    colors = np.clip(tone[..., None] * base * (1 - shine) + shine, 0, 1) * alpha[..., None]
    return colors, alpha, shadow


def _turned_distance(shape: str, x: np.ndarray, y: np.ndarray, angles: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    return DISTANCES[shape](cosine * x + sine * y, cosine * y - sine * x)
