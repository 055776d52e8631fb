"""Processes of one machine: equal bytes for any number; errors and deaths name the unit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from svilm_fast.data.offline.engines import OfflineEngine, _ray_tasks
from svilm_fast.data.offline.manifest import FinishedUnit
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


def test_workers_are_numbered(toy, tmp_path):
    for count in (1, 2):
        reports = do_work(
            "toy",
            toy.tell_worker,
            toy.units(count),
            {},
            tmp_path,
            parameters={"count": count},
            workers=count,
        )
        assert sorted(report["worker"] for report in reports) == list(range(count))


@pytest.mark.parametrize(("cluster", "gpu", "given"), [(4, True, 1), (4, False, 0), (0, True, 0)])
def test_ray_gives_a_unit_a_gpu_where_there_is_one(cluster, gpu, given):
    options = {}

    def remote(**found):
        options.update(found)
        return lambda attempt: SimpleNamespace(remote=attempt)

    ray = SimpleNamespace(
        remote=remote,
        cluster_resources=lambda: {"CPU": 2.0} | ({"GPU": float(cluster)} if cluster else {}),
        wait=lambda tasks, num_returns: (tasks[:1], tasks[1:]),
        get=lambda task: task,
        exceptions=SimpleNamespace(RayError=RuntimeError),
    )
    done = [_Done(f"u{number}", "", (), {}) for number in range(3)]
    assert list(_ray_tasks(ray, done, None, 1, gpu)) == done
    assert options["num_gpus"] == given


class _Done(FinishedUnit):
    """A finished unit as its own job."""

    name = "done"

    def __call__(self) -> FinishedUnit:
        return self

    def __hash__(self) -> int:
        return hash(self.unit)
