"""Two nodes on one machine: joined by their cable alone, and gone however their owner ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.train.launch.nodes import _wait_for_command, two_nodes, why_not_isolated

REASON = why_not_isolated()
KINDS = [
    pytest.param(True, marks=pytest.mark.skipif(REASON is not None, reason=str(REASON))),
    False,
]
OWNER = """
import json, os, sys, time
from pathlib import Path
from tests.train.launch.nodes import two_nodes
sleepers = [["sleep", "1000"]] * 2
with two_nodes(
    sleepers, Path(sys.argv[1]), [os.environ] * 2, isolated=sys.argv[2] == "True"
) as nodes:
    print(json.dumps([node.process.pid for node in nodes]), flush=True)
    time.sleep(1000)
"""
TALK = """
import socket, sys
own, other, message = sys.argv[1:]
server = socket.create_server((own, 7777))
while True:
    try:
        client = socket.create_connection((other, 7777), timeout=1)
        break
    except OSError:
        pass
client.sendall(message.encode())
print(sorted(name for _, name in socket.if_nameindex()), server.accept()[0].recv(100).decode())
"""


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("isolated", KINDS)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_owner_of_the_nodes(tmp_path: Path, ending: int, isolated) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), str(isolated)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        nodes = [psutil.Process(number) for number in json.loads(owner.stdout.readline())]
        started = [*nodes, *(child for node in nodes for child in node.children(recursive=True))]
        assert all(map(is_alive, started))
    finally:
        owner.send_signal(ending)
        owner.wait(60)
        owner.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(is_alive, started)):
        assert time.monotonic() < deadline, started
        time.sleep(0.05)
    assert "svilm0" not in os.listdir("/sys/class/net")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_node_has_started_only_when_its_death_signal_is_set() -> None:
    for _ in range(20):  # the program's name is still ours in two of three starts
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "sleep", "1000"])
        try:
            _wait_for_command(process)
            assert Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n"
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("isolated", KINDS)
def test_the_nodes_reach_each_other_and_isolated_ones_nothing_else(
    tmp_path: Path, isolated: bool
) -> None:
    addresses = ["10.77.0.1", "10.77.0.2"] if isolated else ["127.0.0.1", "127.0.0.2"]
    commands = [
        [sys.executable, "-c", TALK, own, other, f"from {own}"]
        for own, other in (addresses, addresses[::-1])
    ]
    with two_nodes(commands, tmp_path, [os.environ] * 2, isolated=isolated) as nodes:
        assert [node.process.wait(60) for node in nodes] == [0, 0]
    for index, other in enumerate(addresses[::-1]):
        said = (tmp_path / f"node_{index}.log").read_text()
        assert f"from {other}" in said
        if isolated:
            assert said.startswith("['lo', 'svilm0']")
    received = [node.received_bytes() for node in nodes]
    assert any(received) if isolated else received == [None, None]
