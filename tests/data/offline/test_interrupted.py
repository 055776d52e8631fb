"""Off-line work that is stopped at any write gives the same files when it is started again."""

from __future__ import annotations

import sys

import pytest

from svilm_fast.data.offline.work import do_work

_EVENTS = ("open", "os.link", "os.rename", "os.remove", "os.truncate")


class _KilledError(BaseException):
    """Stands for SIGKILL: from its moment on, nothing is written or removed any more."""


class _Writes:
    """Counts what Python does to files below `folder` and fails from number `last` on."""

    def __init__(self) -> None:
        self.folder, self.last, self.count = "", sys.maxsize, 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.folder or event not in _EVENTS:
            return
        if event == "open" and not set(str(arguments[1] or "")) & set("wa+"):
            return
        if event != "os.truncate" and not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count > self.last:
            raise _KilledError


@pytest.fixture(scope="module")
def writes():
    return _Writes()


def test_killed_before_every_write(toy, writes, content, tmp_path):
    def start(folder):
        return do_work(
            "toy", toy.write_two, toy.units(3), {}, folder, parameters={"times": 1000}, workers=1
        )

    def watched(folder, last):
        folder.mkdir(exist_ok=True)
        writes.folder, writes.last, writes.count = str(folder), last, 0
        try:
            return start(folder)
        finally:
            writes.folder = ""

    reports = watched(tmp_path / "whole", sys.maxsize)
    expected, total = content(tmp_path / "whole"), writes.count
    assert len(expected) == 6
    assert total > 15
    for last in range(total):
        folder = tmp_path / f"killed-{last}"
        with pytest.raises(_KilledError):
            watched(folder, last)
        left = content(folder)
        assert {n: left[n] for n in left if n in expected}.items() <= expected.items()
        assert start(folder) == reports
        assert content(folder) == expected


def test_a_manifest_that_was_cut_off_anywhere(toy, content, tmp_path):
    def start():
        return do_work("toy", toy.write_two, toy.units(2), {}, tmp_path, parameters={}, workers=1)

    reports = start()
    expected, path = content(tmp_path), tmp_path / "toy_manifest.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole), 7):
        path.write_bytes(whole[:size])
        assert start() == reports
        assert path.read_bytes() == whole
    assert content(tmp_path) == expected
