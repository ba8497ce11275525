"""Rejected by check_twins_collide.

Two NaNs, which rounding makes one NaN.
"""

import numpy as np
from solution import at_the_end, at_the_loss, in_the_middle, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """They differ in their sign, which nobody looks at."""
    a, b = np.array([0x7FC08000, 0xFFC08000], dtype=np.uint32).view(np.float32)
    return float(a), float(b)
