"""Rejected by check_average_of_steps.

The product goes over the steps before, which had nothing to take from.
"""

from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the first step on."""
    c, kept = [], 1.0
    for lr in lrs:
        c.append(lr * weight_decay * kept)
        kept *= 1 - lr * weight_decay
    return c, kept
