"""What the ops are measured against: the peers that their folders register."""

from __future__ import annotations

from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import ops


def peers(op: str) -> dict[str, Provider]:
    """The peers of one op by name, with those that need a GPU."""
    return {**ops()[op].peers, **ops()[op].gpu_peers}


def is_peer(provider: str) -> bool:
    """Whether any op registers a peer of this name, which is then none of this project's paths."""
    return any(provider in peers(op) for op in ops())
