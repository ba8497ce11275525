"""Rejected by check_coverage.

Gives the spread of single differences, not the error of their mean.
"""

import numpy as np
from solution import CANNOT_SUPPORT, WHY, verdict  # noqa: F401

from minitrain.lab.intervals import student_t


def paired_interval(a, b, level=0.95):
    """Lowest and highest value of the mean of `b - a`, with confidence `level`."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("give two or more results, as many of `a` as of `b`")
    d = np.subtract(b, a)
    reach = student_t(level, len(d) - 1) * d.std(ddof=1)
    return d.mean() - reach, d.mean() + reach
