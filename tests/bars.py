"""Error bounds ("bars") of numeric tests, and the share of its bar that each comparison used.

A bar is derived from the rounding of the computation under test, never from one processor's result,
because another instruction set sums in another order. `tests/instruction_sets.py` records every
comparison through `within`, `torch.testing.assert_close` or `numpy.testing.assert_allclose`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Ratio of a bar to the expected rounding of the computation.
MARGIN = 4.0
# A folder in which every test process records how much of their bars its comparisons used.
RECORDS = os.environ.get("SVILM_TEST_MARGINS")
# Added to every seed of PyTorch's generators, in the tests and in the processes that they start.
SEED_OFFSET = 1000 * int(os.environ.get("SVILM_TEST_SEED", "0"))

_used: dict[str, float] = {}


def rounding_bar(terms: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The absolute error of a sum of products: `MARGIN * unit roundoff * sqrt(terms) * size`.

    `size` is the largest magnitude that the sum can have, times every factor that is applied to it
    afterwards. The square root is the probabilistic bound of Higham and Mary (2019), which assumes
    independent roundings and holds for any order of the terms.
    """
    return MARGIN * torch.finfo(dtype).eps / 2 * terms**0.5 * size


def note(error: float, bar: float) -> None:
    """Record that a comparison of the running test used `error` of `bar`."""
    # A bar of 0 means equality, without a margin. An error above its bar fails, or is meant to.
    if RECORDS is None or not 0 <= error <= bar or bar == 0:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    _used[test] = max(_used.get(test, 0.0), error / bar)


def within(error: float | torch.Tensor, bar: float | torch.Tensor, what: str = "") -> None:
    """Raise AssertionError where `error` exceeds `bar` (element by element, or is NaN)."""
    error = torch.as_tensor(error, dtype=torch.float64)
    bar = torch.as_tensor(bar, dtype=torch.float64).expand_as(error)
    assert (error <= bar).all(), f"{what}: error {error.max():.3g}, bar {bar.max():.3g}"
    if error.numel():
        place = (error / bar.clamp(min=1e-300)).argmax()
        note(error.flatten()[place].item(), bar.flatten()[place].item())


def _recorded(compare: Callable[..., None], fallback: Callable[[Any], tuple[float, float]]) -> Any:
    def recording(actual: Any, expected: Any, *args: Any, **options: Any) -> None:
        compare(actual, expected, *args, **options)
        if not isinstance(actual, torch.Tensor | np.ndarray | np.floating | float):
            return
        found, want = (torch.as_tensor(np.asarray(_plain(x))) for x in (actual, expected))
        if not want.is_floating_point() or not found.numel():
            return
        rtol, atol = fallback(actual)
        rtol, atol = options.get("rtol", rtol), options.get("atol", atol)
        bar = atol + rtol * want.double().abs()
        error = (found.double() - want.double()).abs().nan_to_num(0.0)
        place = (error / bar.clamp(min=1e-300)).expand_as(error).argmax()
        note(error.flatten()[place].item(), bar.expand_as(error).flatten()[place].item())

    return recording


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float() if value.dtype == torch.bfloat16 else value
    return value


def _torch_tolerances(actual: Any) -> tuple[float, float]:
    dtype = actual.dtype if isinstance(actual, torch.Tensor) else torch.float64
    return {
        torch.float16: (1e-3, 1e-5),
        torch.bfloat16: (1.6e-2, 1e-5),
        torch.float32: (1.3e-6, 1e-5),
    }.get(dtype, (1e-7, 1e-7))


def _write() -> None:
    if RECORDS is not None and _used:
        Path(RECORDS, f"{os.getpid()}.json").write_text(json.dumps(_used))


@functools.cache
def install() -> None:
    """Record comparisons and shift seeds if the environment variables say so."""
    if RECORDS is not None:
        torch.testing.assert_close = _recorded(torch.testing.assert_close, _torch_tolerances)
        np.testing.assert_allclose = _recorded(np.testing.assert_allclose, lambda _: (1e-7, 0.0))
        atexit.register(_write)
    if SEED_OFFSET:
        shift_seeds()


def shift_seeds() -> None:
    """Add `SEED_OFFSET` to arguments of `torch.manual_seed` and `torch.Generator.manual_seed`."""
    seed_all, plain = torch.manual_seed, torch.Generator

    class Shifted(plain):  # type: ignore[misc, valid-type]
        def manual_seed(self, seed: int) -> torch.Generator:
            super().manual_seed(seed + SEED_OFFSET)
            return self

    torch.Generator = Shifted  # type: ignore[misc]
    torch.manual_seed = lambda seed: seed_all(seed + SEED_OFFSET)
