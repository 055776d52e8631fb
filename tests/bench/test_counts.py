"""Counts: what the watch sees, how tables differ, and a matrix that comes back."""

import shutil

import pytest
import torch

from svilm_fast.bench.counts import callgrind, command
from svilm_fast.bench.counts.peak import count_peaks, peak_of
from svilm_fast.bench.counts.requests import Requests, supported
from svilm_fast.bench.counts.table import (
    CountRow,
    differences,
    fingerprint,
    read_table,
    table_path,
    write_table,
)
from svilm_fast.bench.counts.watch import CallCounter
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.peers import peers
from svilm_fast.cli import main
from svilm_fast.kernels.registry import ops

FACTS = {"python": "3.11.7", "torch": "2.13.0", "cpu_capability": "AVX2"}
INSTRUCTIONS = CountRow("instructions", "fused host | infonce", "per call", 1_000_000)
GATHER = CountRow("collectives", "op infonce", "allgather_base", 2, 7168)
WAIT = CountRow("waits", "step ZeRO 1", "aten::_local_scalar_dense", 7)
PEAK = CountRow("memory", "infonce, both directions", "peak", 1, 1_863_692)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "counts", *arguments])
    return ExitCode(ended.value.code)


@pytest.mark.parametrize(
    ("waits", "name"),
    [
        (lambda x: x.sum().item(), "aten::_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "aten::_local_scalar_dense"),
        (lambda x: float(x[0]), "aten::_local_scalar_dense"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: x[x > 0], "aten::index by mask"),
        (lambda x: x.tolist(), "Tensor.tolist"),
        (lambda x: x.cpu(), "Tensor.cpu"),
    ],
)
def test_the_watch_sees_each_wait_once(waits, name):
    values = torch.tensor([1.0, -2.0, 3.0])
    with CallCounter() as watch:
        values * 2
        waits(values)
    assert watch.waits[name] == 1
    assert sum(watch.waits.values()) == 1


def test_the_watch_sees_a_wait_in_backward():
    class Peeks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    leaf = torch.ones(3, requires_grad=True)
    with CallCounter() as watch:
        Peeks.apply(leaf).sum().backward()
    assert watch.waits == {"aten::_local_scalar_dense": 1}


def test_equal_tables_do_not_differ():
    rows = [INSTRUCTIONS, GATHER, WAIT, PEAK]
    assert differences(rows, rows) == ([], [])


@pytest.mark.parametrize(
    ("row", "count", "size", "says"),
    [
        (GATHER, 3, 7168, "2 -> 3"),
        (GATHER, 2, 7169, "bytes 7,168 -> 7,169"),
        (WAIT, 8, 0, "7 -> 8"),
        (PEAK, 1, 1_863_693, "bytes 1,863,692 -> 1,863,693"),
        (INSTRUCTIONS, 1_020_000, 0, "(+2.00%)"),
        (INSTRUCTIONS, 980_000, 0, "(-2.00%)"),
    ],
)
def test_one_more_is_a_difference_and_for_instructions_beyond_the_tolerance(row, count, size, says):
    changed, unmatched = differences([row], [CountRow(row.kind, row.case, row.item, count, size)])
    assert len(changed) == 1
    assert says in changed[0]
    assert unmatched == []


def test_instructions_within_the_tolerance_do_not_differ():
    near = CountRow("instructions", INSTRUCTIONS.case, "per call", 1_001_000)
    assert differences([INSTRUCTIONS], [near]) == ([], [])


def test_a_collective_that_appears_is_a_cost_and_a_case_that_appears_has_no_row():
    assert differences([], [GATHER])[0] == [
        "collectives | op infonce | allgather_base: not in the table, now 2 (7,168 bytes)"
    ]
    assert len(differences([GATHER], [])[0]) == 1
    assert len(differences([], [INSTRUCTIONS])[1]) == 1
    assert len(differences([PEAK], [])[1]) == 1


def test_a_table_survives_the_round_trip(tmp_path):
    path = tmp_path / "table.csv"
    write_table([WAIT, GATHER], path)
    assert read_table(path) == [GATHER, WAIT]
    path.write_text(path.read_text().replace("7168", "many"))
    with pytest.raises(ValueError, match="--write"):
        read_table(path)


def test_other_versions_have_a_table_of_their_own():
    other = FACTS | {"cpu_capability": "AVX512"}
    assert fingerprint(FACTS) != fingerprint(other)
    assert table_path(["instructions"], FACTS) != table_path(["instructions"], other)
    assert table_path(["waits"], {}).name == "portable.csv"


def test_the_recorded_peaks_hold_and_a_whole_matrix_does_not():
    recorded = [r for r in read_table(table_path(["memory"], {})) if r.kind == "memory"]
    fresh = [CountRow("memory", case, "peak", 1, size) for case, size in count_peaks()]
    assert differences(recorded, fresh) == ([], [])
    infonce = ops()["infonce"]
    planted = peak_of(infonce, peers("infonce")["eager"])
    matrix = CountRow("memory", "infonce, both directions", "peak", 1, planted)
    changed, _ = differences([r for r in recorded if r.case == matrix.case], [matrix])
    assert len(changed) == 1
    assert planted > 4 * 1024 * 1024


def test_without_valgrind_nothing_passes(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert run("--check", "--kind", "instructions") is ExitCode.MISSING
    assert "skipped: instructions were not counted" in capsys.readouterr().out


def test_counts_of_other_versions_are_not_comparable(monkeypatch, capsys):
    found = {INSTRUCTIONS.case: INSTRUCTIONS.count}
    monkeypatch.setattr(command, "count_instructions", lambda only: (found, FACTS))
    assert run("--check", "--kind", "instructions") is ExitCode.INCOMPARABLE
    assert "nothing to compare these counts with" in capsys.readouterr().out


def test_one_gather_too_many_is_a_regression(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "table_path", lambda kinds, facts: tmp_path / "table.csv")
    found = {"op infonce": {"collectives": {"allgather_base": [2, 7168]}, "waits": {}}}
    monkeypatch.setattr(command, "count_on_ranks", lambda: found)
    assert run("--write", "--kind", "collectives", "--kind", "waits") is ExitCode.OK
    assert run("--check", "--kind", "collectives") is ExitCode.OK
    found["op infonce"]["collectives"]["allgather_base"] = [3, 7168]
    assert run("--check", "--kind", "collectives") is ExitCode.REGRESSION
    found["op infonce"]["waits"]["aten::nonzero"] = 1
    assert run("--check", "--kind", "waits") is ExitCode.INCOMPARABLE
    assert "2 -> 3" in capsys.readouterr().out


def test_some_cases_can_be_written_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "table_path", lambda kinds, facts: tmp_path / "table.csv")
    found = {
        case: {"collectives": {"allgather_base": [2, 7168]}, "waits": {}}
        for case in ("op infonce", "step ZeRO 1")
    }
    monkeypatch.setattr(command, "count_on_ranks", lambda: found)
    assert run("--write", "--kind", "collectives") is ExitCode.OK
    for counted in found.values():
        counted["collectives"]["allgather_base"] = [3, 7168]
    assert run("--write", "--kind", "collectives", "--only", "op*") is ExitCode.OK
    assert run("--check", "--kind", "collectives", "--only", "op*") is ExitCode.OK
    assert run("--check", "--kind", "collectives") is ExitCode.REGRESSION


def test_an_unknown_kind_is_told(capsys):
    assert run("--kind", "seconds") is ExitCode.USAGE
    assert "unknown kind seconds" in capsys.readouterr().err


@pytest.mark.skipif(not supported(), reason="x86-64 Linux only")
def test_requests_outside_valgrind_do_nothing():
    requests = Requests()
    assert not requests.under_valgrind()
    with requests.counting("nothing"):
        pass


def test_a_torn_dump_is_an_error(tmp_path):
    path = tmp_path / "counts.1"
    path.write_text("totals: 12\n")
    with pytest.raises(RuntimeError, match="not a Callgrind dump"):
        callgrind._read_dump(path)
