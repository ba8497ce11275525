"""Rejected by check_twins_collide.

A step has one length below a power of two and twice that above it; here it is the same on both sides.
"""

import math

from solution import at_the_end, at_the_loss, in_the_middle, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """Half a step down and half a step up."""
    half = 2.0 ** (math.frexp(near)[1] - 9)
    return near - half, near + half
