"""Stands in for `srun`: starts the tasks of a step here, passes signals on, returns the worst code.

FAKE_NODES names the nodes, SLURM_NTASKS_PER_NODE says how many tasks each of them runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    command = sys.argv[1:]
    while command[0].startswith("--"):
        command.pop(0)
    nodes = os.environ["FAKE_NODES"].split()
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for number in range(len(nodes) * per_node):
        node, local = divmod(number, per_node)
        described = {
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(local),
            "SLURM_NODEID": str(node),
            "SLURMD_NODENAME": nodes[node],
            "SLURM_STEP_NUM_TASKS": str(len(nodes) * per_node),
            "SLURM_STEP_NUM_NODES": str(len(nodes)),
        }
        # As under Slurm, each task is in a session of its own.
        tasks.append(subprocess.Popen(command, env=os.environ | described, start_new_session=True))

    def pass_on(number: int, frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write("step started\n")
    codes = [task.wait() for task in tasks]
    return max(128 - code if code < 0 else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
