"""Rejected by check_recover.

Takes `lr fan_in / (2 wd)` for the norm; it is the norm's square.
"""

import math

from solution import NAME, detective, time_constant, turned  # noqa: F401


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """`norm = lr fan_in / (2 wd)`."""
    lr = math.sqrt(norm / (fan_in * steps))
    weight_decay = 1 / (2 * lr * steps)
    energy = rotation**2 * steps
    return lr, weight_decay, (1 - energy) / (1 + energy)
