"""Rejected by check_average_of_steps.

A step's own decay is taken from its update: j >= i in place of j > i.
"""

from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        kept *= 1 - lr * weight_decay
        c.append(lr * weight_decay * kept)
    return c[::-1], kept
