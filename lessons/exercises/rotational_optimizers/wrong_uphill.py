"""Rejected by check_direction.

It goes along the update.
"""

from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """With the wrong sign."""
    from solution import turn as right

    return right(w, -u, state, angle, rms_decay)
