"""Reading frames with torchcodec: exact seeking, one thread, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data.decode import ReadRequest
from svilm_fast.data.decoders import require_times
from svilm_fast.data.errors import VideoError


class TorchcodecReader:
    """torchcodec turns frames upright itself, but mirrors none."""

    name = "torchcodec"

    def __init__(self) -> None:
        from torchcodec.decoders import VideoDecoder

        self._open = VideoDecoder

    def __call__(self, request: ReadRequest) -> Sequence[np.ndarray]:
        if request.turn[1] or request.turn[2]:
            raise VideoError(
                "torchcodec shows mirrored videos as they are stored: use data.decoder=pyav"
            )
        try:
            decoder = self._open(
                request.data,
                stream_index=request.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
            found = decoder.metadata.num_frames or 0
            require_times(self.name, request, found)
            batch = decoder.get_frames_at(list(request.places))
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"torchcodec cannot decode the video: {single_line(error)}") from None
        require_times(self.name, request, found, batch.pts_seconds.numpy())
        return list(batch.data.numpy())
