"""Rejected by check_random.

The moments of the sample itself: instance norm.
"""

from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """Nobody is drawn."""
    if not training:
        return x
    m = x.detach().mean((2, 3), keepdim=True)
    v = x.detach().var((2, 3), correction=0, keepdim=True)
    return (x - m) / ((v + eps) / (1 + eps)).sqrt()
