"""Compares two versions: checkouts, workers, judgement, and the file with all samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from svilm_fast.bench.ab.checkouts import Checkouts, checkouts, take_benchmarks_from
from svilm_fast.bench.ab.process import SUITES_MODULE, SideError, SideSpec
from svilm_fast.bench.ab.samples import BASE, CONTROL, HEAD
from svilm_fast.bench.ab.session import Measured, MeasurementPlan, Session
from svilm_fast.bench.ab.verdict import DecisionRule, Judgement, judge
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.core.git import git

SCHEMA = 2
BenchFrom = Literal["head", "own"]
# Run in the base's checkout to list its own benchmarks; the base may have no worker yet.
_LIST = """
import importlib, json, sys, torch
module, suites, only, device = json.loads(sys.argv[1])
listed = importlib.import_module(module).benchmarks
ids = []
for suite in suites or [None]:  # one by one: base may not have all of head's suites
    try:
        found = listed(None if suite is None else [suite], torch.device(device), only)
        ids += [id for id, one in found.items() if not getattr(one, "background", False)]
    except ValueError as error:
        if "unknown suite" not in str(error) and "matches" not in str(error):
            raise
print("ids:" + json.dumps(ids))
"""


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared, and how.

    Attributes:
        repository: the clone that knows both versions.
        base: reference of the version that is compared against.
        head: reference of the version under test; None is the working tree.
        itself: compare `base` with itself.
        suites: names of suites; None takes all.
        only: a shell pattern of ids.
        device: `cpu` or `cuda`.
        threads: threads of PyTorch on the CPU.
        bench_from: whose benchmark code runs over base's library: the head's, or its own.
        module: whose `benchmarks` are measured.
    """

    repository: Path
    base: str
    head: str | None = None
    itself: bool = False
    suites: Sequence[str] | None = None
    only: str | None = None
    device: str = "cpu"
    threads: int = 1
    bench_from: BenchFrom = "head"
    module: str = SUITES_MODULE
    plan: MeasurementPlan = field(default_factory=MeasurementPlan)
    rule: DecisionRule = field(default_factory=DecisionRule)


@dataclass(frozen=True)
class Comparison:
    """The request, what it measured and how it was judged."""

    request: ComparisonRequest
    commits: dict[str, Any]
    measured: Measured | None
    judgement: Judgement

    def as_json(self) -> dict[str, Any]:
        """The content of the result file, with all samples."""
        return {
            "schema": SCHEMA,
            "exit_code": self.judgement.exit_code.name,
            "messages": self.judgement.messages,
            "request": asdict(self.request, dict_factory=_named),
            "commits": self.commits,
            "verdicts": [asdict(one, dict_factory=_named) for one in self.judgement.verdicts],
            "controls": [asdict(one, dict_factory=_named) for one in self.judgement.controls],
            "measured": None if self.measured is None else asdict(self.measured),
        }


def compare(
    request: ComparisonRequest, say: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Run a comparison.

    Raises:
        ValueError: a commit, suite or pattern does not exist.
    """
    with checkouts(
        request.repository, request.base, request.head, itself=request.itself
    ) as folders:
        commits = {
            "base": folders.base_commit,
            "head": folders.head_commit,
            "head_is_working_tree": folders.head_commit is None,
            "dirty": bool(git(request.repository, "status", "--porcelain").strip()),
        }
        try:
            own_ids = _own_ids(request, folders)
            if request.bench_from == "head" and folders.base != folders.head:
                take_benchmarks_from(folders.head, folders.base)
            measured = Session(_sides(request, folders), request.plan, folders.scratch, say).run()
        except SideError as error:
            if error.kind == "usage" and not own_ids:
                raise ValueError(str(error)) from error
            exit_code = ExitCode.MISSING if error.kind == "usage" else ExitCode.FAILED
            judgement = Judgement(exit_code, [], [], [str(error)])
            return Comparison(request, commits, None, judgement)
    # A base from before `background` also lists the benchmarks that are left out.
    known = {*measured.ids[BASE], *measured.left_out}
    measured.ids[BASE] = measured.ids[BASE] + [id for id in own_ids if id not in known]
    return Comparison(request, commits, measured, judge(measured, request.rule))


def _own_ids(request: ComparisonRequest, folders: Checkouts) -> list[str]:
    """The ids of base's own benchmarks."""
    wanted = [request.module, request.suites, request.only, request.device]
    try:
        result = subprocess.run(
            [sys.executable, "-c", _LIST, json.dumps(wanted)],
            cwd=folders.base,
            env=_variables(folders.base, folders.scratch / "base-cache", request.threads),
            capture_output=True,
            text=True,
            check=False,
            timeout=request.plan.timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise SideError(BASE, "hung", f"did not list its own benchmarks: {error}") from error
    lines = [line for line in result.stdout.splitlines() if line.startswith("ids:")]
    if result.returncode or not lines:
        reason = " ".join(result.stderr.split())[-400:]
        raise SideError(BASE, "start", f"cannot list its own benchmarks: {reason}")
    return json.loads(lines[-1][len("ids:") :])


def _sides(request: ComparisonRequest, folders: Checkouts) -> list[SideSpec]:
    command = [sys.executable, "-m", "svilm_fast.bench.ab.worker"]
    command += ["--device", request.device, "--threads", str(request.threads)]
    command += ["--module", request.module]
    command += [f"--suite={name}" for name in request.suites or ()]
    command += [f"--only={request.only}"] if request.only else []
    names = {BASE: folders.base, HEAD: folders.head}
    if request.plan.controls:
        names[CONTROL] = folders.base
    return [
        SideSpec(
            name,
            command,
            folder,
            _variables(folder, folders.scratch / f"{folder.name}-cache", request.threads),
        )
        for name, folder in names.items()
    ]


def _variables(folder: Path, cache: Path, threads: int) -> dict[str, str]:
    """The environment of a side: its own library and cache, one hash order, fixed threads."""
    return dict(os.environ) | {
        "PYTHONPATH": str(folder),
        "PYTHONHASHSEED": "0",
        "TRITON_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": str(threads),
    }


def _named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary for the file, which holds exit codes by name."""
    return {key: value.name if isinstance(value, ExitCode) else value for key, value in pairs}
