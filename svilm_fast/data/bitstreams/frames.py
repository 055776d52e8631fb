"""MPEG-1, MPEG-2, VP8, VP9 and AV1: entry points, from the headers of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from svilm_fast.data.bitstreams.base import (
    HEADER_BYTES,
    START_CODE,
    NotSeparable,
    ParameterSets,
    SequenceEnd,
    check_units,
)


class MPEG12:
    """MPEG-1 and MPEG-2 video: entry points are I pictures with a sequence header."""

    leading_refer_back = True

    def __init__(self) -> None:
        self._sets = ParameterSets()
        self._end = SequenceEnd()
        self._kinds: list[int] = []  # picture_coding_type of every packet

    def entry(self, data: bytes) -> bool:
        self._end.check(data.find(START_CODE + b"\xb7") >= 0)
        kind, place = self._picture(data)
        self._kinds.append(kind)
        header = data.find(START_CODE + b"\xb3")
        if header < 0 or (place >= 0 and header > place):
            return False
        end = min(
            (at for at in (data.find(START_CODE + b"\xb8", header), place) if at >= 0),
            default=len(data),
        )
        # Extensions and user data stand between; user data (captions) may differ.
        contents = data[header : min(end, header + HEADER_BYTES)].split(START_CODE)
        self._sets.check({0: tuple(part for part in contents if part[:1] in (b"\xb3", b"\xb5"))})
        return kind == 1

    def ordinary(self, data: memoryview) -> bool:
        return False

    def disposable(self, group: Sequence[bytes]) -> list[bool] | None:
        headers = (b"\xb3", b"\xb8", b"\xb7")  # sequence, group of pictures, end
        return [
            self._picture(data)[0] == 3
            and not any(data.find(START_CODE + code) >= 0 for code in headers)
            for data in group
        ]

    def output_order(self) -> list[int] | None:
        """A B picture is given at once, any other one when the next of these comes."""
        order: list[int] = []
        waiting: list[int] = []
        for number, kind in enumerate(self._kinds):
            if kind == 3:
                order.append(number)
            else:
                order += waiting
                waiting = [number]
        return order + waiting

    def complete(self, data: bytes) -> bool:
        """False for a single field; MPEG-1 has no picture coding extension."""
        data = data[:HEADER_BYTES]
        at = data.find(START_CODE + b"\xb5")
        while at >= 0 and at + 6 < len(data):
            if data[at + 4] >> 4 == 8:
                return data[at + 6] & 3 == 3
            at = data.find(START_CODE + b"\xb5", at + 4)
        return True

    def _picture(self, data: bytes) -> tuple[int, int]:
        """picture_coding_type and place of the first picture; (0, -1) without one."""
        at = data.find(START_CODE + b"\0")
        if at < 0 or at + 5 >= len(data):
            return 0, -1
        return data[at + 5] >> 3 & 7, at


class _Plain:
    """Codecs whose frames all change what the decoder remembers: none is left out of a group."""

    leading_refer_back = False

    def ordinary(self, data: memoryview) -> bool:
        return False

    def disposable(self, group: Sequence[bytes]) -> list[bool] | None:
        return [False] * len(group)

    def output_order(self) -> list[int] | None:
        return None

    def complete(self, data: bytes) -> bool:
        return True


class VP8(_Plain):
    """RFC 6386: a key frame replaces all references and probabilities."""

    def entry(self, data: bytes) -> bool:
        return not data[0] & 1 and bool(data[0] & 0x10)  # a key frame that is shown


class VP9(_Plain):
    """VP9 bitstream 6.2: a key frame replaces all references and probabilities."""

    def entry(self, data: bytes) -> bool:
        profile = data[0] >> 5 & 1 | data[0] >> 3 & 2
        bits = int.from_bytes(data[:2].ljust(2, b"\0"), "big") << (5 if profile == 3 else 4)
        exists, inter, shown = bits >> 15 & 1, bits >> 14 & 1, bits >> 13 & 1
        return data[0] >> 6 == 2 and not exists and not inter and bool(shown)


class AV1(_Plain):
    """AV1 5.3: entry points begin with a sequence header and a key frame that is shown."""

    def __init__(self) -> None:
        self._sets = ParameterSets()

    def entry(self, data: bytes) -> bool:
        header = b""
        for kind, start, end in _obus(data):
            if kind == 1:
                header = data[start:end]
                self._sets.check({1: (header,)})
            elif kind in (3, 6):  # frame header, frame
                if end <= start or not header:
                    return False
                if header[0] & 8:  # reduced_still_picture_header: other syntax
                    raise NotSeparable("AV1 still pictures")
                # show_existing_frame 0, frame_type 00, show_frame 1
                return data[start] >> 4 == 1
        return False


def _obus(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of the content of every OBU of a temporal unit."""
    at, end, count = 0, len(data), 0
    while at < end:
        count += 1
        check_units(count)
        head = data[at]
        at += 2 if head & 4 else 1
        size = end - at
        if head & 2:
            size = shift = 0
            while at < end:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        if size < 0 or at + size > end:
            raise NotSeparable("a packet is damaged")
        yield head >> 3 & 15, at, at + size
        at += size
