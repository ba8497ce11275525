"""Rejected by check_each_its_own.

Ghost batch norm in disguise: the batch is shuffled and cut into ghost batches.
"""

import torch
from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """Each ghost batch is normalized by itself."""
    if not training:
        return x
    y = torch.empty_like(x)
    for part in torch.randperm(len(x)).split(n):
        v, m = torch.var_mean(x[part].detach(), (0, 2, 3), correction=0, keepdim=True)
        y[part] = (x[part] - m) / (v + eps).sqrt()
    return y
