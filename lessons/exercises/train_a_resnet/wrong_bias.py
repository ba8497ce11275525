"""Rejected by check_parts.

Convolutions have a bias, as they come.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """With biases."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
