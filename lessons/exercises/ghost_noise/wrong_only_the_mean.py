"""Rejected by check_batch_norm.

The standard deviation counts as a constant.
"""

import torch
from solution import exclusive_jacobian, inject  # noqa: F401
from torch import Tensor


def batch_norm_jacobian(x: Tensor) -> Tensor:
    """What the mean takes, and no more."""
    return (torch.eye(len(x), dtype=x.dtype) - 1 / len(x)) / x.std(correction=0)
