"""Rejected by check_coverage.

Takes the normal distribution, as if the spread were known.
"""

from statistics import NormalDist

import numpy as np
from solution import CANNOT_SUPPORT, WHY, verdict  # noqa: F401


def paired_interval(a, b, level=0.95):
    """Lowest and highest value of the mean of `b - a`, with confidence `level`."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("give two or more results, as many of `a` as of `b`")
    d = np.subtract(b, a)
    reach = NormalDist().inv_cdf((1 + level) / 2) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - reach, d.mean() + reach
