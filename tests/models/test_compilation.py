"""Compiled blocks: the same numbers as eager ones, the same names of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models import compilation, transformer
from svilm_fast.models.attention import KeyPadding
from svilm_fast.models.compilation import NoCompilerError, check_compiler, compile_blocks
from svilm_fast.models.noise import residual_noise
from svilm_fast.models.transformer import Block, Span

CPU = torch.device("cpu")


class Stack(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(16, 2, 2.0, "auto") for _ in range(depth)])

    def forward(self, x: torch.Tensor, step: int, rate: float) -> torch.Tensor:
        clips, length, _ = x.shape
        x = x.flatten(0, 1)
        ids = torch.arange(length).expand(clips, -1)
        seeds = StepSeeds(0, step, torch.arange(clips))
        for number, block in enumerate(self.blocks):
            noise = residual_noise(seeds, number, rate, rate)
            padding = KeyPadding(torch.arange(length).expand(clips, -1) < length - 1)
            x = block(x, (Span(clips, length, ids, padding, noise),))
        return x


@pytest.fixture
def counter(monkeypatch) -> CompileCounter:
    """Let compiled parts run as traced graphs, without inductor, and count them."""
    torch._dynamo.reset()
    found = CompileCounter()
    monkeypatch.setattr(
        transformer,
        "_compiled",
        transformer.functools.cache(lambda part: torch.compile(part, backend=found, dynamic=False)),
    )
    return found


def gradients(model: Stack, x: torch.Tensor, step: int, rate: float) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(x, step, rate)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_block_is_traced_once_for_all_layers_and_steps(counter, rate: float) -> None:
    model = Stack()
    eager = copy.deepcopy(model)
    assert compile_blocks(model, CPU) == 3
    x = torch.randn(2, 5, 16, requires_grad=True)  # as behind an embedding
    for step in range(3):
        for found, wanted in zip(gradients(model, x, step, rate), gradients(eager, x, step, rate)):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # One graph of a whole block; with noise, which names the step, one of each branch.
    assert counter.frame_count == (1 if rate == 0 else 2)


def test_evaluation_is_not_compiled_and_names_stay(counter) -> None:
    model = Stack()
    names = list(model.state_dict())
    compile_blocks(model, CPU)
    assert list(model.state_dict()) == names
    model.eval()
    for clips in (1, 2, 3):
        model(torch.randn(clips, 5, 16), 0, 0.0)
    assert counter.frame_count == 0
    other = Stack()
    other.load_state_dict(model.state_dict())


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    with pytest.raises(NoCompilerError, match=r"needs g\+\+"):
        check_compiler(CPU)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(NoCompilerError, match="needs gcc"):
        check_compiler(torch.device("cuda", 0))
