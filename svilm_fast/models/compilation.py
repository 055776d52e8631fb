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
    """torch.compile cannot work here: what it builds needs a compiler that is not there."""


def compile_blocks(model: nn.Module, device: torch.device) -> int:
    """Let every transformer block of `model` run compiled in training; returns how many.

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
    """Raise NoCompilerError, saying what to install, where blocks for `device` cannot be built."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise NoCompilerError("torch.compile on a CPU needs g++ (or CXX=<compiler>)") from error
    elif not any(shutil.which(name) for name in ("gcc", "cc", "clang")):
        raise NoCompilerError("torch.compile on a GPU needs gcc for Triton's launchers")
