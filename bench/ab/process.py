"""A worker process as its master sees it: asked, waited for with a limit, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svilm_fast.bench.ab.protocol import PROTOCOL

LOG_TAIL = 400


class SideError(Exception):
    """A side did not do what it was asked; `kind` says how.

    Kinds: `crashed`, `hung`, `protocol`, `start`, `usage` (no such benchmarks), and
    what a worker tells about a benchmark: `wrong_result`, `skipped`, `failed`.
    """

    def __init__(self, side: str, kind: str, message: str) -> None:
        super().__init__(f"{side} {kind}: {message}")
        self.side = side
        self.kind = kind

    @property
    def lost(self) -> bool:
        """Whether the process can no longer be asked."""
        return self.kind in ("crashed", "hung", "protocol", "start", "usage")


class Worker:
    """One side's process. `side` names it in messages; `log` takes what it prints."""

    def __init__(
        self,
        side: str,
        command: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        log: Path,
    ) -> None:
        self.side = side
        self.log = log
        self._rest = b""
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )

    def hello(self, timeout_s: float) -> dict[str, Any]:
        """What the worker says of itself once it has imported everything."""
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
            SideError: the worker ended, took longer than `timeout_s`, or could not do it.
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
        """End the process and everything that it started."""
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
                message += " (a library that these benchmarks do not fit? try --bench-from own)"
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
