"""The process group of a run: start, agreement between ranks, and the order of shutdown."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from svilm_fast.train.config import DistributedConfig
from svilm_fast.train.environment import import_deepspeed, use_single_process_defaults
from svilm_fast.train.errors import UserError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and talks to the terminal."""
        return self.rank == 0

    def agree_max(self, *values: float) -> list[float]:
        """Return the largest of each value over the ranks; every rank must call it."""
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return shared.tolist()

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the mean of each value over the ranks; every rank must hold the same names."""
        if not values:
            return {}
        names = sorted(values)
        stacked = torch.stack(
            [values[name].detach().to(self.device, torch.float64) for name in names]
        )
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return dict(zip(names, stacked.tolist(), strict=True))

    def share(self, value: Any) -> Any:
        """Return rank 0's picklable value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Run `make` on rank 0; its picklable value, or its error, reaches every rank."""
        answer: tuple[Any, Exception | None] = (None, None)
        if self.is_first:
            try:
                answer = (make(), None)
            except Exception as error:
                answer = (None, error)
        value, problem = self.share(answer)
        if problem is not None:
            raise problem
        return value

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device of this rank: of `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` takes a GPU where torch sees one. Raises UserError for a GPU that is not there.
    """
    kind, _, index = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"unknown device {wanted!r}; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and count == 0):
        return torch.device("cpu")
    number = int(index) if index else local_rank
    if number >= count:
        raise UserError(
            f"device {kind}:{number} was asked for, but torch sees {count} GPUs; start fewer "
            "ranks, or use the device auto or cpu"
        )
    return torch.device("cuda", number)


def start_ranks(config: DistributedConfig) -> Ranks:
    """Join the process group that a launcher described, or be a group of one without launcher."""
    use_single_process_defaults()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(config.device, local_rank)
    deepspeed = import_deepspeed(device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop; they still work.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Without a launcher's variables DeepSpeed would look for MPI and need mpi4py.
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=config.timeout_seconds),
        verbose=False,
    )
    return Ranks(dist.get_rank(), local_rank, dist.get_world_size(), device)


def leave_ranks() -> None:
    """Leave the process group; engines must have been destroyed before.

    gloo's worker threads abort the interpreter's exit in about every third run when the group
    outlives the engine or is never destroyed; barrier, engine, group is the order that does not.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined_ranks(config: DistributedConfig) -> Iterator[Ranks]:
    """Join on entry; on a normal exit wait for the others and leave."""
    ranks = start_ranks(config)
    try:
        yield ranks
    finally:
        leave_ranks()
