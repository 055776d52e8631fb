"""The containers and codecs that are decoded; a file's content decides, never its name.

FFmpeg has some 300 demuxers. Among them are playlists, session descriptions and scripts that open
sockets or other files. Only the demuxers below are ever started.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Container:
    """A container format: FFmpeg's demuxer and the file extensions in use for it."""

    demuxer: str
    extensions: tuple[str, ...]
    # The file's header states how long the video is; the others are measured from what is there.
    states_duration: bool = False


MOV = Container("mov", ("mp4", "mov", "m4v", "3gp", "3g2", "f4v"), states_duration=True)
MATROSKA = Container("matroska", ("webm", "mkv"), states_duration=True)
AVI = Container("avi", ("avi", "divx"), states_duration=True)
ASF = Container("asf", ("wmv", "asf"), states_duration=True)
FLV = Container("flv", ("flv",), states_duration=True)
MPEG_PS = Container("mpeg", ("mpg", "mpeg", "vob"))
MPEG_TS = Container("mpegts", ("ts", "mts", "m2ts"))
MPEG_ES = Container("mpegvideo", ("m2v", "m1v"))
OGG = Container("ogg", ("ogv",))
GIF = Container("gif", ("gif",))
CONTAINERS = (MOV, MATROSKA, AVI, ASF, FLV, MPEG_PS, MPEG_TS, MPEG_ES, OGG, GIF)

# Where a folder or a sample holds several files of one name, the first of these is its video.
_FIRST = ("mp4", "webm", "mkv", "mov", "avi", "m4v")
VIDEO_EXTENSIONS = _FIRST + tuple(
    extension
    for container in CONTAINERS
    for extension in container.extensions
    if extension not in _FIRST
)

# FFmpeg's names of decoders.
# fmt: off
VIDEO_CODECS = frozenset((
    "h264", "hevc", "vvc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "mpeg1video",
    "mpeg2video", "mpegvideo", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h261", "h263",
    "h263i", "h263p", "flv", "vp6", "vp6a", "vp6f", "wmv1", "wmv2", "wmv3", "vc1", "theora",
    "mjpeg", "prores", "dnxhd", "dvvideo", "cinepak", "svq1", "svq3", "gif", "huffyuv",
    "ffvhuff", "ffv1", "utvideo", "rawvideo", "png", "qtrle", "cfhd",
))
# fmt: on
# Audio is not decoded; FFmpeg opens its decoders when it looks at the streams of a file.
_AUDIO_CODECS = ("aac", "mp3float", "mp3", "mp2", "ac3", "eac3", "opus", "vorbis", "flac")
CODEC_WHITELIST = ",".join(sorted(VIDEO_CODECS) + list(_AUDIO_CODECS))

_MOV_BOXES = frozenset(b"ftyp styp moov moof mdat sidx free skip wide pnot".split())
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_TS_PACKETS = (188, 192, 204)
_TS_RUN = 5  # packets with the sync byte in its place


def sniff(data: bytes) -> Container | None:
    """The container whose signature the file's first bytes carry; None for anything else."""
    if data[4:8] in _MOV_BOXES:
        return MOV
    if data.startswith(b"\x1aE\xdf\xa3"):
        return MATROSKA
    if data.startswith(b"RIFF") and data[8:12] in (b"AVI ", b"AVIX"):
        return AVI
    if data.startswith(_ASF_HEADER):
        return ASF
    if data.startswith(b"FLV\x01"):
        return FLV
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if data.startswith(b"OggS"):
        return OGG
    if data.startswith(b"\x00\x00\x01\xba"):
        return MPEG_PS
    if data.startswith(b"\x00\x00\x01\xb3"):
        return MPEG_ES
    return MPEG_TS if _is_transport_stream(data) else None


def _is_transport_stream(data: bytes) -> bool:
    """Whether the sync byte recurs; a recording may begin inside a packet."""
    for size in _TS_PACKETS:
        for start in range(size):
            marks = data[start : start + _TS_RUN * size : size]
            if len(marks) == _TS_RUN and marks.count(b"G") == _TS_RUN:
                return True
    return False


def asf_file_size(data: bytes) -> int | None:
    """The size in bytes that an ASF file's header states; None where it states none."""
    place = data.find(_ASF_FILE_PROPERTIES, 0, 1 << 16)
    properties = data[place : place + 92]
    if place < 0 or len(properties) < 92 or properties[88] & 1:  # 1: a broadcast, size unknown
        return None
    return int.from_bytes(properties[40:48], "little") or None


def top_level_boxes(data: bytes) -> tuple[set[bytes], bool]:
    """The kinds of an MP4 or MOV file's top-level boxes, and whether the last is cut short."""
    kinds: set[bytes] = set()
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            return kinds, False
        kinds.add(data[position + 4 : position + 8])
        position += size
    return kinds, position != len(data)


def sample_descriptions(data: bytes) -> int:
    """The most sample descriptions of a track of an MP4 or MOV file: with several, the decoder's
    settings may change at any sample. A file without a header has none.
    """
    most = position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            size = len(data) - position
        if data[position + 4 : position + 8] == b"moov":
            end = position + size
            found = data.find(b"stsd", position, end)
            while found >= 0:
                most = max(most, int.from_bytes(data[found + 8 : found + 12], "big"))
                found = data.find(b"stsd", found + 4, end)
        position += size
    return most
