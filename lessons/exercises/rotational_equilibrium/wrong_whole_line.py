"""Rejected by check_time_constant.

The line goes through all steps: where the distance has sunk into the restlessness of the end, its logarithm is noise.
"""

import numpy as np
from solution import NAME, detective, recover, turned  # noqa: F401


def time_constant(norms: np.ndarray) -> float:
    """A straight line through everything."""
    squares = norms**2
    distance = np.abs(squares - squares[-len(squares) // 3 :].mean()) + 1e-12
    slope, _ = np.polyfit(np.arange(len(squares)), np.log(distance), 1)
    return float(-1 / slope)
