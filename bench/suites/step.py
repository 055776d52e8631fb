"""A full training step of the real model on one rank: encoders, losses, backward, update.

The inputs are on the device already. DeepSpeed and collectives are not part of the step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import SEED, Benchmark, CallCost, Prepared, benchmark_id
from svilm_fast.bench.suites.proof import relative_rms
from svilm_fast.bench.synthetic import random_batch
from svilm_fast.bench.timing import measure
from svilm_fast.core.philox import StepSeeds
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.kernels.backend import use_backend
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.tasks.base import Task, task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.ranks.process_group import Ranks

_GPU_BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384)
_GPU_MICRO = 128
# A step of more pairs than this takes minutes, so it is timed once.
_ONCE_ABOVE = 4096
_FEW = 3
_LOSS_BAR = 1e-2
_GRADIENT_BAR = 1e-2


def declared(device: torch.device) -> Iterator[Benchmark]:
    """The tiny model on a CPU, without and with gradient cache; svilm_base on a GPU."""
    if device.type == "cuda":
        recipe, label = "svilm_base", "bf16_autocast"
        sizes: list[tuple[int, int | None]] = [(batch, _GPU_MICRO) for batch in _GPU_BATCHES]
    else:
        recipe, label, sizes = "demo", "float32", [(8, None), (8, 4)]
    for batch, micro in sizes:
        case = f"global_{batch}" + ("" if micro is None else f"_micro_{micro}")
        yield Benchmark(
            benchmark_id("step", recipe, case, label, "both", "svilm"),
            "step",
            partial(_prepare, recipe, batch, micro),
        )


def _prepare(recipe: str, batch: int, micro: int | None, device: torch.device) -> Prepared:
    settings = [f"training.global_batch={batch}"]
    settings += ["video.checkpoint_activations=true"] if device.type == "cuda" else []
    config = load_config(recipe, settings)
    step = TrainingStep(config, batch, micro, device)
    flops = step.task.flops()
    assert flops is not None
    again = flops.video.forward + flops.text.forward if micro else 0
    recomputed = flops.video.forward if config.video.checkpoint_activations is True else 0
    facts = {
        "model_flops": flops.total,
        "executed_flops": flops.total + again + recomputed,
        "micro_batch": micro,
        "distinct_clips": micro or batch,
        "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
    }
    most = None
    if device.type == "cuda":
        most = 1 if batch > _ONCE_ABOVE else _FEW
    return Prepared(
        call=step,
        verify=step.verify,
        cost=CallCost(float(flops.total), 0.0),
        units={"clips": float(batch)},
        facts=facts,
        most_samples=most,
        explain=step.explain,
        close=step.close,
    )


class RepeatedInputs:
    """Micro-batches with the same clips, because those of 16,384 pairs would fill the GPU.

    Captions, nouns and the seeds of all noise differ for every pair.
    """

    def __init__(self, parts: list[ModelInputs]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def split(self, size: int) -> list[ModelInputs]:
        """Return the parts; `size` must be their size."""
        if len(self.parts[0]) != size:
            raise ValueError(f"these parts hold {len(self.parts[0])} pairs, not {size}")
        return self.parts


class TrainingStep:
    """Model, optimizer and inputs of one benchmark; calling it takes one optimizer step."""

    def __init__(
        self, config: RunConfig, batch: int, micro: int | None, device: torch.device
    ) -> None:
        torch.manual_seed(SEED)
        self.config, self.device, self.micro = config, device, micro
        self.task = task_of(config)
        with device:
            self.model: Any = self.task.model()
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.parts = _parts(self.task, config, batch, micro or batch, device)
        self.cached: CachedStep | None = None

    def __call__(self) -> Tensor:
        """Forward, backward, clipping and update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward()
        if self.config.training.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config.training.gradient_clipping
            )
        self.optimizer.step()
        return loss

    def _autocast(self) -> torch.autocast:
        on_gpu = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu)

    def _backward(self) -> Tensor:
        with self._autocast():
            if self.micro is None:
                loss = self.model(self.parts[0]).loss
                loss.backward()
                return loss.detach()
            inputs = cast(ModelInputs, RepeatedInputs(self.parts))
            self.cached = CachedStep(self.model, inputs, self.micro)
            self.cached.backward()
            return self.cached.output.loss.detach()

    def verify(self) -> float:
        """Compare the gradients with one pass in float64 on a CPU, or the losses on a GPU.

        On a GPU the fused losses of the first micro-batch's embeddings are compared with the
        reference path on the same embeddings.
        """
        if self.device.type == "cuda":
            return self._verify_losses()
        self._backward()
        exact = copy.deepcopy(self.model).double()
        exact.zero_grad()
        exact(_joined(self.parts)).loss.backward()
        found, expected = _gradient(self.model), _gradient(exact)
        error = relative_rms(found, expected)
        if not error <= _GRADIENT_BAR:
            raise WrongResult("the step's gradient differs from one pass in float64", error)
        return error

    def _verify_losses(self) -> float:
        with torch.no_grad(), self._autocast():
            features = self.model.embed(self.parts[0])
            found = self.model.objective(features).loss
            with use_backend("reference"):
                expected = self.model.objective(features).loss
        error = relative_rms(found, expected)
        if not error <= _LOSS_BAR:
            raise WrongResult("the fused losses differ from those of the reference path", error)
        return error

    def explain(self, seconds: float) -> Mapping[str, Any]:
        """Time the losses of the whole batch alone, forward and backward."""
        with torch.no_grad(), self._autocast():
            features = self.cached.features if self.cached else self.model.embed(self.parts[0])
        for leaf in features.differentiable():
            leaf.requires_grad_()

        def losses() -> None:
            with self._autocast():
                self.model.objective(features).loss.backward()

        timing = measure(losses, self.device, budget_s=0.3, most=5, memory=False)
        facts = {
            "losses_ms": timing.median_ms,
            "losses_share": timing.median_ms * 1e-3 / seconds,
        }
        if self.device.type == "cuda":
            facts["peak_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        return facts

    def close(self) -> None:
        """Free the inputs, gradients and optimizer states on the device."""
        self.parts, self.cached = [], None
        self.optimizer.state.clear()
        self.model.zero_grad(set_to_none=True)


def _parts(
    task: Task, config: RunConfig, batch: int, size: int, device: torch.device
) -> list[ModelInputs]:
    """Random pairs in micro-batches of `size`, all with the clips of the first."""
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=device)
    clips = random_batch(config, size, seed=SEED)
    frames = clips.frames.to(device)
    first: ModelInputs = task.inputs(replace(clips, frames=frames), 0, ranks)
    parts = [first]
    for start in range(size, batch, size):
        other = random_batch(config, size, seed=SEED + start, frames=frames)
        parts.append(
            replace(
                task.inputs(other, 0, ranks),
                frames=first.frames,
                blended=first.blended,
                paste_mask=first.paste_mask,
                pair_ids=None if first.pair_ids is None else first.pair_ids + start,
            )
        )
    return parts


def _joined(parts: list[ModelInputs]) -> ModelInputs:
    names = [name for name in vars(parts[0]) if name != "seeds"]
    values: dict[str, Any] = {
        name: None
        if getattr(parts[0], name) is None
        else torch.cat([getattr(part, name) for part in parts])
        for name in names
    }
    keys = torch.cat([part.seeds.keys for part in parts if part.seeds is not None])
    return ModelInputs(**values, seeds=StepSeeds(0, 0, keys))


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double()
            for p in model.parameters()
        ]
    )
