"""Ours."""

import math
from typing import Any

import numpy as np

NAME = "Ours"


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """By the chord: two vectors of length 1, at an angle `x`, end `2 sin(x/2)` apart."""
    a = before / np.linalg.norm(before, axis=1, keepdims=True)
    b = after / np.linalg.norm(after, axis=1, keepdims=True)
    angles = 2 * np.arcsin(np.linalg.norm(a - b, axis=1) / 2)
    return float(np.sqrt(np.mean(angles**2)))


def time_constant(norms: np.ndarray) -> float:
    """The logarithm of the distance is a straight line, while the distance is well above the restlessness of the end."""
    squares = norms.astype(np.float64) ** 2
    distance = np.abs(squares - squares[-len(squares) // 3 :].mean())
    steps = np.arange(np.argmax(distance < 0.1 * distance[0]))
    slope, _ = np.polyfit(steps, np.log(distance[steps]), 1)
    return -1 / slope


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """Three equations: `1/steps = 2 lr wd`, `norm^2 = lr fan_in / (2 wd)`, `rotation^2 = 2 lr wd (1-b)/(1+b)`."""
    lr = norm / math.sqrt(fan_in * steps)  # the product of the first two has lr^2
    weight_decay = 1 / (2 * lr * steps)
    energy = rotation**2 * steps
    return lr, weight_decay, (1 - energy) / (1 + energy)


def detective(run: dict[str, Any]) -> tuple[float, float, float]:
    """As given."""
    norms = run["norms"]
    late = norms[-len(norms) // 3 :]
    norm = float(np.sqrt(np.mean(late**2)))
    return recover(norm, turned(run["before"], run["after"]), time_constant(norms), run["before"].shape[1])
