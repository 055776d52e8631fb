"""Runs the workers of a comparison: restarts them and times the sides in interleaved pairs."""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svilm_fast.bench.ab.process import SideError, SideSpec, Worker
from svilm_fast.bench.ab.samples import BASE, CONTROL, HEAD, RenewalSamples

WARM_CALLS = 1
LEAST = 3
LEAST_SHARE, MOST_SHARE = 1 / 2, 4
NORMAL_QUARTILES = 1.349  # distance of a normal distribution's quartiles, standard deviations
PROOF = -1
Team = Mapping[str, Worker]
Job = tuple[int, str]


@dataclass(frozen=True)
class MeasurementPlan:
    """How a comparison is measured.

    Attributes:
        restarts: how often all workers are restarted; each process has its own timing offset.
        renewals: children that each worker forks in the first restart, one after the other; each
            has another memory layout. 0 measures in the worker itself (CUDA does not survive a
            fork).
        aim: target standard error of a log ratio. The spread so far decides in how many renewals
            of the next restart a benchmark takes part, between `LEAST_SHARE` and `MOST_SHARE` of
            `renewals`: steady benchmarks leave time to unsteady ones.
        pairs: pairs of samples of a benchmark in each renewal.
        sample_ms: target length of a sample; short calls are batched to reach it.
        budget_s: seconds for a benchmark in one restart; long calls take part in fewer renewals
            (without renewals: get fewer pairs), never fewer than `LEAST`.
        controls: benchmarks that are also measured base against base, evenly spaced.
        timeout_s: time limit of one request to a worker.
        pinned: whether all workers of a restart run on one core, the next restart on another.
        seed: of the random orders: of the sides at start, of benchmarks, of the sides in a pair.
    """

    restarts: int = 16
    renewals: int = 16
    aim: float = 0.0025
    pairs: int = 3
    sample_ms: float = 1.0
    budget_s: float = 3.0
    controls: int = 4
    timeout_s: float = 120.0
    pinned: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a benchmark has no figure."""

    side: str
    kind: str
    message: str


@dataclass
class Measured:
    """Everything that a comparison measured.

    `ids` holds each side's own list; `left_out` benchmarks that cannot be timed in turns.
    """

    plan: MeasurementPlan
    ids: dict[str, list[str]] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    draws: dict[str, list[RenewalSamples]] = field(default_factory=dict)
    errors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    peaks: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    controls: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    mismatch: str | None = None

    @property
    def common(self) -> list[str]:
        """Ids of both sides in the head's order."""
        base = set(self.ids[BASE])
        return [id for id in self.ids[HEAD] if id in base]


