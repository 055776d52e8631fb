"""`svilm bench compare`: nothing passes by accident, and every exit code has its exit status."""

import json

import numpy as np
import pytest

from svilm_fast.bench.compare.verdict import ratio_interval
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.units import percent
from svilm_fast.cli import main

ID = "ops/infonce/B=1024/float32/forward/reference"
OTHER = "ops/temporal/B=8/float32/forward/reference"
ENVIRONMENT = {"fingerprint": "f00d", "commit": "abc", "dirty": False, "cpu": "x", "torch": "2.13"}


def record(id=ID, median=10.0, status="ok", spread=0.01, **more):
    samples = [median * (1 + spread * step) for step in range(-5, 6)]
    numbers = {"samples_ms": samples, "median_ms": median} if status == "ok" else {}
    return {"id": id, "suite": "ops", "status": status, **numbers, **more}


@pytest.fixture
def compare(tmp_path, capsys):
    """Writes both sides, runs the command; returns its exit code and what it said."""

    def run(before, after, *options, before_facts=(), after_facts=(), after_complete=True):
        paths = []
        for name, records, facts in (
            ("before", before, before_facts),
            ("after", after, after_facts),
        ):
            path = tmp_path / f"{name}.json"
            content = {"schema": 1, "environment": ENVIRONMENT | dict(facts), "records": records}
            content["complete"] = after_complete or name == "before"
            path.write_text(json.dumps(content))
            paths.append(str(path))
        with pytest.raises(SystemExit) as ended:
            main(["bench", "compare", *paths, *options])
        told = capsys.readouterr()
        return ExitCode(ended.value.code), " ".join((told.out + told.err).split())

    return run


def test_the_same_figures_pass(compare):
    exit_code, told = compare([record()], [record()])
    assert exit_code is ExitCode.OK
    assert "1 of 1 benchmarks compared at 5%: none is slower" in told


def test_slower_than_the_limit_is_a_regression(compare):
    exit_code, told = compare([record()], [record(median=11.5)])
    assert exit_code is ExitCode.REGRESSION
    assert "+15.0%" in told


def test_percents_may_be_fractions(compare):
    steady = {"spread": 0.0001}
    before, after = [record(**steady)], [record(median=10.07, **steady)]
    assert compare(before, after, "--fail-over", "0.5%")[0] is ExitCode.REGRESSION
    assert compare(before, after, "--fail-over", "0.9%")[0] is ExitCode.OK


def test_a_number_without_its_sign_is_refused(compare):
    exit_code, told = compare([record()], [record()], "--fail-over", "0.05")
    assert exit_code is ExitCode.USAGE
    assert "write one like 5% or 0.5%" in told


@pytest.mark.parametrize("text", ["-5%", "five%", "5", "%", "5%%", "1e1%"])
def test_what_is_no_percentage_is_an_error(text):
    with pytest.raises(ValueError, match="not a percentage"):
        percent(text)


def test_slower_within_a_wide_spread_is_noisy_not_fine(compare):
    wide = {"spread": 0.1}
    exit_code, told = compare([record(**wide)], [record(median=10.8, **wide)])
    assert exit_code is ExitCode.NOISY
    assert "the interval contains 1" in told


def test_a_vanished_id_fails(compare):
    exit_code, told = compare([record(), record(OTHER)], [record()])
    assert exit_code is ExitCode.MISSING
    assert "vanished" in told


def test_a_new_id_fails_unless_it_is_allowed(compare):
    sides = [record()], [record(), record(OTHER)]
    assert compare(*sides)[0] is ExitCode.MISSING
    assert compare(*sides, "--allow-new")[0] is ExitCode.OK
    broken = [record(), record(OTHER, status="oom")]
    assert compare([record()], broken, "--allow-new")[0] is ExitCode.MISSING


