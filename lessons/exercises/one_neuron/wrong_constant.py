"""Rejected by check_impulse_response.

The gradient never goes back to zero, so that the answers add up.
"""

from collections.abc import Callable

from solution import equilibrium_norm, equilibrium_rotation, nesterov_sums, sums  # noqa: F401

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """Feeds ones."""
    state = {}
    return [direction(1.0, state) for _ in range(length)]
