"""Signed distances of the shapes, in units of their radius: negative inside, y points down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    across = np.abs(x) - half_width
    along = np.abs(y) - half_height
    outside = np.hypot(np.maximum(across, 0), np.maximum(along, 0))
    return outside + np.minimum(np.maximum(across, along), 0)


def circle(x: Array, y: Array) -> Array:
    """Disc."""
    return np.hypot(x, y) - 0.92


def square(x: Array, y: Array) -> Array:
    """Square with slightly rounded corners."""
    return _box(x, y, 0.74, 0.74) - 0.06


def triangle(x: Array, y: Array) -> Array:
    """Equilateral triangle that points up."""
    y = y - 0.14
    slanted = 0.8660254 * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y) - 0.56


def star(x: Array, y: Array) -> Array:
    """Star of five points, one of them up."""
    sector = 2 * np.pi / 5
    angle = np.arctan2(x, -y)
    folded = np.abs(angle - sector * np.round(angle / sector))
    radius = np.hypot(x, y)
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    tip, notch = 1.08, 0.48
    notch_x, notch_y = notch * np.sin(sector / 2), notch * np.cos(sector / 2)
    length = np.hypot(notch_x, tip - notch_y)
    normal_x, normal_y = (tip - notch_y) / length, notch_x / length
    return across * normal_x + (along - tip) * normal_y


def heart(x: Array, y: Array) -> Array:
    """Two discs over a square that stands on its corner."""
    half, root = 0.56, 0.70710678
    y = y - 0.12
    turned_x, turned_y = root * (x + y), root * (y - x)
    body = _box(turned_x, turned_y, half, half)
    centre = half * root
    lobes = np.hypot(np.abs(x) - centre, y + centre) - half
    return np.minimum(body, lobes)


def ring(x: Array, y: Array) -> Array:
    """Disc with a round hole."""
    return np.abs(np.hypot(x, y) - 0.69) - 0.25


def cross(x: Array, y: Array) -> Array:
    """Two equal bars across one another."""
    return np.minimum(_box(x, y, 0.94, 0.31), _box(x, y, 0.31, 0.94))


def moon(x: Array, y: Array) -> Array:
    """Crescent, open to the right."""
    x = x - 0.18
    return np.maximum(np.hypot(x, y) - 0.96, 0.78 - np.hypot(x - 0.46, y))


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    function.__name__: function
    for function in (circle, square, triangle, star, heart, ring, cross, moon)
}
