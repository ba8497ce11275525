"""Rejected by check_branch.

ReLU and norm have changed places: the convolutions read negative numbers again.
"""

import solution
import torch.nn.functional as F
from solution import batch_norm, layer_norm  # noqa: F401
from torch import Tensor


class Block(solution.Block):
    """ReLU, norm, convolution."""

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm1(F.relu(x))
        branch = self.conv2(self.norm2(F.relu(self.conv1(read))))
        return branch + (x if self.shortcut is None else self.shortcut(read))
