"""Rejected by check_variance.

Only the variance inside the samples counts; that between their means is forgotten.
"""

import numpy as np
from solution import backward  # noqa: F401


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Without the last term."""
    a, q = x.mean(axis=1), x.var(axis=1)
    r = np.sqrt(s + eps)
    y = (x - m[:, None]) / r[:, None]
    s = decay * s + (1 - decay) * q
    m = decay * m + (1 - decay) * a
    return y, r, m, s
