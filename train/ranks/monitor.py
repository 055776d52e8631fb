"""The rank monitor: if one rank ends, fails or hangs, every rank ends with the same message.

Without it, a rank that stops leaves the others in a collective until the timeout, which then raises
an error that names neither rank nor reason. Here each rank holds a TCP connection to rank 0, on
which it reports why it stops. A connection that closes without a report means a dead process. Rank
0 attributes the failure (`attribution.Ledger`) and sends the verdict to all ranks. A rank whose
main thread hangs in a collective exits without waiting for it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svilm_fast.core.errors import EXIT_RANK_LOST, RankError
from svilm_fast.train.ranks.attribution import (
    REPORTS_WITHIN_SECONDS,
    Ledger,
    Member,
    gone_text,
    silent_text,
)
from svilm_fast.train.run_app import exit_code_of, one_line, report

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.1
LONGEST_LINE = 1 << 16
LONGEST_TEXT = 4000
SPARE_FILES = 512
# The main thread has this time to raise its own error before the monitor ends the process.
PATIENCE_SECONDS = 2.0


@dataclass
class Progress:
    """The current step of a rank, and the timeout of its collectives as `setting=value`."""

    step: int = 0
    limit: str = ""


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def listen_on(address: str) -> socket.socket:
    """Open a port on the interface of `address`, or on all if this machine has no such address."""
    try:
        family, *_, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family)
    except OSError:
        return socket.create_server(("", 0))


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class MonitorServer:
    """The server on rank 0: receives the reports of all ranks and sends them the verdict."""

    def __init__(self, listener: socket.socket, token: str, ledger: Ledger) -> None:
        self.listener, self.token, self.ledger = listener, token, ledger
        self.selector = selectors.DefaultSelector()
        self.ranks: dict[socket.socket, int] = {}
        self.pending: dict[socket.socket, bytes] = {}
        self.strangers: dict[socket.socket, float] = {}  # deadline to send the token
        self.sent = b""  # sent to ranks that join later
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._serve, name="watch-server", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        decided = False
        while True:
            for key, _ in self.selector.select(POLL_SECONDS):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj in self.pending:
                    self._hear(key.fileobj)
            now = time.monotonic()
            for peer in [peer for peer, until in self.strangers.items() if until < now]:
                self._forget(peer)
            verdict = self.ledger.decided()
            if verdict is not None and not decided:
                decided = True
                self._tell_all(verdict=str(verdict), exit_code=verdict.exit_code)
            if self.ledger.members and not self.ranks:
                self.listener.close()
                return

    def _accept(self) -> None:
        try:
            peer, _ = self.listener.accept()
        except OSError as error:  # closed already, or no file descriptor is left
            log.warning("rank monitor: a connection was not accepted (%s)", error)
            return
        peer.settimeout(CONNECT_SECONDS)
        self.strangers[peer] = time.monotonic() + CONNECT_SECONDS
        self.pending[peer] = b""
        self.selector.register(peer, selectors.EVENT_READ)

    def _tell_all(self, **fields: Any) -> None:
        self.sent += _line(**fields)
        # Rank 0 last, because its end also ends this thread.
        for peer in sorted(self.ranks, key=self.ranks.__getitem__, reverse=True):
            self._tell(peer, _line(**fields))

    def _tell(self, peer: socket.socket, line: bytes) -> None:
        try:
            peer.sendall(line)
        except OSError:
            self._forget(peer)

    def _hear(self, peer: Any) -> None:
        try:
            data = peer.recv(LONGEST_LINE)
        except OSError:
            data = b""
        if not data:
            self._forget(peer)
            return
        *lines, rest = (self.pending[peer] + data).split(b"\n")
        self.pending[peer] = rest
        if len(rest) > LONGEST_LINE:
            self._forget(peer)
            return
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                said = None
            if not isinstance(said, dict):  # not a rank of this run, perhaps a port scanner
                self._forget(peer)
                return
            self._take(peer, said)
            if peer not in self.pending:
                return

    def _take(self, peer: socket.socket, said: dict[str, Any]) -> None:
        rank = self.ranks.get(peer)
        if rank is None:
            token = str(said.get("token")).encode(errors="replace")
            if not secrets.compare_digest(token, self.token.encode()):
                self._forget(peer)
                return
            del self.strangers[peer]
            self.ranks[peer] = said["rank"]
            self.ledger.joined(Member(said["rank"], said["host"], said["pid"]))
            self._tell(peer, self.sent)
        elif "stopped" in said:
            prefix = f"step {said['step']}: {self.ledger.members[rank]} stopped: "
            text = (prefix if said["own"] else "") + said["stopped"]
            self.ledger.stopped(RankError(text, said["exit_code"]))
        elif "waits" in said:
            self.ledger.waits(rank, said["step"], said["waits"], said["failure"])
        elif "left" in said:
            self.ledger.left(rank, said["left"])
            if rank == 0:
                # This process may end now, which is not a failure for the ranks that end later.
                self._tell_all(over=True)

    def _forget(self, peer: socket.socket) -> None:
        self.selector.unregister(peer)
        self.pending.pop(peer)
        self.strangers.pop(peer, None)
        peer.close()
        if peer in self.ranks:
            self.ledger.lost(self.ranks.pop(peer))


class RankMonitor:
    """The client on each rank: reports why it stops, and receives the verdict."""

    def __init__(self, connection: socket.socket, progress: Progress, first: Member) -> None:
        self.connection, self.progress = connection, progress
        self.first = first
        self.verdict: RankError | None = None
        self._heard_nothing = False  # rank 0 closed the connection without a verdict
        self._decided = threading.Event()
        self._taken = threading.Event()
        threading.Thread(target=self._listen, name="watch", daemon=True).start()

    def stopped(self, error: BaseException) -> None:
        """Report that this rank ends with its own error."""
        self._taken.set()
        text, code = one_line(error)[:LONGEST_TEXT], exit_code_of(error)
        if isinstance(error, SystemExit):
            text, code = f"it exited with code {error.code}", EXIT_RANK_LOST
        # A RankError already is the message for all ranks.
        own = not isinstance(error, RankError)
        self._say(step=self.progress.step, stopped=text, exit_code=code, own=own)
        self._decided.wait(REPORTS_WITHIN_SECONDS)

    def lost(self, where: str, failure: str | None) -> RankError:
        """Report a collective that another rank made fail; returns the error that all ranks raise.

        failure: its message if it failed before its timeout.
        """
        self._taken.set()
        short = None if failure is None else failure[:LONGEST_TEXT]
        self._say(step=self.progress.step, waits=where, failure=short)
        self._decided.wait(REPORTS_WITHIN_SECONDS + 1.0)
        waiting = f", while this rank waited in {where}"
        if self._heard_nothing:
            self.verdict = RankError(gone_text(str(self.first), self.progress.step, waiting))
        if self.verdict is None:
            limit = self.progress.limit
            text = silent_text(str(self.first), self.progress.step, limit, waiting)
            self.verdict = RankError(text)
        return self.verdict

    def close(self) -> None:
        """Leave in good order; later failures of other ranks do not concern this rank."""
        self._taken.set()
        self._say(left=self.progress.step)
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # rank 0 closed first

    def _say(self, **fields: Any) -> None:
        try:
            self.connection.sendall(_line(**fields))
        except OSError:
            self._conclude(None)

    def _listen(self) -> None:
        try:
            with self.connection.makefile("rb") as lines:
                line = lines.readline(LONGEST_LINE)
        except OSError:
            line = b""
        said = json.loads(line) if line else None
        if said and "over" in said:
            return
        self._conclude(said)
        if not self._taken.wait(PATIENCE_SECONDS) and self.verdict is not None:
            os._exit(report(self.verdict))

    def _conclude(self, said: dict[str, Any] | None) -> None:
        if self.verdict is None:
            self._heard_nothing = said is None
            self.verdict = (
                RankError(said["verdict"], said["exit_code"])
                if said
                else RankError(gone_text(str(self.first), self.progress.step))
            )
        self._decided.set()


def start_watch(
    rank: int,
    world_size: int,
    limit: str,
    share: Callable[[Any], Any],
    agree_max: Callable[[float], list[float]],
) -> RankMonitor | None:
    """Connect all ranks to rank 0; returns None on all of them if one cannot connect.

    limit: the timeout of collectives as `setting=value`. share: returns rank 0's value on every
    rank. agree_max: returns the largest value of the ranks.
    """
    address, progress = os.environ["MASTER_ADDR"], Progress(limit=limit)
    offer, host = None, socket.gethostname()
    if rank == 0:
        allow_open_files(world_size + SPARE_FILES)
        listener, token = listen_on(address), secrets.token_hex(16)
        MonitorServer(listener, token, Ledger(lambda: progress.limit, lambda: progress.step))
        offer = (listener.getsockname()[1], token, host, os.getpid())
    port, token, first_host, first_pid = share(offer)
    connection: socket.socket | None = None
    try:
        connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        connection.settimeout(None)
        connection.sendall(_line(token=token, rank=rank, host=host, pid=os.getpid()))
    except OSError as error:
        log.warning(
            "rank monitor off: rank %d cannot connect to %s:%d (%s), so a rank that stops cannot "
            "tell the others why",
            rank,
            address,
            port,
            error,
        )
    (failed,) = agree_max(float(connection is None))
    if failed or connection is None:
        if connection is not None:
            connection.sendall(_line(left=0))
            connection.close()
        return None
    return RankMonitor(connection, progress, Member(0, first_host, first_pid))
