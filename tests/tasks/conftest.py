"""A rendered world, small recipes, and the plug-in of these tests as an installed package."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from svilm_fast.data.world import render_world
from svilm_fast.train.config.small_model import SMALL_MODEL

PLUGIN = "tests.tasks.classification:Classification"


def announce(folder: Path, name: str, target: str, group: str = "svilm_fast.tasks") -> Path:
    """Write what an installer writes of a package with an entry point; returns `folder`."""
    package = folder / f"{name}_plugin-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """A folder for `sys.path` in which the classification task is installed."""
    return announce(tmp_path_factory.mktemp("installed"), "classification", PLUGIN)


@pytest.fixture
def plugin(installed: Path, monkeypatch) -> None:
    """The classification task is installed in this process."""
    monkeypatch.syspath_prepend(str(installed))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, train=24, val=8, test=8, size=32, frames=8, workers=1, progress=False)
    return folder


@pytest.fixture
def videos(world: Path, tmp_path: Path) -> Path:
    """A folder with two of the world's videos and one that is damaged."""
    folder = tmp_path / "videos"
    folder.mkdir()
    with tarfile.open(next((world / "val").glob("*.tar"))) as shard:
        names = [name for name in shard.getnames() if name.endswith(".mp4")]
        for name, target in zip(names, ("a.mp4", "b.mp4"), strict=False):
            (folder / target).write_bytes(shard.extractfile(name).read())
    (folder / "damaged.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def settings(world: Path, tmp_path: Path):
    """`settings(run, *more)`: overrides of the recipe `demo` for a small run in `tmp_path/run`."""

    def make(run: str, *more: str) -> list[str]:
        return [
            f"run.dir={tmp_path / run}",
            *(f"data.{split}={world / split}" for split in ("train", "val", "test")),
            *SMALL_MODEL,
            "training.global_batch=8",
            "training.steps=6",
            "logging.every_steps=1",
            "logging.tensorboard=false",
            "evaluation.batch_size=4",
            *more,
        ]

    return make
