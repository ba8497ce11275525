"""Rejected by check_lengths.

Norms and sums of the whole matrix, so that its rows trade lengths.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """The matrix is taken for one vector."""
    norm = state.setdefault("norm", w.norm())
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum() / norm**2
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * u.norm() ** 2
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    new = w - angle * norm * u / (state["size"] / state["ones"]).sqrt()
    return torch.where(u == 0, w, new * (norm / new.norm()))
