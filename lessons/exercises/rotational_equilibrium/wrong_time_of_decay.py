"""Rejected by check_recover.

`1 / (lr wd)` steps is what decay alone needs for `|w|`; of `|w|^2` it takes twice the share.
"""

import math

from solution import NAME, detective, time_constant, turned  # noqa: F401


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """`1/steps = lr wd`."""
    lr = norm * math.sqrt(2 / (fan_in * steps))
    weight_decay = 1 / (lr * steps)
    energy = rotation**2 * steps / 2
    return lr, weight_decay, (1 - energy) / (1 + energy)
