"""svilm_fast: a fast, exact training core for structured video-language pre-training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svilm_fast.inference.folder import load_pretrained as load_pretrained

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use, because torch takes seconds to import.
    if name == "load_pretrained":
        from svilm_fast.inference.folder import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
