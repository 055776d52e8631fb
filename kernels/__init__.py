"""The fused operations and their references. Knows tensors and process groups only."""

from svilm_fast.core.philox import Site, StepSeeds, derive_seeds, philox4x32, uniform

from .backend import choose, explain, use_backend
from .device import DeviceTraits, assume_traits, traits
from .grounding.api import grounding_loss, grounding_scores, matrix_infonce
from .grouping.api import grouping
from .grouping.reference import GroupingOutput
from .infonce.api import InfoNCEPartials, infonce, infonce_partials
from .infonce.distributed import distributed_infonce
from .launch import launch, record_launches
from .registry import Cost, Op, Variant, ops, register
from .temporal.api import segment_pool, temporal_bce

__all__ = [
    "Cost",
    "DeviceTraits",
    "GroupingOutput",
    "InfoNCEPartials",
    "Op",
    "Site",
    "StepSeeds",
    "Variant",
    "assume_traits",
    "choose",
    "derive_seeds",
    "distributed_infonce",
    "explain",
    "grounding_loss",
    "grounding_scores",
    "grouping",
    "infonce",
    "infonce_partials",
    "launch",
    "matrix_infonce",
    "ops",
    "philox4x32",
    "record_launches",
    "register",
    "segment_pool",
    "temporal_bce",
    "traits",
    "uniform",
    "use_backend",
]
