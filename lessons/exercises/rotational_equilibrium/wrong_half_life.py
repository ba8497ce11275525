"""Rejected by check_time_constant.

A half-life where the time to 1/e is asked for.
"""

import numpy as np
from solution import NAME, detective, recover, turned  # noqa: F401


def time_constant(norms: np.ndarray) -> float:
    """When half of the distance is left."""
    squares = norms**2
    distance = np.abs(squares - squares[-len(squares) // 3 :].mean())
    return float(np.argmax(distance < distance[0] / 2))
