"""Rows with wrong numbers, wrong settings or a slow rank."""

from __future__ import annotations

import json
import random
import string

from svilm_fast.core.errors import EXIT_NON_FINITE, ConfigError
from svilm_fast.train.config.load import dotted_keys, load_config
from svilm_fast.train.run.straggler import stands_out
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig

CASES = [
    (stage, precision, value)
    for value in ("nan", "inf")
    for stage, precision in (
        (0, "fp32"),
        (2, "bf16"),
        *((stage, "fp32") for stage in (1, 2, 3)),
        *((stage, "bf16_autocast") for stage in (0, 1, 2, 3)),
        *((stage, "bf16") for stage in (1, 3)),
    )
]


@row(
    11,
    "NaN or inf in the loss, then in a gradient, of one rank; each precision and ZeRO stage",
    "all ranks skip the step, no parameter changes, samples recorded, exit code 3",
    tries=len(CASES),
    short=2,
)
def not_finite(rig: Rig, tries: int, seen: Tries) -> None:
    for stage, precision, value in CASES[:tries]:
        with seen.one(f"{value}, stage {stage}, {precision}"):
            faults = [
                {"kind": kind, "rank": 1, "step": step, "value": value}
                for kind, step in (("nan_loss", 2), ("nan_gradient", 3))
            ]
            run = rig.start(
                rig.new_folder("poisoned") / "run",
                "training.steps=9",
                "training.max_non_finite_steps=2",
                f"deepspeed.zero_stage={stage}",
                f"training.precision={precision}",
                faults=faults,
            )
            need(run.wait() == EXIT_NON_FINITE, f"exit code {run.code()}; {run.tail()}")
            need("step 2 was skipped" in run.output, "step 2 was not skipped")
            need("step 3 are not finite" in run.tail(), run.tail())
            for rank in (0, 1):
                skipped = (run.folder / f"skipped_{rank}").read_text().splitlines()
                need(skipped == ["same=True finite=True"] * 2, f"rank {rank}: {skipped}")
                for step in (2, 3):
                    path = run.root / f"non_finite_step_{step}_rank_{rank}.json"
                    need(json.loads(path.read_text())["ids"], f"{path.name} lists no samples")


def _edited(key: str, source: random.Random) -> str:
    """Drop, double, replace, insert or swap one letter in the last part of a dotted path."""
    prefix, _, name = key.rpartition(".")
    place, letter = source.randrange(len(name)), source.choice(string.ascii_lowercase + "_")
    swapped = name[:place] + name[place + 1 : place + 2] + name[place] + name[place + 2 :]
    forms = [
        name[:place] + name[place + 1 :],
        name[:place] + name[place] + name[place:],
        name[:place] + letter + name[place + 1 :],
        name[:place] + letter + name[place:],
        swapped,
    ]
    return f"{prefix}.{source.choice(forms)}".lstrip(".")


@row(
    12,
    "typos: one-letter edits of every setting, 50 of each",
    "refused, naming the key, with a suggestion",
    tries=5000,
    short=200,
)
def typos(rig: Rig, tries: int, seen: Tries) -> None:
    keys = list(dotted_keys())
    known, right = set(keys), 0
    while seen.made < max(tries, 0 if rig.short else 50 * len(keys)):
        key = keys[seen.made % len(keys)]
        typo = _edited(key, rig.random)
        name = typo.rpartition(".")[2]
        if typo in known or not name or any(other.startswith(f"{typo}.") for other in known):
            continue
        with seen.one(typo):
            try:
                load_config(None, [f"{typo}=1"])
            except ConfigError as error:
                text = str(error)
                need(f"unknown key {typo!r}" in text, f"the key is not named: {text}")
                need("did you mean" in text or "keys" in text, f"no suggestion: {text}")
                right += repr(key) in text
            else:
                need(False, "it is accepted")
    seen.notes.append(f"{len(keys)} settings; {right} of {seen.made} name the intended key")


@row(
    18,
    "a rank that takes twice as long",
    "named by the console and the record within 20 steps",
    tries=4,
    short=1,
)
def straggler(rig: Rig, tries: int, seen: Tries) -> None:
    for number in range(tries):
        rank = (number + 1) % 2
        with seen.one(f"rank {rank}"):
            run = rig.start(
                rig.new_folder("slow") / "run",
                "training.steps=20",
                "logging.every_steps=10",
                faults=[{"kind": "slow", "rank": rank, "seconds": 0.2}],
            ).finished()
            lines = (run.root / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            named = [r for r in records if stands_out(r) and int(r["straggler_rank"]) == rank]
            need(named, f"not named in {len(records)} records of 20 steps")
            need(f"slowest rank {rank}" in run.output, "the console does not say so")
