"""Ours."""

import math

import torch
from torch import Tensor


def turned(old: Tensor, new: Tensor) -> Tensor:
    """By the chord between the tips of unit vectors: half of it is the sine of half the angle."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (old, new))
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1.0))


def rotation(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """Nesterov's filter is `c_0 = 1+a`, `c_k = a^(k+1)`: the same sum as the heavy ball's, and more energy."""
    a = momentum
    energy = (1 + a) ** 2 + a**4 / (1 - a**2) if nesterov else 1 / (1 - a**2)
    return math.sqrt(2 * lr * weight_decay * energy * (1 - a))


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """Centre, project, measure, step, and back onto the sphere."""
    norm = state.setdefault("norm", w.norm(dim=1, keepdim=True))
    u = u - u.mean(dim=1, keepdim=True)
    u = u - w * (u * w).sum(dim=1, keepdim=True) / norm**2
    length = u.norm(dim=1, keepdim=True)
    state["size"] = rms_decay * state.get("size", 0.0) + (1 - rms_decay) * length**2
    state["ones"] = rms_decay * state.get("ones", 0.0) + (1 - rms_decay)
    new = w - angle * norm * u / (state["size"] / state["ones"]).sqrt()
    new = new * (norm / new.norm(dim=1, keepdim=True))
    return torch.where(length > 0, new, w)
