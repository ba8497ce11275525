"""Rejected by check_rotation.

Nesterov at the rate of the heavy ball.
"""

import math

from solution import turn, turned  # noqa: F401


def rotation(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """The same for both."""
    return math.sqrt(2 * lr * weight_decay / (1 + momentum))
