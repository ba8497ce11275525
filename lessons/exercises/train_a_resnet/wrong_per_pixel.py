"""Rejected by check_batch_norm.

As for rows of features: every pixel has a mean of its own over the batch.
"""

from solution import Block, layer_norm  # noqa: F401
from torch import Tensor


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the batch."""
    mean = x.mean(0, keepdim=True)
    variance = (x - mean).square().mean(0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
