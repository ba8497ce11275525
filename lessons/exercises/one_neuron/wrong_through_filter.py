"""Rejected by check_equilibrium_rotation.

The rotation of L2 through the filter, where decoupled decay is asked for.
"""

import math

from solution import equilibrium_norm, impulse_response, nesterov_sums, sums  # noqa: F401


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The step is `lr sqrt(E2 fan_in)` long; over the norm, `fan_in` cancels."""
    return math.sqrt(2 * lr * weight_decay * E2 / S)
