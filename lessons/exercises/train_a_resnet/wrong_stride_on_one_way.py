"""Rejected by check_parts.

The stride is on the branch only.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """The shortcut has no stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        if self.shortcut is not None:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
