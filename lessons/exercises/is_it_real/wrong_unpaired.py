"""Rejected by check_what_both_share_cancels.

The interval for two independent groups, by Welch's formula, which forgets who has which seed.
"""

import numpy as np
from solution import CANNOT_SUPPORT, WHY, verdict  # noqa: F401

from minitrain.lab.intervals import student_t


def paired_interval(a, b, level=0.95):
    """Lowest and highest value of the mean of `b - a`, with confidence `level`."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("give two or more results, as many of `a` as of `b`")
    n, v, w = len(a), np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    degrees = int((v + w) ** 2 / (v**2 + w**2) * (n - 1))
    middle, reach = np.mean(b) - np.mean(a), student_t(level, degrees) * np.sqrt(v + w)
    return middle - reach, middle + reach
