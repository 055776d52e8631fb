"""Planted bugs, poisoned memory and gloo ranks: what the ops' tests share."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
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
def run_ranks(tmp_path_factory: pytest.TempPathFactory, run_on_ranks) -> RunRanks:
    """`run_ranks(worker, world_size, *words)`: what the worker's `results` returned on each rank.

    It is called with a folder that the ranks share, then the words, in a group of gloo ranks.
    """

    def run(worker: Path, world_size: int, *words: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        main = Path(__file__).with_name("rank_main.py")
        run_on_ranks(world_size, main, worker, folder, *words, timeout=150)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]

    return run
