"""Another right answer: numpy, and a standard error from the sum of squares."""

import numpy as np

from minitrain.lab.intervals import student_t


def paired_interval(a, b, level=0.95):
    """Lowest and highest value of the mean of `b - a`, with confidence `level`."""
    if np.shape(a) != np.shape(b) or np.size(a) < 2:
        raise ValueError("give two or more results, as many of `a` as of `b`")
    difference = np.subtract(b, a)
    n = difference.size
    error = np.sqrt(((difference - difference.mean()) ** 2).sum() / (n * (n - 1)))
    return tuple(difference.mean() + student_t(level, n - 1) * error * np.array([-1.0, 1.0]))


def verdict(low, high, threshold):
    """What an interval says of the claim "the mean lies above `threshold`"."""
    if low <= threshold <= high:
        return "not distinguishable"
    return "holds" if (low + high) / 2 > threshold else "does not hold"


CANNOT_SUPPORT = 3
WHY = "c"
