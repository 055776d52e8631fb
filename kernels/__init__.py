"""Fused Triton ops with plain PyTorch references. Depends on tensors and process groups only.

`kernels.NAME` is always the public function of the op NAME, whatever else was imported. The folder
of the same name stays importable: `from svilm_fast.kernels.infonce import api`.
"""

import sys
from types import ModuleType

from svilm_fast.core.philox import Site, StepSeeds, derive_seeds, philox4x32, uniform

from .backend import choose, explain, use_backend
from .device import DeviceTraits, assume_traits, traits
from .grounding.api import grounding_loss, grounding_scores, matrix_infonce
from .grouping.api import grouping
from .grouping.reference import GroupingOutput
from .infonce.api import InfoNCEPartials, infonce, infonce_partials
from .infonce.distributed import distributed_infonce
from .launch import launch, record_launches
from .registry import Op, OpCost, Variant, ops, register
from .temporal.api import segment_pool, temporal_bce

grounding, temporal = grounding_loss, temporal_bce
for _op in ops().values():
    # Importing a folder sets it as an attribute of this package. Replace it by the function, and
    # give the function the folder's modules, so that `kernels.infonce.api` still works.
    _folder = sys.modules[_op.api.__module__.rpartition(".")[0]]
    vars(_op.api).update({k: v for k, v in vars(_folder).items() if isinstance(v, ModuleType)})
    globals()[_op.name] = _op.api

__all__ = [
    "DeviceTraits",
    "GroupingOutput",
    "InfoNCEPartials",
    "Op",
    "OpCost",
    "Site",
    "StepSeeds",
    "Variant",
    "assume_traits",
    "choose",
    "derive_seeds",
    "distributed_infonce",
    "explain",
    "grounding",
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
    "temporal",
    "temporal_bce",
    "traits",
    "uniform",
    "use_backend",
]
