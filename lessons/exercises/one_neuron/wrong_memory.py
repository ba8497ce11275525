"""Rejected by check_impulse_response.

One dictionary for all directions, which remembers the last one.
"""

from collections.abc import Callable

from solution import equilibrium_norm, equilibrium_rotation, nesterov_sums, sums  # noqa: F401

Direction = Callable[[float, dict], float]


STATE = {}


def impulse_response(direction: Direction, length: int) -> list[float]:
    """A gradient of 1, then only zeros: what comes out `k` steps later is `c_k`."""
    state = STATE
    return [direction(1.0 if k == 0 else 0.0, state) for k in range(length)]
