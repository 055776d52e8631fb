"""Latency and bandwidth between ranks, and the time that a collective takes on them.

A message of S bytes costs alpha + beta S (Hockney 1994). A ring over W ranks makes W - 1 hops for
a gather or a reduce-scatter, twice as many for an all-reduce, and puts (W - 1) / W of the bytes on
each link per round, as in the bus bandwidth of NVIDIA's nccl-tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svilm_fast.train.plan.devices import Device

if TYPE_CHECKING:  # `svilm plan --help` imports no torch
    from svilm_fast.objectives.cost import CollectiveKind

# Constants of NCCL's own tuning model (src/graph/tuning.cc: baseLat, hwLat; ring and simple
# protocol over NVLink and over the network, tree over the network), in seconds.
START = 8.4e-6
NVLINK_HOP = 3.4e-6
NETWORK_HOP = 14.0e-6
# Share of a link's nominal bandwidth that large messages reach: an assumption, not a measurement.
REACHED = 0.8


@dataclass(frozen=True)
class Links:
    """The links between ranks.

    per_node: ranks of a node. intra and inter: bytes/s of a rank inside a node and between nodes.
    start, hop_intra, hop_inter: seconds.
    """

    name: str
    per_node: int
    intra: float
    inter: float
    start: float = START
    hop_intra: float = NVLINK_HOP
    hop_inter: float = NETWORK_HOP

    def bandwidth(self, world_size: int) -> float:
        """Bytes/s of a ring, set by its slowest part; all adapters of a node work in parallel."""
        if world_size <= self.per_node:
            return self.intra
        return min(self.intra, self.per_node * self.inter)

    def latency(self, kind: CollectiveKind, world_size: int) -> float:
        """Seconds of the hops; an all-reduce takes the shorter of ring and tree."""
        nodes = math.ceil(world_size / self.per_node)
        inside = min(world_size, self.per_node) - 1
        across = nodes if nodes > 1 else 0
        ring = across * self.hop_inter + (world_size - 1 - max(across - 1, 0)) * self.hop_intra
        if kind != "all_reduce":
            return self.start + ring
        tree = 2 * (math.ceil(math.log2(nodes)) * self.hop_inter + inside * self.hop_intra)
        return self.start + min(2 * ring, tree)

    def seconds(self, kind: CollectiveKind, size: float, world_size: int, calls: int = 1) -> float:
        """Time of `calls` collectives with `size` bytes in total.

        size: the gathered tensor, the tensor before a reduce-scatter, the reduced tensor.
        """
        if world_size == 1:
            return 0.0
        wire = size * (world_size - 1) / world_size * (2 if kind == "all_reduce" else 1)
        return calls * self.latency(kind, world_size) + wire / self.bandwidth(world_size)


# Bytes/s of a rank's adapter in one direction: line rates of the standards.
NETWORKS = {"hdr200": 25e9, "ndr400": 50e9, "roce100": 12.5e9, "ethernet25": 3.125e9}


def links_of(device: Device, network: str | None, per_node: int) -> Links:
    """Return the links of a kind of GPU; `network` replaces the device's default adapter."""
    inter = NETWORKS[network] if network else device.network
    label = network or "its usual adapter"
    return Links(
        f"{device.name}, {per_node} per node, {label}",
        per_node,
        device.nvlink * REACHED,
        inter * REACHED,
    )
