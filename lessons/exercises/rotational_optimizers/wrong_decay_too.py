"""Rejected by check_angle.

The weight decays as well, though the rotation stands in for that.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """Decays by what would balance the step."""
    norm = state.setdefault("norm", w.norm(dim=1, keepdim=True))
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum(dim=1, keepdim=True) / norm**2
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * length**2
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    new = (1 - angle**2 / 2) * w - angle * norm * u / (state["size"] / state["ones"]).sqrt()
    return torch.where(length > 0, new * (norm / new.norm(dim=1, keepdim=True)), w)
