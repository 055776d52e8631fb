"""Gives learnable scalars their fp32 master values while the model's parameters are bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MasterScalars:
    """Copies of the fp32 masters of all modules that have `read_master`.

    A bf16 scalar near 2.66 has a resolution of 0.016, so an update of 1e-4 changes only the
    optimizer's master. The copies are refreshed once per step by a collective on all ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.values: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if hasattr(module, "read_master"):
                (parameter,) = module.parameters(recurse=False)
                self.parameters[name] = parameter
                module.read_master = self._reader(name)

    def _reader(self, name: str) -> Any:
        return lambda: self.values[name]

    def refresh(self) -> None:
        """Copy the values of the masters; every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.parameters.items():
            master = safe_get_full_fp32_param(parameter)
            self.values[name] = master.detach().to(torch.float32).clone()
