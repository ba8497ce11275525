"""Rejected by check_turned.

The chord between two unit vectors is shorter than the arc.
"""

import numpy as np
from solution import NAME, detective, recover, time_constant  # noqa: F401


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """The distance of the unit vectors."""
    a = before / np.linalg.norm(before, axis=1, keepdims=True)
    b = after / np.linalg.norm(after, axis=1, keepdims=True)
    return float(np.sqrt(np.mean(((a - b) ** 2).sum(axis=1))))
