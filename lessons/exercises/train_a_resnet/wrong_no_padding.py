"""Rejected by check_sides.

Without padding the branch loses a pixel at each edge, and fits the shortcut nowhere.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """No padding where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        padding = 0 if self.shortcut else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=padding, bias=False)
