"""Rejected by check_evaluation.

The noise never stops.
"""

from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from solution import inject as inject_in_training
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """As if it were always training."""
    return inject_in_training(x, n, True, eps)
