"""Attention through one function and several backends."""

from svilm_fast.models.attention.backends import (
    AttentionRequest,
    AttentionUnavailableError,
    Backend,
    availability,
    backend_names,
    choose_backend,
)
from svilm_fast.models.attention.dispatch import attend
from svilm_fast.models.attention.padding import KeyPadding

__all__ = [
    "AttentionRequest",
    "AttentionUnavailableError",
    "Backend",
    "KeyPadding",
    "attend",
    "availability",
    "backend_names",
    "choose_backend",
]
