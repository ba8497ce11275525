import math
from typing import Any

import pytest
from scipy import stats

from minitrain.lab.claims import Claim, evaluate, judge, said
from minitrain.lab.compare import Result, Runs
from minitrain.lab.intervals import mean_interval


def claim(**threshold: Any) -> Claim:
    return Claim("name", "a sentence", lambda runs: runs.values("A", lambda metrics: metrics[-1]["x"]), **threshold)


def runs_with(values: list[float]) -> Runs:
    results = {("A", None, seed): Result("A", None, seed, [{"step": 0, "x": x}]) for seed, x in enumerate(values)}
    return Runs({"A": {}}, {}, list(range(len(values))), [None], results, {})


NOISY = [1.0, 1.2, 0.9, 1.1, 0.8]  # mean 1, 95 % interval 0.804 to 1.196


@pytest.mark.parametrize(
    ("threshold", "verdict"),
    [
        ({"above": 0.7}, "holds"),
        ({"above": 0.9}, "not distinguishable"),
        ({"above": 1.1}, "not distinguishable"),
        ({"above": 1.3}, "does not hold"),
        ({"below": 1.3}, "holds"),
        ({"below": 1.1}, "not distinguishable"),
        ({"below": 0.9}, "not distinguishable"),
        ({"below": 0.7}, "does not hold"),
        ({"within": (0.7, 1.3)}, "holds"),
        ({"within": (0.9, 1.3)}, "not distinguishable"),
        ({"within": (0.9, 1.1)}, "not distinguishable"),
        ({"within": (1.3, 1.5)}, "does not hold"),
        ({"within": (0.3, 0.5)}, "does not hold"),
    ],
)
def test_verdicts_compare_the_interval_with_the_threshold(threshold: dict, verdict: str):
    assert judge(claim(**threshold), NOISY) == verdict


def test_a_verdict_changes_exactly_where_students_t_says():
    low, high = stats.t.interval(0.95, len(NOISY) - 1, loc=sum(NOISY) / 5, scale=stats.sem(NOISY))
    assert mean_interval(NOISY) == pytest.approx((low, high))
    assert judge(claim(above=low - 1e-9), NOISY) == "holds"
    assert judge(claim(above=low + 1e-9), NOISY) == "not distinguishable"
    assert judge(claim(above=high + 1e-9), NOISY) == "does not hold"


def test_counted_seeds():
    assert judge(claim(at_least=0.8), [1, 1, 1, 1, 0]) == "holds"
    assert judge(claim(at_least=0.8), [1, 1, 0, 1, 0]) == "does not hold"
    assert judge(claim(at_least=0.3), [1, math.nan, math.nan]) == "holds"
    assert judge(claim(at_least=0.5), [1, math.nan, math.nan]) == "does not hold"
    for k in range(1, 101):  # a share that is met exactly, whatever rounding makes of it
        assert judge(claim(at_least=k / 100), [1.0] * k + [0.0] * (100 - k)) == "holds"
        assert judge(claim(at_least=k / 100), [1.0] * (k - 1) + [0.0] * (101 - k)) == "does not hold"
    assert judge(claim(at_least=0.5), []) == "does not hold"
    assert "2 of 3 seeds" in said(evaluate(claim(at_least=0.5), runs_with([1.0, 0.0, 1.0])))
    for share in (0, 1.5, 4):
        with pytest.raises(ValueError, match="a share of the seeds"):
            claim(at_least=share)


def test_algebra_must_be_true_of_every_seed():
    assert judge(claim(within=(0, 0), kind="algebra"), [0.0, 0.0]) == "holds"
    assert judge(claim(within=(0, 0), kind="algebra"), [0.0, 1e-12]) == "does not hold"
    assert judge(claim(within=(0, 0), kind="algebra"), [0.0, math.nan]) == "does not hold"
    assert judge(claim(within=(0.9, 1.3), kind="algebra"), NOISY) == "does not hold"
    for threshold in ({"above": 0.0}, {"below": 0.0}):  # "the treatment acts" is not shown by no difference
        assert judge(claim(**threshold, kind="algebra"), [0.0]) == "does not hold"
    for values in ([], [math.inf, 1.0]):
        assert judge(claim(above=0.0, kind="algebra"), values) == "does not hold"


def test_with_a_diverged_run_nothing_can_be_distinguished():
    for threshold in ({"above": 0.0}, {"below": 5.0}, {"within": (0, 5)}):
        assert judge(claim(**threshold), [1.0, math.inf, 1.0]) == "not distinguishable"
    outcome = evaluate(claim(below=5.0), runs_with([1.0, math.inf]))
    assert outcome["values"] == [1.0, None]
    assert "not finite in every run" in said(outcome)


def test_one_seed_supports_nothing():
    assert judge(claim(above=0.0), [1.0]) == "not distinguishable"


def test_an_outcome_says_all_that_a_reader_needs():
    outcome = evaluate(claim(within=(0.7, 1.3), unit="nats", paper="0.9 (table 1)"), runs_with(NOISY))
    assert outcome["mean"] == pytest.approx(1.0)
    assert (outcome["low"], outcome["high"]) == pytest.approx(mean_interval(NOISY))
    assert outcome["paper"] == "0.9 (table 1)"
    for words in ("holds", "a sentence", "1.00 nats", "0.80 to 1.20", "5 seeds", "0.7 to 1.3 nats"):
        assert words in said(outcome)


def test_thresholds_in_words():
    assert claim(above=0.5, unit="nats").threshold == "above 0.5 nats"
    assert claim(below=2).threshold == "below 2"
    assert claim(within=(0, 0)).threshold == "0"
    assert claim(at_least=0.875).threshold == "at least 87.5 % of the seeds"


@pytest.mark.parametrize("threshold", [{}, {"above": 1, "below": 2}, {"above": 1, "at_least": 1}])
def test_a_claim_has_exactly_one_threshold(threshold: dict):
    with pytest.raises(ValueError, match="exactly one of above, below, within, at_least"):
        claim(**threshold)


def test_within_is_ordered():
    with pytest.raises(ValueError, match="smaller number first"):
        claim(within=(2, 1))
