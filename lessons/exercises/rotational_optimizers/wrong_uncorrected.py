"""Rejected by check_first_step.

The average of the squared lengths starts at zero, and nobody corrects it.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """Too far at first."""
    norm = state.setdefault("norm", w.norm(dim=1, keepdim=True))
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum(dim=1, keepdim=True) / norm**2
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * length**2
    new = w - angle * norm * u / state["size"].sqrt()
    return torch.where(length > 0, new * (norm / new.norm(dim=1, keepdim=True)), w)
