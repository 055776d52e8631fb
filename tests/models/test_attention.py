"""Attention backends: numerics, choice, clear refusals, exact calls of foreign packages."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import types

import pytest
import torch
from torch import Tensor

from svilm_fast.models.attention import (
    AttentionRequest,
    AttentionUnavailableError,
    KeyPadding,
    attend,
    availability,
    backend_names,
    backends,
    choose_backend,
)
from svilm_fast.models.attention.flash import flash_attention
from svilm_fast.models.attention.padding import pack, unpack
from svilm_fast.models.attention.reference import reference_attention
from svilm_fast.models.attention.sdpa import sdpa_attention
from svilm_fast.models.attention.xformers import xformers_attention

BATCH, LENGTH, HEADS, HEAD_DIM = 3, 7, 2, 8
MASK = torch.arange(LENGTH) < torch.tensor([7, 2, 5])[:, None]


def _request(device: str = "cpu", padded: bool = False, **changes: object) -> AttentionRequest:
    values = {"dtype": torch.float32, "head_dim": HEAD_DIM} | changes
    return AttentionRequest(torch.device(device), padded=padded, **values)


def _qkv(queries: int = LENGTH, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(BATCH, n, HEADS, HEAD_DIM, dtype=dtype, generator=generator).requires_grad_()
        for n in (queries, LENGTH, LENGTH)
    ]


@pytest.fixture(autouse=True)
def _fresh_choices(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    backends._choose.cache_clear()
    backends._importable.cache_clear()
    yield
    backends._choose.cache_clear()
    backends._importable.cache_clear()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [LENGTH, 4])
def test_sdpa_equals_the_reference_in_values_and_gradients(padded, queries):
    padding = KeyPadding(MASK) if padded else None
    results = []
    for backend in ("sdpa", "reference"):
        qkv = _qkv(queries)
        out = attend(*qkv, padding=padding, backend=backend)
        results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), qkv)])
    for sdpa, reference in zip(*results, strict=True):
        torch.testing.assert_close(sdpa, reference, rtol=0, atol=1e-12)


def test_reference_matches_a_loop_over_queries():
    q, k, v = _qkv()
    out = reference_attention(q, k, v, KeyPadding(MASK), None)
    for sample in range(BATCH):
        real = int(MASK[sample].sum())
        for head in range(HEADS):
            for position in range(LENGTH):
                logits = k[sample, :real, head] @ q[sample, position, head] / HEAD_DIM**0.5
                expected = logits.softmax(0) @ v[sample, :real, head]
                torch.testing.assert_close(out[sample, position, head], expected)


def test_pack_and_unpack_are_inverse_on_real_tokens():
    states = _qkv()[0].detach()
    packed = KeyPadding(MASK).packed
    assert packed.lengths == (7, 2, 5)
    assert packed.longest == 7
    assert packed.cumulative.tolist() == [0, 7, 9, 14]
    assert packed.cumulative.dtype == torch.int32
    laid = pack(states, packed)
    assert torch.equal(laid[7:9], states[1, :2])
    assert torch.equal(unpack(laid, packed, BATCH, LENGTH), states * MASK[..., None, None])


def _packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: list[int],
    k_bounds: list[int],
    causal: bool = False,
):
    parts = []
    for i in range(len(q_bounds) - 1):
        rows, keys = slice(q_bounds[i], q_bounds[i + 1]), slice(k_bounds[i], k_bounds[i + 1])
        parts.append(
            reference_attention(q[None, rows], k[None, keys], v[None, keys], None, None, causal)[0]
        )
    return torch.cat(parts)


@pytest.fixture
def fake_flash_attn(monkeypatch):
    """flash-attn 2.8's two functions, with its parameter names and layouts."""

    def flash_attn_func(
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
    ):
        assert dropout_p == 0.0
        assert softmax_scale is None
        return reference_attention(q, k, v, None, None, causal)

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert q.dim() == 3
        q_bounds, k_bounds = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        assert q_bounds[-1] == len(q)
        assert k_bounds[-1] == len(k) == len(v)
        assert max_seqlen_q == max(b - a for a, b in itertools.pairwise(q_bounds))
        assert max_seqlen_k == max(b - a for a, b in itertools.pairwise(k_bounds))
        return _packed_attention(q, k, v, q_bounds, k_bounds, causal)

    module = types.ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.fixture
def fake_xformers(monkeypatch):
    """xformers 0.0.35's memory_efficient_attention and its masks."""

    class BlockDiagonalMask:
        causal = False

        def __init__(self, q_bounds, k_bounds):
            self.q_bounds, self.k_bounds = q_bounds, k_bounds

        @classmethod
        def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
            def bounds(lengths):
                assert all(isinstance(length, int) for length in lengths)
                return [sum(lengths[:i]) for i in range(len(lengths) + 1)]

            return cls(bounds(q_seqlen), bounds(kv_seqlen or q_seqlen))

    class BlockDiagonalCausalMask(BlockDiagonalMask):
        causal = True

    class LowerTriangularMask:
        pass

    def memory_efficient_attention(
        query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
    ):
        assert p == 0.0
        if attn_bias is None or isinstance(attn_bias, LowerTriangularMask):
            return reference_attention(query, key, value, None, None, attn_bias is not None)
        assert query.shape[0] == key.shape[0] == value.shape[0] == 1
        bounds = attn_bias.q_bounds, attn_bias.k_bounds
        return _packed_attention(query[0], key[0], value[0], *bounds, attn_bias.causal)[None]

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.ops = ops
    ops.memory_efficient_attention = memory_efficient_attention
    ops.LowerTriangularMask = LowerTriangularMask
    ops.fmha = types.SimpleNamespace(
        attn_bias=types.SimpleNamespace(
            BlockDiagonalMask=BlockDiagonalMask, BlockDiagonalCausalMask=BlockDiagonalCausalMask
        )
    )
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("function", [reference_attention, sdpa_attention])
def test_causal_attention_reads_no_later_key(function, padded):
    q, k, v = _qkv()
    mask = MASK.clone()
    mask[:, 0] = True
    padding = KeyPadding(mask) if padded else None
    found = function(q, k, v, padding, padding, True)
    for last in range(1, LENGTH + 1):
        part = None if padding is None else KeyPadding(mask[:, :last])
        alone = reference_attention(q[:, last - 1 : last], k[:, :last], v[:, :last], part, None)
        torch.testing.assert_close(found[:, last - 1 : last], alone)


