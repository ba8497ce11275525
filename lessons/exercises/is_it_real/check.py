"""The checks of the exercise "Is it real?"."""

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist
from types import ModuleType

import numpy as np

from minitrain.lab.exercises import Rejected, require, require_close
from minitrain.lab.intervals import mean_interval, student_t

A = [3.21, 3.32, 3.25, 3.28]
B = [3.30, 3.28, 3.33, 3.25]
EXPERIMENTS, SEEDS = 3000, 3


def check_direction(answer: ModuleType) -> None:
    """The middle of the interval is the mean of b - a."""
    low, high = interval(answer, A, B)
    middle, hint = (low + high) / 2, ""
    if math.isclose(middle, -0.025, rel_tol=1e-6):
        hint = "the sign is swapped: you took a - b, and whoever reads your verdict will take the loser for the winner"
    require_close(middle, 0.025, 1e-6, hint)
    require(low < high, f"from {low:.4g} to {high:.4g}", "the lowest value first")


def check_what_both_share_cancels(answer: ModuleType) -> None:
    """What a seed does to both methods cancels."""
    luck = [0.3, -0.4, 0.1, 0.2]
    low, high = interval(answer, A, B)
    shifted = interval(
        answer, [x + s for x, s in zip(A, luck, strict=True)], [x + s for x, s in zip(B, luck, strict=True)]
    )
    pairs_in_order = np.subtract(sorted(B), sorted(A)).tolist()
    hint = "subtract first, seed by seed; then ask for the mean and the spread of these differences"
    if close((low, high), mean_interval(pairs_in_order)):
        hint = "you paired by rank, the best with the best; a pair is what has the same seed, in the order it came in"
    elif shifted[1] - shifted[0] > 2 * (high - low):
        hint = f"you compare two groups, as if seeds had nothing in common; {hint}"
    require(
        close((low, high), shifted),
        f"a width of {high - low:.4g} becomes {shifted[1] - shifted[0]:.4g} when each seed adds the same to both methods",
        "the same interval",
        hint,
    )


def check_coverage(answer: ModuleType) -> None:
    """Of 100 experiments with three seeds, 95 intervals hold the true difference."""
    random = np.random.default_rng(2)
    luck = random.normal(3.2, 0.05, (EXPERIMENTS, SEEDS))
    a = (luck + random.normal(0, 0.01, (EXPERIMENTS, SEEDS))).tolist()
    b = (luck + random.normal(0.02, 0.01, (EXPERIMENTS, SEEDS))).tolist()
    intervals = [interval(answer, *pair) for pair in zip(a, b, strict=True)]
    covered = statistics.fmean(low <= 0.02 <= high for low, high in intervals)
    right = width(np.subtract(b[0], a[0]).tolist())
    require(
        abs(covered - 0.95) < 0.012,
        f"{100 * covered:.1f} of 100",
        "95 of 100, within 1.2",
        width_hint((intervals[0][1] - intervals[0][0]) / right, SEEDS),
    )


def check_width(answer: ModuleType) -> None:
    """With four seeds too, the half width is Student's t times the standard error of the mean difference."""
    low, high = interval(answer, A, B)
    right = width(np.subtract(B, A).tolist())
    require_close(high - low, right, 1e-6, width_hint((high - low) / right, len(A)))


def check_level(answer: ModuleType) -> None:
    """More confidence needs a wider interval."""
    low, high = interval(answer, A, B, 0.99)
    require_close(high - low, width(np.subtract(B, A).tolist(), 0.99), 1e-6, "let `level` decide which t you take")


def check_refusals(answer: ModuleType) -> None:
    """No interval from one seed, nor from results without a partner."""
    for a, b, words in (([3.2], [3.1], "one seed"), ([3.2, 3.3, 3.1], [3.1, 3.2], "three results against two")):
        try:
            found = answer.paired_interval(a, b)
        except ValueError:
            continue
        raise Rejected(f"{found} from {words}", "a ValueError", "an answer that nobody can give must not look like one")


