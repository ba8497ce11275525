"""Rejected by check_twins_collide.

The next float32 number has the same upper half, but another lower one.
"""

import numpy as np
from solution import at_the_end, at_the_loss, in_the_middle, peak, standing  # noqa: F401


def twins(near: float) -> tuple[float, float]:
    """Neighbours."""
    return near, float(np.nextafter(np.float32(near), np.float32(np.inf)))