@pytest.mark.parametrize("function", [flash_attention, xformers_attention])
@pytest.mark.parametrize("padded", ["none", "both"])
def test_causal_calls_of_foreign_kernels(function, padded, fake_flash_attn, fake_xformers):
    q, k, v = _qkv()
    padding = None if padded == "none" else KeyPadding(MASK)
    out = function(q, k, v, padding, padding, True)
    expected = reference_attention(q, k, v, padding, padding, True)
    if padding is not None:
        out, expected = out[MASK], expected[MASK]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("function", [flash_attention, xformers_attention])
@pytest.mark.parametrize("padded", ["none", "keys", "both"])
def test_calls_of_foreign_kernels(function, padded, fake_flash_attn, fake_xformers):
    """Against doubles with the packages' signatures; the packages themselves need a GPU."""
    q, k, v = _qkv()
    padding = None if padded == "none" else KeyPadding(MASK)
    query_padding = KeyPadding(MASK) if padded == "both" else None
    out = function(q, k, v, padding, query_padding)
    expected = reference_attention(q, k, v, padding, query_padding)
    if padded == "both":
        assert not out[~MASK].any()
        out, expected = out[MASK], expected[MASK]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", ["flash_attn", "xformers"])
def test_what_is_not_installed_is_refused_with_the_install_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.ops", None)
    extra = {"flash_attn": "flash", "xformers": "xformers"}[name]
    with pytest.raises(AttentionUnavailableError, match=rf"install.*svilm-fast\[{extra}\]"):
        choose_backend(_request(), name)
    # The command line prints the message of a ValueError alone, as of any other wrong setting.
    assert issubclass(AttentionUnavailableError, ValueError)


def test_a_build_that_does_not_load_is_refused_with_its_reason(monkeypatch):
    def broken(module):
        raise ImportError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    with pytest.raises(AttentionUnavailableError, match=r"does not load \(libcudart.so.12: cannot"):
        choose_backend(_request(), "xformers")


def test_a_gpu_kernel_on_cpu_says_so(fake_flash_attn):
    with pytest.raises(AttentionUnavailableError, match="CUDA only, the tensors are on cpu"):
        choose_backend(_request(), "flash_attn")


def test_dtype_and_head_width_are_checked(fake_flash_attn, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    refusals = {
        "bf16 or fp16": _request("cuda"),
        "multiple of 8": _request("cuda", dtype=torch.bfloat16, head_dim=12),
        "up to 256": _request("cuda", dtype=torch.bfloat16, head_dim=512),
    }
    for reason, request in refusals.items():
        with pytest.raises(AttentionUnavailableError, match=reason):
            choose_backend(request, "flash_attn")
    good = _request("cuda", dtype=torch.bfloat16)
    assert choose_backend(good, "flash_attn").name == "flash_attn"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    backends._choose.cache_clear()
    with pytest.raises(AttentionUnavailableError, match=r"capability 8\.0, this GPU has 7\.5"):
        choose_backend(good, "flash_attn")


def test_auto_takes_a_packing_kernel_for_padded_sequences(fake_flash_attn, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    request = {"device": "cuda", "dtype": torch.bfloat16}
    assert choose_backend(_request(padded=True, **request)).name == "flash_attn"
    assert choose_backend(_request(padded=False, **request)).name == "sdpa"


def test_auto_logs_its_choice_and_its_reasons_once(caplog):
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        for _ in range(3):
            assert choose_backend(_request(padded=True)).name == "sdpa"
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "sdpa for padded sequences of float32 on cpu" in message
    assert "flash_attn: " in message
    assert "xformers: " in message


def test_the_environment_wins_over_the_setting(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    assert choose_backend(_request(), "sdpa").name == "reference"
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "flesh_attn")
    with pytest.raises(ValueError, match=r"SVILM_ATTENTION=flesh_attn: use one of auto, sdpa"):
        choose_backend(_request(), "sdpa")


def test_names_and_availability_agree():
    assert set(backend_names()) == {"auto", *availability(_request())}
    usable = {name for name, (ok, _) in availability(_request()).items() if ok}
    assert usable == {"sdpa", "reference"}


def test_importing_the_models_imports_no_optional_package():
    code = (
        "import sys, svilm_fast.models.dual_encoder; "
        "print([m for m in ('flash_attn', 'xformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_key_mask_must_be_boolean():
    with pytest.raises(ValueError, match=r"bool \[batch, length\]"):
        KeyPadding(torch.ones(2, 3))
