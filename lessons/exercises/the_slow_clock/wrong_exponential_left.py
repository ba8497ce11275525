"""Rejected by check_left.

The steps are right, and what is left of the start is exp(-sum), which is near it where rates are small.
"""

import math
from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """From the last step back; the start by a formula."""
    c, kept = [], 1.0
    for lr in reversed(lrs):
        c.append(lr * weight_decay * kept)
        kept *= 1 - lr * weight_decay
    return c[::-1], math.exp(-sum(lrs) * weight_decay)
