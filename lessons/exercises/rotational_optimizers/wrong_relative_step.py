"""Rejected by check_turned.

The step over the length of the weight is an angle only where both are equally long.
"""

from solution import rotation, turn  # noqa: F401
from torch import Tensor


def turned(old: Tensor, new: Tensor) -> Tensor:
    """By the relative step."""
    return (new - old).norm(dim=1) / old.norm(dim=1)
