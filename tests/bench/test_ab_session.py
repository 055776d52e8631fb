"""Sides that crash, hang, lie or differ: played by small fake workers, none of them may pass."""

import json
import math
import sys
from pathlib import Path
from statistics import NormalDist

import pytest

from svilm_fast.bench.ab.process import SideError
from svilm_fast.bench.ab.samples import BASE, CONTROL, HEAD, RenewalSamples
from svilm_fast.bench.ab.session import Batch, MeasurementPlan, Session, SideSpec, spaced
from svilm_fast.bench.ab.verdict import DecisionRule, judge
from svilm_fast.bench.exit_codes import ExitCode

FAKE = """
import json, os, random, sys, time
how = json.loads(sys.argv[1])
draw = random.Random(how["name"])
print(json.dumps({"ok": {"protocol": how.get("protocol", 1), "ids": how["ids"],
    "library": how["library"], "environment": {"fingerprint": how.get("fingerprint", "same")}}}),
    flush=True)
id, start = None, 0
for line in sys.stdin:
    request = json.loads(line)
    do = request["do"]
    if do == "prepare":
        id = request["id"]
    reply = {"ok": None}
    for what, (when, whose) in how.get("faults", {}).items():
        if (when, whose) == (do, id):
            if what == "crash":
                print("the head falls over", file=sys.stderr, flush=True)
                os._exit(7)
            if what == "hang":
                time.sleep(60)
            if what == "garbage":
                print("no JSON at all", flush=True)
            reply = {"error": {"kind": what, "message": what + " it is"}}
    if do == "verify" and "error" not in reply:
        reply = {"ok": {"error": 1e-6, "shape": how.get("shape", {}).get(id)}}
    if do == "peak" and "error" not in reply:
        reply = {"ok": {"bytes": how.get("peak", {}).get(id)}}
    if do == "time" and "error" not in reply:
        noise = 1 + how.get("noise", 0.001) * draw.gauss(0, 1)
        ns = request["calls"] * 1e6 * how.get("slower", {}).get(id, 1.0) * noise
        reply = {"ok": {"ns": round(ns) + 5000, "waited": 5000}}
    print(json.dumps(reply), flush=True)
"""
NO_WAIT = {BASE: [0], HEAD: [0]}
IDS = [f"host/made-up/case{i}/-/-/-" for i in range(4)]
PLAN = MeasurementPlan(restarts=4, renewals=2, pairs=3, controls=2, timeout_s=20.0, pinned=False)


