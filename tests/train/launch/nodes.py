"""Stand-ins for the nodes of a cluster: processes with networks of their own on one machine.

A node is a process in its own network, process and mount namespace, joined to the other by a pair
of virtual devices that nothing else can reach. The namespaces have no names: they end with their
last process, and that ends with ours (a death signal), so that not even `kill -9` leaves any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from svilm_fast.core.errors import UserError

TOOLS = ("ip", "nsenter", "setpriv", "unshare")
DEVICE = "svilm0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LOOPBACK_ADDRESSES = ("127.0.0.1", "127.0.0.2")
START_SECONDS = 10.0
END_SECONDS = 40.0  # torchrun gives its ranks 30 s
# Waits for the network, runs the command, and leaves its network's counters behind.
NODE_SCRIPT = 'counters="$1"; shift; read -r go; "$@"; code=$?; cat /proc/net/dev >"$counters"; '
NODE_SCRIPT += 'exit "$code"'


@dataclass(frozen=True)
class Node:
    """A started node: its address, the network device behind it, and its process."""

    address: str
    device: str
    process: subprocess.Popen[str]
    counters: Path

    def received_bytes(self) -> int | None:
        """Return what the node's device received until its command ended.

        None on loopback, and on a node that ended after the other one, which took the cable along.
        """
        if not self.counters.is_file():
            return None
        for line in self.counters.read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == self.device:
                return int(figures.split()[0])
        return None


def why_not_isolated() -> str | None:
    """Return why no namespaces can be made here, or None where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (packages iproute2 and util-linux)"
    probe = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(probe.stderr.split()) if probe.returncode else None


def _start(
    prefix: Sequence[str], command: Sequence[str], counters: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    output = counters.with_suffix(".log").open("w")
    with output:
        return subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environment),
        )


def _wait_for_network(process: subprocess.Popen[str]) -> None:
    deadline, ours = time.monotonic() + START_SECONDS, os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{process.pid}/ns/net") == ours:
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError("a node's network namespace did not come up; use --loopback")
        time.sleep(0.02)


def _wait_for_command(process: subprocess.Popen[str]) -> None:
    """Wait until `setpriv` has become the command: the death signal is set before that.

    The command line is empty for a moment while the kernel replaces the program.
    """
    deadline, path = time.monotonic() + START_SECONDS, Path(f"/proc/{process.pid}/cmdline")
    while process.poll() is None:
        program = path.read_bytes().split(b"\0")[0]
        if program and Path(os.fsdecode(program)).name != "setpriv":
            return
        if time.monotonic() > deadline:
            raise UserError("a node's command did not start; is setpriv (util-linux) whole?")
        time.sleep(0.01)


def _join(nodes: Sequence[Node]) -> None:
    """Lay the cable: both its ends are created inside the nodes' networks."""
    first, second = (str(node.process.pid) for node in nodes)
    ends = ["name", DEVICE, "netns", first, "type", "veth"]
    ends += ["peer", "name", DEVICE, "netns", second]
    subprocess.run(["ip", "link", "add", *ends], check=True)
    for node in nodes:
        inside = ["nsenter", "--net", "--target", str(node.process.pid), "ip"]
        for change in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{node.address}/24", "dev", DEVICE],
            ["link", "set", DEVICE, "up"],
        ):
            subprocess.run([*inside, *change], check=True)


def _end(process: subprocess.Popen[str], *, isolated: bool) -> None:
    """End a node with everything it started."""
    if isolated:
        process.kill()  # its namespaces and all in them go with it
    elif process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(started, timeout=1)[1]:
            child.kill()
    process.wait()


@contextmanager
def two_nodes(
    commands: Sequence[Sequence[str]],
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    *,
    isolated: bool,
) -> Iterator[list[Node]]:
    """Start a command on each of two nodes; on exit both are ended with all they started.

    Their output goes to node_0.log and node_1.log in `folder`. isolated: in namespaces joined by a
    cable, else both on the loopback device. Raises UserError when a namespace does not come up.
    """
    dies_with_us = ["setpriv", "--pdeathsig"] if shutil.which("setpriv") else []
    addresses, device = (ADDRESSES, DEVICE) if isolated else (LOOPBACK_ADDRESSES, "lo")
    nodes: list[Node] = []
    try:
        for index, (command, environment) in enumerate(zip(commands, environments)):
            counters = folder / f"node_{index}.counters"
            if isolated:
                prefix = [*dies_with_us, "KILL", "unshare", "--net", "--pid", "--fork"]
                prefix += ["--kill-child=KILL", "--mount-proc", "sh", "-c", NODE_SCRIPT, "node"]
                prefix.append(str(counters))
            else:
                prefix = [*dies_with_us, "TERM"] if dies_with_us else []
            process = _start(prefix, command, counters, environment)
            nodes.append(Node(addresses[index], device, process, counters))
        if isolated:
            for node in nodes:
                _wait_for_network(node.process)
            _join(nodes)
        else:
            for node in nodes:
                _wait_for_command(node.process)
        for node in nodes:
            assert node.process.stdin is not None
            node.process.stdin.write("go\n")
            node.process.stdin.close()
        yield nodes
    finally:
        for node in nodes:
            _end(node.process, isolated=isolated)
