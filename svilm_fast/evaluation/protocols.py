"""Named retrieval protocols: the list they take, and how many videos and captions it must have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svilm_fast.core.text import counted
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset


@dataclass(frozen=True)
class Protocol:
    """The size that makes numbers comparable; `title` is what the table says."""

    name: str
    title: str
    videos: int
    captions: int


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (Protocol("msrvtt-1ka", "MSR-VTT 1k-A", videos=1000, captions=1000),)
}


def data_for_list(config: DataConfig, list_path: str | Path, videos: str | Path) -> DataConfig:
    """Settings whose test split is a CSV, TSV or JSONL list of the videos in a folder.

    A 1k-A file has the columns `key,vid_key,video_id,sentence`; `svilm_fast.data.lists` says which
    other names are understood. Everything else stays as the run had it.
    """
    return config.model_copy(update={"test": str(list_path), "videos": str(videos)})


def check_protocol(name: str, dataset: ClipDataset) -> Protocol:
    """The protocol `name`, after a look at the list: refused samples count as present.

    Raises ValueError for an unknown name, or a list of another size, whose numbers would stand in a
    table with ones they cannot be compared with.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    refused = len(dataset.table.rejected)
    videos = len({sample.video for sample in dataset.table}) + refused
    captions = sum(len(sample.captions) for sample in dataset.table) + refused
    if (videos, captions) != (protocol.videos, protocol.captions):
        raise ValueError(
            f"{protocol.title} has {counted(protocol.videos, 'video')} with "
            f"{counted(protocol.captions, 'caption')}, the list has {videos} with {captions}: use "
            "the official list, or leave the protocol out"
        )
    return protocol
