"""Rejected by check_share_of_last.

What is left of the initial weights counts as if a step had put it there: not divided by 1 - left.
"""

from collections.abc import Sequence

from solution import average, decay_after, decay_for, tau_in_epochs  # noqa: F401


def share_of_last(lrs: Sequence[float], weight_decay: float, last: int) -> float:
    """The sum of the last weights."""
    c, _ = average(lrs, weight_decay)
    return sum(c[-last:])
