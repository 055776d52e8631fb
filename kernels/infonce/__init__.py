"""Symmetric InfoNCE over a rectangular block of pairs."""

from pathlib import Path

from ..registry import Op, kernel_sources, register
from . import reference
from .api import InfoNCEPartials, infonce, infonce_partials
from .cases import CASES, make_inputs
from .cost import cost
from .distributed import distributed_infonce
from .variants import VARIANTS

__all__ = ["InfoNCEPartials", "distributed_infonce", "infonce", "infonce_partials"]

register(
    Op(
        name="infonce",
        api=infonce,
        reference=reference.infonce,
        cost=cost,
        cases=CASES,
        make_inputs=make_inputs,
        variants=VARIANTS,
        kernel_paths=kernel_sources(Path(__file__).parent),
    )
)
