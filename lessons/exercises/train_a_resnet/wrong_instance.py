"""Rejected by check_batch_norm.

Each image and channel by itself: nothing is shared in the batch, as batch norm would have it.
"""

from solution import Block, layer_norm  # noqa: F401
from torch import Tensor


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the pixels."""
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
