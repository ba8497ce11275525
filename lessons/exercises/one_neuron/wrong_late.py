"""Rejected by check_impulse_response.

The answer to the impulse itself is thrown away, so that every age is one too young.
"""

import math
from collections.abc import Callable, Sequence

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """Feeds the impulse, then listens."""
    state = {}
    direction(1.0, state)
    return [direction(0.0, state) for _ in range(length)]


def sums(c: Sequence[float]) -> tuple[float, float]:
    """In `u^2` the products of different gradients average to 0, and the squares to 1."""
    return sum(c), sum(x * x for x in c)


def equilibrium_norm(S: float, E2: float, lr: float, weight_decay: float, fan_in: int) -> float:
    """Growth of `|w|^2` in a step, `(lr S)^2 fan_in`, equals what decay takes, `2 lr weight_decay |w|^2`."""
    return S * math.sqrt(lr * fan_in / (2 * weight_decay))


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The step is `lr sqrt(E2 fan_in)` long; over the norm, `fan_in` cancels."""
    return math.sqrt(2 * lr * weight_decay * E2) / S


def nesterov_sums(beta: float) -> tuple[float, float]:
    """`c_0 = (1-b)(1+b)`, then `c_k = (1-b) b^(k+1)`: a geometric series from `k = 1` on."""
    return 1.0, (1 - beta) ** 2 * ((1 + beta) ** 2 + beta**4 / (1 - beta**2))
