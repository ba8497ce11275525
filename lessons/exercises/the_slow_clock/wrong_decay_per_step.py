"""Rejected by check_decay_for.

The decay per step, from which the learning rate is still to be divided out.
"""

from solution import average, decay_after, share_of_last, tau_in_epochs  # noqa: F401


def decay_for(tau_epochs: float, lr: float, rows: int, row_size: int, batch_size: int) -> float:
    """One over the length of the average in steps."""
    return batch_size / (tau_epochs * rows * row_size)
