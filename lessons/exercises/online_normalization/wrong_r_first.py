"""Rejected by check_control.

`r` divides before the first controller has acted.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide at once."""
    h = g / r[:, None] - (1 - decay) * v[:, None] * y
    v = v + (h * y).mean(axis=1)
    back = h - (1 - decay) * u[:, None]
    u = u + back.mean(axis=1)
    return back, u, v
