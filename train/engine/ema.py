"""An exponential moving average of the weights, sharded like ZeRO's fp32 masters.

The update is elementwise, so each rank averages the shard that it owns. This is exact in every
stage and for any number of ranks, and needs no communication. A rank holds as much of the average
as of the masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.train.config.schema import EmaConfig
from svilm_fast.train.engine.sharded_state import (
    ShardedEngine,
    masters,
    refresh_parameters,
    release_parameters,
    write_shard,
)

EXCHANGE_ELEMENTS = 1 << 24  # limits the temporary copy while two shards are swapped


@dataclass
class EmaState:
    """started: whether averaging has started. updates: number of updates since then."""

    started: bool = False
    updates: int = 0


class WeightAverage:
    """The average of an engine's weights."""

    def __init__(self, engine: ShardedEngine, config: EmaConfig) -> None:
        self.engine, self.config = engine, config
        self.state = EmaState()
        self.shards = [torch.empty_like(master) for master in masters(engine)]
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start from the engine's weights after `step` steps, or wait for `start_step`."""
        self.state = EmaState(started=step >= self.config.start_step)
        if self.state.started:
            self._copy_masters()

    def decay_of_next_update(self) -> float:
        """Return the decay factor of the next update."""
        assert self.config.decay is not None
        decay = self.config.decay**self.config.every_steps
        if self.config.warmup:
            count = self.state.updates
            decay = min(decay, (1 + count) / (10 + count))
        return decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update with the weights of step `step` (counted from 1); call it after each applied step.

        The first call at or after `start_step` copies the weights.
        """
        if step < self.config.start_step:
            return
        if not self.state.started:
            self.state.started = True
            self._copy_masters()
            return
        if (step - self.config.start_step) % self.config.every_steps:
            return
        torch._foreach_lerp_(self.shards, masters(self.engine), 1 - self.decay_of_next_update())
        self.state.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the engine for the block; every rank must enter it.

        The weights are restored bit for bit. Nothing is swapped before averaging has started.
        """
        if not self.state.started:
            yield
            return
        self._exchange(refresh=True)
        try:
            yield
        finally:
            self._exchange(refresh=True)

    def load_whole(self, value_of: Callable[[str], Tensor | None], updates: int) -> None:
        """Load the average from unsharded tensors; each rank keeps its shard.

        value_of: returns the tensor of a parameter name; None starts its average from the weight.
        """
        self._copy_masters()
        self._exchange(refresh=False)
        for name, parameter in self.engine.model.named_parameters():
            value = value_of(name) if parameter.requires_grad else None
            if value is not None:
                write_shard(self.engine, parameter, value.to(self.engine.ranks.device))
        self._exchange(refresh=True)
        self.state = EmaState(started=True, updates=updates)

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for shard, master in zip(self.shards, masters(self.engine), strict=True):
            shard.copy_(master)

    @torch.no_grad()
    def _exchange(self, *, refresh: bool) -> None:
        release_parameters(self.engine)
        for shard, master in zip(self.shards, masters(self.engine), strict=True):
            pairs = zip(
                shard.view(-1).split(EXCHANGE_ELEMENTS),
                master.view(-1).split(EXCHANGE_ELEMENTS),
                strict=True,
            )
            for ours, theirs in pairs:
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
        if refresh:
            refresh_parameters(self.engine)
