"""H.264 and HEVC: entry points and disposable frames, from the headers of NAL units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from svilm_fast.core.text import counted
from svilm_fast.data.bitstreams.base import (
    START_CODE,
    NotSeparable,
    ParameterSets,
    SequenceEnd,
    check_units,
)


class _Nals(ABC):
    """Packets of NAL units: with a length before each one, or with start codes (Annex B)."""

    parameter_kinds: frozenset[int]
    leading_refer_back = False

    def __init__(self, extradata: bytes, length_at: int, least: int) -> None:
        stored = len(extradata) >= least and extradata[0] == 1
        self.length_size = (extradata[length_at] & 3) + 1 if stored else 0
        self.sets = ParameterSets()

    @abstractmethod
    def kind(self, first: int) -> int:
        """The type of the NAL unit whose first byte is given."""

    @abstractmethod
    def is_picture(self, kind: int) -> bool:
        """Whether this type of NAL unit holds samples."""

    def units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Start and end of every NAL unit in the packet."""
        size, end, count = self.length_size, len(data), 0
        if size:
            at = 0
            while at + size < end:
                count += 1
                check_units(count)
                start = at + size
                at = start + int.from_bytes(data[at:start], "big")
                if at > end:
                    raise NotSeparable("a packet is damaged")
                if at > start:
                    yield start, at
            return
        at = data.find(START_CODE)
        while at >= 0:
            count += 1
            check_units(count)
            start = at + 3
            at = data.find(START_CODE, start)
            if start < end:
                yield start, at if at >= 0 else end

    def before_picture(self, data: bytes) -> tuple[int, int]:
        """Read what stands before the first slice; its place and kind, (-1, -1) without one."""
        found: dict[int, tuple[bytes, ...]] = {}
        place = kind = -1
        for start, end in self.units(data):
            unit = self.kind(data[start])
            if self.is_picture(unit):
                place, kind = start, unit
                break
            if unit in self.parameter_kinds:
                content = data[start:end].rstrip(b"\0")
                found[unit] = (*found.get(unit, ()), content)
            else:
                self.message(data, start, end, unit)
        self.sets.check(found)
        return place, kind

    def ordinary(self, data: memoryview) -> bool:
        return False

    def output_order(self) -> list[int] | None:
        return None

    def complete(self, data: bytes) -> bool:
        return True

    def message(  # noqa: B027 (most codecs have nothing to look at)
        self, data: bytes, start: int, end: int, kind: int
    ) -> None:
        """Look at a NAL unit that is neither a slice nor a parameter set."""


def _refuse_film_grain(messages: bytes) -> None:
    """Raise NotSeparable for film grain among the messages of an SEI, given without NAL header.

    A payload's type and size are sums of bytes that end with the first below 255 (7.3.2.3).
    """
    data = messages.replace(b"\0\0\3", b"\0\0")  # emulation prevention
    at = count = 0
    while at + 1 < len(data):  # the last byte ends the unit
        numbers = [0, 0]
        for place in range(2):
            more = True
            while more and at < len(data):
                numbers[place] += data[at]
                more = data[at] == 255
                at += 1
                count += 1
                check_units(count)
        payload, size = numbers
        # Synthetic grain depends on picture order counts and on messages of earlier groups.
        if payload == 19:
            raise NotSeparable("film grain")
        at += size


class H264(_Nals):
    """ITU-T H.264: entry points are IDR pictures, after which nothing earlier is referred to.

    Other I pictures with a recovery point (open groups, intra refresh) are no entry points: what
    comes after them may refer to earlier pictures.
    """

    parameter_kinds = frozenset((7, 8, 13, 15))  # SPS, PPS, SPS extension, subset SPS
    _PICTURES = frozenset((1, 2, 3, 4, 5, 20, 21))  # slices, data partitions, extensions
    _HARMLESS = frozenset((6, 9, 12, 14))  # SEI, delimiter, filler, prefix

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata, 4, 7)
        self._sps: SequenceParameters | None = None
        if self.length_size:
            size = int.from_bytes(extradata[6:8], "big")
            if extradata[5] & 31:
                self._read_sps(extradata[8 : 8 + size])

    def _read_sps(self, sps: bytes) -> None:
        self._sps = read_sps(sps)
        if not self._sps.frames_only:
            raise NotSeparable("interlaced H.264")  # a packet may hold one field of two

    def kind(self, first: int) -> int:
        return first & 31

    def is_picture(self, kind: int) -> bool:
        return kind in self._PICTURES

    def message(self, data: bytes, start: int, end: int, kind: int) -> None:
        if kind == 6:
            _refuse_film_grain(data[start + 1 : end])

    def entry(self, data: bytes) -> bool:
        first = self.sets._known is None
        place, kind = self.before_picture(data)
        if first:
            for start, end in self.units(data):
                if data[start] & 31 == 7:
                    self._read_sps(data[start:end])
        if kind == 5 and self._sps is None:
            raise NotSeparable("no parameter set before the first key frame")
        return kind == 5 and data[place] >> 5 & 3 > 0

    def ordinary(self, data: memoryview) -> bool:
        size = self.length_size
        return size > 0 and len(data) > size and data[size] & 31 == 1

    def disposable(self, group: Sequence[bytes]) -> list[bool] | None:
        """Lost frames show by frame_num, which grows by one from reference frame to the next
        (7.4.3). The stand-in for one may depend on all that was decoded before, in any group.
        """
        result = []
        previous: int | None = None
        for data in group:
            only_slices, number, reference = self._slices(data)
            if number is not None and previous is not None:
                assert self._sps is not None
                if number != (previous + 1) % (1 << self._sps.frame_number_bits):
                    return None
            if reference:
                previous = number
            result.append(only_slices and not reference)
        return result

    def _slices(self, data: bytes) -> tuple[bool, int | None, bool]:
        """Whether it is one frame and nothing else, its frame_num, and if others refer to it."""
        size = self.length_size
        if size and len(data) > size and size + int.from_bytes(data[:size], "big") == len(data):
            first = data[size]
            if first & 31 in (1, 5):  # one slice and nothing else, the usual packet
                return True, self._frame_number(data[size + 1 : size + 24]), bool(first & 0x60)
        alone, number, reference = True, None, False
        for start, end in self.units(data):
            kind = data[start] & 31
            if kind in (1, 5):
                if number is None:  # the first slice speaks for all
                    number = self._frame_number(data[start + 1 : min(end, start + 24)])
                reference = reference or bool(data[start] & 0x60)  # nal_ref_idc
            elif kind not in self._HARMLESS:
                alone = False
        return alone and number is not None, number, reference

    def _frame_number(self, header: bytes) -> int:
        if self._sps is None:
            raise NotSeparable("no parameter set before the first frame")
        bits = _Bits(header.replace(b"\0\0\3", b"\0\0"))
        bits.exp(), bits.exp(), bits.exp()  # first macroblock, type, picture parameter set
        if self._sps.separate_planes:
            bits.take(2)
        return bits.take(self._sps.frame_number_bits)


