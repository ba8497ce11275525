"""Rejected by check_angle.

What goes along the weight is counted in the length of the update, and is lost in the end.
"""

import torch
from solution import rotation, turned  # noqa: F401
from torch import Tensor


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """No projection."""
    norm = state.setdefault("norm", w.norm(dim=1, keepdim=True))
    u = u - u.mean(dim=1, keepdim=True)
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * length**2
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    new = w - angle * norm * u / (state["size"] / state["ones"]).sqrt()
    return torch.where(length > 0, new * (norm / new.norm(dim=1, keepdim=True)), w)
