"""Peers from other packages, on small inputs: what they compute, checked against its oracle.

They run where the packages are installed (`pip install svilm-fast[bench-peers]`): without a GPU in
Triton's interpreter, with one as `gpu` tests. Without the packages, only the refusals are tested.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from triton.runtime.autotuner import Autotuner

from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.bench.peers import peers
from svilm_fast.bench.suites import ops as suite
from svilm_fast.bench.suites.proof import Case
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.device import A100, H200, assume_traits
from svilm_fast.kernels.grounding import peers as grounding_peers
from svilm_fast.kernels.infonce import peers as infonce_peers
from svilm_fast.kernels.peers import CannotRun, Peer, module_of
from svilm_fast.kernels.registry import ops

CPU = torch.device("cpu")
SHAPES = {
    "infonce": {"videos": 70, "texts": 70, "dim": 64},
    "grounding": {"batch": 9, "groups": 12, "nouns": 4, "dim": 64},
}
# Peer -> op, module, package.
OTHERS = {
    "memeff": ("infonce", "memeff", "memeff"),
    "siglip_kernel_sigmoid": ("infonce", "siglip_kernel", "siglip-kernel"),
    "liger_one_direction": ("infonce", "liger_kernel", "liger-kernel"),
    "late_interaction_max": (
        "grounding",
        "late_interaction_kernels",
        "late-interaction-kernels",
    ),
    "flash_maxsim_max": ("grounding", "flash_maxsim", "flash-maxsim"),
}
DIFFERENT = [
    (op, name) for op in SHAPES for name, peer in peers(op).items() if isinstance(peer, Peer)
]


def case_of(op, dtype=torch.float32, device=CPU):
    registered = ops()[op]
    inputs = registered.make_inputs(SHAPES[op], dtype, device, 0)
    return Case(registered.reference, inputs, dtype, device)


def judged(case, peer):
    """The case with the oracle of what the peer computes, as the suite chooses it."""
    own = isinstance(peer, Peer) and peer.reference is not None
    return case.against(peer.reference) if own else case


def needs_package(name):
    op, module, package = OTHERS[name]
    missing = importlib.util.find_spec(module) is None
    return pytest.param(
        op, name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed")
    )


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Lets a peer's kernels run in the interpreter: its questions about a GPU are answered.

    An autotuned kernel takes the first of its configurations, because there is no clock.
    """
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    properties = SimpleNamespace(name="interpreter", multi_processor_count=4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(Autotuner, "_bench", lambda *_, **__: [1.0, 1.0, 1.0])


@pytest.mark.skipif(not interpreted(), reason="the peers' kernels need a GPU or the interpreter")
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("op", "name"), [needs_package(name) for name in OTHERS])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_peer_computes_what_it_says_in_the_interpreter(op, name, direction):
    peer = peers(op)[name]
    assert judged(case_of(op), peer).verify(peer, direction) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("op", "name"),
    [*(needs_package(name) for name in OTHERS), ("infonce", "liger_hopper_one_direction")],
)
def test_a_peer_computes_what_it_says_on_a_gpu(op, name):
    device = torch.device("cuda")
    peer = peers(op)[name]
    try:
        judged(case_of(op, torch.bfloat16, device), peer).verify(peer, "both", rough=True)
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("op", "name"), DIFFERENT)
def test_a_peer_that_computes_something_else_has_another_oracle(op, name):
    """Its oracle says nothing about the op, so the op's own path fails it."""
    peer, case = peers(op)[name], case_of(op)
    ours = ops()[op].api
    assert case.verify(lambda **inputs: ours(**inputs, backend="reference"), "both") < 1e-3
    if peer.reference is None:
        return
    with pytest.raises(WrongResult, match="output"):
        case.against(peer.reference).verify(
            lambda **inputs: ours(**inputs, backend="reference"), "forward"
        )


