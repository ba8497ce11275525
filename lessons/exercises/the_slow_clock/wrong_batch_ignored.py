"""Rejected by check_decay_after.

The batch is forgotten, though it decides how many steps an epoch has.
"""

from solution import average, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def decay_after(weight_decay: float, data: float, batch: float) -> float:
    """More data, less decay."""
    return weight_decay / data
