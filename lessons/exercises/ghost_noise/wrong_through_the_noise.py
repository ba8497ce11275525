"""Rejected by check_constant.

Gradients flow through shift and scale.
"""

import torch
from solution import batch_norm_jacobian, exclusive_jacobian  # noqa: F401
from torch import Tensor


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """Without no_grad."""
    if not training:
        return x
    a, q = x.mean((2, 3)), x.square().mean((2, 3))
    var = q.mean(0) - a.mean(0) ** 2
    idx = torch.randint(len(x), (len(x), n))
    m = a[idx].mean(1)
    shift, scale = m - a.mean(0), ((q[idx].mean(1) - m**2 + eps) / (var + eps)).sqrt()
    return (x - shift[..., None, None]) / scale[..., None, None]