@pytest.mark.parametrize("status", ["oom", "wrong_result", "failed: ValueError: no"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_failure_on_either_side_is_no_figure(compare, status, side):
    sides = [[record()], [record()]]
    sides[side] = [record(status=status)]
    assert compare(*sides)[0] is ExitCode.FAILED


@pytest.mark.parametrize("median", [0.0, -1.0, float("nan"), float("inf"), None, True])
def test_a_median_that_is_no_time_is_a_failure(compare, median):
    broken = record() | {"median_ms": median}
    assert compare([record()], [broken])[0] is ExitCode.FAILED


def test_what_was_measured_may_not_become_skipped(compare):
    gone = record(status="skipped: no GPU")
    assert compare([record()], [gone])[0] is ExitCode.MISSING
    assert compare([gone], [record()])[0] is ExitCode.MISSING


def test_a_run_that_skipped_everything_is_no_pass(compare):
    gone = record(status="skipped: no GPU")
    assert compare([gone], [gone])[0] is ExitCode.MISSING
    assert compare([gone, record(OTHER)], [gone, record(OTHER)])[0] is ExitCode.OK


def test_a_run_that_was_stopped_is_not_comparable(compare, tmp_path):
    exit_code, told = compare([record()], [record()], after_complete=False)
    assert exit_code is ExitCode.INCOMPARABLE
    assert "the run was stopped" in told
    assert f"{tmp_path / 'after.json'}" in told


def test_another_machine_is_not_comparable(compare):
    other = {"fingerprint": "beef", "cpu": "y"}
    exit_code, told = compare([record()], [record(median=1.0)], after_facts=other)
    assert exit_code is ExitCode.INCOMPARABLE
    assert "cpu: x / y" in told
    empty = {"fingerprint": None}
    sides = {"before_facts": empty, "after_facts": empty}
    assert compare([record()], [record()], **sides)[0] is ExitCode.INCOMPARABLE


@pytest.mark.parametrize("facts", [{"dirty": True}, {"commit": ""}, {"commit": None}])
def test_a_baseline_of_uncommitted_code_is_refused(compare, facts):
    exit_code, told = compare([record()], [record()], before_facts=facts)
    assert exit_code is ExitCode.INCOMPARABLE
    assert "--allow-dirty" in told
    assert compare([record()], [record()], "--allow-dirty", before_facts=facts)[0] is ExitCode.OK
    assert compare([record()], [record()], after_facts={"dirty": True})[0] is ExitCode.OK


def test_one_byte_more_is_a_regression(compare):
    before, after = [record(peak_extra_bytes=2**20)], [record(peak_extra_bytes=2**20 + 1)]
    exit_code, told = compare(before, after)
    assert exit_code is ExitCode.REGRESSION
    assert "needs 1 bytes more" in told
    assert compare(after, before)[0] is ExitCode.OK
    assert compare(before, after, "--memory-over", "1%")[0] is ExitCode.OK
    assert compare(before, [record()])[0] is ExitCode.MISSING


def test_the_worst_outcome_is_the_exit_status(compare):
    third = "ops/temporal/B=9/float32/forward/reference"
    before = [record(), record(OTHER), record(third)]
    after = [record(median=30.0), record(OTHER, status="oom")]
    exit_code, told = compare(before, after)
    assert exit_code is ExitCode.FAILED
    assert told.index("no figure: oom") < told.index("vanished") < told.index("+200.0%")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "not a result file"),
        ("{", "not JSON"),
        ('{"schema": 2, "records": []}', "its schema: 2"),
        ('{"schema": 1, "records": []}', "contains no record"),
        ('{"schema": 1, "records": [{"id": "a"}]}', "lacks id or status"),
        ('{"schema": 1, "records": [{"id": "a", "status": "ok"}]}', "suite/name/case"),
        (json.dumps({"schema": 1, "records": [record(), record()]}), "twice"),
    ],
)
def test_a_torn_file_is_an_error(tmp_path, capsys, content, says):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "compare", str(path), str(path)])
    assert ended.value.code == ExitCode.USAGE
    assert says in capsys.readouterr().err


def test_a_run_is_not_compared_with_itself(tmp_path, capsys):
    path, link = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps({"schema": 1, "environment": ENVIRONMENT, "records": [record()]}))
    link.symlink_to(path)
    for other in (path, link):
        with pytest.raises(SystemExit) as ended:
            main(["bench", "compare", str(path), str(other)])
        assert ended.value.code == ExitCode.USAGE
        assert "are the same file" in capsys.readouterr().err


def test_few_samples_tell_nothing(compare):
    def once(median):
        return [record() | {"median_ms": median, "samples_ms": [median]}]

    for after in (20.0, 10.1, 5.0):
        assert compare(once(10.0), once(after))[0] is ExitCode.NOISY
    assert compare(once(10.0), once(10.0))[0] is ExitCode.OK


def test_clocks_are_not_mixed(compare):
    exit_code, told = compare([record(clock="events")], [record(clock="wall")])
    assert exit_code is ExitCode.INCOMPARABLE
    assert "different clocks: events / wall" in told


def test_all_that_must_match_is_told(compare):
    exit_code, told = compare(
        [record()], [record()], after_facts={"fingerprint": "beef", "driver": "2", "threads": 3}
    )
    assert exit_code is ExitCode.INCOMPARABLE
    assert "threads: None / 3" in told
    assert "driver: None / 2" in told


def test_the_table_can_be_a_comment(compare, tmp_path):
    path = tmp_path / "comment.md"
    compare([record()], [record(median=11.5)], "--markdown", str(path))
    lines = path.read_text().splitlines()
    assert lines[0].startswith("**1 of 1 benchmarks compared at 5%: 1 regression")
    assert lines[-1].startswith(f"| `{ID}` | 10 | 11.5 | +15.0% |")


def test_the_interval_covers_the_true_ratio():
    before = [10 + 0.1 * step for step in range(-10, 11)]
    low, high = ratio_interval(before, [1.2 * value for value in before])
    assert 1.1 < low < 1.2 < high < 1.3


def test_the_interval_of_known_samples_is_known():
    draw = np.random.default_rng(11)
    before, after = draw.lognormal(size=11).tolist(), (1.2 * draw.lognormal(size=14)).tolist()
    expected = (0.24131614676794358, 2.5687033191355595)
    assert ratio_interval(before, after) == pytest.approx(expected, rel=1e-12)
    assert ratio_interval([1.0], [2.0]) == (2.0, 2.0)
