"""Rejected by check_channels_together.

Every channel draws a ghost batch of its own.
"""

import torch
from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from solution import inject as inject_all
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """Channel by channel."""
    return torch.cat([inject_all(x[:, c : c + 1], n, training, eps) for c in range(x.shape[1])], 1)
