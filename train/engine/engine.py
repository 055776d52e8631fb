"""One optimizer step through DeepSpeed, the same call for every ZeRO stage and device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.trace_ranges import phase
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.distributed.reduction import Reduction, backward_all, choose_reduction
from svilm_fast.models.compilation import NoCompilerError, compile_blocks
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.features import Features
from svilm_fast.objectives.total import StepOutput
from svilm_fast.train.config.deepspeed import (
    build_deepspeed_config,
    local_batch_of,
    micro_batch_of,
)
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.ema import WeightAverage
from svilm_fast.train.engine.optimizer import build_optimizer, set_learning_rate
from svilm_fast.train.engine.scalars import MasterScalars
from svilm_fast.train.engine.sharded_state import clear_padding, whole_parameters
from svilm_fast.train.environment import import_deepspeed
from svilm_fast.train.folder.trust import use_restricted_unpickler
from svilm_fast.train.ranks.process_group import Ranks

TORCH_LINEAR = torch.nn.functional.linear


class LossModule(nn.Module):
    """Runs the model, or one of its halves, and returns tuples.

    ZeRO 3 finds the tensors of an output only in tuples and dicts. In a dataclass they would not
    get the hooks that gather the parameters for backward. The halves are called through this
    module, because DeepSpeed's autocast and hooks wrap its forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(
        self, inputs: Any, half: Literal["embed", "objective"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | Features:
        """Return the loss (0-dim) and its detached parts; for the half `embed`, the features."""
        if half == "embed":
            return self.model.embed(inputs)
        output = self.model(inputs) if half is None else self.model.objective(inputs)
        return output.loss, output.metrics


@dataclass(frozen=True)
class EngineHalves:
    """The halves of the model under DeepSpeed, for the gradient cache."""

    deepspeed: Any

    def embed(self, inputs: ModelInputs) -> Features:
        """`SViLM.embed` through DeepSpeed."""
        return self.deepspeed(inputs, "embed")

    def objective(self, features: Features) -> StepOutput:
        """`SViLM.objective` through DeepSpeed."""
        return StepOutput(*self.deepspeed(features, "objective"))


@dataclass
class StepResult:
    """The result of one step; the metrics are those of this rank."""

    loss: Tensor
    metrics: dict[str, Tensor]
    applied: bool
    gradient_norm: float | None
    stop_signal: int


class Engine:
    """A model under DeepSpeed."""

    def __init__(self, deepspeed_engine: Any, ranks: Ranks, config: RunConfig) -> None:
        self.deepspeed = deepspeed_engine
        use_restricted_unpickler(deepspeed_engine)
        self.ranks = ranks
        self.config = config
        self.scalars: MasterScalars | None = None
        if config.training.precision == "bf16":
            self.scalars = MasterScalars(self.model)
            self.scalars.refresh()
        clear_padding(self)
        self.ema = None if config.ema.decay is None else WeightAverage(self, config.ema)
        self.local_batch = local_batch_of(config, ranks.world_size)
        self.micro_batch = micro_batch_of(config, ranks.world_size)
        self.reduction: Reduction = "boundary"
        if self.caches_gradients:
            if not hasattr(self.model, "embed"):
                raise ConfigError(
                    f"training.micro_batch={self.micro_batch} needs a model with the two halves "
                    f"`embed` and `objective`, which {type(self.model).__name__} lacks; set "
                    "training.micro_batch=null"
                )
            self.reduction = choose_reduction(
                deepspeed_engine, config.distributed.gradient_reduction
            )

    @property
    def model(self) -> Any:
        """The trained model, without DeepSpeed's wrapper and `LossModule`."""
        return self.deepspeed.module.model

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage that DeepSpeed runs."""
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def caches_gradients(self) -> bool:
        """Whether a step uses the gradient cache: two passes of the encoders, in micro-batches."""
        return self.micro_batch < self.local_batch

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Hold the average of the weights inside the block if evaluation is to read it."""
        if self.ema is None or not self.config.ema.evaluate:
            return nullcontext()
        return self.ema.applied()

    def update_average(self, step: int) -> None:
        """Update the moving average after an applied step, and the teacher with it."""
        if self.ema is None:
            return
        updates = self.ema.state.updates
        self.ema.update(step)
        if self.ema.state.updates != updates:
            self.refresh_teacher()

    def refresh_teacher(self) -> None:
        """Give a model's teacher the moving average, whole on every rank; nothing without one."""
        teacher = getattr(self.model, "teacher", None)
        if teacher is None:
            return
        assert self.ema is not None, "RunConfig refuses a teacher without ema.decay"
        with self.ema.applied():
            teacher.follow(whole_parameters(self, self.model.encoder.video))

    def step(
        self,
        inputs: Any,
        learning_rate: float,
        signal: int = 0,
        after_backward: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Run forward, backward and the update on the local batch.

        Before backward all ranks agree whether every loss is finite, and every rank learns of a
        signal that another one received. A step that is not finite changes no parameter: in stages
        1 to 3 DeepSpeed skips it, in stage 0 with fp32 this method does. after_backward: called
        between backward and the optimizer.
        """
        set_learning_rate(self.deepspeed.optimizer, learning_rate)
        cached = self._cached_step(inputs) if self.caches_gradients else None
        loss, metrics = self.deepspeed(inputs) if cached is None else cached.output
        not_finite = float(not bool(torch.isfinite(loss.detach())))
        with phase("agree"):
            any_not_finite, stop_signal = self.ranks.agree_max(not_finite, float(signal))
        if any_not_finite:
            return StepResult(loss.detach(), metrics, False, None, int(stop_signal))
        with phase("backward"):
            if cached is None:
                self.deepspeed.backward(loss)
            else:
                backward_all(self.deepspeed, cached, self.reduction)
        after_backward()
        norm = self._local_gradient_norm() if self.zero_stage == 0 else None
        if norm is not None and not bool(torch.isfinite(norm)):
            self.deepspeed.zero_grad()
            return StepResult(loss.detach(), metrics, False, float(norm), int(stop_signal))
        with phase("optimizer"):
            self.deepspeed.step()
        applied = bool(self.deepspeed.was_step_applied())
        if self.scalars is not None:
            self.scalars.refresh()
        reported = norm if norm is not None else self.deepspeed.get_global_grad_norm()
        return StepResult(
            loss.detach(),
            metrics,
            applied,
            None if reported is None else float(reported),
            int(stop_signal),
        )

    def _cached_step(self, inputs: ModelInputs) -> CachedStep:
        if self.zero_stage == 3:
            # Every pass gathers parameters, so ranks with different numbers of passes would hang.
            # In the other stages the objectives detect unequal batches.
            largest, smallest = self.ranks.agree_max(len(inputs), -len(inputs))
            if largest != -smallest:
                raise ValueError(
                    f"local batches differ: {-smallest:g} pairs on one rank, {largest:g} on another"
                    "; give every rank the same number"
                )
        return CachedStep(EngineHalves(self.deepspeed), inputs, self.micro_batch)

    def load_deepspeed_checkpoint(self, folder: str, tag: str) -> bool:
        """Load DeepSpeed's files of a checkpoint; returns whether there were any."""
        path, _ = self.deepspeed.load_checkpoint(folder, tag=tag)
        if self.scalars is not None:
            self.scalars.refresh()
        return path is not None

    def _local_gradient_norm(self) -> Tensor:
        """Return the gradient norm in stage 0, where every rank holds all averaged gradients."""
        gradients = [
            parameter.grad
            for parameter in self.deepspeed.module.parameters()
            if parameter.grad is not None
        ]
        return torch.nn.utils.get_total_norm(gradients)

    def close(self) -> None:
        """Wait for the other ranks, then free DeepSpeed's hooks and buffers."""
        self.ranks.barrier()
        self.deepspeed.destroy()
        # ZeRO 3 replaces this function for all models of the process and does not restore it.
        torch.nn.functional.linear = TORCH_LINEAR


def refuse_scalar_parameters(model: nn.Module) -> None:
    """Raise ValueError for 0-dim parameters.

    DeepSpeed 0.19.8 broadcasts parameters as views of bytes. torch refuses that for 0-dim tensors,
    without naming the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise ValueError(
                f"parameter {name!r} is 0-dim, which DeepSpeed cannot broadcast: give it shape [1]"
            )


def compile_for(model: nn.Module, device: torch.device) -> None:
    """Compile the transformer blocks. Raises ConfigError if there is no compiler."""
    try:
        compile_blocks(model, device)
    except NoCompilerError as error:
        raise ConfigError(f"{error}; install it, or set training.compile=none") from error


def start_engine(model: nn.Module, config: RunConfig, ranks: Ranks) -> Engine:
    """Move `model` to the rank's device and wrap it in a DeepSpeed engine."""
    refuse_scalar_parameters(model)
    deepspeed = import_deepspeed(ranks.device.type)
    if config.training.compile == "blocks":
        compile_for(model, ranks.device)
    wrapped = LossModule(model).to(ranks.device)
    optimizer = build_optimizer(wrapped, config.optimizer)
    deepspeed_engine, *_ = deepspeed.initialize(
        model=wrapped,
        optimizer=optimizer,
        config=build_deepspeed_config(config, ranks.world_size),
        dist_init_required=False,
    )
    return Engine(deepspeed_engine, ranks, config)
