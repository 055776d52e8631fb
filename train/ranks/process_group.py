"""The process group of a run: start, small collectives, and the order of shutdown."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from svilm_fast.core.errors import RankError, UserError
from svilm_fast.core.text import counted
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.environment import import_deepspeed, use_launcher_variables
from svilm_fast.train.ranks.lost_connection import failure_of, is_lost_connection, place_of
from svilm_fast.train.ranks.monitor import RankMonitor, start_watch
from svilm_fast.train.run_app import report

Made = TypeVar("Made")
# The process group's own timeout, which names the reason, must come first.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    watch: RankMonitor | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and prints to the terminal."""
        return self.rank == 0

    def reached(self, step: int) -> None:
        """Record the step that begins, for error messages."""
        if self.watch is not None:
            self.watch.progress.step = step

    def limit_waits(self, config: DistributedConfig, *, solo: bool) -> None:
        """Set the timeout of all further collectives; every rank must call it.

        solo: use the longer timeout, because ranks may wait for one that works alone.
        """
        setting, seconds = _limit(config, solo=solo)
        if self.world_size > 1:
            for group in list(distributed_c10d._world.pg_map):
                if group is not dist.GroupMember.NON_GROUP_MEMBER:
                    distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
        if self.watch is not None:
            self.watch.progress.limit = setting

    def agree_max(self, *values: float) -> list[float]:
        """Return the maximum of each value over the ranks; every rank must call it.

        Raises RankError on all ranks if they are at different steps.
        """
        steps = [self.watch.progress.step] if self.watch is not None else []
        extremes = [*steps, *(-step for step in steps)]
        shared = torch.tensor([*values, *extremes], dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        largest = shared.tolist()
        if steps and largest[-2] != -largest[-1]:
            raise RankError(
                f"the ranks are at different steps (from {-largest[-1]:.0f} to "
                f"{largest[-2]:.0f}): one of them skipped a step or a collective; continue with "
                "--resume"
            )
        return largest[: len(values)]

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

    def numbers(self, value: float) -> list[float]:
        """Return the numbers of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        mine = torch.tensor([value], dtype=torch.float64, device=self.device)
        every = mine.new_empty(self.world_size)
        dist.all_gather_into_tensor(every, mine)
        return every.tolist()

    def share(self, value: Any) -> Any:
        """Return rank 0's picklable value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Run `make` on rank 0; every rank returns its picklable value or raises its error."""
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
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def _limit(config: DistributedConfig, *, solo: bool) -> tuple[str, float]:
    """Return the timeout as `setting=value` and in seconds."""
    seconds = config.timeout_seconds
    if solo and config.solo_timeout_seconds > seconds:
        seconds = config.solo_timeout_seconds
        return f"distributed.solo_timeout_seconds={seconds:g}", seconds
    return f"distributed.timeout_seconds={seconds:g}", seconds


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device of this rank: of `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` selects a GPU if torch sees one. Raises UserError for a GPU that does not exist.
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
            f"device {kind}:{number} was requested, but torch sees {counted(count, 'GPU')}; start "
            "fewer ranks, or use the device auto or cpu"
        )
    return torch.device("cuda", number)


def start_ranks(config: DistributedConfig) -> Ranks:
    """Join the process group of the launcher, or create a group of one without a launcher.

    Raises RankError if the ranks do not connect within the timeout.
    """
    use_launcher_variables()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(config.device, local_rank)
    deepspeed = import_deepspeed(device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    timeout = timedelta(seconds=_limit(config, solo=True)[1])
    # Without a launcher's variables DeepSpeed would look for MPI and need mpi4py.
    try:
        with _ended_after(config):
            deepspeed.init_distributed(
                dist_backend="nccl" if device.type == "cuda" else "gloo",
                auto_mpi_discovery=False,
                timeout=timeout,
                verbose=False,
            )
    except (dist.DistError, RuntimeError) as error:
        raise RankError(_not_together(config, str(error) or type(error).__name__)) from error
    # DeepSpeed creates further groups to reduce gradients. torch gives them a default timeout of 10
    # (NCCL) or 30 (gloo) minutes, whatever the first group has.
    deepspeed.comm.comm.cdb.new_group = partial(dist.new_group, timeout=timeout)
    return Ranks(dist.get_rank(), local_rank, dist.get_world_size(), device)


def leave_ranks() -> None:
    """Leave the process group; engines must be destroyed before.

    If the group outlives the engine or is never destroyed, gloo's worker threads abort the exit of
    the interpreter in about every third run. The safe order is barrier, engine, group.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _ended_after(config: DistributedConfig) -> Iterator[None]:
    """End the process if the group does not form in time and nothing raises.

    torch's store waits forever if the port belongs to another program that accepts the connection
    and never replies. This blocks the main thread, so a timer ends the process.
    """

    def end() -> None:
        error = RankError(
            _not_together(config, "the port accepted the connection and never replied")
        )
        os._exit(report(error))

    timer = threading.Timer(_limit(config, solo=True)[1] + GRACE_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _not_together(config: DistributedConfig, reason: str) -> str:
    first_line = reason.splitlines()[0]
    variables = os.environ
    return (
        f"the {variables['WORLD_SIZE']} ranks did not connect at {variables['MASTER_ADDR']}:"
        f"{variables['MASTER_PORT']} within {_limit(config, solo=True)[0]} "
        f"({first_line}); check that every node was started with the same address and port, that "
        "the port is open, and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME where a node has several "
        "networks"
    )


@contextmanager
def _errors_before_sigterm() -> Iterator[None]:
    """Delay SIGTERM while an error propagates, so that the process can report it.

    When one rank ends, the launcher sends SIGTERM to the others at once, while they still attribute
    the failure. It waits 30 s before it kills them, which is long enough.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if sys.exc_info()[1] is None:
            signal.signal(number, previous)
            signal.raise_signal(number)

    previous = signal.signal(signal.SIGTERM, handle)
    yield  # after an error the handler stays: the error still propagates outside of this block
    signal.signal(signal.SIGTERM, previous)


@contextmanager
def joined_ranks(config: DistributedConfig) -> Iterator[Ranks]:
    """Join the process group on entry; on a normal exit wait for the other ranks and leave it.

    An existing process group of one is used and stays joined.

    Raises RankError, with the same message on all ranks, if another rank ended or does not respond.
    An error of this rank is reported to the others and then raised unchanged.
    """
    already_in = dist.is_initialized()
    ranks = start_ranks(config)
    if ranks.world_size == 1:
        try:
            yield ranks
        finally:
            if not already_in:
                leave_ranks()
        return
    watch = start_watch(
        ranks.rank, ranks.world_size, _limit(config, solo=True)[0], ranks.share, ranks.agree_max
    )
    # After an error the group is not destroyed: that would wait for dead ranks, and `train.leave`
    # ends the process anyway.
    with _errors_before_sigterm():
        try:
            yield replace(ranks, watch=watch)
        except BaseException as error:
            if is_lost_connection(error):
                raise _explained(error, watch) from error
            if watch is not None:
                watch.stopped(error)
            raise
        if watch is not None:
            watch.close()
        leave_ranks()


def _explained(error: BaseException, watch: RankMonitor | None) -> RankError:
    where = place_of(error)
    if watch is None:
        return RankError(f"another rank exited or does not respond: {where} failed ({error})")
    return watch.lost(where, failure_of(error))
