"""Which weights of a run are read; apart from the settings, so that `--help` imports none."""

from __future__ import annotations

from enum import StrEnum


class Weights(StrEnum):
    """Which weights of a run are read: as they were trained, or their average."""

    RAW = "raw"
    EMA = "ema"
