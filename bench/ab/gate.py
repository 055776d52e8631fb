"""Compares two versions: checkouts, workers, judgement, and the file that keeps all samples."""

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
from svilm_fast.bench.ab.process import SideError
from svilm_fast.bench.ab.protocol import SUITES_MODULE
from svilm_fast.bench.ab.samples import BASE, CONTROL, HEAD
from svilm_fast.bench.ab.session import Measured, MeasurementPlan, Session, SideSpec
from svilm_fast.bench.ab.verdict import DecisionRule, Judgement, judge
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.core.git import git

SCHEMA = 2
BenchFrom = Literal["head", "own"]
# What a checkout tells of itself; it must run where no worker existed yet.
_LIST = """
import importlib, json, sys, torch
module, suites, only, device = json.loads(sys.argv[1])
try:
    listed = importlib.import_module(module).benchmarks
except ModuleNotFoundError as missing:
    if not module.startswith(missing.name or "?"):
        raise
    listed, ids = None, None
if listed is not None:
    ids = []
    for suite in suites or [None]:  # one by one: base may not know all of head's suites
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
        unlisted_base: whether base may be older than the list of benchmarks.
        module: where the benchmarks come from.
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
    unlisted_base: bool = False
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
        """What is written: everything, all samples too."""
        return {
            "schema": SCHEMA,
            "exit_code": self.judgement.exit_code.name,
            "messages": self.judgement.messages,
            "request": _plain(asdict(self.request)),
            "commits": self.commits,
            "verdicts": [_plain(asdict(one)) for one in self.judgement.verdicts],
            "controls": [_plain(asdict(one)) for one in self.judgement.controls],
            "measured": None if self.measured is None else _plain(asdict(self.measured)),
        }


def compare(
    request: ComparisonRequest, say: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Run a comparison.

    Raises:
        ValueError: a reference or a name is wrong, or base cannot tell its benchmarks.
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
            if own_ids is None and not request.unlisted_base:
                raise ValueError(
                    f"base {request.base} is older than the list of benchmarks, so that nobody "
                    "sees what head dropped: compare a newer one, or accept it: --unlisted-base"
                )
            if request.bench_from == "head" and folders.base != folders.head:
                take_benchmarks_from(folders.head, folders.base)
            measured = Session(_sides(request, folders), request.plan, folders.scratch, say).run()
        except SideError as error:
            if error.kind == "usage" and not own_ids:
                raise ValueError(str(error)) from error
            exit_code = ExitCode.MISSING if error.kind == "usage" else ExitCode.FAILED
            judgement = Judgement(exit_code, [], [], [str(error)])
            return Comparison(request, commits, None, judgement)
    messages = []
    if own_ids is None:
        messages.append("base has no list of benchmarks: what head dropped cannot be seen")
    else:
        # A base that is older than the mark of what is left out lists it still.
        known = {*measured.ids[BASE], *measured.left_out}
        measured.ids[BASE] = measured.ids[BASE] + [id for id in own_ids if id not in known]
    judgement = judge(measured, request.rule)
    judgement.messages += messages
    return Comparison(request, commits, measured, judgement)


def _own_ids(request: ComparisonRequest, folders: Checkouts) -> list[str] | None:
    """What base's own benchmarks are; None where base is older than the list of benchmarks."""
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
        told = " ".join(result.stderr.split())[-400:]
        raise SideError(BASE, "start", f"cannot list its own benchmarks: {told}")
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


def _plain(value: Any) -> Any:
    """The same with types that JSON knows."""
    if isinstance(value, ExitCode):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path) else value
