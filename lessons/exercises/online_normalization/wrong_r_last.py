"""Rejected by check_control.

`r` divides what the second controller took off, too.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide in the end."""
    h = g - (1 - decay) * v[:, None] * y
    v = v + (h * y).mean(axis=1)
    back = (h - (1 - decay) * u[:, None]) / r[:, None]
    u = u + back.mean(axis=1)
    return back, u, v
