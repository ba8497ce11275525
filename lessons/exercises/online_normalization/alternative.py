"""The variance as mean square less squared mean, and the controllers as what they forget and what they add."""

import numpy as np


def forward(
    x: np.ndarray, m: np.ndarray, s: np.ndarray, decay: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By the averages of `x` and of its square."""
    r = np.sqrt(s + eps)
    y = (x.T - m).T / r.reshape(-1, 1)
    mean = m + (1 - decay) * (x.mean(axis=1) - m)
    square = decay * (s + m**2) + (1 - decay) * np.mean(x**2, axis=1)
    return y, r, mean, square - mean**2


def backward(
    g: np.ndarray, y: np.ndarray, r: np.ndarray, u: np.ndarray, v: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Einstein sums in place of means."""
    share, pixels = 1 - decay, g.shape[1]
    left = (1 - share * np.einsum("cp,cp->c", y, y) / pixels) * v + np.einsum("cp,cp->c", g, y) / pixels
    h = (g - share * (v * y.T).T) / r[:, None]
    return h - share * u[:, None], decay * u + h.mean(axis=1), left
