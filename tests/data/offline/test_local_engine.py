"""Processes of one machine: equal bytes for any number; errors and deaths name the unit."""

from __future__ import annotations

import pytest

from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.outputs import OfflineError
from svilm_fast.data.offline.work import Unit, do_work


def _start(toy, folder, workers, units=None):
    folder.mkdir(exist_ok=True)
    units = toy.units(5) if units is None else units
    return do_work("toy", toy.write_two, units, {}, folder, parameters={}, workers=workers)


def test_equal_files_and_reports_for_one_two_and_three_workers(toy, content, tmp_path):
    reports = [_start(toy, tmp_path / str(n), n) for n in (1, 2, 3)]
    assert reports[0] == reports[1] == reports[2]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    assert len(content(tmp_path / "1")) == 10


def test_an_error_stops_new_units_and_keeps_finished_ones(toy, content, tmp_path):
    bad = [*toy.units(3), Unit("bad", "refuse", 1), Unit("died", "die", 1), Unit("last", "x", 1)]
    with pytest.raises(ValueError, match="bad is refused"):
        _start(toy, tmp_path / "out", 2, bad[:4])
    assert "u0.bin" in content(tmp_path / "out")
    with pytest.raises(OfflineError, match=r"odd: _OddError: an odd error"):
        _start(toy, tmp_path / "odd", 2, [*bad[:2], Unit("odd", "odd", 1)])
    with pytest.raises(OfflineError, match=r"worked on died died \(exit code 9"):
        _start(toy, tmp_path / "dead", 2, [*bad[:2], *bad[4:]])
    assert {"u0.bin", "u1.bin"} <= content(tmp_path / "dead").keys()


def test_without_ray_the_message_says_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(OfflineError, match=r"pip install 'svilm-fast\[ray\]'"):
        do_work(
            "toy",
            toy.write_two,
            toy.units(1),
            {},
            tmp_path,
            parameters={},
            engine=OfflineEngine.RAY,
        )
