"""Grouping: hard Gumbel-softmax assignment of tokens to groups, and pooling."""

from pathlib import Path

from ..registry import Op, kernel_sources, register
from .api import grouping
from .cases import CASES, SIZES, TILES, VARIANTS, make_inputs
from .cost import grouping_cost
from .peers import PEERS
from .reference import GroupingOutput, grouping_reference
from .whole import WHOLE

__all__ = ["GroupingOutput", "grouping", "grouping_reference"]

register(
    Op(
        name="grouping",
        api=grouping,
        reference=grouping_reference,
        cost=grouping_cost,
        cases=CASES,
        make_inputs=make_inputs,
        sizes=SIZES,
        unit=("clips", "batch"),
        variants=VARIANTS,
        tiles=TILES,
        whole=WHOLE,
        kernel_paths=kernel_sources(Path(__file__).parent),
        peers=PEERS,
        gluon="gluon_grouping_forward_kernel",
        gluon_backward="gluon_grouping_backward_kernel",
        priority=2,
    )
)
