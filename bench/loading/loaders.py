"""What is compared: this package, and the loops that users write around PyAV and torchcodec.

All of them read the same shard one clip after another in one process, take the same frames (the
middle of each of equal parts), scale the short side down, crop the centre, resize it, encode the
caption's tokens and stack a batch.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.bench.loading.sources import VideoSource
from svilm_fast.data import display
from svilm_fast.data.augment import centre_window, cut
from svilm_fast.data.config import DataConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.decode import scaled_size
from svilm_fast.data.sampling import choose_frames
from svilm_fast.data.tokenizer import Tokenizer

# Loads all clips of a source; frames uint8 [clips, frames, size, size, 3].
Loader = Callable[[], torch.Tensor]
PRODUCT, PLAIN, TORCHCODEC = "svilm-fast", "plain loop", "torchcodec loop"


def dataset_of(source: VideoSource, frames: int, size: int) -> ClipDataset:
    """The source as this package opens it, in the view of an evaluation."""
    config = DataConfig(train=str(source.folder), workers=0)
    tokenizer = prepare_tokenizer(config)
    return ClipDataset(
        config,
        "train",
        tokenizer,
        train=False,
        frames=frames,
        image_size=size,
        metadata=False,
        nouns=False,
    )


def loaders(source: VideoSource, dataset: ClipDataset) -> dict[str, Loader]:
    """The contestants by name; torchcodec's only where it is installed."""
    tokenizer = prepare_tokenizer(dataset.config)
    found: dict[str, Loader] = {
        PRODUCT: lambda: dataset.batch(range(source.clips)).frames,
        PLAIN: lambda: _loop(source, dataset, tokenizer, _decode_with_pyav),
    }
    if importlib.util.find_spec("torchcodec") is not None:
        found[TORCHCODEC] = lambda: _loop(source, dataset, tokenizer, _decode_with_torchcodec)
    return found


def _loop(
    source: VideoSource,
    dataset: ClipDataset,
    tokenizer: Tokenizer,
    decode: Callable[..., np.ndarray],
) -> torch.Tensor:
    """A plain loop over a tar stream."""
    clips, texts = [], []
    for sample in _samples(source.folder):
        video = next(data for kind, data in sample.items() if kind in VIDEO_EXTENSIONS)
        images = decode(video, dataset.frames, dataset.short_side)
        height, width = images.shape[1:3]
        window = centre_window(width, height, dataset.config.resize_margin)
        clips.append(cut(images, window, dataset.image_size))
        texts.append(json.loads(sample["json"])["caption"])
    tokenizer.encode_batch(texts, dataset.config.tokenizer.length)
    return torch.stack(clips)


def _samples(folder: Path) -> Iterator[dict[str, bytes]]:
    """Samples of the shards in order: with webdataset where it is installed, else with tarfile."""
    shards = sorted(map(str, folder.glob("*.tar")))
    if importlib.util.find_spec("webdataset") is not None:
        import webdataset

        yield from webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        return
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            sample: dict[str, bytes] = {}
            key = None
            for member in tar:
                stem, _, kind = member.name.partition(".")
                if stem != key and sample:
                    yield sample
                    sample = {}
                handle = tar.extractfile(member)
                assert handle is not None
                key, sample[kind] = stem, handle.read()
            yield sample


def _decode_with_pyav(video: bytes, frames: int, short_side: int) -> np.ndarray:
    """Decode from the first frame to the last wanted one."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter, images = VideoReformatter(), []
    with av.open(io.BytesIO(video), "r") as opened:
        stream = opened.streams.video[0]
        stream.thread_count = 1
        wanted = choose_frames(stream.frames, frames, None).tolist()
        size = scaled_size(stream.width, stream.height, short_side)
        for number, frame in enumerate(opened.decode(stream)):
            if number in wanted:
                image = display.to_rgb(reformatter, frame, size)
                images += [image] * wanted.count(number)
            if number >= wanted[-1]:
                break
    return np.stack(images)


def _decode_with_torchcodec(video: bytes, frames: int, short_side: int) -> np.ndarray:
    """Exact seeking with one thread, then the same scaling."""
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(video, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    wanted = choose_frames(decoder.metadata.num_frames, frames, None).tolist()
    images: Any = decoder.get_frames_at(wanted).data.numpy()
    size = scaled_size(images.shape[2], images.shape[1], short_side)
    if size == images.shape[2:0:-1]:
        return images
    reformatter = VideoReformatter()
    return np.stack(
        [
            display.to_rgb(reformatter, VideoFrame.from_ndarray(image, format="rgb24"), size)
            for image in images
        ]
    )