def test_oracles_are_what_their_formulas_say(monkeypatch):
    case = case_of("infonce", torch.float64)
    videos, texts, scale = (case.inputs[name] for name in ("videos", "texts", "scale"))
    logits = scale * videos @ texts.T
    labels = torch.arange(len(videos))
    rows = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(infonce_peers.one_direction(**case.inputs), rows)
    signs = 2 * torch.eye(len(videos), dtype=torch.float64) - 1
    bias = infonce_peers.SIGMOID_BIAS
    dense = -torch.nn.functional.logsigmoid(signs * (logits + bias)).sum() / len(videos)
    # Chunks of 13 rows, the last one smaller.
    monkeypatch.setattr(infonce_peers, "CHUNK_ELEMENTS", 13 * len(texts))
    chunked = infonce_peers.sigmoid_loss(**case.inputs)
    torch.testing.assert_close(chunked, dense)
    wanted = (videos, texts)
    for found, exact in zip(
        torch.autograd.grad(chunked, wanted), torch.autograd.grad(dense, wanted), strict=True
    ):
        torch.testing.assert_close(found, exact)
    grounding = case_of("grounding", torch.float64)
    groups, nouns, mask = (grounding.inputs[name] for name in ("groups", "nouns", "noun_mask"))
    best = torch.einsum("ckd,bgd->bckg", nouns, groups).amax(-1).masked_fill(~mask, 0).sum(-1)
    scores = best / mask.sum(1).clamp(min=1)
    exact = grounding_peers.plain_infonce(scores, grounding.inputs["scale"], valid=mask.any(1))
    torch.testing.assert_close(grounding_peers.max_loss(**grounding.inputs), exact)


@pytest.mark.skipif(not interpreted(), reason="the refusal comes before any kernel")
@pytest.mark.parametrize(("name", "told"), [(name, row[2]) for name, row in OTHERS.items()])
def test_an_absent_package_is_skipped_with_its_name(monkeypatch, name, told):
    op = OTHERS[name][0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    case = case_of(op)
    with pytest.raises(Skipped, match=f"^{told} is not installed$"):
        judged(case, peers(op)[name]).verify(peers(op)[name], "forward")
    with pytest.raises(CannotRun, match="a package is not installed"):
        module_of("a package", "a_module.part")


@pytest.mark.usefixtures("like_a_gpu")
def test_ligers_hopper_kernel_is_not_measured_as_its_fallback(monkeypatch):
    peer = peers("infonce")["liger_hopper_one_direction"]
    half = case_of("infonce", torch.bfloat16).inputs
    with assume_traits(A100), pytest.raises(CannotRun, match=r"needs compute capability \(9, 0\)"):
        peer(**half)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with assume_traits(H200), pytest.raises(CannotRun, match="liger-kernel is not installed"):
        peer(**half)
    assert peer(**case_of("infonce").inputs) is NotImplemented


@pytest.mark.skipif(not interpreted(), reason="needs the interpreter")
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("op", "name"), [needs_package("memeff")])
def test_the_gradient_that_memeff_scales_by_default_would_be_found(monkeypatch, op, name):
    module = module_of(name, name)
    original = module.MemoryEfficientCLIPLoss
    monkeypatch.setattr(
        module, "MemoryEfficientCLIPLoss", lambda **options: original(**options | {"stable": True})
    )
    with pytest.raises(WrongResult, match="gradient of videos"):
        case_of(op).verify(peers(op)[name], "both")


@pytest.mark.parametrize(("op", "name"), DIFFERENT)
def test_a_record_says_how_a_peer_differs_and_has_no_floor_that_is_not_its_own(op, name):
    peer, shape = peers(op)[name], SHAPES[op]
    forward, *_ = suite.of_provider(ops()[op], "small", shape, torch.float32, name, peer)
    prepared = forward.prepare(CPU)
    assert prepared.facts["differs"] == peer.differs
    assert (prepared.cost is None) == (not peer.same_floor)
    suite.release()


def test_peers_share_the_tensors_of_the_op():
    own = case_of("grounding")
    other = own.against(grounding_peers.max_loss)
    assert other.inputs is own.inputs
    assert own.against(grounding_peers.max_loss) is other
