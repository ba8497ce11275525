"""Rejected by check_twins_anywhere.

Beside an odd number it takes the even one above, which is infinity for the largest.
"""

from solution import at_the_end, at_the_loss, in_the_middle, number, pattern, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """Up to the even one."""
    even = pattern(near) + (pattern(near) & 0x10000)
    return number(even - 0x8000), number(even + 0x8000)
