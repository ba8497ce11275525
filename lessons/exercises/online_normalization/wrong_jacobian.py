"""Rejected by check_control.

The plain gradient of the forward pass: no control at all.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`g / r`."""
    back = g / r[:, None]
    v = v + (g * y).mean(axis=1)
    u = u + back.mean(axis=1)
    return back, u, v
