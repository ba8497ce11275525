"""Rejected by check_average_of_steps.

All later steps decay at the rate of the last one: right only for a constant rate.
"""

import math
from collections.abc import Sequence

from solution import decay_after, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """The closed form of an exponential average."""
    kept, steps = 1 - lrs[-1] * weight_decay, len(lrs)
    left = math.prod(1 - lr * weight_decay for lr in lrs)
    return [lr * weight_decay * kept ** (steps - 1 - i) for i, lr in enumerate(lrs)], left
