"""Rejected by check_branch.

Between norm1 and conv1 the ReLU is missing.
"""

import solution
import torch.nn.functional as F
from solution import batch_norm, layer_norm  # noqa: F401
from torch import Tensor


class Block(solution.Block):
    """The first convolution reads the norm."""

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm1(x)
        branch = self.conv2(F.relu(self.norm2(self.conv1(read))))
        return branch + (x if self.shortcut is None else self.shortcut(F.relu(read)))
