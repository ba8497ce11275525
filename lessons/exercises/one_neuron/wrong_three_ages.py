"""Rejected by check_sums.

Only the three youngest ages are summed, as if every filter were as short as the first examples.
"""

import math
from collections.abc import Callable, Sequence

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """A gradient of 1, then only zeros: what comes out `k` steps later is `c_k`."""
    state = {}
    return [direction(1.0 if k == 0 else 0.0, state) for k in range(length)]


def sums(c: Sequence[float]) -> tuple[float, float]:
    """The first three."""
    return c[0] + c[1] + c[2], c[0] ** 2 + c[1] ** 2 + c[2] ** 2


def equilibrium_norm(S: float, E2: float, lr: float, weight_decay: float, fan_in: int) -> float:
    """Growth of `|w|^2` in a step, `(lr S)^2 fan_in`, equals what decay takes, `2 lr weight_decay |w|^2`."""
    return S * math.sqrt(lr * fan_in / (2 * weight_decay))


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The step is `lr sqrt(E2 fan_in)` long; over the norm, `fan_in` cancels."""
    return math.sqrt(2 * lr * weight_decay * E2) / S


def nesterov_sums(beta: float) -> tuple[float, float]:
    """`c_0 = (1-b)(1+b)`, then `c_k = (1-b) b^(k+1)`: a geometric series from `k = 1` on."""
    return 1.0, (1 - beta) ** 2 * ((1 + beta) ** 2 + beta**4 / (1 - beta**2))
