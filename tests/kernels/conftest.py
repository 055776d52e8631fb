"""Planted bugs, guarded memory and gloo ranks: what the ops' tests share."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

Mutate = Callable[[ModuleType, Mapping[str, str]], ModuleType]
RunRanks = Callable[..., list[Any]]
_numbers = itertools.count()
# Elements on each side; a multiple of 16 bytes for every dtype, so tensors stay aligned.
GUARD = 4096
PACKAGES = ("svilm_fast.kernels", "svilm_fast.core")


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mutate:
    """Plant bugs: `mutate(module, {"old text": "new text"})` until the end of the test.

    Makes a copy of the module with every text replaced (each must occur, or the test fails),
    and puts the copy's objects wherever a loaded module of PACKAGES holds the original's, so
    that the public function runs the bug. Meant for modules of kernels and their host code, not
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
            if not getattr(holder, "__name__", "").startswith(PACKAGES):
                continue
            for key, value in list(vars(holder).items()):
                if value is module:
                    monkeypatch.setattr(holder, key, mutant)
                for own_key, original in own.items():
                    if value is original and holder is not mutant:
                        monkeypatch.setattr(holder, key, getattr(mutant, own_key))
        return mutant

    return plant


def _poison(dtype: torch.dtype, number: float) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return min(number, 2.0**14) if dtype == torch.float16 else number
    return True if dtype == torch.bool else torch.iinfo(dtype).max


class Guards:
    """Makes guarded tensors, filled with `number` or the largest integer, and remembers them."""

    def __init__(self, number: float) -> None:
        self._number = number
        self._make = torch.empty
        self._bases: list[Tensor] = []
        self._stopped = False

    def guarded(self, like: Tensor) -> Tensor:
        """A poisoned tensor of the shape, dtype and device of `like`, dense, between guards."""
        base = self._make(like.numel() + 2 * GUARD, dtype=like.dtype, device=like.device)
        base.fill_(_poison(like.dtype, self._number))
        self._bases.append(base)
        return base[GUARD : GUARD + like.numel()].view(like.shape)

    def wrap(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`make`, with its result guarded where it lies dense in memory that can be written."""

        def guarded(*args: Any, **settings: Any) -> Tensor:
            made = make(*args, **settings)
            plain = type(made) is Tensor and made.layout == torch.strided
            if self._stopped or not plain or made.device.type == "meta" or not made.is_contiguous():
                return made
            return self.guarded(made).requires_grad_(made.requires_grad)

        return guarded

    def forget(self) -> None:
        """Let a bug that was meant to be there have written anywhere."""
        self._bases.clear()

    def stop(self) -> None:
        """Give plain memory from now on, for what looks at storages and their offsets."""
        self._stopped = True

    def check(self) -> None:
        """Raise AssertionError where something wrote outside its tensor."""
        for base in self._bases:
            for guard in (base[:GUARD], base[-GUARD:]):
                poison = _poison(base.dtype, self._number)
                kept = guard.isnan() if poison != poison else guard == poison
                assert kept.all(), (
                    f"{int((~kept).sum())} elements outside a {base.dtype} tensor of "
                    f"{base.numel() - 2 * GUARD} were written"
                )


@contextmanager
def _guarded(patch: pytest.MonkeyPatch, number: float) -> Iterator[Guards]:
    guards = Guards(number)
    with patch.context() as inner:
        inner.setattr(torch, "empty", guards.wrap(torch.empty))
        inner.setattr(torch, "empty_like", guards.wrap(torch.empty_like))
        inner.setattr(Tensor, "new_empty", guards.wrap(Tensor.new_empty))
        yield guards
    guards.check()


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Fresh memory is NaN or the largest integer, and a write outside its tensor fails the test."""
    with _guarded(monkeypatch, float("nan")) as guards:
        yield guards


@pytest.fixture
def plausible_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Like `poisoned_memory`, with 2^90: no test for NaN or for the range of a sum sees it."""
    with _guarded(monkeypatch, 2.0**90) as guards:
        yield guards


@pytest.fixture
def gpu_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's maxima and minima pass NaN over, as a GPU's do unless told otherwise."""
    for name, operation in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        monkeypatch.setattr(
            InterpreterBuilder,
            name,
            lambda self, left, right, operation=operation: self.binary_op(left, right, operation),
        )


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
