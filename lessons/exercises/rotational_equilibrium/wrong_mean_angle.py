"""Rejected by check_turned.

The mean angle is smaller than the root mean square wherever rows turn unequally.
"""

import numpy as np
from solution import NAME, detective, recover, time_constant  # noqa: F401


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """The mean over the rows."""
    a = before / np.linalg.norm(before, axis=1, keepdims=True)
    b = after / np.linalg.norm(after, axis=1, keepdims=True)
    return float(np.mean(2 * np.arcsin(np.linalg.norm(a - b, axis=1) / 2)))
