"""Rejected by check_layer_norm.

As a transformer does: every pixel is normalized over its channels.
"""

from solution import Block, batch_norm  # noqa: F401
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the channels."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