@pytest.fixture
def played(tmp_path):
    """Run a session of fake sides, given what each does unlike the others."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def play(plan=PLAN, **sides):
        specs = []
        for name in (BASE, HEAD, CONTROL):
            library = str(tmp_path / "checkout" / "svilm_fast")
            how = {"name": name, "ids": IDS, "library": library} | sides.get(name, {})
            command = [sys.executable, "-S", str(script), json.dumps(how)]
            specs.append(SideSpec(name, command, tmp_path / "checkout", {}))
        (tmp_path / "checkout").mkdir(exist_ok=True)
        return Session(specs, plan, tmp_path).run()

    return play


def exit_codes(judgement):
    return {verdict.id: verdict.exit_code for verdict in judgement.verdicts}


def test_equal_sides_pass_with_all_samples_kept(played):
    measured = played()
    judgement = judge(measured, DecisionRule())
    assert judgement.exit_code == ExitCode.OK
    assert set(exit_codes(judgement)) == set(IDS)
    assert [check.id for check in judgement.controls] == spaced(IDS, 2)
    assert all(len(draws) == PLAN.restarts * PLAN.renewals for draws in measured.draws.values())
    [draw] = measured.draws[IDS[1]][:1]
    assert sorted(draw.order[0]) == ["b", "c", "h"]
    assert len(draw.ns[HEAD]) == len(draw.waited[BASE]) == PLAN.pairs
    assert {"".join(d.order) for d in measured.draws[IDS[0]]} != {"".join(draw.order)}


def test_a_slower_head_fails_and_a_faster_one_is_told(played):
    judgement = judge(played(head={"slower": {IDS[0]: 1.05, IDS[1]: 0.9}}), DecisionRule())
    assert judgement.exit_code == ExitCode.REGRESSION == 1
    words = {verdict.id: verdict.word for verdict in judgement.verdicts}
    assert words == {IDS[0]: "slower", IDS[1]: "faster", IDS[2]: "same", IDS[3]: "same"}
    [slower] = [verdict for verdict in judgement.verdicts if verdict.id == IDS[0]]
    assert slower.interval[0] > 1.01
    assert slower.ratio == pytest.approx(1.05, abs=0.01)


def test_less_than_the_threshold_passes(played):
    judgement = judge(played(head={"slower": {IDS[0]: 1.01}}), DecisionRule(threshold=0.02))
    assert judgement.exit_code == ExitCode.OK


def test_a_width_that_could_hide_a_slowdown_is_not_a_pass(played):
    noisy = {name: {"noise": 0.2} for name in (BASE, HEAD)}
    judgement = judge(played(**noisy), DecisionRule())
    assert judgement.exit_code == ExitCode.NOISY
    assert ExitCode.NOISY in exit_codes(judgement).values()


def test_base_unlike_itself_makes_the_run_noisy_even_with_a_slower_head(played):
    control = {"slower": dict.fromkeys(IDS, 1.04)}
    judgement = judge(played(control=control, head={"slower": {IDS[0]: 1.3}}), DecisionRule())
    assert judgement.exit_code == ExitCode.NOISY == 6
    assert {check.word for check in judgement.controls} == {"differs from itself"}


@pytest.mark.parametrize(
    "fault, when, told",
    [
        ("crash", "time", "exit status 7 during time: the head falls over"),
        ("hang", "prepare", "no reply to prepare within 1 s"),
        ("garbage", "verify", "no JSON during verify"),
        ("wrong_result", "verify", "wrong_result it is"),
        ("failed", "prepare", "failed it is"),
    ],
)
def test_a_side_that_breaks_fails_its_benchmark_and_no_other(played, fault, when, told):
    plan = MeasurementPlan(
        restarts=2, renewals=1, pairs=3, controls=1, timeout_s=20.0, pinned=False
    )
    if fault == "hang":
        plan = MeasurementPlan(
            restarts=2, renewals=1, pairs=3, controls=1, timeout_s=1.0, pinned=False
        )
    measured = played(plan, head={"faults": {fault: [when, IDS[2]]}})
    judgement = judge(measured, DecisionRule())
    assert judgement.exit_code == ExitCode.FAILED == 5
    failed = [verdict for verdict in judgement.verdicts if verdict.exit_code == ExitCode.FAILED]
    assert [verdict.id for verdict in failed] == [IDS[2]]
    assert told in failed[0].message
    assert failed[0].message.startswith("head ")
    assert failed[0].ratio is None
    assert set(measured.draws) == set(IDS) - {IDS[2]}
    assert all(len(draws) == 2 for draws in measured.draws.values())


def test_a_crash_late_in_the_run_takes_the_figures_with_it(played):
    measured = played(head={"faults": {"crash": ["close", IDS[1]]}})
    assert IDS[1] not in measured.draws
    assert judge(measured, DecisionRule()).exit_code == ExitCode.FAILED


@pytest.mark.parametrize("side", [BASE, HEAD])
def test_an_id_on_one_side_only_is_missing_unless_allowed(played, side):
    extra = "host/made-up/extra/-/-/-"
    measured = played(**{side: {"ids": [*IDS, extra]}})
    judgement = judge(measured, DecisionRule())
    assert judgement.exit_code == ExitCode.MISSING == 4
    assert exit_codes(judgement)[extra] == ExitCode.MISSING
    allowed = judge(measured, DecisionRule(allow=frozenset([extra])))
    assert allowed.exit_code == ExitCode.OK


def test_skipped_everywhere_is_told_but_skipped_on_one_side_is_missing(played):
    skips = {"faults": {"skipped": ["prepare", IDS[3]]}}
    everywhere = judge(played(base=skips, head=skips, control=skips), DecisionRule())
    assert everywhere.exit_code == ExitCode.OK
    assert {v.id: v.word for v in everywhere.verdicts}[IDS[3]] == "skipped"
    assert judge(played(head=skips), DecisionRule()).exit_code == ExitCode.MISSING


@pytest.mark.parametrize("request_", ["verify", "peak", "time"])
def test_a_side_that_skips_later_is_missing_too(played, request_):
    skips = {"faults": {"skipped": [request_, IDS[3]]}}
    assert judge(played(head=skips), DecisionRule()).exit_code == ExitCode.MISSING


def test_nothing_measured_is_not_a_pass(played):
    judgement = judge(
        played(**{name: {"ids": []} for name in (BASE, HEAD, CONTROL)}), DecisionRule()
    )
    assert judgement.exit_code == ExitCode.MISSING


def test_other_machines_or_versions_cannot_be_compared(played):
    judgement = judge(played(head={"fingerprint": "other"}), DecisionRule())
    assert judgement.exit_code == ExitCode.INCOMPARABLE == 3
    assert "base same, head other" in judgement.messages[0]


def test_other_shapes_under_one_id_cannot_be_compared(played):
    shapes = {BASE: {"batch": 8}, HEAD: {"batch": 16}, CONTROL: {"batch": 8}}
    sides = {name: {"shape": {IDS[1]: shape}} for name, shape in shapes.items()}
    measured = played(**sides)
    judgement = judge(measured, DecisionRule())
    assert judgement.exit_code == ExitCode.INCOMPARABLE == 3
    wrong = [v for v in judgement.verdicts if v.exit_code == ExitCode.INCOMPARABLE]
    assert [verdict.id for verdict in wrong] == [IDS[1]]
    assert "runs the shape {'batch': 16} and base runs {'batch': 8}" in wrong[0].message
    assert IDS[1] not in measured.draws
    same = {name: {"shape": {id: [4, 8] for id in IDS}} for name in shapes}
    assert judge(played(**same), DecisionRule()).exit_code == ExitCode.OK


def test_any_growth_of_memory_fails(played):
    peaks = {BASE: {"peak": {IDS[0]: 1000, IDS[1]: 1000}}, CONTROL: {"peak": {IDS[1]: 1000}}}
    judgement = judge(played(**peaks, head={"peak": {IDS[0]: 1001, IDS[1]: 900}}), DecisionRule())
    assert judgement.exit_code == ExitCode.REGRESSION
    told = {verdict.id: (verdict.word, verdict.message) for verdict in judgement.verdicts}
    assert told[IDS[0]] == ("same, more memory", "peak 1000 -> 1001 bytes")
    assert told[IDS[1]] == ("same", "peak 1000 -> 900 bytes")


def test_memory_that_differs_between_equal_versions_decides_nothing(played):
    sides = {BASE: 1000, HEAD: 1200, CONTROL: 1100}
    peaks = {name: {"peak": dict.fromkeys(IDS, peak)} for name, peak in sides.items()}
    judgement = judge(played(**peaks), DecisionRule())
    checked = [verdict for verdict in judgement.verdicts if CONTROL in verdict.peak_bytes]
    assert len(checked) == len(IDS)
    assert {verdict.exit_code for verdict in checked} == {ExitCode.NOISY}


def test_memory_repeats_exactly_and_counts_on_a_noisy_machine_too(played):
    control = {"slower": dict.fromkeys(IDS, 1.04), "peak": dict.fromkeys(IDS, 1000)}
    peaks = {"peak": dict.fromkeys(IDS, 1000)}
    head = {"peak": {**peaks["peak"], IDS[2]: 1001}}
    judgement = judge(played(base=peaks, control=control, head=head), DecisionRule())
    assert judgement.exit_code == ExitCode.REGRESSION
    assert IDS[2] in judgement.messages[0]


def test_controls_are_chosen_among_what_was_measured(played):
    skips = {"faults": {"skipped": ["prepare", IDS[1]]}}
    judgement = judge(played(base=skips, head=skips, control=skips), DecisionRule())
    assert [check.id for check in judgement.controls] == spaced([IDS[0], IDS[2], IDS[3]], 2)


def test_without_a_measured_control_nothing_passes(played):
    measured = played()
    measured.controls = []
    assert judge(measured, DecisionRule()).exit_code == ExitCode.NOISY


def test_a_worker_that_imports_another_checkout_is_refused(played, tmp_path):
    with pytest.raises(SideError, match="not the checkout"):
        played(head={"library": str(tmp_path / "elsewhere" / "svilm_fast")})


def test_a_worker_of_another_protocol_is_refused(played):
    with pytest.raises(SideError, match="--bench-from head"):
        played(base={"protocol": 99})


def test_no_process_is_left_behind(played):
    def children():
        return {
            child
            for task in Path("/proc/self/task").glob("*/children")
            for child in task.read_text().split()
        }

    before = children()
    played(head={"faults": {"crash": ["time", IDS[0]]}})
    assert children() <= before


def test_each_order_of_start_comes_once_before_any_comes_again():
    sides = [SideSpec(name, [], Path(), {}) for name in (BASE, HEAD, CONTROL)]
    session = Session(sides, PLAN, Path())
    orders = [session._start_order(restart) for restart in range(12)]
    assert len(set(orders[:6])) == len(set(orders[6:])) == 6
    assert orders[:6] != orders[6:]
    # With a core for each restart in turn, orders change their core.
    assert set(orders[0::2]) & set(orders[1::2])


def test_controls_are_spread_over_the_benchmarks():
    assert spaced(list("abcdefgh"), 4) == ["b", "d", "f", "h"]
    assert spaced(list("ab"), 4) == ["a", "b"]
    assert spaced([], 4) == []


def session(**plan):
    return Session([], MeasurementPlan(**plan), Path())


@pytest.mark.parametrize(
    "call_s, batch",
    [(2**-20, Batch(1049, 3, 333)), (0.2, Batch(1, 3, 3)), (2e-3, Batch(1, 3, 125))],
    ids=["short calls are batched", "long calls get few renewals", "a call longer than a sample"],
)
def test_what_fits_the_budget(call_s, batch):
    one = session(renewals=24, pairs=3, sample_ms=1.0, budget_s=3.0)
    assert one._batch(call_s, 3) == batch


def test_without_renewals_the_budget_sets_the_pairs():
    plan = {"renewals": 0, "pairs": 40, "budget_s": 3.0}
    assert session(**plan)._batch(0.01, 2) == Batch(1, 40, 1)
    assert session(**plan)._batch(0.1, 2).pairs in (14, 15)
    assert session(**plan)._batch(10.0, 2).pairs == 3


def test_renewals_go_where_the_spread_is():
    """Spreads of 1, 4 and 20 % at 8 restarts and 0.3 %: half, what is needed, four times."""
    one = session(renewals=24, restarts=8, aim=0.003)
    for id, spread in (("steady", 0.01), ("middling", 0.04), ("wild", 0.2)):
        one._batches[id] = Batch(1, 3, 1000)
        steps = [math.exp(spread * NormalDist().inv_cdf((i + 0.5) / 200)) for i in range(200)]
        one.measured.draws[id] = [
            RenewalSamples(
                0, i, None, 1, ns={BASE: [10**6], HEAD: [round(1e6 * step)]}, waited=NO_WAIT
            )
            for i, step in enumerate(steps)
        ]
    found = [one._renewals(id) for id in ("steady", "middling", "wild", "new")]
    assert found == [12, pytest.approx(22, abs=1), 96, 24]


def test_a_renewal_counts_the_faster_half_and_not_the_waiting():
    draw = RenewalSamples(0, 0, None, 1, ns={BASE: [100, 900, 100], HEAD: [110, 1000, 310]})
    draw.waited = {BASE: [0, 0, 0], HEAD: [0, 0, 200]}
    assert draw.log_ratio(HEAD) == pytest.approx(math.log(1.1))
    assert draw.pairs(HEAD)[1] == pytest.approx(math.log(10 / 9))
