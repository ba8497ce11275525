"""Intervals from a few seeds, by Student's t: the runs' scatter is not known, only estimated from the runs themselves."""

import functools
import math
import statistics
from collections.abc import Sequence

import numpy as np


@functools.cache
def student_t(level: float, degrees: int) -> float:
    """The `t` with `P(|T| < t) = level` for `degrees` degrees of freedom, a whole number.

    The probability is a finite sum in the angle `atan(t / sqrt(degrees))` (Abramowitz & Stegun, 1964, 26.7.3 and 26.7.4),
    and the angle is found by halving.
    """
    if not 0 < level < 1 or degrees < 1:
        raise ValueError(f"level must be between 0 and 1 and degrees at least 1, not {level} and {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if probability_within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def probability_within(angle: float, degrees: int) -> float:
    """`P(|T| < sqrt(degrees) * tan(angle))`."""
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def check_runs(values: Sequence[float]) -> None:
    """Raises `ValueError` for values that have no spread, or none that is known."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs at least 2 runs, all with a finite value, not {list(values)}")


def prediction_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Where one further run ends with probability `level`, after runs that ended at `values`, at least two."""
    check_runs(values)
    spread = statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    reach = student_t(level, len(values) - 1) * spread
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where the mean of all runs lies with confidence `level`, after runs that gave `values`, at least two."""
    check_runs(values)
    reach = student_t(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def seeds_needed(
    pilot: Sequence[float],
    low: float = -math.inf,
    high: float = math.inf,
    power: float = 0.9,
    level: float = 0.95,
    most: int = 100,
) -> int:
    """The smallest number of seeds whose interval lies wholly between `low` and `high` with probability `power`.

    Supposes that the values are normal with the pilot's mean and standard deviation. A pilot of few runs knows both badly,
    so that the true power is lower: take about twice the number, or give the smallest effect that matters as the pilot's
    mean. By 20,000 simulated experiments for each number. Raises `ValueError` where `most` do not suffice.
    """
    check_runs(pilot)
    mean, spread, random = statistics.mean(pilot), statistics.stdev(pilot), np.random.default_rng(0)
    for n in range(2, most + 1):
        means = mean + spread / math.sqrt(n) * random.standard_normal(20_000)
        reach = student_t(level, n - 1) * spread * np.sqrt(random.chisquare(n - 1, 20_000) / (n - 1) / n)
        if np.mean((means - reach > low) & (means + reach < high)) >= power:
            return n
    raise ValueError(
        f"{most} seeds do not show it: the pilot's mean is {mean:.3g}, its standard deviation {spread:.3g}"
    )
