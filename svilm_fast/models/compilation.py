"""torch.compile of the transformer blocks, in place: parameters and their names stay."""

from __future__ import annotations

import shutil

import torch
from torch import nn

from svilm_fast.models.attention import dispatch
from svilm_fast.models.transformer import Block

# Both towers share one function: with and without gradient, full and last micro-batch of each.
VARIANTS = 32


class NoCompilerError(RuntimeError):
    """torch.compile needs a C++ compiler that is not installed."""


def compile_blocks(model: nn.Module, device: torch.device) -> int:
    """Compile every transformer block of `model` for training; returns their number.

    Shapes are taken as fixed, so that each distinct one is compiled once, at its first step.
    Raises NoCompilerError where torch's inductor finds none.
    """
    check_compiler(device)
    torch.compiler.assume_constant_result(dispatch.choice)
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compiled = True
    return len(blocks)


def check_compiler(device: torch.device) -> None:
    """Raise NoCompilerError, which says what to install, if `device` needs a missing compiler."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise NoCompilerError("torch.compile on a CPU needs g++ (or CXX=<compiler>)") from error
    elif not any(shutil.which(name) for name in ("gcc", "cc", "clang")):
        raise NoCompilerError("torch.compile on a GPU needs gcc for Triton's launchers")
