"""What the headers of packets must tell before groups of pictures may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

START_CODE = b"\0\0\1"
# Hostile files have packets of nothing but headers: no time limit holds while these are read.
MOST_UNITS = 512
HEADER_BYTES = 1 << 16


def check_units(count: int) -> None:
    """Raise NotSeparable for a packet of more units than any frame has."""
    if count > MOST_UNITS:
        raise NotSeparable("a packet of too many parts")


class NotSeparable(Exception):
    """The stream has to be decoded from its first frame; the message is the reason."""


class Syntax(Protocol):
    """The headers of one codec. Packets are given as bytes, in decoding order, each once."""

    # Leading frames (shown before an entry point, decoded after it) refer to frames before it.
    leading_refer_back: bool

    def entry(self, data: bytes) -> bool:
        """Read the next packet; True where decoding may begin with it. Flags are not trusted."""
        ...

    def ordinary(self, data: memoryview) -> bool:
        """Whether the next packet is obviously no entry point and changes nothing: not read."""
        ...

    def disposable(self, group: Sequence[bytes]) -> list[bool] | None:
        """Which packets of a group are nothing but a frame that no other refers to.

        The group begins with an entry point. None: frames of it are lost.
        """
        ...

    def output_order(self) -> list[int] | None:
        """The order in which the packets read give their frames; None: that of their times."""
        ...

    def complete(self, data: bytes) -> bool:
        """Whether the packet holds a whole frame, not one field of two."""
        ...


class ParameterSets:
    """Parameter sets must stay the same from the first packet on: groups are left out."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, ...]] | None = None

    def check(self, found: dict[int, tuple[bytes, ...]]) -> None:
        """Compare the sets of one packet, {kind: contents}, with those of the first packet."""
        if self._known is None:
            self._known = found
        elif any(self._known.get(kind) != sets for kind, sets in found.items()):
            raise NotSeparable("the parameter sets change")


class SequenceEnd:
    """What follows the end of a sequence depends on what the decoder still holds."""

    def __init__(self) -> None:
        self._ended = False

    def check(self, ends: bool) -> None:
        """`ends`: the next packet closes its sequence."""
        if self._ended:
            raise NotSeparable("the stream ends and begins again")
        self._ended = ends