def spaced(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` of the ids, evenly spaced."""
    count = min(count, len(ids))
    return [ids[(2 * i + 1) * len(ids) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class Batch:
    """How much of a benchmark fits the budget: calls of a sample, pairs, renewals."""

    calls: int
    pairs: int
    renewals: int


class Session:
    """Measures the benchmarks that both sides have."""

    def __init__(
        self,
        sides: Sequence[SideSpec],
        plan: MeasurementPlan,
        logs: Path,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.sides = {side.name: side for side in sides}
        self.plan = plan
        self.logs = logs
        self.say = say
        self.measured = Measured(plan)
        self._batches: dict[str, Batch] = {}

    def run(self) -> Measured:
        """Measure; a benchmark that fails is recorded in the result.

        Raises:
            SideError: a worker did not start, so nothing can be measured.
        """
        for restart in range(self.plan.restarts):
            jobs: list[Job] | None = None
            while jobs is None or jobs:
                with self._team(restart) as team:
                    if jobs is None:
                        if restart == 0:
                            self._know()
                        if self.measured.mismatch:
                            return self.measured
                        jobs = self._jobs(restart)
                    self._work(team, jobs, restart)
            self.say(f"restart {restart + 1} of {self.plan.restarts} done")
        if CONTROL in self.sides:
            ids = [id for id in self.measured.draws if id not in self.measured.failures]
            order = [id for id in self.measured.common if id in ids]
            self.measured.controls = spaced(order, self.plan.controls)
        return self.measured

    @contextmanager
    def _team(self, restart: int) -> Iterator[dict[str, Worker]]:
        """Start all workers on one core, in the restart's order; stop them at the end."""
        with ExitStack() as stack:
            team = {}
            for name in self._start_order(restart):
                team[name] = Worker(self.sides[name], self.logs / f"{name}.log")
                stack.callback(team[name].stop)
            for name, worker in team.items():
                self._check(name, worker.hello(self.plan.timeout_s))
            if (cores := self._cores(restart)) is not None:
                for worker in team.values():
                    worker.ask("pin", self.plan.timeout_s, cores=cores)
            yield team

    def _start_order(self, restart: int) -> tuple[str, ...]:
        """A random order of the sides; every possible order is used once before any repeats."""
        orders = list(itertools.permutations(self.sides))
        turn, place = divmod(restart, len(orders))
        return random.Random(f"{self.plan.seed}/{turn}").sample(orders, len(orders))[place]

    def _check(self, name: str, facts: dict[str, Any]) -> None:
        """Keep the first hello of a side; later ones must equal it."""
        library = Path(facts["library"])
        folder = self.sides[name].folder.resolve()
        if folder not in library.parents:
            raise SideError(name, "start", f"imported {library}, not the checkout {folder}")
        known = self.measured.environments.setdefault(name, facts["environment"])
        ids = self.measured.ids.setdefault(name, facts["ids"])
        if name == HEAD:
            self.measured.left_out = facts.get("left_out", [])
        if facts["ids"] != ids or facts["environment"]["fingerprint"] != known["fingerprint"]:
            raise SideError(name, "start", "benchmarks or machine changed between two restarts")

    def _know(self) -> None:
        measured = self.measured
        prints = {name: measured.environments[name]["fingerprint"] for name in self.sides}
        if len(set(prints.values())) > 1:
            sides = ", ".join(f"{name} {value}" for name, value in prints.items())
            measured.mismatch = f"the sides' machines or versions differ: {sides}"

    def _cores(self, restart: int) -> list[int] | None:
        if not self.plan.pinned:
            return None
        cores = sorted(os.sched_getaffinity(0))
        return [cores[restart % len(cores)]]

    def _jobs(self, restart: int) -> list[Job]:
        """The jobs of a restart: every renewal takes all benchmarks in its own random order."""
        ids = [id for id in self.measured.common if id not in self.measured.failures]
        jobs = [(PROOF, id) for id in ids] if restart == 0 else []
        wanted = {id: self._renewals(id) for id in ids}
        for renewal in range(max(wanted.values(), default=0)):
            random.Random(f"{self.plan.seed}/{restart}/{renewal}").shuffle(ids)
            jobs += [(renewal, id) for id in ids if renewal < wanted[id]]
        return jobs

    def _renewals(self, id: str) -> int:
        """The number of renewals of the next restart in which a benchmark takes part."""
        plan = self.plan
        draws = self.measured.draws.get(id, [])
        if not plan.renewals or len(draws) < 2:
            return max(1, plan.renewals)
        low, _, high = statistics.quantiles((draw.log_ratio(HEAD) for draw in draws), n=4)
        spread = (high - low) / NORMAL_QUARTILES
        needed = (spread / plan.aim) ** 2 / plan.restarts
        least = max(min(LEAST, plan.renewals), LEAST_SHARE * plan.renewals)
        bounded = max(least, min(needed, MOST_SHARE * plan.renewals))
        return min(math.ceil(bounded), self._batches[id].renewals)

    def _work(self, team: Team, jobs: list[Job], restart: int) -> None:
        """Do the jobs and remove them from the list; return early if a worker is lost."""
        current: int | None = None
        while jobs:
            renewal, id = jobs[0]
            if renewal != PROOF and renewal >= self._batches[id].renewals:
                jobs.pop(0)
                continue
            try:
                if renewal != current and self.plan.renewals:
                    for worker in team.values():
                        worker.ask("renew", self.plan.timeout_s)
                current = renewal
                if renewal == PROOF:
                    self._prove(team, id)
                else:
                    draw = self._draw(team, id, restart, renewal)
                    self.measured.draws.setdefault(id, []).append(draw)
                jobs.pop(0)
            except SideError as error:
                # A skip after the proof is an error: all sides could run the benchmark before.
                late = error.kind == "skipped" and id in self.measured.errors
                kind = "missing" if late else error.kind
                self.measured.failures[id] = Failure(error.side, kind, str(error))
                jobs[:] = [job for job in jobs if job[1] != id]
                self.say(f"{id}: {error}")
                if error.lost:
                    return

    def _prove(self, team: Team, id: str) -> None:
        """Verify all sides before anything is timed; measure peaks and choose the batch size."""
        limit = self.plan.timeout_s
        self._ask_all(team, "prepare", id=id)
        proven = self._ask_all(team, "verify")
        _check_shapes({name: answer.get("shape") for name, answer in proven.items()})
        for name, answer in proven.items():
            self.measured.errors.setdefault(id, {})[name] = answer["error"]
        for name, peak in self._ask_all(team, "peak").items():
            if peak["bytes"] is not None:
                self.measured.peaks.setdefault(id, {})[name] = peak["bytes"]
        once = min(team[BASE].ask("time", limit, calls=1)["ns"] for _ in range(3))
        self._batches[id] = self._batch(once * 1e-9, len(team))
        for worker in team.values():
            worker.ask("close", limit)

    def _ask_all(self, team: Team, request: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        """Every side's answer; raises `skipped` if all sides skip, `missing` if only some do."""
        answers, skipped = {}, []
        for name, worker in team.items():
            try:
                answers[name] = worker.ask(request, self.plan.timeout_s, **arguments)
            except SideError as error:
                if error.kind != "skipped":
                    raise
                skipped.append(error)
        if skipped:
            kind = "skipped" if len(skipped) == len(team) else "missing"
            raise SideError(skipped[0].side, kind, str(skipped[0]))
        return answers

    def _batch(self, call_s: float, sides: int) -> Batch:
        plan = self.plan
        calls = max(1, math.ceil(plan.sample_ms * 1e-3 / call_s))
        if not plan.renewals:
            affordable = int(plan.budget_s / (calls * call_s * sides))
            return Batch(calls, max(LEAST, min(plan.pairs, affordable)), 1)
        affordable = int(plan.budget_s / ((WARM_CALLS + calls * plan.pairs) * call_s * sides))
        return Batch(calls, plan.pairs, max(LEAST, affordable))

    def _draw(self, team: Team, id: str, restart: int, renewal: int) -> RenewalSamples:
        limit = self.plan.timeout_s
        batch = self._batches[id]
        for worker in team.values():
            worker.ask("prepare", limit, id=id, warm=WARM_CALLS)
        draw = RenewalSamples(restart, renewal, self._cores(restart), batch.calls)
        draw.ns = {name: [] for name in team}
        draw.waited = {name: [] for name in team}
        chance = random.Random(f"{self.plan.seed}/{restart}/{renewal}/{id}")
        for _ in range(batch.pairs):
            # The control is timed on every benchmark, though few are judged: a process that has
            # run less is colder, and was 0.8 % slower.
            order = chance.sample(list(team), len(team))
            draw.order.append("".join(name[0] for name in order))
            for name in order:
                sample = team[name].ask("time", limit, calls=batch.calls)
                draw.ns[name].append(sample["ns"])
                draw.waited[name].append(sample["waited"])
        for worker in team.values():
            worker.ask("close", limit)
        return draw


def _check_shapes(shapes: Mapping[str, Any]) -> None:
    """Raise SideError if a side ran another shape than base; None: it records no shape."""
    base = shapes[BASE]
    for name, shape in shapes.items():
        if None not in (base, shape) and shape != base:
            raise SideError(
                name,
                "incomparable",
                f"runs the shape {shape} and base runs {base} under the same id, so their times "
                "cannot be compared: use --bench-from head, or give the new shape its own case",
            )
