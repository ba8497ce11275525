"""Our solution of the exercise "Is it real?"."""

import math
import statistics
from collections.abc import Sequence

from minitrain.lab.intervals import student_t


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Lowest and highest value of the mean of `b - a`, with confidence `level`."""
    if len(a) != len(b):
        raise ValueError(f"every seed needs a result of both methods, not {len(a)} and {len(b)} results")
    if len(a) < 2:
        raise ValueError(f"one seed says nothing about the spread; give at least 2, not {len(a)}")
    differences = [after - before for before, after in zip(a, b, strict=True)]
    standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = student_t(level, len(differences) - 1) * standard_error
    middle = statistics.fmean(differences)
    return middle - reach, middle + reach


def verdict(low: float, high: float, threshold: float) -> str:
    """What an interval says of the claim "the mean lies above `threshold`"."""
    if low > threshold:
        return "holds"
    return "does not hold" if high < threshold else "not distinguishable"


# Table 1: B - A is -0.016 to -0.010. The seeds overlap, but that spread is common to both methods and cancels in pairs.
# Table 2: D - A is -0.003 to 0.003. It reaches zero, as it should: the sentence says "within 0.01", and the interval is.
# Table 3: C - A is -0.063 to -0.053, and yet: A still gains with every doubling of its learning rate. Nobody tried 0.008.
CANNOT_SUPPORT = 3
WHY = "c"
