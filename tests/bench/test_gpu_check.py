"""`make gpu` ends in time, loses one figure where a process breaks, and tells what failed."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.gpu import check, watched
from svilm_fast.bench.gpu.parts import Done, run_side_by_side

# Stands for the benchmark: "a" crashes it, "b" hangs it, then all that is left is measured.
PROGRAM = """
import os, sys, time
arguments = sys.argv[1:]
assert ("--resume" in arguments) == ("--without" in arguments)
left = [id for id in "abc" if id not in arguments]
print("ceilings", flush=True)
for id in left:
    print(f"measuring {id}", flush=True)
    if id == "a":
        os.abort()
    if id == "b":
        time.sleep(600)
    print(f"figure of {id}", " ".join(arguments[4:]), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


def test_commands_run_side_by_side_and_end_with_what_they_started(tmp_path):
    child = tmp_path / "child"
    hangs = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w')"
    hangs += ".write(str(p.pid)); print('begun', flush=True); p.wait()"
    commands = {
        "fails": [sys.executable, "-c", "print('said'); raise SystemExit(3)"],
        "hangs": [sys.executable, "-c", hangs],
    }
    begin = time.monotonic()
    fails, hangs = run_side_by_side(commands, 5.0)
    assert time.monotonic() - begin < 60
    assert (fails.name, fails.code, fails.text) == ("fails", 3, "said\n")
    assert (hangs.code, hangs.text) == (None, "begun\n")
    assert _ended(int(child.read_text()))


def _ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_crash_and_a_hang_cost_one_figure_each(program, tmp_path):
    told = []
    code = watched.benchmark(
        tmp_path, 300, more=["--op", "x"], silence_s=3.0, tell=told.append, program=program
    )
    assert code == ExitCode.OK
    assert told.count("ceilings") == 3
    assert [line for line in told if line.startswith("!")] == [
        "! a: ended the process (-6); restarted",
        "! b: no output, killed; restarted",
    ]
    assert told[-1] == (
        "figure of c --announce --op x --resume --without a ended the process (-6) "
        "--without b no output, killed"
    )


def test_it_ends_after_the_deadline_whatever_is_under_way(program, tmp_path):
    begin = time.monotonic()
    told = []
    code = watched.benchmark(
        tmp_path, 3, silence_s=100, grace_s=1, tell=told.append, program=program
    )
    assert code == ExitCode.OK
    assert time.monotonic() - begin < 60
    assert told[-1].startswith("figure of c --announce --resume --without a")


def test_what_breaks_before_any_benchmark_resumes_nothing(tmp_path):
    asked = tmp_path / "asked"
    program = f"import sys; open({str(asked)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    program = [sys.executable, "-c", program + "; raise SystemExit(1)"]
    code = watched.benchmark(tmp_path, 60, tell=lambda _: None, program=program)
    assert code == ExitCode.FAILED
    lines = asked.read_text().splitlines()
    assert len(lines) == watched.MOST_STARTS
    assert not any("--resume" in line for line in lines)


def test_the_whole_benchmark_runs_in_a_process_of_its_own(tmp_path):
    told = []
    more = ["--device", "cpu", "--op", "temporal", "--case", "ragged", "--budget", "0.01"]
    assert watched.benchmark(tmp_path, 300, more=more, tell=told.append) == ExitCode.OK
    [path] = tmp_path.glob("*/ops.json")
    written = json.loads(path.read_text())
    assert written["complete"] is True
    assert len(written["records"]) == 6
    assert sum("ops/temporal/ragged" in line for line in told) == 6


def test_the_summary_names_what_failed():
    done = [
        Done("one.py", 0, 10.0, "..\n== 2 passed in 3s ==\n"),
        Done("two.py", 1, 20.0, ".F\nFAILED two.py::test_x - boom\n== 1 failed in 4s ==\n"),
        Done("three.py", None, 30.0, "..."),
        Done("four.py", check.NOTHING_CHOSEN, 5.0, "no tests ran in 1s"),
    ]
    assert [check.passed(one) for one in done] == [True, False, False, True]
    assert not check.passed(Done(check.CONSTANTS, check.NOTHING_CHOSEN, 1.0, ""))
    assert check.summary(done).splitlines() == [
        "one.py: exit status 0, 10 s: 2 passed in 3s",
        "two.py: exit status 1, 20 s: 1 failed in 4s",
        "  FAILED two.py::test_x - boom",
        "three.py: ended at the limit, 30 s: ...",
        "four.py: exit status 5, 5 s: no tests ran in 1s",
    ]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((0, 0, 0), 0), ((0, 1, 0), 1), ((0, 0, 5), 1), ((1, 0, 0), 1), ((None, 0, 0), 1)],
)
def test_the_command_runs_the_benchmark_whatever_the_rest_said(
    monkeypatch, tmp_path, capsys, codes, expected
):
    constants, tests, figures = codes
    asked, limits = {}, []

    def side_by_side(commands, limit_s):
        asked.update(commands)
        limits.append(limit_s)
        code = constants if check.CONSTANTS in commands else tests
        return [Done(name, code, 1.0, f"output of {name}") for name in commands]

    def benchmark(out, deadline_s, **_):
        limits.append(deadline_s)
        return figures

    monkeypatch.setattr(check, "run_side_by_side", side_by_side)
    monkeypatch.setattr(check, "benchmark", benchmark)
    assert check.main(["--out", str(tmp_path / "new"), "--op", "infonce"]) == expected
    # The constants come first and alone; all three parts end within nine minutes.
    assert next(iter(asked)) == check.CONSTANTS
    first, second, last = limits
    assert first == check.CONSTANTS_S
    assert first + second <= last <= 9 * 60 - check.RESERVE_S
    assert second == pytest.approx(check.TESTS_SHARE * last, rel=0.05)
    assert {"tests/gpu/test_execution.py", "tests/kernels/infonce/test_gpu.py"} <= asked.keys()
    log = (tmp_path / "new" / "gpu-tests.log").read_text()
    assert all(f"===== {name}\noutput of {name}\n" in log for name in asked)
    assert f"benchmark: exit status {figures}" in capsys.readouterr().out
