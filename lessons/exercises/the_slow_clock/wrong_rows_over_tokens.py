"""Rejected by check_tau_in_epochs.

Rows of data over tokens of a batch.
"""

from solution import average, decay_after, decay_for, share_of_last  # noqa: F401


def tau_in_epochs(lr: float, weight_decay: float, rows: int, row_size: int, batch_size: int) -> float:
    """Steps of the average over steps of an epoch."""
    return 1 / (lr * weight_decay) / (rows / batch_size)
