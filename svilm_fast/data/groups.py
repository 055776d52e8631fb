"""Decoding by groups of pictures: of a stream's packets, only what the wanted frames need.

The frames are those that decoding everything gives, bit for bit. Where headers do not prove that,
`Groups` raises NotSeparable with the reason, and the caller decodes everything; where the decoder
gives something unexpected, `chosen` raises it too. Frames are found by their times, no frame is
decoded twice, and frames that no other frame refers to are left out unless they are wanted.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from svilm_fast.data.bitstreams import NotSeparable, syntax_of


class Groups:
    """Where the decoding of a stream may begin, and what a frame needs.

    Args:
        packets: of one stream, in decoding order, all of them.
        context: the decoder of the stream, not yet used.
        settled: the container cannot change the decoder's settings between packets.

    Raises NotSeparable.
    """

    def __init__(self, packets: Sequence[Any], context: Any, *, settled: bool = False) -> None:
        self.packets = packets
        self._syntax = syntax_of(context.name, context.extradata)
        if not hasattr(context, "reorder_depth"):
            raise NotSeparable("this version of PyAV: a newer one is needed (18.1 is known to do)")
        self.reorder_depth: int = context.reorder_depth
        times = [packet.pts for packet in packets]
        if None in times:
            raise NotSeparable("packets without times")
        if any(packet.is_corrupt for packet in packets):
            raise NotSeparable("a packet is damaged")
        self.pts = np.array(times, dtype=np.int64)
        self._order = np.argsort(self.pts, kind="stable")
        self._ascending = self.pts[self._order]
        if not (np.diff(self._ascending) > 0).all():
            raise NotSeparable("several frames with the same time")
        # A decoder that holds back too few frames drops those that come too late.
        ranks = np.empty(len(times), dtype=np.int64)
        ranks[self._order] = np.arange(len(times))
        if (np.arange(len(times)) - ranks).max() > self.reorder_depth:
            raise NotSeparable("more reordering than the header states")
        ordinary, entry = self._syntax.ordinary, self._syntax.entry
        self.entries = [
            number
            for number, packet in enumerate(packets)
            if (not number or not ordinary(memoryview(packet))) and entry(bytes(packet))
        ]
        if not settled and any(packet.has_sidedata("new_extradata") for packet in packets):
            raise NotSeparable("the decoder's settings change")
        order = self._syntax.output_order()
        if order is not None and not (np.diff(self.pts[order]) > 0).all():
            raise NotSeparable("frames do not come in the order of their times")
        self._bounds = [0, *self.entries, len(packets)]
        self._disposable: dict[int, list[bool] | None] = {}

    def packet_at(self, pts: int) -> int:
        """The number of the packet with this time."""
        return int(self._order[np.searchsorted(self._ascending, pts)])

    def begin(self, number: int) -> int:
        """Where to begin for the frame of a packet: an entry point, or 0."""
        place = bisect.bisect_right(self.entries, number) - 1
        if place < 0:
            return 0
        if self._syntax.leading_refer_back and self.pts[number] < self.pts[self.entries[place]]:
            place -= 1
        return self.entries[place] if place >= 0 else 0

    def disposable(self, number: int) -> bool:
        """Whether decoding without the packet changes no other frame."""
        first, known = self._group(number)
        return known is not None and known[number - first]

    def continuous(self, number: int) -> bool:
        """Whether nothing is lost of the packet's group."""
        return self._group(number)[1] is not None

    def _group(self, number: int) -> tuple[int, list[bool] | None]:
        """The first packet of a packet's group, and what is disposable of the group."""
        place = bisect.bisect_right(self.entries, number)
        first, end = self._bounds[place], self._bounds[place + 1]
        if place not in self._disposable:
            group = [bytes(packet) for packet in self.packets[first:end]]
            self._disposable[place] = self._syntax.disposable(group)
        return first, self._disposable[place]

    def complete(self, number: int) -> bool:
        """Whether the packet holds its frame entirely."""
        return self._syntax.complete(bytes(self.packets[number]))


