"""Rejected by check_v.

`v` adds what `g` had along the output, also what was taken off already: nothing is left over to be remembered.
"""

import numpy as np
from solution import forward  # noqa: F401


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`g y`."""
    h = g - (1 - decay) * v[:, None] * y
    v = v + (g * y).mean(axis=1)
    back = h / r[:, None] - (1 - decay) * u[:, None]
    u = u + back.mean(axis=1)
    return back, u, v
