"""Rejected by check_average_of_steps.

exp(-x) for 1 - x, which is right only where lr * weight_decay is small.
"""

import math
from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        c.append(lr * weight_decay * kept)
        kept *= math.exp(-lr * weight_decay)
    return c[::-1], kept
