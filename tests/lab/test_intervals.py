"""Student's t against scipy, and intervals against their definition."""

import math
import statistics
from functools import partial

import numpy as np
import pytest
from scipy import stats

from minitrain.lab.intervals import (
    mean_interval,
    prediction_interval,
    probability_within,
    seeds_needed,
    student_t,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 100, 101])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.95, 0.99, 0.9999])
def test_student_t_is_that_of_scipy(degrees: int, level: float):
    assert student_t(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


@pytest.mark.parametrize("degrees", range(1, 12))
def test_the_finite_sum_is_the_distribution(degrees: int):
    for angle in (0.1, 0.7, 1.3):
        t = np.sqrt(degrees) * np.tan(angle)
        assert probability_within(angle, degrees) == pytest.approx(2 * stats.t.cdf(t, degrees) - 1, rel=1e-12)


def coverage(interval) -> float:
    """The share of 4000 further runs that end inside the interval made from eight, all normal."""
    runs = np.random.default_rng(0).normal(2.0, 0.3, size=(4000, 9))
    return float(np.mean([low < new < high for *old, new in runs.tolist() for low, high in [interval(old)]]))


def test_a_further_run_ends_inside_as_often_as_promised():
    assert coverage(lambda old: prediction_interval(old, 0.9)) == pytest.approx(0.9, abs=0.015)


def test_an_interval_for_the_mean_is_told_apart():
    """Left out of the spread, the further run's own scatter makes the interval far too narrow."""

    def of_the_mean(old: list[float]) -> tuple[float, float]:
        reach = student_t(0.9, 7) * np.std(old, ddof=1) / np.sqrt(8)
        return np.mean(old) - reach, np.mean(old) + reach

    assert coverage(of_the_mean) < 0.6


@pytest.mark.parametrize(("level", "degrees"), [(0.0, 3), (1.0, 3), (float("nan"), 3), (0.9, 0)])
def test_what_has_no_interval_is_refused(level: float, degrees: int):
    with pytest.raises(ValueError, match="level must be"):
        student_t(level, degrees)
    with pytest.raises(ValueError, match="at least 2 runs"):
        prediction_interval([1.0], 0.9)
    for values in ([1.0, math.nan], [1.0, math.inf], [1.0]):  # of runs that diverged
        for interval in (mean_interval, partial(seeds_needed, low=0.0), partial(prediction_interval, level=0.9)):
            with pytest.raises(ValueError, match="all with a finite value"):
                interval(values)


def test_the_interval_of_a_mean_is_scipys():
    values = [2.1, 2.4, 1.9, 2.2]
    expected = stats.t.interval(0.95, 3, loc=statistics.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 2 runs"):
        mean_interval([1.0])


def test_seeds_needed_gives_the_promised_power_and_not_one_seed_less():
    """Against the exact power of a one-sided bound by the noncentral t distribution."""
    pilot = [0.9, 1.1, 0.7, 1.3, 1.0]
    mean, spread = statistics.mean(pilot), statistics.stdev(pilot)

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, (mean - 0.8) / spread * math.sqrt(n)))

    n = seeds_needed(pilot, low=0.8)
    assert power(n) > 0.89
    assert power(n - 1) < 0.91
    for low in (-0.3, 0.1, 0.3):  # few seeds, where one degree of freedom more or less tells

        def exact(n: int, low: float = low) -> float:
            return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, (mean - low) / spread * math.sqrt(n)))

        few = seeds_needed(pilot, low=low)
        assert few < 6
        assert exact(few) > 0.89
        assert few == 2 or exact(few - 1) < 0.91
    assert seeds_needed(pilot, low=0.5) < n < seeds_needed(pilot, low=0.85)
    assert seeds_needed([-x for x in pilot], high=-0.8) == pytest.approx(n, abs=1)
    assert seeds_needed(pilot, low=0.8, high=1.2) > n
    with pytest.raises(ValueError, match="100 seeds do not show it"):
        seeds_needed(pilot, low=1.2)
