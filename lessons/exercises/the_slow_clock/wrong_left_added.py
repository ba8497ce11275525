"""Rejected by check_left.

The shares that decay takes are added up, as if each were one of the initial weights.
"""

from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back; the start by a sum."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        c.append(lr * weight_decay * kept)
        kept *= 1 - lr * weight_decay
    return c[::-1], 1 - sum(lrs) * weight_decay
