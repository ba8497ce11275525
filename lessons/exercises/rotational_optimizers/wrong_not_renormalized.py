"""Rejected by check_lengths.

Each step goes across the weight, and nothing brings it back.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """One step, and no way back."""
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum(dim=1, keepdim=True) / w.square().sum(dim=1, keepdim=True)
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * length**2
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    step = angle * w.norm(dim=1, keepdim=True) * u / (state["size"] / state["ones"]).sqrt()
    return torch.where(length > 0, w - step, w)
