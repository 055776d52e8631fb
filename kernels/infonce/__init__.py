"""Symmetric InfoNCE over a rectangular block of pairs."""

from pathlib import Path

from ..registry import Op, kernel_sources, register
from . import reference
from .api import InfoNCEPartials, infonce, infonce_partials
from .cases import CASES, SIZES, TILES, VARIANTS, make_inputs
from .cost import cost
from .distributed import distributed_infonce
from .peers import GPU_PEERS, PEERS
from .whole import WHOLE

__all__ = ["InfoNCEPartials", "distributed_infonce", "infonce", "infonce_partials"]

register(
    Op(
        name="infonce",
        api=infonce,
        reference=reference.infonce,
        cost=cost,
        cases=CASES,
        make_inputs=make_inputs,
        sizes=SIZES,
        unit=("pairs", "videos"),
        variants=VARIANTS,
        tiles=TILES,
        whole=WHOLE,
        kernel_paths=kernel_sources(Path(__file__).parent),
        distributed=distributed_infonce,
        peers=PEERS,
        gpu_peers=GPU_PEERS,
        gluon="gluon_sums_kernel",
        gluon_backward="gluon_gradient_kernel",
        priority=0,
    )
)
