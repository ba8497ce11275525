"""Rejected by check_parts.

The stride is that of the second convolution, so the first one works on four times the pixels.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """Strides late."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
