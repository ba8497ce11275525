"""Ours."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def normalized(x: Tensor, over: tuple[int, ...], gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """All that tells norms apart is `over`."""
    mean = x.mean(over, keepdim=True)
    variance = (x - mean).square().mean(over, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """What is left is the channel."""
    return normalized(x, (0, 2, 3), gain, bias, eps)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """What is left is the image."""
    return normalized(x, (1, 2, 3), gain, bias, eps)


class Block(nn.Module):
    """The shortcut is None where `x` itself is added."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        read = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(read))))
        return branch + (x if self.shortcut is None else self.shortcut(read))
