"""Makes `toy_work` importable in worker processes, which import it by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> Iterator[ModuleType]:
    folder = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH", "")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, before]))
    yield importlib.import_module("toy_work")
    sys.path.remove(folder)
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder but the manifest, by name."""

    def read(folder: Path) -> dict[str, bytes]:
        names = [path for path in folder.iterdir() if not path.name.endswith("_manifest.jsonl")]
        return {path.name: path.read_bytes() for path in names}

    return read
