"""Rejected by check_shortcut.

Where the shape changes, the shortcut reads `x` before norm and ReLU.
"""

import solution
import torch.nn.functional as F
from solution import batch_norm, layer_norm  # noqa: F401
from torch import Tensor


class Block(solution.Block):
    """The shortcut takes `x`."""

    def forward(self, x: Tensor) -> Tensor:
        read = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(read))))
        return branch + (x if self.shortcut is None else self.shortcut(x))
