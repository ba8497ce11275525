"""Rejected by check_exclusive_own.

Batch norm's Jacobian, where the sample takes part in its own yardstick.
"""

from solution import batch_norm_jacobian, inject  # noqa: F401
from torch import Tensor


def exclusive_jacobian(x: Tensor) -> Tensor:
    """As if it were the same."""
    return batch_norm_jacobian(x)
