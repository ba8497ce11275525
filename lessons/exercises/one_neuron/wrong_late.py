"""Rejected by check_impulse_response.

The answer to the impulse itself is thrown away, so that every age is one too young.
"""

from collections.abc import Callable

from solution import equilibrium_norm, equilibrium_rotation, nesterov_sums, sums  # noqa: F401

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """Feeds the impulse, then listens."""
    state = {}
    direction(1.0, state)
    return [direction(0.0, state) for _ in range(length)]
