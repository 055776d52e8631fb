"""Rows in which runs stop on purpose and must resume bit for bit."""

from __future__ import annotations

from tests.faults.registry import Tries, need, row
from tests.faults.rig import SAMPLES, Rig, Run, same_end, same_losses
from tests.faults.state import digest

COMBINATIONS = [
    *((stage, "fp32") for stage in (1, 0, 2, 3)),
    *((stage, "bf16_autocast") for stage in (0, 1, 2, 3)),
    *((stage, "bf16") for stage in (1, 2, 3)),
]


def _where_not_default(stage: int, precision: str) -> tuple[str, ...]:
    """The settings, so that the runs of other rows serve as reference too."""
    changed = (f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
    return () if (stage, precision) == (1, "fp32") else changed


@row(
    1,
    "resume in mid-epoch, ZeRO 0 to 3, fp32, bf16_autocast and bf16, with dropped tokens and paths",
    "losses of 15 further steps, samples, parameters, moments, generators and place equal",
    tries=len(COMBINATIONS),
    short=1,
)
def resume(rig: Rig, tries: int, seen: Tries) -> None:
    for stage, precision in COMBINATIONS[:tries]:
        with seen.one(f"stage {stage}, {precision}"):
            settings = ("training.steps=24", *_where_not_default(stage, precision))
            whole = rig.reference(*settings)
            root = rig.new_folder("resumed") / "run"
            part = rig.start(root, *settings, "training.stop_after_steps=9").finished()
            rest = rig.start(root, *settings, options=["--resume"]).finished()
            need(part.ids() | rest.ids() == whole.ids(), "the samples or their order differ")
            need(min(rest.ids()) == 10, f"resumed at step {min(rest.ids()) - 1}, not 9")
            same_losses(rest, whole, 1, 24)
            same_end(rest, whole, 24)


def _one_epoch_each(steps: dict[int, list[str]], per_epoch: int) -> None:
    for first in range(1, max(steps), per_epoch):
        ids = [name for step in range(first, first + per_epoch) for name in steps[step]]
        need(len(set(ids)) == len(ids) == SAMPLES, f"the epoch of step {first} is not whole")


@row(
    10,
    "world size 2 to 1 and 1 to 2",
    "--resume refused with a hint; --init-from: equal parameters, every sample once per epoch",
    tries=2,
    short=1,
)
def world_size(rig: Rig, tries: int, seen: Tries) -> None:
    portable = "checkpoint.portable_at_end=true"
    for before, after in [(2, 1), (1, 2)][:tries]:
        with seen.one(f"{before} to {after} ranks"):
            root = rig.new_folder("before") / "run"
            stop = ("training.steps=24", "training.stop_after_steps=9", portable)
            first = rig.start(root, *stop, world_size=before).finished()
            refused = rig.start(root, "training.steps=24", options=["--resume"], world_size=after)
            need(refused.wait() == 2, f"--resume ended with {refused.code()}")
            need("--init-from" in refused.tail(), f"no hint: {refused.tail()}")
            second = rig.start(
                rig.new_folder("after") / "run",
                "training.steps=24",
                options=["--init-from", str(root / "portable")],
                world_size=after,
            ).finished()
            need(_portable_digest(root) == _parameters(second), "the parameters differ")
            _one_epoch_each(first.ids() | second.ids(), 6)
            need(not set(first.ids()) & set(second.ids()), "a step was done twice")


def _parameters(run: Run) -> str:
    found = {(run.folder / f"parameters_{rank}").read_text() for rank in range(run.world_size)}
    need(len(found) == 1, "the ranks began with different parameters")
    return found.pop()


def _portable_digest(root) -> str:
    import json

    from safetensors.torch import load_file

    names = json.loads((root / "portable" / "state.json").read_text())["parameters"]
    weights = load_file(root / "portable" / "model.safetensors")
    return digest({name: weights[name] for name in names})


@row(
    19,
    "two runs with the same seed, deterministic",
    "50 steps bit-equal: losses, samples, state",
    tries=1,
    short=1,
)
def twice(rig: Rig, tries: int, seen: Tries) -> None:
    steps = 12 if rig.short else 50
    settings = (f"training.steps={steps}", "run.deterministic=true", "run.seed=3")
    whole = rig.reference(*settings)
    for number in range(tries):
        with seen.one(f"run {number + 2}"):
            again = rig.start(rig.new_folder("again") / "run", *settings).finished()
            need(again.ids() == whole.ids(), "the samples or their order differ")
            same_losses(again, whole, 1, steps)
            same_end(again, whole, steps)
