"""Rejected by check_angle.

Lengths are each row's, but the usual size of an update is the matrix's.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """One average for all rows."""
    norm = state.setdefault("norm", w.norm(dim=1, keepdim=True))
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum(dim=1, keepdim=True) / norm**2
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * (length**2).mean()
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    new = w - angle * norm * u / (state["size"] / state["ones"]).sqrt()
    return torch.where(length > 0, new * (norm / new.norm(dim=1, keepdim=True)), w)
