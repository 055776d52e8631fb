"""Temporal grouping of a cut-and-paste video, and pooling of tokens into segments."""

from pathlib import Path

from ..registry import Op, kernel_sources, register
from .api import segment_pool, temporal_bce
from .cases import (
    BCE_CASES,
    BCE_SIZES,
    BCE_VARIANTS,
    POOL_CASES,
    POOL_SIZES,
    POOL_VARIANTS,
    make_bce_inputs,
    make_pool_inputs,
)
from .cost import segment_pool_cost, temporal_bce_cost
from .peers import BCE_PEERS, POOL_PEERS
from .reference import segment_pool_reference, temporal_bce_reference

__all__ = [
    "segment_pool",
    "segment_pool_reference",
    "temporal_bce",
    "temporal_bce_reference",
]

_KERNELS = kernel_sources(Path(__file__).parent)

register(
    Op(
        name="temporal",
        api=temporal_bce,
        reference=temporal_bce_reference,
        cost=temporal_bce_cost,
        cases=BCE_CASES,
        make_inputs=make_bce_inputs,
        sizes=BCE_SIZES,
        unit=("clips", "batch"),
        peers=BCE_PEERS,
        variants=BCE_VARIANTS,
        kernel_paths=_KERNELS,
    )
)
register(
    Op(
        name="segment_pool",
        api=segment_pool,
        reference=segment_pool_reference,
        cost=segment_pool_cost,
        cases=POOL_CASES,
        make_inputs=make_pool_inputs,
        sizes=POOL_SIZES,
        unit=("clips", "batch"),
        peers=POOL_PEERS,
        variants=POOL_VARIANTS,
        kernel_paths=_KERNELS,
    )
)
