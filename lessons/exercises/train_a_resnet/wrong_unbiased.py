"""Rejected by check_batch_norm.

torch's default divides by n - 1.
"""

from solution import Block, layer_norm  # noqa: F401
from torch import Tensor


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """With `var` as it comes."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
