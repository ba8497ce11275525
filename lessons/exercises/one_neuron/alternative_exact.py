"""Another right one: the balance without approximation, and the angle of a right triangle."""

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
    """Decay leaves `(1 - lr weight_decay)^2` of `|w|^2`; growth makes up for all of the rest."""
    return math.sqrt((lr * S) ** 2 * fan_in / (1 - (1 - lr * weight_decay) ** 2))


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The step is the far side of a right triangle, for a neuron of 100 weights."""
    return math.atan(lr * math.sqrt(E2 * 100) / equilibrium_norm(S, E2, lr, weight_decay, 100))


def nesterov_sums(beta: float) -> tuple[float, float]:
    """`c_0 = (1-b)(1+b)`, then `c_k = (1-b) b^(k+1)`: a geometric series from `k = 1` on."""
    return 1.0, (1 - beta) ** 2 * ((1 + beta) ** 2 + beta**4 / (1 - beta**2))
