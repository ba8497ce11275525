"""Rejected by check_recover.

Takes E2 for `1-b`, the weight of the newest gradient; the update holds those of many steps.
"""

import math

from solution import NAME, detective, time_constant, turned  # noqa: F401


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """`rotation^2 = 2 lr wd (1-b)`."""
    lr = norm / math.sqrt(fan_in * steps)
    weight_decay = 1 / (2 * lr * steps)
    return lr, weight_decay, 1 - rotation**2 * steps
