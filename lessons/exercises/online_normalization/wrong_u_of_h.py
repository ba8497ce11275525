"""Rejected by check_u.

`u` adds the mean of `h / r`, also what was taken off already.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Before its own control."""
    h = g - (1 - decay) * v[:, None] * y
    v = v + (h * y).mean(axis=1)
    back = h / r[:, None] - (1 - decay) * u[:, None]
    u = u + (h / r[:, None]).mean(axis=1)
    return back, u, v
