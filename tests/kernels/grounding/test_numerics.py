"""The fused path against a float64 oracle with absolute bars, outputs poisoned beforehand."""

import pytest

from svilm_fast.kernels.backend import interpreted

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    # What overflows is masked; numpy warns all the same.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def test_every_regime_holds_its_bars(regime_name, numerics, poisoned_memory):
    assert list(numerics([regime_name])) == []
