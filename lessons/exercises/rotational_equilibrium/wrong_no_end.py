"""Rejected by check_time_constant.

The line is drawn through the logarithm of `|w|^2` itself, not of its distance from where it ends.
"""

import numpy as np
from solution import NAME, detective, recover, turned  # noqa: F401


def time_constant(norms: np.ndarray) -> float:
    """A straight line through the first sixth."""
    squares = norms[: len(norms) // 6] ** 2
    slope, _ = np.polyfit(np.arange(len(squares)), np.log(squares), 1)
    return float(1 / abs(slope))
