"""The peers that the op folders register."""

from __future__ import annotations

from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import ops


def peers(op: str) -> dict[str, Provider]:
    """The peers of one op by name, including those that need a GPU."""
    return {**ops()[op].peers, **ops()[op].gpu_peers}


def is_peer(provider: str) -> bool:
    """Whether any op registers a peer of this name; otherwise it is one of our own paths."""
    return any(provider in peers(op) for op in ops())
