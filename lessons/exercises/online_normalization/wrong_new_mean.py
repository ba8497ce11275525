"""Rejected by check_variance.

The mean is updated first, and the variance measures the distance from the new one.
"""

import numpy as np
from solution import backward  # noqa: F401


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean first."""
    a, q = x.mean(axis=1), x.var(axis=1)
    r = np.sqrt(s + eps)
    y = (x - m[:, None]) / r[:, None]
    m = decay * m + (1 - decay) * a
    s = decay * s + (1 - decay) * q + decay * (1 - decay) * (a - m) ** 2
    return y, r, m, s
