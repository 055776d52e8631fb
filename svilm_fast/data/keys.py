"""Keys of samples."""

from __future__ import annotations

import hashlib


def sample_key(sample_id: str) -> int:
    """A stable non-negative 63-bit number for a sample's name; seeds everything random about it."""
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
