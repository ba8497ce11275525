"""Rejected by check_rotation.

The angle for a decay beside the filter, which is divided by S, not by its root.
"""

import math

from solution import turn, turned  # noqa: F401


def rotation(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """By S and E2."""
    a = momentum
    energy = (1 + a) ** 2 + a**4 / (1 - a**2) if nesterov else 1 / (1 - a**2)
    return math.sqrt(2 * lr * weight_decay * energy) * (1 - a)
