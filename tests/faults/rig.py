"""Starts small runs on gloo ranks under the launcher, for the rows of faults."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from svilm_fast.data.world import render_world
from svilm_fast.train.checkpoint.store import newest_verified, tag_of
from svilm_fast.train.config.load import dump_config, load_config
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.environment import environment_without_launcher, free_port
from svilm_fast.train.ranks.signals import HANDLED
from tests.faults.registry import MissedError, need
from tests.faults.state import records_of, state_of

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.002
START_SECONDS = 240.0  # until a run reaches its fault, on a busy machine
SAMPLES, GLOBAL_BATCH = 24, 4
# The short form runs beside other tests, which take processor time from it.
SHORT_PATIENCE = 5.0
KEEP_THE_STATE = ("checkpoint.", "distributed.timeout_seconds")


@dataclass
class Run:
    """A started run: `folder` is this start's own, `root` the run directory."""

    folder: Path
    root: Path
    world_size: int
    launcher: int
    process: subprocess.Popen | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        """What launcher and ranks have printed so far."""
        return (self.folder / "output").read_text(errors="replace")

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def errors(self) -> list[str]:
        """The error lines of the output."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    def code(self) -> int | None:
        """The launcher's exit code, None while it runs."""
        if self.process is not None:
            return self.process.poll()
        if (self.folder / "code").exists():
            return int((self.folder / "code").read_text())
        return None

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> float:
        """Wait for a condition; returns the seconds it took, raises MissedError without it."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise MissedError(f"not within {seconds:g} s: {what}; {self.tail()}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def come_to(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition of a healthy run; raises MissedError if the run ends before."""
        self.until(lambda: condition() or self.code() is not None, what, START_SECONDS)
        need(condition(), f"ended with {self.code()} before: {what}; {self.tail()}")

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for the launcher's end; returns its exit code."""
        self.until(lambda: self.code() is not None, "the end of the launcher", seconds)
        code = self.code()
        assert code is not None
        return code

    def finished(self) -> Run:
        """Wait for a run that must succeed, as long as it makes steps."""
        done, since = 0, time.monotonic()
        while self.code() is None:
            time.sleep(20 * POLL_SECONDS)
            if self.steps() > done:
                done, since = self.steps(), time.monotonic()
            quiet = time.monotonic() - since
            need(quiet < START_SECONDS, f"no step for {quiet:.0f} s; {self.tail()}")
        code = self.code()
        need(code == 0, f"ended with {code}; {self.tail()}")
        return self

    def tail(self) -> str:
        told = self.errors() or self.output.splitlines()[-3:]
        return " / ".join(told)[:600]

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        path = self.folder / f"pid_{rank}"
        self.come_to(path.exists, f"the start of rank {rank}")
        return int(path.read_text())

    def pids(self) -> list[int]:
        return [self.pid(rank) for rank in range(self.world_size)]

    def alive(self) -> list[int]:
        """The ranks' processes that are left."""
        return [pid for pid in self.pids() if _lives(pid)]

    def steps(self) -> int:
        """Steps that rank 0 has begun in this start."""
        path = self.folder / "ids_0.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def ids(self) -> dict[int, list[str]]:
        """The samples of every step of this start, in the order of the global batch."""
        found: dict[int, list[str]] = {}
        for rank in range(self.world_size):
            for line in (self.folder / f"ids_{rank}.jsonl").read_text().splitlines():
                entry = json.loads(line)
                found.setdefault(entry["step"], []).extend(entry["ids"])
        return found

    def end(self) -> None:
        """Kill all processes that are left of this run."""
        pids = [int(path.read_text()) for path in self.folder.glob("pid_*")]
        for number in (signal.SIGKILL, signal.SIGCONT):
            for pid in pids:
                _send(pid, number)
        self.until(lambda: not any(map(_lives, pids)), "the end of killed ranks", 30)
        if self.code() is None:
            _send(self.launcher, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)


