"""Textured backgrounds in muted tones, so that the objects' colours stand out."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Texture = Callable[[np.random.Generator, Array, Array, float], Array]


def _edge(wave: Array, sharpness: float) -> Array:
    return np.clip(0.5 + sharpness * wave, 0, 1)


def _sharpness(period: float, pixel: float) -> float:
    """Slope that turns a sine into stripes whose edges are about one pixel wide."""
    return period / (2 * np.pi * pixel)


def _turned(x: Array, y: Array, angle: float) -> Array:
    return np.cos(angle) * x + np.sin(angle) * y


def _plain(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    along = _turned(x - 0.5, y - 0.5, rng.uniform(0, 2 * np.pi))
    return np.clip(0.5 + 0.45 * along, 0, 1)


def _cloudy(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for cells, weight in ((4, 0.6), (8, 0.35), (16, 0.15)):
        grid = rng.random((cells + 2, cells + 2), dtype=np.float32)
        total += weight * _smooth_lookup(grid, x * cells, y * cells)
    return np.clip(0.5 + 2.4 * (total - total.mean()), 0, 1)


def _smooth_lookup(grid: Array, x: Array, y: Array) -> Array:
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = x - column, y - row
    right, below = right**2 * (3 - 2 * right), below**2 * (3 - 2 * below)
    upper = grid[row, column] * (1 - right) + grid[row, column + 1] * right
    lower = grid[row + 1, column] * (1 - right) + grid[row + 1, column + 1] * right
    return upper * (1 - below) + lower * below


def _striped(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    period = rng.uniform(0.16, 0.24)
    angle = rng.integers(4) * np.pi / 4
    wave = np.sin(2 * np.pi * (_turned(x, y, angle) / period + rng.random()))
    return _edge(wave, _sharpness(period, pixel))


def _checked(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    period = rng.uniform(0.26, 0.38)
    across = np.sin(2 * np.pi * (x / period + rng.random()))
    along = np.sin(2 * np.pi * (y / period + rng.random()))
    sharpness = _sharpness(period, pixel)
    first, second = _edge(across, sharpness), _edge(along, sharpness)
    return first + second - 2 * first * second


def _dotted(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    period = rng.uniform(0.17, 0.23)
    across = (x / period + rng.random()) % 1 - 0.5
    along = (y / period + rng.random()) % 1 - 0.5
    return _edge(0.3 - np.hypot(across, along), period / pixel)


def _gridded(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    period = rng.uniform(0.18, 0.26)
    across = np.abs((x / period + rng.random()) % 1 - 0.5)
    along = np.abs((y / period + rng.random()) % 1 - 0.5)
    return _edge(0.09 - np.minimum(across, along), period / pixel)


def _rippled(rng: np.random.Generator, x: Array, y: Array, pixel: float) -> Array:
    period = rng.uniform(0.16, 0.24)
    centre_x, centre_y = rng.uniform(0.2, 0.8, 2)
    wave = np.sin(2 * np.pi * (np.hypot(x - centre_x, y - centre_y) / period + rng.random()))
    return _edge(wave, 1.2)


TEXTURES: dict[str, Texture] = {
    "plain": _plain,
    "cloudy": _cloudy,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "gridded": _gridded,
    "rippled": _rippled,
}


def _tones(rng: np.random.Generator) -> tuple[Array, Array]:
    hue = rng.random()
    saturation = rng.uniform(0.06, 0.2)
    value = rng.uniform(0.22, 0.38)
    step = rng.uniform(0.17, 0.23)
    other_hue = (hue + rng.uniform(-0.08, 0.08)) % 1
    dark = np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
    light = np.array(colorsys.hsv_to_rgb(other_hue, saturation, value + step), np.float32)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def background(name: str, seed: int, size: int) -> Array:
    """Texture `name` drawn from `seed`: float32 [size, size, 3] in 0..1."""
    rng = np.random.default_rng(seed)
    first, second = _tones(rng)
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    x, y = centres[None, :], centres[:, None]
    blend = np.broadcast_to(TEXTURES[name](rng, x, y, 1 / size), (size, size))
    painted = first + (second - first) * blend[..., None].astype(np.float32)
    vignette = 1.06 - 0.36 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return np.clip(painted * vignette[..., None], 0, 1).astype(np.float32)
