"""A claim is a sentence, a statistic with one number per seed, and a threshold that was fixed before the run.

The verdict compares the 95 % t-interval of the statistic's mean with the threshold: wholly beyond it, the claim *holds*;
wholly on the other side, it *does not hold*; else the runs are *not distinguishable* from either, as they are with a single
seed or a run that diverged.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minitrain.lab.compare import Runs
from minitrain.lab.intervals import mean_interval
from minitrain.lab.words import number, with_interval

Verdict = Literal["holds", "does not hold", "not distinguishable"]


@dataclass(frozen=True)
class Claim:
    """A claim. Raises `ValueError` unless it has exactly one threshold."""

    name: str
    """Unique in its lesson; the ledger calls it `SLUG/name`."""
    sentence: str
    """What is claimed, in words that could turn out wrong."""
    statistic: Callable[[Runs], Sequence[float]]
    """One number per seed."""
    above: float | None = None
    """The mean lies above this."""
    below: float | None = None
    """The mean lies below this."""
    within: tuple[float, float] | None = None
    """The mean lies between these two: "no effect" with its margin."""
    at_least: float | None = None
    """The statistic is 0 or 1, and at least this share of the seeds says 1."""
    kind: Literal["algebra", "simulation", "training"] = "training"
    """Algebra must be true of every single seed; algebra and simulations must hold, or there is a bug."""
    unit: str = ""
    arms: tuple[str, ...] | None = None
    """The arms that the statistic asks for; None: all."""
    paper: str = ""
    """The paper's own figure with its source, if it was checked."""

    def __post_init__(self) -> None:
        given = [x for x in (self.above, self.below, self.within, self.at_least) if x is not None]
        if len(given) != 1:
            raise ValueError(f"claim {self.name!r} needs exactly one of above, below, within, at_least")
        if self.at_least is not None and not 0 < self.at_least <= 1:
            raise ValueError(
                f"claim {self.name!r}: at_least is a share of the seeds, above 0 to 1, not {self.at_least}"
            )
        if self.within and not self.within[0] <= self.within[1]:
            raise ValueError(f"claim {self.name!r}: within needs the smaller number first, not {self.within}")

    @property
    def range(self) -> tuple[float, float]:
        """The interval that the mean is claimed to lie in."""
        if self.within:
            return self.within
        return (-math.inf if self.above is None else self.above, math.inf if self.below is None else self.below)

    @property
    def threshold(self) -> str:
        """The threshold in words."""
        if self.at_least is not None:
            return f"at least {100 * self.at_least:g} % of the seeds"
        low, high = self.range
        unit = f" {self.unit}" if self.unit else ""
        if self.within:
            return f"{low:g}{unit}" if low == high else f"{low:g} to {high:g}{unit}"
        return f"above {low:g}{unit}" if self.below is None else f"below {high:g}{unit}"


def judge(claim: Claim, values: Sequence[float]) -> Verdict:
    """The verdict on a claim whose statistic has these values, one per seed."""
    low, high = claim.range
    if claim.at_least is not None:
        share = sum(x == 1 for x in values) / len(values) if values else 0.0
        return "holds" if share >= claim.at_least else "does not hold"
    if claim.kind == "algebra":
        inside = [low <= x <= high if claim.within else low < x < high for x in values]
        return "holds" if values and all(inside) and all(map(math.isfinite, values)) else "does not hold"
    if len(values) < 2 or not all(map(math.isfinite, values)):  # a mean of runs that diverged says nothing
        return "not distinguishable"
    below, above = mean_interval(values)
    if low < below and above < high:
        return "holds"
    return "does not hold" if above <= low or below >= high else "not distinguishable"


def evaluate(claim: Claim, runs: Runs) -> dict[str, Any]:
    """A claim and what became of it, as a record keeps it."""
    values = [float(x) for x in claim.statistic(runs)]
    finite = len(values) >= 2 and all(map(math.isfinite, values))
    low, high = mean_interval(values) if finite else (None, None)
    return {
        "name": claim.name,
        "sentence": claim.sentence,
        "kind": claim.kind,
        "threshold": claim.threshold,
        "unit": claim.unit,
        "paper": claim.paper,
        "values": [x if math.isfinite(x) else None for x in values],
        "mean": statistics.fmean(values) if all(map(math.isfinite, values)) else None,
        "low": low,
        "high": high,
        "verdict": judge(claim, values),
    }


def found(outcome: dict[str, Any]) -> str:
    """What was measured: the mean with its interval; of counted seeds how many; of algebra, where each counts, the range."""
    values, mean, unit = outcome["values"], outcome["mean"], f" {outcome['unit']}" if outcome["unit"] else ""
    if outcome["threshold"].startswith("at least"):
        return f"{sum(x == 1 for x in values)} of {len(values)} seeds"
    if mean is None:
        return "not finite in every run"
    if outcome["kind"] == "algebra":
        ends = sorted({number(min(values)), number(max(values))}, key=float)
        return " to ".join(ends) + unit
    return number(mean) + unit if outcome["low"] is None else with_interval(mean, outcome["low"], outcome["high"], unit)


def said(outcome: dict[str, Any]) -> str:
    """An outcome in one line: the verdict, the sentence, what was measured, and the threshold."""
    seeds = f"{len(outcome['values'])} seeds"
    return (
        f"{outcome['verdict']:<19}  {outcome['sentence']}: {found(outcome)}; threshold {outcome['threshold']}, {seeds}"
    )
