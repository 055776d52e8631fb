"""What a manifest proves is kept; other files, other arguments and other processes are refused."""

from __future__ import annotations

import os

import pytest

from svilm_fast.data.offline.manifest import Manifest
from svilm_fast.data.offline.outputs import OfflineError, Outputs
from svilm_fast.data.offline.work import Unit, do_work


@pytest.fixture
def start(toy, tmp_path):
    def run(units=None, *, parameters=None, settings=None):
        units = toy.units(3) if units is None else units
        return do_work(
            "toy",
            toy.write_two,
            units,
            settings or {},
            tmp_path,
            parameters=parameters or {"times": 1, "limits": {"bytes": 5}},
            workers=1,
        )

    return run


def test_finished_units_are_not_done_again(start, tmp_path):
    start()
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert start() == [{"bytes": 10}] * 3
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_a_lost_output_is_made_again(start, tmp_path):
    start()
    whole = (tmp_path / "u1.bin").read_bytes()
    (tmp_path / "u1.bin").unlink()
    start()
    assert (tmp_path / "u1.bin").read_bytes() == whole


def test_a_changed_output_is_named_and_kept(start, tmp_path):
    start()
    whole = (tmp_path / "u1.bin").read_bytes()
    (tmp_path / "u1.bin").write_bytes(b"x" + whole[1:])  # of the same size
    with pytest.raises(OfflineError, match=r"u1\.bin exists, is not an output of this work"):
        start()
    assert (tmp_path / "u1.bin").read_bytes() == b"x" + whole[1:]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_foreign_file_under_the_name_of_an_output_is_kept(start, tmp_path):
    (tmp_path / "u2.bin").write_text("mine")
    with pytest.raises(OfflineError, match=r"u2\.bin exists"):
        start()
    assert (tmp_path / "u2.bin").read_text() == "mine"


def test_an_output_without_a_manifest_line_is_taken_over_if_equal(start, tmp_path, content):
    start()
    expected = content(tmp_path)
    (tmp_path / "toy_manifest.jsonl").unlink()
    start()
    assert content(tmp_path) == expected


def test_without_hard_links_nothing_is_replaced_either(start, tmp_path, content, monkeypatch):
    def no_links(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "u2.bin").write_text("mine")
    with pytest.raises(OfflineError, match=r"u2\.bin exists"):
        start()
    (tmp_path / "u2.bin").unlink()
    start()
    assert len(content(tmp_path)) == 6


def test_other_arguments_are_refused_with_what_differs(start, toy):
    start()
    with pytest.raises(OfflineError, match=r": limits\.bytes=5 before, 6 now, times=1 before, 2"):
        start(parameters={"times": 2, "limits": {"bytes": 6}})
    with pytest.raises(OfflineError, match=r"input has changed \(3 units before, 2 now\)"):
        start(toy.units(2))
    changed = [*toy.units(2), Unit("u2.bin", "other", {"content": "other"})]
    with pytest.raises(OfflineError, match=r"the input has changed, for example that of u2\.bin"):
        start(changed)


def test_work_that_has_written_nothing_may_be_started_otherwise(start, tmp_path):
    with pytest.raises(ValueError, match="is refused"):
        start([Unit("a", "refuse", 1)])
    assert start([Unit("a", "fine", 2)]) == [{"bytes": 4}]


def test_a_foreign_manifest_and_a_damaged_one_are_refused(start, tmp_path):
    path = tmp_path / "toy_manifest.jsonl"
    for content in (b"mine\n", b"", b"[]\n", b'{"manifest": "svilm pack", "version": 1}\n'):
        path.write_bytes(content)
        with pytest.raises(OfflineError, match="is no manifest of `svilm toy`"):
            start()
        assert path.read_bytes() == content


def test_one_process_at_a_time(start, tmp_path):
    start()
    other = Manifest.open(tmp_path / "other.jsonl", "toy", {}, {})
    with pytest.raises(OfflineError, match="in use by another process"):
        Manifest.open(tmp_path / "other.jsonl", "toy", {}, {})
    other.close()
    Manifest.open(tmp_path / "other.jsonl", "toy", {}, {}).close()


def test_only_own_temporary_files_are_removed(start, tmp_path):
    left = Outputs(tmp_path, "toy").path("u0.bin")
    left.write_text("of a killed process")
    of_other_work = Outputs(tmp_path, "toys").path("u0.bin").name  # which may be running
    mine = [".u0.bin.svilm-toy-partial", "x.0123456789abcdef.svilm-toy-partial", ".a.partial"]
    mine.append(of_other_work)
    for name in mine:
        (tmp_path / name).write_text("mine")
    start()
    assert not left.exists()
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
