"""Checks of tensors and numbers that the ops share."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

# The dtypes that the ops support. PyTorch's 8-bit floating types have no matrix products.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Within these bounds, the reciprocal and the quotient of a logit are finite in fp32.
SMALLEST_DIVISOR = 2.0**-64
LARGEST_DIVISOR = 2.0**64


def checked_workspace(op: str, workspace_bytes: int | None) -> int | None:
    """The bound of the temporary memory as an int, or None.

    Raises:
        TypeError: not a whole number.
        ValueError: zero or negative.
    """
    if workspace_bytes is None:
        return None
    found = whole_number(op, "workspace_bytes", workspace_bytes)
    if found <= 0:
        raise ValueError(f"{op}: workspace_bytes must be positive, got {found}")
    return found


def check_tensors(op: str, **values: Tensor | None) -> None:
    """Raise a TypeError for a value that is not a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {value!r:.80}")


def check_shape(
    op: str, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None
) -> None:
    """Raise a ValueError for a tensor of another shape or dtype (None: any dtype)."""
    check_tensors(op, **{name: tensor})
    if list(tensor.shape) != list(shape) or (dtype is not None and tensor.dtype != dtype):
        kind = "" if dtype is None else f"{dtype} "
        raise ValueError(
            f"{op}: {name} must be {kind}{list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )


def check_rows(op: str, name: str, tensor: Tensor, axes: str) -> None:
    """Raise a ValueError unless the tensor is floating, has three axes and a width above 0."""
    check_tensors(op, **{name: tensor})
    if tensor.dim() != 3 or tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} must be floating {axes}, got {tensor.dtype} {list(tensor.shape)}"
        )
    check_width(op, **{name: tensor})


def check_width(op: str, **tensors: Tensor) -> None:
    """Raise a ValueError for rows of width 0."""
    for name, tensor in tensors.items():
        if tensor.shape[-1] == 0:
            raise ValueError(f"{op}: {name} must have a width above 0, got {list(tensor.shape)}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32."""
    # Not any(): a generator costs as much as a small operator.
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def whole_number(op: str, name: str, value: int) -> int:
    """The int of an integer or another object with `__index__`; a TypeError for other types."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # A tensor has `__index__` too, but reading its value would synchronise.
    if not isinstance(value, bool | Tensor):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{op}: {name} must be a whole number, got {value!r}")


def check_scalar(op: str, name: str, value: Tensor | float) -> None:
    """Check a number or 0-dim float tensor.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: another tensor, or a number too large for a float.
    """
    if not isinstance(value, Tensor):
        real_number(op, name, value)
    elif value.dim() or not value.is_floating_point():
        raise ValueError(
            f"{op}: {name} must be a number or a 0-dim float tensor, "
            f"got {value.dtype} {list(value.shape)}"
        )


def as_scalar(op: str, name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a 0-dim tensor on the device of `like`, in its compute dtype; tensors unchanged.

    Raises like `check_scalar`.
    """
    check_scalar(op, name, value)
    if isinstance(value, Tensor):
        return value
    # Not as_tensor: its copy from the host would synchronise.
    return torch.full((), float(value), dtype=compute_dtype(like), device=like.device)


def real_number(op: str, name: str, value: float) -> float:
    """A real number of Python or NumPy, but not a bool, as a float.

    Raises:
        TypeError: another type.
        ValueError: an integer too large for a float.
    """
    if isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number or a 0-dim float tensor, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} must be a number below 1e308") from None


def checked_divisor(op: str, name: str, value: float) -> float:
    """A positive divisor, such as a temperature, as a float.

    Raises:
        TypeError: not a real number of Python or NumPy, or a bool.
        ValueError: not within [2^-64, 2^64].
    """
    if isinstance(value, bool) or not isinstance(value, float | numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not SMALLEST_DIVISOR <= value <= LARGEST_DIVISOR:
        raise ValueError(f"{op}: {name} must be positive and within [2^-64, 2^64], got {value}")
    return float(value)
