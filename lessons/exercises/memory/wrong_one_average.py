"""Rejected by check_standing.

Adam's state is counted once; there are two averages.
"""

from solution import at_the_end, at_the_loss, in_the_middle, peak, twins, weights  # noqa: F401


def standing(inputs: int, hidden: int, classes: int, size: int) -> int:
    """Weights and Adam's average."""
    return 2 * size * weights(inputs, hidden, classes)
