"""One small world, rendered once for all tests of this folder."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.data.world import WorldConfig, render_world

SETTINGS: dict[str, Any] = {"train": 30, "val": 12, "test": 40, "seed": 3, "shard_size": 25}


@dataclass
class World:
    folder: Path
    config: WorldConfig

    def members(self, split: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for path in sorted((self.folder / split).glob("*.tar")):
            with tarfile.open(path) as archive:
                for info in archive:
                    stream = archive.extractfile(info)
                    assert stream is not None
                    found[info.name] = stream.read()
        return found

    def samples(self, split: str) -> dict[str, dict[str, Any]]:
        return {
            name.removesuffix(".json"): json.loads(data)
            for name, data in self.members(split).items()
            if name.endswith(".json")
        }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "small"
    render_world(folder, workers=1, progress=False, **SETTINGS)
    return World(folder, WorldConfig(**SETTINGS))


@pytest.fixture(scope="session")
def samples(world: World) -> list[dict[str, Any]]:
    return [
        sample for split in ("train", "val", "test") for sample in world.samples(split).values()
    ]
