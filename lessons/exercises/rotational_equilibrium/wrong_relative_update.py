"""Rejected by check_turned.

The step's length over the weight's is the angle only if the length stays the same.
"""

import numpy as np
from solution import NAME, detective, recover, time_constant  # noqa: F401


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """`|dw| / |w|` of each row."""
    ratio = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    return float(np.sqrt(np.mean(ratio**2)))
