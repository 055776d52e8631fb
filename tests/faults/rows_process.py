"""Rows in which signals kill, stop or end ranks at random moments."""

from __future__ import annotations

import json
import os
import re
import signal
import time

from svilm_fast.core.errors import EXIT_RANK_LOST
from svilm_fast.train.checkpoint.store import tag_of
from svilm_fast.train.folder.manifest import MANIFEST
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig, Run, newest_step, same_end, same_losses

# The launcher ends with the code of the rank that it looks at first: the killed one's (-9, or 247
# and 137 as the two forms of the launcher report it), or that of the survivor.
CODES_OF_A_KILL = (-signal.SIGKILL, 247, 128 + signal.SIGKILL, EXIT_RANK_LOST)
CODES_OF_AN_ABORT = (-signal.SIGABRT, 250, 128 + signal.SIGABRT)
# About what a save of the small model takes; later moments fall into the next step.
SAVE_SECONDS = 0.15
TIMEOUT = 6.0


def _resumed_from(run: Run) -> int:
    found = re.search(r"resumed at step (\d+)", run.output)
    return int(found[1]) if found else 0


@row(
    2,
    "kill -9 of a rank during a save, at random moments",
    "resumable, at most 1 interval lost, the end equal to a fault-free run",
    tries=40,
    short=2,
)
def kill_in_save(rig: Rig, tries: int, seen: Tries) -> None:
    steps = 24 if rig.short else 3 * tries + 4
    settings = (f"training.steps={steps}", "checkpoint.every_steps=1", "checkpoint.keep=3")
    whole = rig.reference(*settings)
    root, incomplete, losses = rig.new_folder("killed") / "run", 0, []
    for number in range(tries):
        rank, delay = number % 2, rig.random.uniform(0, SAVE_SECONDS)
        with seen.one(f"rank {rank}, {delay * 1e3:.0f} ms into the save"):
            run = rig.start(root, *settings, options=["--auto-resume"])
            pid = run.pid(rank)
            run.come_to(lambda run=run: run.steps() >= 2, "the second step")
            before = run.steps()
            tag = f"step_{_resumed_from(run) + before:08d}"
            folder = run.checkpoints / tag
            run.come_to(lambda folder=folder: folder.exists(), f"the save of {tag}")
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            run.wait()
            incomplete += not (folder / MANIFEST).exists()
            begun = _resumed_from(run) + run.steps()
            lost = begun - newest_step(run)
            losses.append(lost)
            # A step that had begun and the save of the one before it.
            need(lost <= 2, f"{lost} of {begun} steps are lost")
            need(not run.alive(), "a rank outlived the launcher")
    with seen.one("the run's end"):
        run = rig.start(root, *settings, options=["--auto-resume"]).finished()
        same_end(run, whole, steps)
        same_losses(run, whole, 1, steps)
    seen.notes.append(
        f"{incomplete} of {tries} kills left an incomplete checkpoint; at most {max(losses)} begun "
        "steps were lost"
    )


