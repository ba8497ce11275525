"""Rejected by check_recover.

Decay first, learning rate second.
"""

import math

from solution import NAME, detective, time_constant, turned  # noqa: F401


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """The three equations, solved."""
    lr = norm / math.sqrt(fan_in * steps)
    weight_decay = 1 / (2 * lr * steps)
    energy = rotation**2 * steps
    return weight_decay, lr, (1 - energy) / (1 + energy)
