"""Rejected by check_nesterov_sums.

A response as long as `beta` needs; `beta = 0`, which the stub allows, has no logarithm.
"""

import math
from collections.abc import Callable, Sequence

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """A gradient of 1, then only zeros: what comes out `k` steps later is `c_k`."""
    state = {}
    return [direction(1.0 if k == 0 else 0.0, state) for k in range(length)]


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
    """Until less than `e^-20` is left."""
    length = math.ceil(20 / -math.log(beta))

    def direction(g: float, state: dict) -> float:
        state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
        return beta * state["m"] + (1 - beta) * g

    return sums(impulse_response(direction, length))
