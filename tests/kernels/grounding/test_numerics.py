"""The fused path against a float64 oracle with absolute bars, outputs poisoned beforehand."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import grounding_scores

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    # What overflows is masked; numpy warns all the same.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def test_every_regime_holds_its_bars(regime_name, numerics, poisoned_memory):
    assert list(numerics([regime_name])) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", range(8, 1025, 40))
def test_every_kind_of_width(failures_at, poisoned_memory, dim, dtype):
    assert failures_at(dim=dim, dtype=dtype, groups=12, nouns=3, counts=(3, 0, 1)) == []


def test_vectors_far_beyond_unit_length_give_nan_and_no_wrong_number():
    torch.manual_seed(0)
    groups, nouns = (
        3 * normalize(torch.randn(9, 8, 16), dim=-1),
        normalize(torch.randn(9, 1, 16), dim=-1),
    )
    mask, beta = torch.ones(9, 1, dtype=torch.bool), torch.tensor(60.0)
    found = grounding_scores(groups, nouns, mask, beta, backend="fused")
    expected = grounding_scores(groups.double(), nouns.double(), mask, beta.double())
    finite = torch.isfinite(found)
    assert 0 < finite.sum() < found.numel()
    torch.testing.assert_close(found[finite].double(), expected[finite], rtol=1e-5, atol=1e-5)