def heed_signals() -> None:
    """Restore the default effect of signals, because `nohup` and a shell's `&` ignore some."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(pid: int, number: int) -> None:
    if _lives(pid):
        os.kill(pid, number)


class Rig:
    """A rendered world, a warm launcher, and the runs of all rows, below one folder."""

    def __init__(self, folder: Path, *, short: bool = False, seed: int = 0) -> None:
        self.folder, self.short = folder, short
        logging.getLogger("svilm_fast").setLevel(logging.ERROR)  # every damaged file is logged
        self.random = random.Random(seed)
        self.patience = SHORT_PATIENCE if short else 1.0
        self._warm: subprocess.Popen | None = None
        self._runs: list[Run] = []
        self._references: dict[tuple[str, ...], Run] = {}
        self._saved: dict[tuple[str, ...], Run] = {}
        self._mounted: list[Path] = []
        self._count = 0

    def __enter__(self) -> Rig:
        return self

    @cached_property
    def world(self) -> Path:
        """The folder of the rendered clips."""
        folder = self.folder / "world"
        render_world(
            folder, train=SAMPLES, val=6, test=6, size=32, frames=8, workers=1, progress=False
        )
        return folder

    def __exit__(self, *exception: Any) -> None:
        for run in self._runs:
            run.end()
        if self._warm is not None:
            assert self._warm.stdin is not None
            self._warm.stdin.close()
            self._warm.wait(60)
        for place in reversed(self._mounted):
            subprocess.run(["umount", str(place)], check=True)

    def new_folder(self, name: str) -> Path:
        """Return a fresh folder of this rig."""
        self._count += 1
        folder = self.folder / f"{self._count:04d}_{name}"
        folder.mkdir()
        return folder

    def recipe(self, root: Path, settings: Sequence[str]) -> Path:
        """Write the recipe of a small run in `root`."""
        small = [
            f"run.dir={root}",
            *(f"data.{split}={self.world / split}" for split in ("train", "val", "test")),
            *SMALL_MODEL,
            "video.drop.rate=0.25",
            "video.drop_path=0.2",
            f"training.global_batch={GLOBAL_BATCH}",
            "logging.every_steps=1",
            "logging.tensorboard=false",
            "evaluation.at_end=false",
            "report.at_end=false",
            "checkpoint.portable_at_end=false",
            "distributed.timeout_seconds=90",
        ]
        path = root.with_name(f"{root.name}.yaml")
        path.write_text(dump_config(load_config("demo", [*small, *settings])))
        return path

    def start(
        self,
        root: Path,
        *settings: str,
        options: Sequence[str] = (),
        faults: Sequence[dict[str, Any]] = (),
        world_size: int = 2,
        cold: bool = False,
    ) -> Run:
        """Start a run. cold: by the `deepspeed` command with new interpreters instead of forks."""
        for earlier in self._runs:
            if earlier.root == root:
                earlier.end()  # processes of a missed try
        folder = self.new_folder("start")
        arguments = ["--config", str(self.recipe(root, settings)), *options]
        env = {
            "SVILM_FAULT_FOLDER": str(folder),
            "SVILM_FAULTS": json.dumps(list(faults)),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        run = self._cold(folder, root, arguments, env, world_size) if cold else None
        if run is None:
            case = {
                "output": str(folder / "output"),
                "code": str(folder / "code"),
                "env": env,
                "world_size": world_size,
                "arguments": arguments,
            }
            (folder / "output").touch()
            run = Run(folder, root, world_size, self._ask(case))
        self._runs.append(run)
        return run

    def _cold(
        self, folder: Path, root: Path, arguments: list[str], env: dict[str, str], ranks: int
    ) -> Run:
        command = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "svilm_fast.train.launch.deepspeed", *command),
                    *("--module", "tests.faults.rank_program", *arguments),
                ],
                env=self._environment() | env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_signals,
            )
        return Run(folder, root, ranks, process.pid, process)

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        mine = environment_without_launcher() | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        mine.pop("TRITON_INTERPRET", None)  # pytest sets it; runs on a CPU use the reference path
        return mine

    def _ask(self, case: dict[str, Any]) -> int:
        if self._warm is None:
            self._warm = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.warm_launcher"],
                env=self._environment() | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                preexec_fn=heed_signals,
            )
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        self._warm.stdin.write(json.dumps(case) + "\n")
        self._warm.stdin.flush()
        return int(self._warm.stdout.readline())

    def reference(self, *settings: str) -> Run:
        """Return the fault-free run with these settings, made once.

        The intervals of saves and the timeout do not change the state, so they may differ.
        """
        key = tuple(one for one in settings if not one.startswith(KEEP_THE_STATE))
        if key not in self._references:
            root = self.new_folder("reference") / "run"
            self._references[key] = self.start(root, *key).finished()
        return self._references[key]

    def saved(self, *settings: str) -> Run:
        """Return a fault-free run with exactly these settings, to be copied and damaged."""
        if settings not in self._saved:
            root = self.new_folder("saved") / "run"
            self._saved[settings] = self.start(root, *settings).finished()
        return self._saved[settings]

    @contextmanager
    def small_disk(self, megabytes: int) -> Iterator[tuple[Path, bool]]:
        """A folder on a file system of its own, and whether one could be mounted (by root)."""
        place = self.new_folder("disk")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
        mounted = os.geteuid() == 0 and _succeeds(mount)
        if mounted:
            self._mounted.append(place)
        try:
            yield place, mounted
        finally:
            if mounted:
                for run in self._runs:
                    if run.root.is_relative_to(place):
                        run.end()
                subprocess.run(["umount", str(place)], check=True)
                self._mounted.remove(place)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def same_end(run: Run, reference: Run, step: int) -> None:
    """Raise MissedError unless both runs hold the same state at `step`, bit for bit."""
    here, there = (state_of(each.checkpoints / tag_of(step)) for each in (run, reference))
    different = sorted(name for name in here | there if here.get(name) != there.get(name))
    need(not different, f"the state of step {step} differs in {', '.join(different)}")


def same_losses(run: Run, reference: Run, first: int, last: int) -> None:
    """Raise MissedError unless the losses of steps first..last are equal, bit for bit."""
    here, there = records_of(run.root), records_of(reference.root)
    for step in range(first, last + 1):
        need(step in here and step in there, f"no loss of step {step}")
        need(here[step] == there[step], f"loss of step {step}: {here[step]} not {there[step]}")


def newest_step(run: Run) -> int:
    """The step of the newest checkpoint that verifies, 0 where nothing was committed."""
    tag = newest_verified(run.checkpoints)
    return 0 if tag is None else int(tag.removeprefix("step_"))


def copy_of(run: Run, folder: Path) -> Path:
    """Copy a run directory, and return the copy."""
    target = folder / "run"
    shutil.copytree(run.root, target)
    return target
