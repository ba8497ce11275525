"""Rejected by check_parts.

A shortcut only where the width changes; with a stride alone, `x` has four times the pixels.
"""

from collections.abc import Callable

import solution
from solution import batch_norm, layer_norm  # noqa: F401
from torch import nn


class Block(solution.Block):
    """Looks at the width only."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__(inputs, outputs, stride, norm)
        if inputs == outputs:
            self.shortcut = None
