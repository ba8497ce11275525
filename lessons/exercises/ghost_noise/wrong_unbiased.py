"""Rejected by check_outcomes.

The variances are divided by one less than the number of pixels.
"""

import torch
from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """As torch's var does."""
    if not training:
        return x
    whole = x.detach()
    var, mu = torch.var_mean(whole, (0, 2, 3), keepdim=True)
    moments = [torch.var_mean(whole[torch.randint(len(x), (n,))], (0, 2, 3), keepdim=True) for _ in x]
    v, m = (torch.cat(t) for t in zip(*moments, strict=True))
    return (x - (m - mu)) / ((v + eps) / (var + eps)).sqrt()
