"""The options of a grounding call."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.kernels.checks import checked_workspace

from .fused.layout import DEFAULT_WORKSPACE_BYTES
from .reference import CHUNK_ELEMENTS

# Softmax, products and their gradients take about four float32 numbers per dot product.
_REFERENCE_BYTES_PER_DOT = 16


@dataclass(frozen=True)
class GroundingOptions:
    """The arguments of `api.grounding_loss` with the same names."""

    workspace_bytes: int | None = None
    backend: str | None = None

    @classmethod
    def checked(cls, op: str, workspace_bytes: int | None, backend: str | None) -> GroundingOptions:
        """Options; a TypeError or ValueError if the workspace is not a positive whole number."""
        return cls(checked_workspace(op, workspace_bytes), backend)

    @property
    def fused_workspace(self) -> int:
        """Bytes of temporary memory of the fused backward."""
        return self.workspace_bytes or DEFAULT_WORKSPACE_BYTES

    @property
    def chunk_elements(self) -> int:
        """Dot products that the reference holds at once."""
        if self.workspace_bytes is None:
            return CHUNK_ELEMENTS
        return max(1, self.workspace_bytes // _REFERENCE_BYTES_PER_DOT)