def check_verdict(answer: ModuleType) -> None:
    """Three verdicts, and what is not shown is not refuted."""
    cases = [
        (0.01, 0.03, 0.0, "holds"),
        (-0.03, -0.01, 0.0, "does not hold"),
        (-0.01, 0.03, 0.0, "not distinguishable"),
        (-0.03, 0.01, 0.0, "not distinguishable"),
        (0.01, 0.03, 0.02, "not distinguishable"),
        (0.01, 0.03, 0.05, "does not hold"),
        (-0.03, -0.01, -0.05, "holds"),
    ]
    for low, high, threshold, right in cases:
        said = answer.verdict(low, high, threshold)
        hint = "compare with `threshold`, not with zero" if threshold else ""
        if right == "not distinguishable":
            hint = "the threshold lies inside the interval: these runs do not say on which side of it the mean lies"
        require(said == right, f"{said!r} for {low} to {high} above {threshold}", repr(right), hint)


def check_table(answer: ModuleType) -> None:
    """One of the three tables cannot support its sentence."""
    require(answer.CANNOT_SUPPORT is not ..., ..., "1, 2 or 3")
    hints = {
        1: "table 1: seeds differ by more than the methods do, but the same for both; what does your interval of B - A say?",
        2: "table 2: the sentence claims no difference beyond 0.01; is there a value in your interval that lies beyond?",
    }
    require(answer.CANNOT_SUPPORT == 3, answer.CANNOT_SUPPORT, "another table", hints.get(answer.CANNOT_SUPPORT, ""))


def check_reason(answer: ModuleType) -> None:
    """The reason is true of that table, and of no other."""
    require(answer.WHY is not ..., ..., '"a", "b", "c" or "d"')
    hints = {
        "a": "the seeds of C overlap with A's in no more than a corner, and pairs would not mind",
        "b": "your interval of C - A, each at its best rate, is far from zero: compute it",
        "d": "that is true of all three tables; a wide interval is how few seeds show, and here it is narrow",
    }
    require(answer.WHY == "c", repr(answer.WHY), "another reason", hints.get(str(answer.WHY), ""))


# --- what the checks share ---------------------------------------------------------------------------------------------


def interval(answer: ModuleType, a: list[float], b: list[float], *level: float) -> tuple[float, float]:
    """What the learner's function gives, as two numbers."""
    found = answer.paired_interval(a, b, *level)
    try:
        low, high = (float(x) for x in found)
    except (TypeError, ValueError):
        raise Rejected(found, "two numbers, the lowest and the highest value") from None
    return low, high


def close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two intervals are the same but for rounding."""
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in zip(one, other, strict=True))


def width(differences: list[float], level: float = 0.95) -> float:
    """The width of the right interval."""
    low, high = mean_interval(differences, level)
    return high - low


def width_hint(ratio: float, n: int) -> str:
    """Which mistake makes an interval of `n` differences `ratio` times as wide as it should be."""
    t = student_t(0.95, n - 1)
    mistakes = {
        NormalDist().inv_cdf(0.975) / t: f"1.96 is for a spread that is known; here it is estimated, and t is {t:.2f}",
        math.sqrt((n - 1) / n): "squares around an estimated mean are too small: divide their sum by n - 1, not by n",
        math.sqrt(n): "this is the spread of one difference; that of a mean of n is sqrt(n) times smaller",
        1 / math.sqrt(n): "you divided by n; the error of a mean falls with sqrt(n)",
        student_t(0.95, n) / t: "the mean took one degree of freedom: n - 1 are left",
        student_t(0.90, n - 1) / t: "both ends must leave out 2.5 %; yours leave out 5 % each",
    }
    words = next((words for wrong, words in mistakes.items() if math.isclose(ratio, wrong, rel_tol=2e-3)), "")
    size = f"your interval is {abs(100 * (ratio - 1)):.0f} % too {'narrow' if ratio < 1 else 'wide'}"
    return f"{size}: {words}" if words else size
