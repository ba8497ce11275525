"""AdamW of one parameter by torch's fused kernel: the same numbers as `optim.adam` with `optim.decay_by_lr`, in one pass.

The kernel corrects the averages by `1 - beta^t`, which is right only while the betas stand still, and on a CPU it takes
every tensor for contiguous. Where it does not fit, the parameter goes on by the readable form, from then on for good.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DEVICES = {"cpu", "cuda", "mps"}


def fused_adamw(p: Tensor, state: dict, group: dict[str, Any]) -> bool:
    """Steps `p` and returns True; or, where the kernel does not fit, leaves `p` alone and returns False."""
    if not begin(p, state, group["betas"], p.dtype):
        return False
    assert p.grad is not None
    kernel(p, p.grad, state["m"], state["v"], state["t"], group)
    return True


def kernel(w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor, group: dict[str, Any]) -> None:
    """Steps `w` and its moments; all of one dtype and contiguous."""
    betas = group["betas"]
    torch._fused_adamw_(
        [w], [g], [m], [v], [], [t],
        lr=group["lr"], beta1=betas[0], beta2=betas[1], weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip


def begin(p: Tensor, state: dict, betas: Sequence[float], dtype: torch.dtype) -> bool:
    """Counts a step in `state`, whose moments are of `dtype`, and returns True; False where the kernel does not fit."""
    betas = (betas[0], betas[1])  # a list might be changed in place
    if not (kernel_fits(p, p.grad) and ("m" not in state or goes_on(p, state, betas))):
        forget_count(state)
        return False
    if "m" not in state:
        state.update(m=torch.zeros_like(p, dtype=dtype), v=torch.zeros_like(p, dtype=dtype), m_ones=0.0, v_ones=0.0)
        state.update(t=torch.zeros((), device=p.device), betas=betas)
    state["t"] += 1
    state["m_ones"] = betas[0] * state["m_ones"] + (1 - betas[0])
    state["v_ones"] = betas[1] * state["v_ones"] + (1 - betas[1])
    return True


def goes_on(p: Tensor, state: dict, betas: tuple[float, float]) -> bool:
    """Whether every step so far was counted, under these betas, and the moments lie as the kernel reads them.

    It does not look at shapes, and writes past the end of moments that are smaller than `p`.
    """
    moments = (state["m"], state["v"])
    return state.get("betas") == betas and all(x.is_contiguous() and x.shape == p.shape for x in moments)


def forget_count(state: dict) -> None:
    """Leaves `m`, `v` and the sums of their weights: all that `optim.adam` goes on from, and from then on alone."""
    for key in ("t", "betas"):
        state.pop(key, None)


def kernel_fits(p: Tensor, g: Tensor | None) -> bool:
    """Whether the kernel can step weight `p` by gradient `g`."""
    if g is None or g.layout != torch.strided or g.dtype != p.dtype:
        return False
    return p.is_contiguous() and g.is_contiguous() and p.device.type in DEVICES
