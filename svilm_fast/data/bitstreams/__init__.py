"""What a packet's first bytes say: entry points, parameter sets and frames that none refers to.

Only headers are read. A syntax raises NotSeparable for whatever would make decoding from an entry
point differ from decoding everything, or would take more than headers to rule out.
"""

from __future__ import annotations

from svilm_fast.data.bitstreams.base import NotSeparable, Syntax
from svilm_fast.data.bitstreams.frames import AV1, MPEG12, VP8, VP9
from svilm_fast.data.bitstreams.nal_units import H264, HEVC

__all__ = ["NotSeparable", "Syntax", "syntax_of"]


def syntax_of(codec: str, extradata: bytes | None) -> Syntax:
    """The syntax for FFmpeg's decoder `codec`; raises NotSeparable where there is none."""
    if codec == "h264":
        return H264(extradata or b"")
    if codec == "hevc":
        return HEVC(extradata or b"")
    if codec in ("mpeg1video", "mpeg2video"):
        return MPEG12()
    if codec == "vp8":
        return VP8()
    if codec == "vp9":
        return VP9()
    if codec == "libdav1d":
        return AV1()
    raise NotSeparable(f"codec {codec}")
