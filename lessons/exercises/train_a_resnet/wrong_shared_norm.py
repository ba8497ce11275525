"""Rejected by check_parts.

One norm in both places wherever the width allows it.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """Shares its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        if inputs == outputs:
            self.norm2 = self.norm1
