"""Rejected by check_twins_near.

Always the same twins, those beside 1.
"""

from solution import at_the_end, at_the_loss, in_the_middle, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """1 is even."""
    return 1 - 2**-9, 1 + 2**-8
