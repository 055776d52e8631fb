"""Recognises exceptions of torch.distributed that another rank caused, and where they came from."""

from __future__ import annotations

import traceback

import torch.distributed as dist

from svilm_fast.kernels import collectives


def is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because another rank ended or did not respond.

    gloo raises a plain RuntimeError, recognisable only by the source file in its message.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo/" in str(error)


def failure_of(error: BaseException) -> str | None:
    """Return the message of a collective that failed before its timeout; None at the timeout."""
    text = str(error).strip() or type(error).__name__
    timed_out = any(words in text.lower() for words in ("timed out", "timeout"))
    return None if timed_out else text.splitlines()[0]


def place_of(error: BaseException) -> str:
    """Return the collective that raised an error and its caller: `all_reduce (Engine.step)`."""
    operation, caller = "a collective", ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module.startswith("svilm_fast.") and module != collectives.__name__:
            caller = frame.f_code.co_qualname
        elif module.startswith("torch.distributed.") and hasattr(dist, function):
            operation = function
    return f"{operation} ({caller})" if caller else operation
