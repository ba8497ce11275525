"""Rejected by check_share_of_last.

One step too few: `range` ends before its end.
"""

from collections.abc import Sequence

from solution import average, decay_after, decay_for, tau_in_epochs  # noqa: F401


def share_of_last(lrs: Sequence[float], weight_decay: float, last: int) -> float:
    """All weights of steps together are `1 - left`."""
    c, left = average(lrs, weight_decay)
    return sum(c[-k] for k in range(1, last)) / (1 - left)
