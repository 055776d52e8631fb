"""The attention backends: what each needs, and which one is taken."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding

ENVIRONMENT_VARIABLE = "SVILM_ATTENTION"
# flash-attn needs fp16 or bf16 on an Ampere or newer GPU and head widths up to 256.
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)
FLASH_HEAD_DIM = 256

_log = logging.getLogger(__name__)


class AttentionUnavailableError(ValueError):
    """The attention backend that was asked for cannot run here: a setting to change."""


@dataclass(frozen=True)
class AttentionRequest:
    """What a backend must be able to compute."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    padded: bool


class AttentionFunction(Protocol):
    """Softmax attention over [b, L, H, d] tensors, scaled by d^-1/2."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: KeyPadding | None,
        query_padding: KeyPadding | None,
        causal: bool = False,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """A named way to compute attention; `probe` says whether it serves a request, and why not."""

    name: str
    probe: Callable[[AttentionRequest], tuple[bool, str]]
    load: Callable[[], AttentionFunction]


def _always(reason: str) -> Callable[[AttentionRequest], tuple[bool, str]]:
    def probe(request: AttentionRequest) -> tuple[bool, str]:
        return True, reason

    return probe


def _probe_flash_attn(request: AttentionRequest) -> tuple[bool, str]:
    installed, reason = _importable("flash_attn", "pip install 'svilm-fast[flash]'")
    return (installed, reason) if not installed else _probe_gpu_kernel(request)


def _probe_xformers(request: AttentionRequest) -> tuple[bool, str]:
    installed, reason = _importable("xformers.ops", "pip install 'svilm-fast[xformers]'")
    return (installed, reason) if not installed else _probe_gpu_kernel(request)


@functools.cache
def _importable(module: str, install: str) -> tuple[bool, str]:
    """Imports for real: a build for another torch or CUDA is found but does not load."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == package:
            return False, f"{package} is not installed; install it with: {install}"
        return False, f"{package} is installed but needs {missing}; reinstall it with: {install}"
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        return False, f"{package} does not load ({first_line}); reinstall it with: {install}"
    return True, f"{package} is installed"


def _probe_gpu_kernel(request: AttentionRequest) -> tuple[bool, str]:
    if request.device.type != "cuda":
        return False, f"it runs on CUDA only, the tensors are on {request.device.type}"
    capability = torch.cuda.get_device_capability(request.device)
    if capability < FLASH_CAPABILITY:
        return (
            False,
            f"it needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}",
        )
    if request.dtype not in FLASH_DTYPES:
        return False, f"it needs bf16 or fp16, the tensors are {_name(request.dtype)}"
    if request.head_dim > FLASH_HEAD_DIM or request.head_dim % 8:
        return False, (
            f"it needs a head width that is a multiple of 8 up to {FLASH_HEAD_DIM}, "
            f"got {request.head_dim}"
        )
    return True, "a GPU kernel for this dtype and head width"


def _load_sdpa() -> AttentionFunction:
    from svilm_fast.models.attention.sdpa import sdpa_attention

    return sdpa_attention


def _load_reference() -> AttentionFunction:
    from svilm_fast.models.attention.reference import reference_attention

    return reference_attention


def _load_flash_attn() -> AttentionFunction:
    from svilm_fast.models.attention.flash import flash_attention

    return flash_attention


def _load_xformers() -> AttentionFunction:
    from svilm_fast.models.attention.xformers import xformers_attention

    return xformers_attention


_BACKENDS = {
    "sdpa": Backend("sdpa", _always("built into PyTorch"), _load_sdpa),
    "flash_attn": Backend("flash_attn", _probe_flash_attn, _load_flash_attn),
    "xformers": Backend("xformers", _probe_xformers, _load_xformers),
    "reference": Backend("reference", _always("plain PyTorch, slow"), _load_reference),
}
# Dense sequences: PyTorch's own kernel is as fast as any and has no extra dependency. Padded ones:
# a kernel of variable length skips the padding, which SDPA with a mask computes.
_ORDER_DENSE = ("sdpa",)
_ORDER_PADDED = ("flash_attn", "xformers", "sdpa")


def backend_names() -> tuple[str, ...]:
    """Names that the setting `model.attention` accepts."""
    return ("auto", *_BACKENDS)


def load_backend(name: str) -> AttentionFunction:
    """The attention function of a backend that was chosen before."""
    return _BACKENDS[name].load()


def availability(request: AttentionRequest) -> dict[str, tuple[bool, str]]:
    """For every backend, whether it can serve the request and why (not)."""
    return {name: backend.probe(request) for name, backend in _BACKENDS.items()}


def choose_backend(request: AttentionRequest, choice: str = "auto") -> Backend:
    """Takes the named backend, or the best available one for `auto`, and logs the choice once.

    The environment variable SVILM_ATTENTION, when set, wins over `choice`. Raises ValueError on an
    unknown name and AttentionUnavailableError when a named backend cannot run.
    """
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    where = (
        f"{ENVIRONMENT_VARIABLE}={from_environment}"
        if from_environment
        else f"model.attention={choice}"
    )
    return _choose(request, from_environment or choice, where)


@functools.lru_cache(maxsize=256)
def _choose(request: AttentionRequest, choice: str, where: str) -> Backend:
    if choice == "auto":
        return _choose_automatically(request, where)
    if choice not in _BACKENDS:
        raise ValueError(
            f"unknown attention backend in {where}: use one of {', '.join(backend_names())}"
        )
    usable, reason = _BACKENDS[choice].probe(request)
    if not usable:
        raise AttentionUnavailableError(
            f"{where} cannot be used: {reason}. model.attention=auto takes what is available."
        )
    _log.info("attention: %s (%s)", choice, where)
    return _BACKENDS[choice]


def _choose_automatically(request: AttentionRequest, where: str) -> Backend:
    passed_over: list[str] = []
    for name in _ORDER_PADDED if request.padded else _ORDER_DENSE:
        usable, reason = _BACKENDS[name].probe(request)
        if usable:
            detail = f"; passed over {'; '.join(passed_over)}" if passed_over else ""
            _log.info(
                "attention: %s for %s sequences of %s on %s (%s, %s%s)",
                name,
                "padded" if request.padded else "dense",
                _name(request.dtype),
                request.device.type,
                where,
                reason,
                detail,
            )
            return _BACKENDS[name]
        passed_over.append(f"{name}: {reason}")
    raise AttentionUnavailableError(f"no attention backend can run: {'; '.join(passed_over)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
