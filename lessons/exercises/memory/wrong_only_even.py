"""Rejected by check_twins_anywhere.

The ties beside an odd number round away from it, to both sides.
"""

from solution import at_the_end, at_the_loss, in_the_middle, number, pattern, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """Half a step down and half a step up."""
    return number(pattern(near) - 0x8000), number(pattern(near) + 0x8000)
