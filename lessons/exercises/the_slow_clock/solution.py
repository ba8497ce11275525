"""Ours."""

from collections.abc import Sequence


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back: what a step adds, its rate, is cut down by the decay of every later step."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        c.append(lr * weight_decay * kept)
        kept *= 1 - lr * weight_decay
    return c[::-1], kept


def share_of_last(lrs: Sequence[float], weight_decay: float, last: int) -> float:
    """All weights of steps together are `1 - left`."""
    c, left = average(lrs, weight_decay)
    return sum(c[-last:]) / (1 - left)


def tau_in_epochs(lr: float, weight_decay: float, rows: int, row_size: int, batch_size: int) -> float:
    """Steps of the average over steps of an epoch."""
    return 1 / (lr * weight_decay) / (rows * row_size / batch_size)


def decay_for(tau_epochs: float, lr: float, rows: int, row_size: int, batch_size: int) -> float:
    """The same equation, solved for the decay."""
    return 1 / (lr * tau_epochs * rows * row_size / batch_size)


def decay_after(weight_decay: float, data: float, batch: float) -> float:
    """An epoch has `data / batch` times as many steps, and the average must have as many more."""
    return weight_decay * batch / data
