"""Rejected by check_turned.

The arc cosine of a cosine in float32, which has no digits for small angles.
"""

import torch
from solution import rotation, turn  # noqa: F401
from torch import Tensor


def turned(old: Tensor, new: Tensor) -> Tensor:
    """By the cosine."""
    return torch.cosine_similarity(old, new, dim=1).clamp(-1, 1).acos()
