"""The libraries that decode videos, by the names of `data.decoder`.

PyAV finds the stream, the times of its frames and the chosen places for all of them, so that the
same frames are looked at. Another library decodes them as a `FrameReader`; its pixels may differ.
Only PyAV opens files with demuxers and decoders from a list, refuses frames that become too large
in the middle, and honours edit lists and mirroring: the others are for files that are trusted.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data.decode import FrameReader, ReadRequest
from svilm_fast.data.errors import DataError, VideoError

# Module and class of every reader; the extra that installs it has the decoder's name.
_READERS = {
    "torchcodec": ("svilm_fast.data.readers.torchcodec", "TorchcodecReader"),
    "spdl": ("svilm_fast.data.readers.spdl", "SpdlReader"),
}
_TOLERANCE_S = 2e-3  # containers round times to milliseconds


@functools.cache
def reader_of(decoder: str) -> FrameReader | None:
    """The reader for a value of `data.decoder`; None for PyAV, which needs none.

    Raises DataError where the library is not installed or does not load.
    """
    if decoder in ("auto", "pyav"):
        return None
    if decoder not in _READERS:
        raise DataError(
            f"data.decoder={decoder} is not one of auto, pyav, {', '.join(sorted(_READERS))}"
        )
    module, name = _READERS[decoder]
    try:
        reader: FrameReader = getattr(importlib.import_module(module), name)()
    except (ImportError, OSError, RuntimeError) as error:
        raise DataError(
            f"data.decoder={decoder} cannot be loaded: pip install 'svilm-fast[{decoder}]', and "
            f"FFmpeg's libraries (or use data.decoder=pyav): {single_line(error)[:200]}"
        ) from None
    return reader


def require_times(
    name: str, request: ReadRequest, found: int, times: np.ndarray | None = None
) -> None:
    """Raise VideoError unless a library sees the frames that are shown.

    `found` is the number of frames in its view; `times` are those of the wanted ones, seconds.
    """
    total = len(request.times)
    if found != total:
        raise VideoError(
            f"{name} finds {found} frames where {total} are shown (an edit list, or frames that "
            "cannot be decoded): use data.decoder=pyav"
        )
    wanted = request.times[list(request.places)]
    if times is not None and np.abs(times - wanted).max() > _TOLERANCE_S:
        raise VideoError(f"{name} gives other frames than those wanted: use data.decoder=pyav")
