"""Rejected by check_tau_in_epochs.

The average in steps, where epochs are asked for.
"""

from solution import average, decay_after, decay_for, share_of_last  # noqa: F401


def tau_in_epochs(lr: float, weight_decay: float, rows: int, row_size: int, batch_size: int) -> float:
    """Its definition."""
    return 1 / (lr * weight_decay)
