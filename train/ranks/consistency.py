"""Checks that every rank was started with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.ranks.process_group import Ranks

# Settings that may differ between nodes without changing the result.
LOCAL_SETTINGS = (
    "run.threads",
    "data.workers",
    "data.unit",
    "data.prefetch",
    "data.timeout_s",
    "data.cache",
    "logging.",
)
SHOWN = 3


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        here = f"{path}{key}"
        flat |= flattened(value, f"{here}.") if isinstance(value, dict) else {here: value}
    return flat


def check_same_settings(config: RunConfig, ranks: Ranks) -> None:
    """Raise the same ConfigError on all ranks if one of them was started with other settings.

    Another batch or model on one node would otherwise lead to collectives of different sizes, which
    hang or crash. Every rank must call it.
    """
    if ranks.world_size == 1:
        return
    mine = flattened(config.model_dump(mode="json"))
    first = ranks.share(mine)
    differing = [
        f"{key}={mine.get(key)} (rank 0: {first.get(key)})"
        for key in sorted(mine.keys() | first.keys())
        if mine.get(key) != first.get(key) and not key.startswith(LOCAL_SETTINGS)
    ]
    for rank, found in enumerate(ranks.gather(differing)):
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise ConfigError(
                f"configuration consistency check: rank {rank} was started with "
                f"{', '.join(found[:SHOWN])}{more}; start every node with the same recipe and "
                "settings"
            )
