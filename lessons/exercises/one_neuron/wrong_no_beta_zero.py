"""Rejected by check_nesterov_sums.

A response as long as `beta` needs; `beta = 0`, which the stub allows, has no logarithm.
"""

import math

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, sums  # noqa: F401


def nesterov_sums(beta: float) -> tuple[float, float]:
    """Until less than `e^-20` is left."""
    length = math.ceil(20 / -math.log(beta))

    def direction(g: float, state: dict) -> float:
        state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
        return beta * state["m"] + (1 - beta) * g

    return sums(impulse_response(direction, length))
