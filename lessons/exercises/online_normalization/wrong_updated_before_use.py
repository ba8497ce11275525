"""Rejected by check_output.

The sample takes part in its own statistics, so that gradients would have to flow through them.
"""

import numpy as np
from solution import backward  # noqa: F401


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Update, then normalize."""
    a, q = x.mean(axis=1), x.var(axis=1)
    s = decay * s + (1 - decay) * q + decay * (1 - decay) * (a - m) ** 2
    m = decay * m + (1 - decay) * a
    r = np.sqrt(s + eps)
    y = (x - m[:, None]) / r[:, None]
    return y, r, m, s
