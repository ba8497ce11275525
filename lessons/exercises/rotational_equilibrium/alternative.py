"""Another right one: angles in float64, a time read off where the distance has fallen to 1/e, decay found first."""

import numpy as np

NAME = "Somebody Else"


def turned(before, after):
    """The cosine is good enough in float64; a row at a time."""
    total = 0.0
    for a, b in zip(before.astype(float), after.astype(float), strict=True):
        total += np.arccos(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1)) ** 2
    return np.sqrt(total / len(before))


def time_constant(norms):
    """The first step at which 1/e is left, and the part of a step before it."""
    distance = np.asarray(norms, dtype=float) ** 2
    distance = (distance - np.median(distance[-200:])) / (distance[0] - np.median(distance[-200:]))
    i = next(i for i, x in enumerate(distance) if x < 1 / np.e)
    return i - 1 + (distance[i - 1] - 1 / np.e) / (distance[i - 1] - distance[i])


def recover(norm, rotation, steps, fan_in):
    """`norm^2 * 4 wd^2 steps = fan_in`."""
    weight_decay = (fan_in / (4 * steps * norm**2)) ** 0.5
    lr = 2 * weight_decay * norm**2 / fan_in
    share = rotation**2 / (2 * lr * weight_decay)
    return np.array([lr, weight_decay, 2 / (1 + share) - 1])


def detective(run):
    """The norm as a median."""
    norm = np.median(run["norms"][-200:])
    return recover(norm, turned(run["before"], run["after"]), time_constant(run["norms"]), run["before"].shape[1])
