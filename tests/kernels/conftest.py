"""Planted bugs, poisoned memory and gloo ranks: what the ops' tests share."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Mutate = Callable[[ModuleType, Mapping[str, str]], ModuleType]
RunRanks = Callable[..., list[Any]]
_numbers = itertools.count()


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mutate:
    """Plant bugs: `mutate(module, {"old text": "new text"})` until the end of the test.

    Makes a copy of the module with every text replaced (each must occur, or the test fails), and
    puts the copy's objects wherever a loaded module of `svilm_fast.kernels` holds the original's,
    so that the public function runs the bug. Meant for modules of kernels and their host code, not
    for those that register operators; what is registered must look its host function up at call
    time. Returns the copy.
    """

    def plant(module: ModuleType, replacements: Mapping[str, str]) -> ModuleType:
        text = inspect.getsource(module)
        for old, new in replacements.items():
            if old not in text:
                pytest.fail(f"planted bug: {old!r} is not in {module.__name__}; update the test")
            text = text.replace(old, new)
        number = next(_numbers)
        # Triton reads a kernel's source from its file, so the copy needs one.
        path = tmp_path / f"mutant_{number}.py"
        path.write_text(text)
        package = module.__name__.rpartition(".")[0]
        name = f"{package}.mutant_{number}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        mutant = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, mutant)
        spec.loader.exec_module(mutant)
        # What the copy defines anew; what both import from elsewhere is one object.
        own = {
            key: value
            for key, value in vars(module).items()
            if callable(value) and key in vars(mutant) and vars(mutant)[key] is not value
        }
        for holder in list(sys.modules.values()):
            if not getattr(holder, "__name__", "").startswith("svilm_fast.kernels"):
                continue
            for key, value in list(vars(holder).items()):
                if value is module:
                    monkeypatch.setattr(holder, key, mutant)
                for own_key, original in own.items():
                    if value is original and holder is not mutant:
                        monkeypatch.setattr(holder, key, getattr(mutant, own_key))
        return mutant

    return plant


@pytest.fixture
def poisoned_memory():
    """Fill fresh memory (`torch.empty`) with NaN or the largest integer during the test."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """`run_ranks(script, world, *words)` starts the script once per rank; what each one saved.

    The script is called with rank, world size, port and folder, then the words, and saves
    `{folder}/{rank}.pt`.
    """

    def run(script: Path, world: int, *words: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, (script, place, world, port, folder)), *words],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for place in range(world)
        ]
        try:
            outputs = [process.communicate(timeout=150)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs):
            assert process.returncode == 0, output
        return [torch.load(folder / f"{place}.pt") for place in range(world)]

    return run
