"""Rejected by check_peak.

With a wide hidden layer the peak is neither at the loss nor at the end.
"""

from solution import at_the_end, at_the_loss, in_the_middle, standing, twins  # noqa: F401


def peak(*sizes: int) -> int:
    """The logits or the gradients."""
    return max(at_the_loss(*sizes), at_the_end(*sizes))
