"""Rejected by check_batch_norm.

eps is added to the root, where small variances feel it more.
"""

from solution import Block, layer_norm  # noqa: F401
from torch import Tensor


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As optimizers do it."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance.sqrt() + eps) * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
