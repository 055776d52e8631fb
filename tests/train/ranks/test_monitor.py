"""Rank 0's end of the connections over which ranks tell each other why one stops."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from svilm_fast.train.ranks import monitor as watch
from svilm_fast.train.ranks.attribution import Ledger, Member
from svilm_fast.train.ranks.monitor import MonitorServer, allow_open_files, listen_on

TOKEN = "only ours know it"


@pytest.fixture
def connect() -> Iterator:
    listener = listen_on("127.0.0.1")
    address = listener.getsockname()
    MonitorServer(listener, TOKEN, Ledger(lambda: "distributed.timeout_seconds=8", lambda: 3))
    opened: list[socket.socket] = []

    def start(*said: dict | bytes) -> socket.socket:
        peer = socket.create_connection(address, timeout=10)
        opened.append(peer)
        for line in said:
            peer.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        return peer

    yield start
    for peer in opened:
        peer.close()


def hello(rank: int, token: str = TOKEN) -> dict:
    return {"token": token, "rank": rank, "host": "node-a", "pid": 10 + rank}


def heard(peer: socket.socket) -> dict:
    return json.loads(peer.makefile("rb").readline())


def test_the_error_of_one_rank_reaches_all(connect) -> None:
    peers = [connect(hello(0)), connect(hello(1))]
    peers[1].sendall(b'{"step": 4, "stopped": "no space left", "exit_code": 2, "own": true}\n')
    for peer in peers:
        assert heard(peer) == {
            "verdict": "step 4: rank 1 (host node-a, process 11) stopped: no space left",
            "exit_code": 2,
        }


def test_who_loses_rank_0_names_the_collective_in_which_it_waited(monkeypatch) -> None:
    monkeypatch.setattr(watch, "REPORTS_WITHIN_SECONDS", -0.5)
    for closes, said in (
        (True, "exited without an error"),
        (False, "did not respond within"),
    ):
        here, there = socket.socketpair()
        progress = watch.Progress(3, "distributed.timeout_seconds=8")
        rank = watch.RankMonitor(here, progress, Member(0, "node-a", 10))
        if closes:
            there.close()
            rank._decided.wait(10)
        error = rank.lost("all_reduce (Engine.step)", None)
        assert str(error).startswith("step 3: rank 0 (host node-a, process 10) ")
        assert said in str(error)
        assert "while this rank waited in all_reduce (Engine.step)" in str(error)
        assert error.exit_code == 4
        there.close()
        here.close()


def test_a_closed_connection_is_a_rank_that_is_gone(connect) -> None:
    first, second = connect(hello(0)), connect(hello(1))
    second.close()
    said = heard(first)
    assert said["verdict"].startswith("step 3: rank 1 (host node-a, process 11) exited without")
    assert said["exit_code"] == 4


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff\x00\n",
        b"[1]\n",
        b"x" * 200_000,
        hello(1, "guessed"),
        hello(1, "gu\u00e9ssed"),
        hello(1, "\ud800"),
    ],
)
def test_strangers_are_neither_ranks_nor_a_danger(connect, noise) -> None:
    first = connect(hello(0))
    stranger = connect(noise)
    stranger.close()
    third = connect(hello(2))
    third.close()
    assert "rank 2 (host node-a" in heard(first)["verdict"]


def test_who_says_nothing_is_shown_the_door(connect, monkeypatch) -> None:
    monkeypatch.setattr(watch, "CONNECT_SECONDS", 0.2)
    first, silent = connect(hello(0)), connect()
    assert silent.recv(1) == b""
    connect(hello(1)).close()
    assert "rank 1 (host node-a" in heard(first)["verdict"]


def test_when_the_first_rank_leaves_the_others_are_told_that_all_is_over(connect) -> None:
    first, second = connect(hello(0)), connect(hello(1))
    first.sendall(b'{"left": 9}\n')
    assert heard(second) == {"over": True}


def test_an_address_of_another_machine_is_served_on_all_interfaces() -> None:
    with listen_on("192.0.2.1") as everywhere, listen_on("127.0.0.1") as local:
        assert everywhere.getsockname()[0] == "0.0.0.0"
        assert local.getsockname()[0] == "127.0.0.1"


def test_the_limit_of_open_files_is_never_lowered() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_open_files(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
