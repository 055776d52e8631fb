"""A long run with many faults in sequence."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.faults.rank_program import fill
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig, Run, newest_step, same_end, same_losses

EVERY = 5
KINDS = ("kill", "full", "stop")


def _meet(rig: Rig, run: Run, kind: str, disk: Path, *, mounted: bool) -> None:
    """Let a running job meet a fault now."""
    rank = rig.random.randrange(run.world_size)
    pid = run.pid(rank)
    time.sleep(rig.random.uniform(0, 0.5))
    if kind == "full" and mounted:
        fill(disk, rig.random.randrange(0, 4_000_000))
    elif kind == "stop":
        os.kill(pid, signal.SIGSTOP)
        run.until(run.errors, "an error about the stopped rank", 30 * rig.patience)
        os.kill(pid, signal.SIGCONT)
    elif kind == "kill":
        os.kill(pid, signal.SIGKILL)


@row(
    20,
    "1,000 steps with kills, stops and full disks at random, every 50 steps or so",
    "final state and all losses bit-equal to a fault-free run",
    tries=20,
    short=3,
)
def soak(rig: Rig, tries: int, seen: Tries) -> None:
    # Between two faults of the short form a rank must not come to the end.
    steps, between = (60, 6) if rig.short else (1000, 50)
    settings = (
        f"training.steps={steps}",
        f"checkpoint.every_steps={EVERY}",
        "distributed.timeout_seconds=8",
    )
    whole = rig.reference(*settings)
    met: dict[str, int] = {}
    with rig.small_disk(60) as (disk, mounted):
        root, number = disk / "run", 0
        while number < tries:
            kind = KINDS[number % 3] if rig.short else rig.random.choice(KINDS)
            if kind == "full" and not mounted:
                kind = "kill"
            number += 1
            with seen.one(f"fault {number}, {kind}"):
                run = rig.start(root, *settings, options=["--auto-resume"])
                wanted = between if rig.short else rig.random.randrange(30, 60)
                run.until(
                    lambda run=run, wanted=wanted: run.steps() >= wanted or run.code() is not None,
                    f"step {wanted} of this start",
                    240,
                )
                if run.code() == 0:
                    number = tries  # the last step came before the fault
                    continue
                before = newest_step(run)
                _meet(rig, run, kind, disk, mounted=mounted)
                need(run.wait() != 0 or kind == "full", "the run did not notice")
                (disk / "ballast").unlink(missing_ok=True)
                need(newest_step(run) >= before, "a checkpoint is lost")
                need(not run.alive(), "a rank outlived the launcher")
                met[kind] = met.get(kind, 0) + 1
        with seen.one("the run's end"):
            run = rig.start(root, *settings, options=["--auto-resume"]).finished()
            same_end(run, whole, steps)
            same_losses(run, whole, 1, steps)
    told = ", ".join(f"{count} x {kind}" for kind, count in sorted(met.items()))
    disks = "a tmpfs was filled" if mounted else "no tmpfs could be mounted: no full disks"
    seen.notes.append(f"{steps} steps with {told}; {disks}")
