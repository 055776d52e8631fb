"""Named retrieval protocols, with the number of videos and captions that their list must have."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset


@dataclass(frozen=True)
class RetrievalProtocol:
    """The size of a protocol's list; title: of the result."""

    name: str
    title: str
    videos: int
    captions: int


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (RetrievalProtocol("msrvtt-1ka", "MSR-VTT 1k-A", videos=1000, captions=1000),)
}


def check_protocol(name: str, dataset: ClipDataset) -> RetrievalProtocol:
    """Return the protocol `name` if the data set has its size; refused samples count.

    Raises ValueError for an unknown name, and for a list of another size: its figures are not
    comparable with those of the protocol.
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
