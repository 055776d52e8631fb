"""A campaign that is killed at ten random moments gives the table of one that is not.

Every second time its runs are killed at the same moment, as by an allocation's end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from svilm_fast.core.outcomes import shares_of
from svilm_fast.train.config.small_model import SMALL_MODEL

KILLS = 10
WORLD = "data world --out {out}/world --train 24 --val 8 --test 8 --size 32 --frames 8"
SETTINGS = [
    "data.train={out}/world/train",
    "data.val={out}/world/val",
    "data.test={out}/world/test",
    *SMALL_MODEL,
    "data.tokenizer.noun_length=7",
    "text.length=16",
    "training.global_batch=8",
    "training.steps=6",
    "checkpoint.every_steps=2",
    "logging.every_steps=1",  # a column reads a metric of training
    "evaluation.split=test",
    "report.at_end=false",
]
TABLE: dict[str, Any] = {
    "title": "Short runs",
    "seeds": [0, 1],
    "prepare": [WORLD.split()],
    "runs": {
        "all": {"config": "demo", "set": SETTINGS},
        "all_structure": {
            "after": "all",
            "command": ["evaluate", "structure", "--run", "{after}"],
            "metrics": "{after}/evaluation/structure.json",
        },
        "contrast": {"config": "ablations/demo_contrast_only", "set": SETTINGS},
    },
    "sections": {
        "retrieval": {
            "title": "Retrieval",
            "rows": {"All": "all", "Contrast": "contrast"},
            "columns": {"retrieval/t2v_R@1": "R@1", "loss": "Loss", "loss_last_tenth": "Late loss"},
            "compare": "Contrast",
        },
        "structure": {
            "title": "A row of a command",
            "rows": {"All": ["all", "all_structure"]},
            "columns": {"structure/pointing": "Pointing", "structure/similarity": "Similarity"},
        },
    },
}


def start(table: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "svilm_fast.cli", "ablate", str(table), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (table.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--jobs", "2"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_change_nothing(tmp_path: Path) -> None:
    table = tmp_path / "short.yaml"
    table.write_text(yaml.safe_dump(TABLE))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(table, whole).wait() == 0, (tmp_path / "log").read_text()
    usual = time.monotonic() - began
    draw = random.Random(0)
    for number in range(KILLS):
        campaign = start(table, killed)
        time.sleep(draw.uniform(0.02, 0.3) * usual)
        if number % 2:
            os.killpg(campaign.pid, signal.SIGKILL)
        else:
            campaign.send_signal(signal.SIGKILL)
        campaign.wait()
    assert start(table, killed).wait() == 0, (tmp_path / "log").read_text()
    found = [json.loads((out / "short.json").read_bytes()) for out in (whole, killed)]
    assert found[0] == found[1]
    section = found[0]["sections"]["retrieval"]
    row = section["rows"]["All"]
    assert len(row["values"]["loss"]) == 2
    assert section["queries"]["retrieval/t2v_R@1"]["clusters"] == "0 1 2 3 4 5 6 7"
    for value, text in zip(
        row["values"]["retrieval/t2v_R@1"], row["shares"]["retrieval/t2v_R@1"], strict=True
    ):
        assert 100 * shares_of(text).mean() == pytest.approx(value)
