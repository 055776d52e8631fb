"""Formats times, sizes, rates and ratios."""

from __future__ import annotations

import math


def time_text(ms: float | None) -> str:
    """A time in milliseconds, with three significant digits."""
    if ms is None:
        return ""
    if ms < 1:
        return f"{ms * 1e3:.3g} µs"
    return f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def bytes_text(size: float | None) -> str:
    """Bytes in binary units, with three significant digits."""
    if size is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if abs(size) < 1000 else f"{size / 1024:.3g} TiB"


def rate_text(value: float, unit: str) -> str:
    """A rate with a decimal prefix: 1.2 TFLOP/s."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent_text(fraction: float | None) -> str:
    """A fraction in percent."""
    return "" if fraction is None else f"{fraction:.1%}" if fraction < 0.995 else f"{fraction:.0%}"


def count_text(value: float) -> str:
    """Three significant digits with thousands separators: 22,600."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def ratio_text(ratio: float) -> str:
    """A ratio with at least two significant digits: 1.4×, 140×."""
    return f"{ratio:.2g}×" if ratio < 9.95 else f"{ratio:,.0f}×"
