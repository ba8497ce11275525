"""Rejected by check_standing.

Every number has 4 bytes, those in bfloat16 too.
"""

from solution import at_the_end, at_the_loss, in_the_middle, peak, twins, weights  # noqa: F401


def standing(inputs: int, hidden: int, classes: int, size: int) -> int:
    """Weights and two averages."""
    return 3 * 4 * weights(inputs, hidden, classes)
