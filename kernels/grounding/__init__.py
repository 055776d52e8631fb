"""Inter-clip spatial grounding: scores of every caption's nouns with every video's groups."""

from pathlib import Path

from ..registry import Op, kernel_sources, register
from . import reference
from .api import grounding_loss, grounding_scores, matrix_infonce
from .cases import CASES, SIZES, TILES, VARIANTS, make_inputs
from .cost import grounding_cost
from .distributed import distributed_grounding_loss
from .peers import GPU_PEERS, PEERS
from .similarities import (
    SIMILARITIES,
    initial_parameters,
    parameter_shapes,
    similarity_scores,
)
from .whole import WHOLE

__all__ = [
    "SIMILARITIES",
    "distributed_grounding_loss",
    "grounding_loss",
    "grounding_scores",
    "initial_parameters",
    "matrix_infonce",
    "parameter_shapes",
    "similarity_scores",
]

register(
    Op(
        name="grounding",
        api=grounding_loss,
        reference=reference.grounding_loss,
        cost=grounding_cost,
        cases=CASES,
        make_inputs=make_inputs,
        sizes=SIZES,
        unit=("pairs", "batch"),
        variants=VARIANTS,
        tiles=TILES,
        whole=WHOLE,
        kernel_paths=kernel_sources(Path(__file__).parent),
        distributed=distributed_grounding_loss,
        peers=PEERS,
        gpu_peers=GPU_PEERS,
        gluon_backward="gluon_gradient_kernel",
        priority=1,
    )
)