@row(
    3,
    "kill -9 of a rank in a step",
    "the job ends within 10 s with its own exit code, no orphan, the end equal",
    tries=10,
    short=2,
)
def kill_in_step(rig: Rig, tries: int, seen: Tries) -> None:
    steps = 24 if rig.short else 6 * tries + 6
    settings = (f"training.steps={steps}", "checkpoint.every_steps=3")
    whole = rig.reference(*settings)
    root, times = rig.new_folder("killed") / "run", []
    for number in range(tries):
        rank = number % 2
        # The first two of the full form by the `deepspeed` command itself.
        cold = not rig.short and number < 2
        with seen.one(f"rank {rank}{', started by deepspeed' if cold else ''}"):
            run = rig.start(root, *settings, options=["--auto-resume"], cold=cold)
            pid = run.pid(rank)
            run.come_to(lambda run=run: run.steps() >= 5, "the fifth step")
            time.sleep(rig.random.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            times.append(
                run.until(
                    lambda run=run: run.code() is not None, "the job's end", 10 * rig.patience
                )
            )
            need(run.code() in CODES_OF_A_KILL, f"exit code {run.code()}")
            need(not run.alive(), "a rank outlived the launcher")
    with seen.one("the run's end"):
        run = rig.start(root, *settings, options=["--auto-resume"]).finished()
        same_end(run, whole, steps)
        same_losses(run, whole, 1, steps)
    seen.notes.append(f"the job ended after at most {max(times, default=0):.1f} s")


@row(
    4,
    "SIGSTOP of a rank; a rank that leaves out a collective",
    f"an error naming collective, rank and step within the timeout ({TIMEOUT:g} s) + 5 s",
    tries=6,
    short=2,
)
def hang(rig: Rig, tries: int, seen: Tries) -> None:
    settings = ("training.steps=100000", f"distributed.timeout_seconds={TIMEOUT}")
    times = []
    for number in range(tries):
        rank, skipped = number // 2 % 2, number % 2 == 1
        with seen.one(f"rank {rank} {'leaves out a collective' if skipped else 'is stopped'}"):
            faults = [{"kind": "skip_agreement", "rank": rank, "step": 5}] if skipped else []
            run = rig.start(rig.new_folder("hung") / "run", *settings, faults=faults)
            pids = run.pids()
            run.come_to(lambda run=run: run.steps() >= 5, "the fifth step")
            if not skipped:
                time.sleep(rig.random.uniform(0, 0.15))
                os.kill(pids[rank], signal.SIGSTOP)
            times.append(run.until(run.errors, "an error", TIMEOUT + 5 * rig.patience))
            text = run.errors()[0]
            if not skipped:
                os.kill(pids[rank], signal.SIGCONT)
                need(f"rank {rank} (host" in text, f"the rank is not named: {text}")
            need(re.search(r"steps? \(?(from )?\d+", text), f"the step is not named: {text}")
            named = re.search(r"all_reduce|all_gather|broadcast|reduce|barrier|collective", text)
            need(named, f"the collective is not named: {text}")
            # gloo aborts a process that receives another collective's data.
            codes = (EXIT_RANK_LOST, *(CODES_OF_AN_ABORT if skipped else ()))
            need(run.wait(60) in codes, f"exit code {run.code()}")
    seen.notes.append(f"the error came after at most {max(times, default=0):.1f} s")


SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]


@row(
    5,
    "SIGTERM, SIGUSR1, SIGHUP, SIGINT to the job",
    "all ranks save the same step within 30 s, exit code 128 + signal, the end equal",
    tries=9,
    short=1,
)
def asked_to_leave(rig: Rig, tries: int, seen: Tries) -> None:
    steps = 24 if rig.short else 60 * tries
    settings = (f"training.steps={steps}",)
    whole = rig.reference(*settings)
    root, times = rig.new_folder("left") / "run", []
    for number in range(tries):
        # The first of the full form by the command, which passes SIGTERM on to the ranks.
        cold, sent = not rig.short and number == 0, SIGNALS[number % len(SIGNALS)]
        with seen.one(f"{sent.name}{', started by deepspeed' if cold else ''}"):
            run = rig.start(root, *settings, options=["--auto-resume"], cold=cold)
            pids = run.pids()
            run.come_to(lambda run=run: run.steps() >= 3, "the third step")
            time.sleep(rig.random.uniform(0, 0.3))
            for pid in [run.launcher] if cold else pids:
                os.kill(pid, sent)
            times.append(
                run.until(lambda run=run: run.code() is not None, "the end", 30 * rig.patience)
            )
            need(run.code() == 128 + sent, f"exit code {run.code()}; {run.tail()}")
            need(not run.alive(), "a rank outlived the launcher")
            step = _resumed_from(run) + run.steps()
            need(newest_step(run) == step, f"saved {newest_step(run)} after step {step}")
            ranks = sorted((run.checkpoints / tag_of(step)).glob("data_rank_*.json"))
            # Rank 0 alone keeps the digest of the videos; each counts the notes of its own clips.
            own = {"contents": None, "skips": None}
            places = [json.loads(path.read_text()) | own for path in ranks]
            need(places == places[:1] * 2, "the ranks saved other places")
    with seen.one("the run's end"):
        run = rig.start(root, *settings, options=["--auto-resume"]).finished()
        same_end(run, whole, steps)
        same_losses(run, whole, 1, steps)
    seen.notes.append(f"saved and left after at most {max(times, default=0):.1f} s")
