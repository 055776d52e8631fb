"""Reading frames with SPDL, which splits the packets at key frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data import display
from svilm_fast.data.decode import ReadRequest
from svilm_fast.data.decoders import require_times
from svilm_fast.data.errors import VideoError


class SpdlReader:
    """SPDL numbers frames by the times of their packets and leaves them as they are stored."""

    name = "spdl"

    def __init__(self) -> None:
        import spdl.io

        self._io = spdl.io

    def __call__(self, request: ReadRequest) -> Sequence[np.ndarray]:
        try:
            packets = self._io.demux_video(request.data)
            times = np.sort(np.array(packets.get_timestamps()))
            require_times(self.name, request, len(times))
            require_times(self.name, request, len(times), times[list(request.places)])
            frames = self._io.sample_decode_video(packets, list(request.places))
            images = self._io.to_numpy(self._io.convert_frames(frames))
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"SPDL cannot decode the video: {single_line(error)}") from None
        if len(images) != len(request.places):
            raise VideoError(f"SPDL gave {len(images)} of {len(request.places)} frames")
        return [display.arrange(image, request.turn) for image in images]
