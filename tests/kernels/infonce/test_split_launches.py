"""Large problems, whose sums come from several launches: together they take every strip, once.

Fresh memory is 2^90 here. NaN would not show an unwritten sum: the range check treats it as
out of range and recomputes it.
"""

import importlib

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import infonce_partials
from svilm_fast.kernels.infonce.fused import forward
from tests.bars import within

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")
HALF = torch.float16
# rows, columns, diagonal offset; column tiles are of 128, and 200 columns end within one.
BLOCKS = {
    "square": (300, 300, 0),
    "whole tiles": (256, 256, 0),
    "diagonal at the ragged end": (384, 200, 199),
    "diagonal just past the columns": (384, 200, 200),
    "diagonal in the padding's last column": (384, 200, 255),
    "diagonal past the padding": (384, 200, 256),
    "diagonal in the middle": (384, 200, -100),
    "diagonal at the last row": (384, 200, -383),
    "diagonal before the rows": (384, 200, -384),
    "no whole tile": (384, 100, 100),
}


@pytest.fixture
def differences(rows, monkeypatch):
    """`differences(block)`: largest errors of sums and gradients against the reference."""
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)

    def measure(block, dim=32):
        number, columns, offset = BLOCKS[block]
        generator = torch.Generator().manual_seed(0)
        results = []
        for backend, dtype in (("fused", HALF), ("reference", torch.float64)):
            leaves = [
                rows(number, dim, 0, HALF).to(dtype).requires_grad_(),
                rows(columns, dim, 1, HALF).to(dtype).requires_grad_(),
                torch.tensor(10.0, requires_grad=True),
            ]
            found = infonce_partials(*leaves, diagonal_offset=offset, backend=backend)
            upstream = [
                torch.rand(part.shape, generator=generator.manual_seed(1)) for part in found
            ]
            total = sum((part * up).sum() for part, up in zip(found, upstream, strict=True))
            results.append([*found, *torch.autograd.grad(total, leaves)])
        return [
            ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            for found, expected in zip(*results, strict=True)
        ]

    return measure


@pytest.mark.parametrize("dim", [32, 80])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_strip_is_summed(differences, plausible_memory, block, dim):
    found = differences(block, dim)
    within(max(found[:3]), 2e-5, "sums")
    within(max(found[3:]), 1e-3, "gradients")


@pytest.mark.parametrize("block", ["square", "diagonal in the middle"])
def test_no_sum_left_the_range(rows, monkeypatch, plausible_memory, block):
    """Checks that the tests above cover every kind of launch."""
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    number, columns, offset = BLOCKS[block]
    function = importlib.import_module("svilm_fast.kernels.infonce.fused.function")
    arguments = rows(number, 32, 0, HALF), rows(columns, 32, 1, HALF), torch.tensor(10.0)
    sound = function.forward_op(*arguments, None, None, None, offset, False)[-1]
    assert (sound == 1).all()


@pytest.mark.parametrize(
    ("planted", "block"),
    [
        ({'yield "diagonal", first, last - first, ragged': "pass"}, "square"),
        ({'yield "beside", 0, full, False': "pass"}, "whole tiles"),
        ({'yield "beside", full, 1, True': "pass"}, "square"),
        ({"min(full + ragged, -(": "min(full, -("}, "diagonal just past the columns"),
    ],
    ids=["no diagonal", "no whole tiles", "no ragged tile", "diagonal only within the columns"],
)
def test_a_forgotten_launch_is_caught(
    differences, mutate, monkeypatch, plausible_memory, planted, block
):
    mutant = mutate(forward, planted)
    monkeypatch.setattr(mutant, "FEW_BLOCKS_PER_SM", 0)
    found = differences(block)
    assert not (max(found[:3]) <= 2e-5 and max(found[3:]) <= 1e-3)
