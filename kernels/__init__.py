"""The fused operations and their references. Knows tensors and process groups only."""

from .backend import choose, explain, use_backend
from .device import DeviceTraits, assume_traits, traits
from .launch import launch, record_launches
from .philox import Site, StepSeeds, derive_seeds, philox4x32, uniform
from .registry import Cost, Op, Variant, ops, register

__all__ = [
    "Cost",
    "DeviceTraits",
    "Op",
    "Site",
    "StepSeeds",
    "Variant",
    "assume_traits",
    "choose",
    "derive_seeds",
    "explain",
    "launch",
    "ops",
    "philox4x32",
    "record_launches",
    "register",
    "traits",
    "uniform",
    "use_backend",
]
