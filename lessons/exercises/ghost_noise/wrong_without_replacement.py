"""Rejected by check_outcomes.

No sample is in a ghost batch twice.
"""

import torch
from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """The first n of a permutation, for each sample."""
    if not training:
        return x
    with torch.no_grad():
        a, q = x.mean((2, 3)), x.square().mean((2, 3))
        var = q.mean(0) - a.mean(0) ** 2
        idx = torch.rand(len(x), len(x)).argsort(1)[:, :n]
        m = a[idx].mean(1)
        v = q[idx].mean(1) - m**2
        shift, scale = m - a.mean(0), ((v + eps) / (var + eps)).sqrt()
    return (x - shift[..., None, None]) / scale[..., None, None]
