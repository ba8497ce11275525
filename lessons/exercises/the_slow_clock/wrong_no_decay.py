"""Rejected by check_average_of_steps.

The weights of the updates u, where those of q = -u / weight_decay are asked for: divided by the decay.
"""

from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        c.append(lr * kept)
        kept *= 1 - lr * weight_decay
    return c[::-1], kept
