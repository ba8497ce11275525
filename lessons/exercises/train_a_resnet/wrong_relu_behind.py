"""Rejected by check_identity.

The addition is followed by a ReLU, as in the first residual networks.
"""

import solution
import torch.nn.functional as F
from solution import batch_norm, layer_norm  # noqa: F401
from torch import Tensor


class Block(solution.Block):
    """A ReLU at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))
