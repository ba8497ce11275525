"""Rejected by check_equilibrium_norm.

Growth by the step's own length, as if momentum did not act again and again in the same direction.
"""

import math

from solution import equilibrium_rotation, impulse_response, nesterov_sums, sums  # noqa: F401


def equilibrium_norm(S: float, E2: float, lr: float, weight_decay: float, fan_in: int) -> float:
    """Growth of `|w|^2` in a step, `lr^2 E2 fan_in`, equals what decay takes, `2 lr weight_decay |w|^2`."""
    return math.sqrt(E2 * lr * fan_in / (2 * weight_decay))
