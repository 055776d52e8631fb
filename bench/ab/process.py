"""The command's end of a worker process: requests, replies with a time limit, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROTOCOL = 1
"""Version of the requests and replies; increased when one of them changes its meaning."""
SUITES_MODULE = "svilm_fast.bench.suites"
"""The module whose `benchmarks(suites, device, only)` a worker serves."""
LOG_TAIL = 400


class SideError(Exception):
    """A side could not answer a request; `kind` says why.

    The process: `crashed`, `hung`, `protocol`, `start`, `usage` (no such benchmarks). The
    benchmark: `wrong_result`, `skipped`, `failed`, and `incomparable` if the sides ran different
    shapes.
    """

    def __init__(self, side: str, kind: str, message: str) -> None:
        super().__init__(f"{side} {kind}: {message}")
        self.side = side
        self.kind = kind

    @property
    def lost(self) -> bool:
        """Whether the process can answer no more requests."""
        return self.kind in ("crashed", "hung", "protocol", "start", "usage")


@dataclass(frozen=True)
class SideSpec:
    """How a side's worker is started, and the folder that its library must come from."""

    name: str
    command: Sequence[str]
    folder: Path
    variables: Mapping[str, str]


class Worker:
    """One side's process; its output is appended to `log`."""

    def __init__(self, spec: SideSpec, log: Path) -> None:
        self.side = spec.name
        self.log = log
        self._rest = b""
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                spec.command,
                cwd=spec.folder,
                env=dict(spec.variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )

    def hello(self, timeout_s: float) -> dict[str, Any]:
        """Wait until the worker has imported everything; return its description of itself."""
        facts = self._reply("start", timeout_s)
        if facts.get("protocol") != PROTOCOL:
            raise SideError(
                self.side,
                "protocol",
                f"speaks version {facts.get('protocol')}, this command speaks {PROTOCOL}; "
                "use `--bench-from head`",
            )
        return facts

    def ask(self, action: str, timeout_s: float, **arguments: Any) -> Any:
        """Send a request and wait for its reply.

        Raises:
            SideError: the worker ended, took longer than `timeout_s`, or reported an error.
        """
        line = json.dumps({"do": action, **arguments}) + "\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed(action) from None
        return self._reply(action, timeout_s)

    def stop(self) -> None:
        """Kill the process and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _reply(self, action: str, timeout_s: float) -> Any:
        try:
            reply = json.loads(self._line(action, timeout_s))
        except json.JSONDecodeError as broken:
            raise SideError(self.side, "protocol", f"no JSON during {action}: {broken}") from None
        if "error" in reply:
            kind, message = reply["error"]["kind"], reply["error"]["message"]
            if kind == "start":
                message += " (if these benchmarks do not fit that library, try --bench-from own)"
            raise SideError(self.side, kind, message)
        return reply["ok"]

    def _line(self, action: str, timeout_s: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        end = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise SideError(self.side, "hung", f"no reply to {action} within {timeout_s:g} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._crashed(action)
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _crashed(self, action: str) -> SideError:
        code = self.process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        tail = " ".join(self.log.read_text(errors="replace")[-LOG_TAIL:].split())
        return SideError(self.side, "crashed", f"{how} during {action}: {tail or 'no output'}")
