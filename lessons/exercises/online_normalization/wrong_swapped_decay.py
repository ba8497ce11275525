"""Rejected by check_mean.

`decay` is the share that is kept, not that of the new sample.
"""

import numpy as np
from solution import backward  # noqa: F401


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The other way round."""
    a, q = x.mean(axis=1), x.var(axis=1)
    r = np.sqrt(s + eps)
    y = (x - m[:, None]) / r[:, None]
    s = decay * s + (1 - decay) * q + decay * (1 - decay) * (a - m) ** 2
    m = (1 - decay) * m + decay * a
    return y, r, m, s
