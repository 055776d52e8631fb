"""Chooses between the fused and the reference path of every op and explains the choice."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch

from .device import traits

Backend = Literal["fused", "reference"]
Choice = Literal["auto", "fused", "gluon", "reference"]
_PATHS = ("auto", *get_args(Backend))
MINIMUM_CAPABILITY = (8, 0)
ENVIRONMENT_VARIABLE = "SVILM_KERNELS"

_log = logging.getLogger(__name__)
_said: set[tuple[str, str, str]] = set()
_listening: list[str] | None = None
_chosen_by_hand: Choice | None = None
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton reads this variable when it decorates a kernel, so later changes have no effect.
_INTERPRETED = _HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on")


def interpreted() -> bool:
    """Whether Triton kernels run on the CPU through Triton's interpreter."""
    return _INTERPRETED


def _checked(choice: str, where: str, known: Iterable[str] = get_args(Choice)) -> Choice:
    if choice not in known:
        *others, last = known
        raise ValueError(f"{where} is {choice!r}; expected {', '.join(others)} or {last}")
    return cast(Choice, choice)


def _wish() -> Choice:
    """The choice for the whole process: `use_backend`, else the environment, else `auto`."""
    if _chosen_by_hand is not None:
        return _chosen_by_hand
    return _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def gluon_wanted(device: torch.device) -> bool:
    """Whether Gluon kernels replace plain Triton kernels where an op has them (only on sm_90).

    The setting of the process (`use_backend`, SVILM_KERNELS) chooses between the two kinds of
    kernels, also for a call whose `backend` argument is `fused`.
    """
    return _wish() == "gluon" and traits(device).capability == (9, 0)


@contextmanager
def use_backend(choice: Choice) -> Iterator[None]:
    """Choose the path of every op inside the block; overrides the environment."""
    global _chosen_by_hand
    before, _chosen_by_hand = _chosen_by_hand, _checked(choice, "use_backend's argument")
    try:
        yield
    finally:
        _chosen_by_hand = before


def obstacle(device: torch.device, *, allow_interpreter: bool) -> str | None:
    """The reason why fused kernels cannot run on a device, or None if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if device.type == "cuda":
        if _INTERPRETED:
            return "TRITON_INTERPRET is set; unset it to run on the GPU"
        capability = traits(device).capability
        if torch.version.cuda is None:
            return "this PyTorch is not built for CUDA"
        if capability < MINIMUM_CAPABILITY:
            return f"{traits(device).name} has compute capability {capability}, below (8, 0)"
        return None
    if device.type == "cpu" and _INTERPRETED and allow_interpreter:
        return None
    return f"the tensors are on {device.type!r}, fused kernels need an NVIDIA GPU"


@contextmanager
def reasons() -> Iterator[list[str]]:
    """Collect why the calls inside the block do not run the path that was asked for."""
    global _listening
    before, _listening = _listening, []
    try:
        yield _listening
    finally:
        _listening = before


def say_once(op: str, what: str, reason: str) -> None:
    """Log what an op runs and why, once per process."""
    if _listening is not None and not torch.compiler.is_compiling():
        _listening.append(reason)
    # torch.compile cannot trace a log call.
    if not torch.compiler.is_compiling() and (op, what, reason) not in _said:
        _said.add((op, what, reason))
        _log.info("%s: %s, because %s", op, what, reason)


def choose(
    op: str,
    tensors: Iterable[torch.Tensor | None],
    *,
    backend: str | None = None,
    unsupported: str | None = None,
) -> Backend:
    """Choose the path of one call.

    Args:
        op: name of the op, for messages.
        tensors: the tensors of the call; None entries are skipped.
        backend: `auto`, `fused`, `reference`, or None. It takes precedence over `use_backend`,
            which takes precedence over the environment variable SVILM_KERNELS; the default is
            `auto`. The argument chooses the path only: `gluon`, which is `fused` with Gluon
            kernels where `gluon_wanted`, is a setting of the process and no value of it.
        unsupported: the reason why the kernels of this op do not support the call (a shape, a
            dtype), or None.

    Raises:
        ValueError: tensors on several devices, or an unknown choice.
        RuntimeError: `fused` or `gluon` was requested and cannot run; the message says why. On a
            CPU, `gluon` never runs, not even in Triton's interpreter.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"{op}: all tensors must be on one device, got {names}")
    if backend == "gluon":
        raise ValueError(f"{op}: backend='gluon' is for all ops: set SVILM_KERNELS=gluon")
    choice = _wish() if backend is None else _checked(backend, f"{op}: backend", _PATHS)
    device = devices.pop()
    if choice == "reference":
        return "reference"
    explicit = choice in ("fused", "gluon")
    reason = obstacle(device, allow_interpreter=choice == "fused")
    if choice == "fused" and reason is None and device.type == "cpu" and _wish() == "gluon":
        reason = "SVILM_KERNELS is gluon and Triton's interpreter runs no Gluon kernels; set it to "
        reason += "fused"
    reason = reason or unsupported
    if choice == "gluon" and reason is None and not gluon_wanted(device):
        reason = f"SVILM_KERNELS=gluon needs compute capability (9, 0), {traits(device).name} has "
        reason += f"{traits(device).capability}; use fused"
    if reason is None:
        return "fused"
    if explicit:
        wanted = "Gluon kernels were" if choice == "gluon" else "the fused path was"
        raise RuntimeError(f"{op}: {wanted} requested, but {reason}")
    say_once(op, "reference path", reason)
    return "reference"


def explain() -> str:
    """A table of the path that each op takes on each device of this machine, with the reason."""
    from .registry import ops

    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    rows = [("op", "device", "path", "reason")]
    for name, op in ops().items():
        for device in devices:
            choice = _wish()
            reason = obstacle(device, allow_interpreter=choice == "fused")
            if choice == "gluon" and reason is None and traits(device).capability != (9, 0):
                reason = "Gluon kernels are for compute capability (9, 0)"
            if choice == "reference":
                row = (name, str(device), "reference", "chosen by hand")
            elif reason is None and choice == "gluon":
                row = (name, str(device), "gluon", "plain kernels for calls that Gluon cannot take")
                if not op.has_gluon:
                    row = (name, str(device), "fused", "no Gluon kernels")
            elif reason is None:
                row = (name, str(device), "fused", "")
            else:
                path = "error" if choice in ("fused", "gluon") else "reference"
                row = (name, str(device), path, reason)
            rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
