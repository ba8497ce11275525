"""Rejected by check_turned.

The cosine of a small angle is so close to 1 that float32 cannot say how close.
"""

import numpy as np
from solution import NAME, detective, recover, time_constant  # noqa: F401


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """By the cosine, in the dtype of the weights."""
    a = before / np.linalg.norm(before, axis=1, keepdims=True)
    b = after / np.linalg.norm(after, axis=1, keepdims=True)
    angles = np.arccos(np.clip((a * b).sum(axis=1), -1, 1))
    return float(np.sqrt(np.mean(angles**2)))
