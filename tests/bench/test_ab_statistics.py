"""The gate's statistics: known values, coverage and power on simulated processes."""

import math

import numpy as np
import pytest

from svilm_fast.bench.ab.statistics import (
    Estimate,
    bootstrap,
    estimate,
    holm,
    midmean,
)

RESTARTS, RENEWALS, PAIRS = 8, 8, 4


def simulated(draw, shift, *, process=0.0, renewal=0.02, pair=0.03):
    """Log ratios of a comparison: offsets of processes and renewals, heavy-tailed pairs."""
    offsets = process * draw.standard_normal((RESTARTS, 1, 1))
    offsets = offsets + renewal * draw.standard_normal((RESTARTS, RENEWALS, 1))
    pairs = shift + offsets + pair * draw.standard_t(2, size=(RESTARTS, RENEWALS, PAIRS))
    return np.median(pairs, axis=-1)


@pytest.mark.parametrize(
    "restarts, renewals, interval, p_above, p_below",
    [
        (2, 1, (-0.0228248001255872, 0.04269730728162903), 0.08081556200570, 0.07983439973002),
        (4, 2, (-0.00322435267862105, 0.03117624011871188), 0.04068239565714, 0.17313971381035),
        (8, 8, (0.00441692519721358, 0.01785514435735033), 0.00149962509373, 0.00499875031242),
        (16, 16, (0.00646955731242100, 0.01394570521715561), 0.00024993751562, 0.00024993751562),
    ],
)
def test_known_samples_give_known_figures(restarts, renewals, interval, p_above, p_below):
    """The figures of the published formulas (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    seed = int(math.log2(restarts)) - 1
    values = np.random.default_rng(seed).normal(0.01, 0.02, (restarts, renewals))
    one = estimate(values.tolist())
    assert one.interval(0.95) == pytest.approx(interval, rel=1e-10)
    assert one.p_above(0.0) == pytest.approx(p_above, rel=1e-10)
    assert one.p_below(0.02) == pytest.approx(p_below, rel=1e-10)


@pytest.mark.parametrize(
    "t, degrees, tail",
    [(6.313752, 1, 0.05), (4.302653, 2, 0.025), (2.364624, 7, 0.025), (3.169273, 10, 0.005)],
)
def test_the_tail_of_student_agrees_with_printed_tables(t, degrees, tail):
    """Equal restarts leave the decision to Student: a mean of t errors has the printed tail."""
    count = degrees + 1
    one = Estimate(((t,),) * count, (t,) * count, mean=t, error=1.0)
    assert one.p_above(0.0) == pytest.approx(tail, rel=1e-5)
    assert one.p_below(0.0) == pytest.approx(1.0)
    assert one.interval(1 - 2 * tail) == pytest.approx((0.0, 2 * t), abs=1e-5)


def test_midmean_ignores_a_wild_quarter_at_each_end():
    assert midmean(np.array([1e9, 1.0, 2.0, 3.0, 4.0, -1e9, 2.0, 3.0])) == pytest.approx(2.5)
    assert midmean(np.array([1.0, 5.0])) == 3.0


def test_holm_steps_down_and_never_decreases():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_needs_two_restarts_with_values():
    with pytest.raises(ValueError, match="two restarts"):
        estimate([[0.1, 0.2]])
    with pytest.raises(ValueError, match="two restarts"):
        estimate([[0.1], []])


def test_bootstrap_spread_holds_both_levels():
    draw = np.random.default_rng(0)
    same_renewals = [[value] * 8 for value in draw.standard_normal(8)]
    wide = [list(value[0] + draw.standard_normal(8)) for value in same_renewals]
    assert bootstrap(wide, 2000).std() > bootstrap(same_renewals, 2000).std() > 0


def test_the_estimate_repeats_exactly():
    values = simulated(np.random.default_rng(3), 0.02).tolist()
    assert estimate(values).interval(0.95) == estimate(values).interval(0.95)


@pytest.mark.parametrize("process", [0.0, 0.02])
def test_the_interval_covers_the_truth_as_often_as_it_says(process):
    """95 % intervals: of 200 at most 17 miss (binomial: 1.5 % chance of more at 95 %)."""
    draw = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        low, high = estimate(simulated(draw, 0.01, process=process)).interval(0.95)
        missed += not low <= 0.01 <= high
    assert missed <= 17


def test_restarts_not_pairs_are_the_independent_observations():
    """Pooling what lies inside the processes misses the truth far too often."""
    draw = np.random.default_rng(2)
    pooled_missed = missed = 0
    for _ in range(150):
        values = simulated(draw, 0.0, process=0.02)
        low, high = estimate(values).interval(0.95)
        missed += not low <= 0 <= high
        pooled = values.ravel()
        half = 1.96 * pooled.std(ddof=1) / math.sqrt(pooled.size)
        pooled_missed += abs(pooled.mean()) > half
    assert missed <= 14
    assert pooled_missed >= 30


def test_the_percentile_bootstrap_alone_covers_too_little_where_processes_differ():
    """Why the interval is Student's: with eight restarts of unlike processes percentiles miss."""
    draw = np.random.default_rng(4)
    percentile_missed = missed = 0
    for _ in range(200):
        one = estimate(simulated(draw, 0.0, process=0.04))
        resampled = np.quantile(bootstrap(one.restarts, 1000), [0.005, 0.995])
        low, high = one.interval(0.99)
        percentile_missed += not resampled[0] <= 0 <= resampled[1]
        missed += not low <= 0 <= high
    assert missed <= 6 < percentile_missed


def test_five_percent_is_found_and_nothing_is_found_where_nothing_is():
    draw = np.random.default_rng(5)
    tail, count = 0.025, 20
    found = {0.0: 0, 0.05: 0}
    for shift in found:
        for _ in range(100):
            one = estimate(simulated(draw, math.log1p(shift), renewal=0.01, pair=0.01))
            found[shift] += one.p_above(math.log1p(0.01), tail / count) * count <= tail
    assert found[0.0] == 0
    assert found[0.05] >= 95


def test_p_values_of_both_directions_mirror_each_other():
    values = simulated(np.random.default_rng(6), 0.0)
    one, mirrored = estimate(values), estimate(-values)
    assert one.p_above(0.001) == pytest.approx(mirrored.p_below(-0.001), rel=0.1, abs=1e-3)


def test_without_any_spread_the_mean_decides():
    one = estimate([[0.02, 0.02], [0.02, 0.02]])
    assert one.p_above(0.01) < 0.001
    assert one.p_above(0.03) == 1.0
