"""Every peer computes what its op computes, on small inputs in float32."""

import pytest
import torch

from svilm_fast.bench.peers import peers
from svilm_fast.bench.suites.proof import Case, first_output, in_precision, leaves, relative_rms
from svilm_fast.kernels.registry import ops


def test_every_op_has_peers():
    assert all({"eager", "compile"} <= peers(op).keys() for op in ops())


@pytest.mark.parametrize("op", sorted(ops()))
def test_eager_equals_the_oracle_forward_and_backward(op):
    registered = ops()[op]
    inputs = registered.make_inputs(registered.sizes.small, torch.float32, "cpu", 0)
    wanted = leaves(inputs)
    output = first_output(peers(op)["eager"](**inputs))
    exact = in_precision(inputs, torch.float64)
    exact_leaves = leaves(exact)
    oracle = first_output(registered.reference(**exact))
    assert relative_rms(output, oracle) < 1e-4
    upstream = torch.linspace(0.5, 1.5, output.numel()).view(output.shape)
    gradients = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
    exact_gradients = torch.autograd.grad(oracle, exact_leaves, upstream.double())
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert relative_rms(gradient, exact_gradient) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(ops()))
def test_compiled_equals_eager(op):
    inputs = ops()[op].make_inputs(ops()[op].sizes.small, torch.float32, "cpu", 0)
    provided = peers(op)
    eager = first_output(provided["eager"](**inputs))
    assert relative_rms(first_output(provided["compile"](**inputs)), eager) < 1e-4
    case = Case(ops()[op].reference, inputs, torch.float32, torch.device("cpu"))
    backward = case.call(provided["compile"], "backward")
    backward()
    backward()  # as the clock does: the same graph again


def test_infonce_peers_refuse_what_they_cannot_express():
    inputs = ops()["infonce"].make_inputs(
        {"videos": 8, "texts": 8, "dim": 16, "pair_mode": "exclude"}, torch.float32, "cpu", 0
    )
    assert peers("infonce")["eager"](**inputs) is NotImplemented
