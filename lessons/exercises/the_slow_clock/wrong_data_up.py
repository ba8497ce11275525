"""Rejected by check_decay_after.

More decay for more data: the wrong way.
"""

from solution import average, decay_for, share_of_last, tau_in_epochs  # noqa: F401


def decay_after(weight_decay: float, data: float, batch: float) -> float:
    """An epoch has other steps."""
    return weight_decay * data * batch
