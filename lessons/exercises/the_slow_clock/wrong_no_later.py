"""Rejected by check_average_of_steps.

What a step adds stays, as if later steps took nothing of it away.
"""

import math
from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """A step's weight is its rate."""
    return [lr * weight_decay for lr in lrs], math.prod(1 - lr * weight_decay for lr in lrs)
