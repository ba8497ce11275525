"""Rejected by check_equilibrium_norm.

S is missing, which nobody notices with averages, whose S is 1.
"""

import math

from solution import impulse_response, nesterov_sums, sums  # noqa: F401


def equilibrium_norm(S: float, E2: float, lr: float, weight_decay: float, fan_in: int) -> float:
    """Growth of `|w|^2` in a step, `lr^2 fan_in`, equals what decay takes, `2 lr weight_decay |w|^2`."""
    return math.sqrt(lr * fan_in / (2 * weight_decay))


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The step is `lr sqrt(E2 fan_in)` long; over the norm, `fan_in` cancels."""
    return math.sqrt(2 * lr * weight_decay * E2)
