"""Failure attribution: finds the rank that ended a run from the ranks' reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from svilm_fast.core.errors import RankError

# If a collective fails on one rank, it fails on the others within this time.
REPORTS_WITHIN_SECONDS = 2.0
# If a machine dies, the connections of all its ranks close within this time.
DEATHS_WITHIN_SECONDS = 0.3


@dataclass
class Member:
    """One rank: where it runs, and what it reported last.

    waits: step and collective that failed on it. failure: the error of that collective if it failed
    before its timeout. left_after: the step at which it left the group in good order. gone: its
    process ended without a report.
    """

    rank: int
    host: str
    pid: int
    waits: tuple[int, str] | None = None
    failure: str | None = None
    left_after: int | None = None
    gone: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"


def named(members: Iterable[Member]) -> str:
    """Return ranks as a list for a message."""
    return ", ".join(str(member) for member in members)


def silent_text(who: str, step: int, limit: str, waiting: str = "") -> str:
    """Return the message about ranks that do not respond and may still be alive."""
    return (
        f"step {step}: {who} did not respond within {limit}{waiting}: stopped, cut off from "
        "the network, or slower than the limit; continue with --resume"
    )


def gone_text(who: str, step: int, waiting: str = "") -> str:
    """Return the message about ranks whose process ended without a report."""
    return (
        f"step {step}: {who} exited without an error report, killed or crashed (out of memory is "
        f"the usual cause; see its own output and the kernel log){waiting}; continue with --resume"
    )


class Ledger:
    """Collects the reports of the ranks; the first failure determines the verdict.

    verdict: the error that every rank raises, None as long as there is none.
    """

    def __init__(
        self,
        limit: Callable[[], str],
        step: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.step, self.clock = limit, step, clock
        self.members: dict[int, Member] = {}
        self.verdict: RankError | None = None
        self.due: float | None = None

    def joined(self, member: Member) -> None:
        """Add a rank."""
        self.members[member.rank] = member

    def stopped(self, verdict: RankError) -> None:
        """Record a rank that ends with its own error, which is the verdict at once."""
        if self.verdict is None:
            self.verdict = verdict

    def waits(self, rank: int, step: int, where: str, failure: str | None = None) -> None:
        """Record a collective that failed on this rank, at its timeout or (`failure`) before."""
        self.members[rank].waits = (step, where)
        self.members[rank].failure = failure
        self._within(REPORTS_WITHIN_SECONDS)
        if all(member.waits for member in self.members.values()):
            self._within(0.0)

    def left(self, rank: int, step: int) -> None:
        """Record a rank that left the group in good order."""
        self.members[rank].left_after = step

    def lost(self, rank: int) -> None:
        """Record the closed connection to a rank."""
        member = self.members[rank]
        if member.left_after is None:
            member.gone = True
            self._within(DEATHS_WITHIN_SECONDS)

    def decided(self) -> RankError | None:
        """Return the verdict once there is one."""
        if self.verdict is None and self.due is not None and self.clock() >= self.due:
            self.verdict = RankError(self._judge())
        return self.verdict

    def _within(self, seconds: float) -> None:
        due = self.clock() + seconds
        self.due = due if self.due is None else min(self.due, due)

    def _judge(self) -> str:
        members = [self.members[rank] for rank in sorted(self.members)]
        waiting = [member for member in members if member.waits]
        step = max((member.waits[0] for member in waiting if member.waits), default=self.step())
        places = ""
        if waiting and waiting[0].waits:
            places = f", while rank {waiting[0].rank} waited in {waiting[0].waits[1]}"
        gone = [member for member in members if member.gone]
        if gone:
            return gone_text(named(gone), step, places)
        left = [member for member in members if member.left_after is not None]
        if left:
            return (
                f"step {step}: {named(left)} left the run after step {left[0].left_after}{places}; "
                "start every rank with the same command and settings, then continue with --resume"
            )
        silent = [member for member in members if not member.waits]
        failed = [member for member in waiting if member.failure]
        if silent and failed == waiting and failed[0].waits:
            # No rank waited until its timeout, so none can be called silent.
            return (
                f"step {step}: {failed[0].waits[1]} failed on {failed[0]}: {failed[0].failure}; "
                "continue with --resume"
            )
        if silent:
            return silent_text(named(silent), step, self.limit(), places)
        each = "; ".join(
            f"rank {member.rank} at step {member.waits[0]} in {member.waits[1]}"
            for member in waiting
            if member.waits
        )
        return f"step {step}: the ranks are waiting for each other in different collectives: {each}"
