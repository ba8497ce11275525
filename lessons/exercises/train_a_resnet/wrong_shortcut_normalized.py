"""Rejected by check_identity.

What runs past the block is the normalized copy, so nothing runs past all blocks unchanged.
"""

import solution
import torch.nn.functional as F
from solution import batch_norm, layer_norm  # noqa: F401
from torch import Tensor


class Block(solution.Block):
    """Adds what the branch reads."""

    def forward(self, x: Tensor) -> Tensor:
        read = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(read))))
        return branch + (read if self.shortcut is None else self.shortcut(read))
