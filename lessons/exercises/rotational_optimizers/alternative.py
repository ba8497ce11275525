"""Another right one: the angle in float64, the filter by brute force, and a turn that never leaves the sphere."""

import math

import torch
from torch import Tensor


def turned(old: Tensor, new: Tensor) -> Tensor:
    """In float64 the arc cosine has digits to spare."""
    cosine = torch.cosine_similarity(old.double(), new.double(), dim=1)
    return cosine.clamp(-1, 1).acos()


def rotation(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """What comes out when one gradient of 1 goes in."""
    b, c = 0.0, []
    for k in range(10_000):
        g = float(k == 0)
        b = momentum * b + g
        c.append(g + momentum * b if nesterov else b)
    return math.sqrt(2 * lr * weight_decay * sum(x * x for x in c) / sum(c))


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """By cosine and sine, row by row."""
    state["t"] = state.get("t", 0) + 1
    sizes = state.setdefault("sizes", [0.0] * len(w))
    lengths = state.setdefault("lengths", [float(row.norm()) for row in w])
    rows = []
    for i, (row, update) in enumerate(zip(w, u, strict=True)):
        unit = row / row.norm()
        across = update - update.mean()
        across = across - unit * (across @ unit)
        sizes[i] = rms_decay * sizes[i] + (1 - rms_decay) * float(across @ across)
        if not across.any():
            rows.append(row)
            continue
        r = math.sqrt(sizes[i] / (1 - rms_decay ** state["t"]))
        length = float(across.norm())
        by = math.atan(angle * length / r)
        rows.append(lengths[i] * (math.cos(by) * unit - math.sin(by) * across / length))
    return torch.stack(rows)
