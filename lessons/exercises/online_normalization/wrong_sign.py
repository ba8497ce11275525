"""Rejected by check_control.

What is left along the output is added where it must be taken off.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With the wrong sign."""
    h = g + (1 - decay) * v[:, None] * y
    v = v + (h * y).mean(axis=1)
    back = h / r[:, None] - (1 - decay) * u[:, None]
    u = u + back.mean(axis=1)
    return back, u, v
