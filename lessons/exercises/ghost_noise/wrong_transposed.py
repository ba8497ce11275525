"""Rejected by check_exclusive_invariant.

Rows and columns are exchanged.
"""

from solution import batch_norm_jacobian, inject  # noqa: F401
from solution import exclusive_jacobian as right
from torch import Tensor


def exclusive_jacobian(x: Tensor) -> Tensor:
    """The derivative of y_j by x_i."""
    return right(x).T