def chosen(
    groups: Groups,
    context: Any,
    choose: Callable[[Any], Sequence[int]],
    check: Callable[[Any], None],
) -> Iterator[Any]:
    """Decode and yield the wanted frames, in ascending order of time.

    Args:
        groups: of the stream.
        context: its decoder, not yet used.
        choose: gets the first frame that decoding everything gives; returns the times of the
            wanted frames, ascending, without repeats.
        check: gets every decoded frame, and may raise.

    Raises NotSeparable where a frame is damaged, missing or out of order.
    """
    decoding = _Decoding(groups, context, check)
    while not decoding.out:
        if not decoding.feed():
            raise NotSeparable("no frame can be decoded")
    wanted = list(choose(decoding.out[0]))
    numbers = [groups.packet_at(pts) for pts in wanted]
    needed = set(numbers)
    begins = [groups.begin(number) for number in numbers]
    if not all(groups.complete(number) for number in numbers):
        raise NotSeparable("fields in packets of their own")
    if not all(begin == 0 or groups.continuous(number) for begin, number in zip(begins, numbers)):
        raise NotSeparable("frames are lost")
    for place, (pts, number) in enumerate(zip(wanted, numbers)):
        decoding.begin(begins[place])
        following = begins[place + 1] if place + 1 < len(begins) else len(groups.packets)
        while not decoding.holds(pts):
            # Where nothing more is needed, only what the decoder holds back is taken.
            over = number < decoding.fed <= following
            if over or not decoding.feed(needed):
                decoding.drain()
                if not decoding.holds(pts):
                    raise NotSeparable("a frame is missing in its group")
        yield decoding.out[0]


class _Decoding:
    """The decoder on its way through the packets."""

    def __init__(self, groups: Groups, context: Any, check: Callable[[Any], None]) -> None:
        from av.error import InvalidDataError

        self.groups, self.context, self._check = groups, context, check
        self._damage = InvalidDataError
        self._start = 0  # the packet at which the decoder began
        self.fed = 0  # the next packet
        self.drained = False
        self.out: list[Any] = []  # frames that were decoded and may be wanted
        self._latest: int | None = None  # time of the last frame since the decoder began

    def feed(self, needed: set[int] | None = None) -> bool:
        """Decode the next packet; False where there is none, with everything drained.

        Frames of packets that are not `needed` are left out where no other refers to them.
        """
        if self.drained:
            return False
        if self.fed == len(self.groups.packets):
            self.drain()
            return bool(self.out)
        number, self.fed = self.fed, self.fed + 1
        if needed is not None and number not in needed and self.groups.disposable(number):
            return True
        self._decode(self.groups.packets[number])
        return True

    def drain(self) -> None:
        """Take the frames that the decoder holds back; more follows only after `begin`."""
        if not self.drained:
            self.drained = True
            self._decode(None)

    def begin(self, number: int) -> None:
        """Go on at an entry point, or where decoding is if that lies behind it."""
        if number < self._start:
            raise NotSeparable("groups that overlap in time")
        if number > self.fed or (number == self.fed and self.drained):
            self.context.flush_buffers()
            # Flushing may reset it; too little would drop frames.
            if self.context.reorder_depth < self.groups.reorder_depth:
                self.context.reorder_depth = self.groups.reorder_depth
            self._start = self.fed = number
            self.drained, self._latest = False, None
            self.out = []

    def holds(self, pts: int) -> bool:
        """Whether the frame of this time is there; NotSeparable where only a later one is."""
        self.out = [frame for frame in self.out if frame.pts >= pts]
        if self.out and self.out[0].pts > pts:
            raise NotSeparable("a frame is missing in its group")
        return bool(self.out)

    def _decode(self, packet: Any) -> None:
        try:
            frames = self.context.decode(packet)
        except self._damage:
            raise NotSeparable("a packet cannot be decoded") from None
        for frame in frames:
            self._check(frame)
            if frame.is_corrupt:
                raise NotSeparable("a frame is damaged")
            if frame.pts is None or (self._latest is not None and frame.pts <= self._latest):
                raise NotSeparable("frames do not come in the order of their times")
            self._latest = frame.pts
            self.out.append(frame)