class HEVC(_Nals):
    """ITU-T H.265: entry points are IDR and CRA pictures.

    Frames after a CRA picture in both orders refer to nothing before it (8.3.2); its leading
    frames (RASL) refer to frames since the entry point before it at most.
    """

    parameter_kinds = frozenset((32, 33, 34))  # VPS, SPS, PPS
    leading_refer_back = True

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata, 21, 23)
        self._end = SequenceEnd()
        self._layers: set[int] = set()  # nuh_temporal_id_plus1 of the pictures

    def kind(self, first: int) -> int:
        return first >> 1 & 63

    def is_picture(self, kind: int) -> bool:
        return kind < 32

    def message(self, data: bytes, start: int, end: int, kind: int) -> None:
        if kind == 39:
            _refuse_film_grain(data[start + 2 : end])

    def entry(self, data: bytes) -> bool:
        tail = data[-8:].rstrip(b"\0")
        prefix = (2).to_bytes(self.length_size, "big") if self.length_size else START_CODE
        self._end.check(tail.endswith((prefix + b"\x48\1", prefix + b"\x4a\1")))
        place, kind = self.before_picture(data)
        if place < 0 or place + 2 >= len(data):
            return False
        if (data[place] & 1) << 5 | data[place + 1] >> 3:
            raise NotSeparable("several layers")
        self._layers.add(data[place + 1] & 7)
        if kind in (19, 20, 21):
            # Frames that are waiting may be thrown away here.
            if data[place + 2] & 0x40:  # no_output_of_prior_pics_flag
                raise NotSeparable("a key frame discards frames")
            return bool(data[place + 2] & 0x80)  # first_slice_segment_in_pic_flag
        if 16 <= kind <= 23:
            raise NotSeparable("spliced HEVC (BLA pictures)")
        return False

    def disposable(self, group: Sequence[bytes]) -> list[bool] | None:
        """Lost frames do not matter: every picture names those that it needs."""
        return [self._is_unreferenced(data) for data in group]

    def _is_unreferenced(self, data: bytes) -> bool:
        slices = 0
        for start, _ in self.units(data):
            kind = data[start] >> 1 & 63
            # Sub-layer non-reference pictures; higher temporal layers might refer to them.
            if kind < 16 and not kind & 1 and (data[start + 1] & 7) == max(self._layers):
                slices += 1
            elif kind not in (35, 38, 39, 40):  # delimiter, filler, SEI
                return False
        return slices > 0


@dataclass(frozen=True)
class SequenceParameters:
    """What is read of an H.264 sequence parameter set."""

    frame_number_bits: int
    separate_planes: bool
    frames_only: bool  # no fields and no macroblock pairs


def read_sps(sps: bytes) -> SequenceParameters:
    """Read a sequence parameter set, given with its NAL header (7.3.2.1.1)."""
    bits = _Bits(sps[1:1024].replace(b"\0\0\3", b"\0\0"))  # emulation prevention
    profile = bits.take(8)
    bits.take(16)
    bits.exp()
    separate = False
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.exp()
        if chroma == 3:
            separate = bool(bits.take(1))
        bits.exp(), bits.exp(), bits.take(1)  # bit depths, transform bypass
        if bits.take(1):
            for number in range(8 if chroma != 3 else 12):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    number_bits = bits.exp() + 4
    order = bits.exp()
    if order == 0:
        bits.exp()
    elif order == 1:
        bits.take(1), bits.exp(), bits.exp()
        for _ in range(min(bits.exp(), 255)):
            bits.exp()
    bits.exp(), bits.take(1), bits.exp(), bits.exp()  # references, gaps, width, height
    return SequenceParameters(number_bits, separate, bool(bits.take(1)))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.exp()
            delta = (code + 1) // 2 if code & 1 else -(code // 2)
            following = (last + delta) % 256
        last = following or last


class _Bits:
    """Reads bits and Exp-Golomb codes."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise NotSeparable(f"a parameter set lacks {counted(count - self._left, 'bit')}")
        self._left -= count
        return self._bits >> self._left & (1 << count) - 1

    def exp(self) -> int:
        rest = self._bits & (1 << self._left) - 1
        zeros = self._left - rest.bit_length()
        if zeros > 32:
            raise NotSeparable("a parameter set is damaged")
        return self.take(2 * zeros + 1) - 1  # the leading zeros add nothing
