"""What a call of the op says besides its tensors and scalars."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.kernels.checks import checked_workspace

from .fused.layout import DEFAULT_WORKSPACE_BYTES
from .reference import CHUNK_ELEMENTS

# Softmax, products and their gradients hold about four float32 numbers for each dot product.
_REFERENCE_BYTES_PER_DOT = 16


@dataclass(frozen=True)
class GroundingOptions:
    """Attributes as the arguments of `api.grounding_loss`."""

    workspace_bytes: int | None = None
    backend: str | None = None

    @classmethod
    def checked(cls, op: str, workspace_bytes: int | None, backend: str | None) -> GroundingOptions:
        """Raise TypeError or ValueError for a workspace that is no positive whole number."""
        return cls(checked_workspace(op, workspace_bytes), backend)

    @property
    def fused_workspace(self) -> int:
        """Bytes that the fused backward may take."""
        return self.workspace_bytes or DEFAULT_WORKSPACE_BYTES

    @property
    def chunk_elements(self) -> int:
        """Dot products that the reference may hold at once."""
        if self.workspace_bytes is None:
            return CHUNK_ELEMENTS
        return max(1, self.workspace_bytes // _REFERENCE_BYTES_PER_DOT)
