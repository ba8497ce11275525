"""Rejected by check_time_constant.

The distance of `|w|` from its end is not what falls by the same factor in every step; that of `|w|^2` is.
"""

import numpy as np
from solution import NAME, detective, recover, turned  # noqa: F401


def time_constant(norms: np.ndarray) -> float:
    """When 1/e of the distance of `|w|` is left."""
    distance = np.abs(norms - norms[-len(norms) // 3 :].mean())
    return float(np.argmax(distance < distance[0] / np.e))
