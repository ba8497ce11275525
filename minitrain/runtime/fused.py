"""AdamW of one parameter by torch's fused kernel: the same numbers as `optim.adam` with `optim.decay_by_lr`, in one pass.

The kernel corrects the averages by `1 - beta^t`, which is right only while the betas stand still, and on a CPU it takes
every tensor for contiguous. Where it does not fit, the parameter goes on by the readable form, from then on for good.
"""

from typing import Any

import torch
from torch import Tensor

DEVICES = {"cpu", "cuda", "mps"}


def kernel_fits(p: Tensor, g: Tensor) -> bool:
    """Whether the kernel can step weight `p` by gradient `g`."""
    strided = g.layout == torch.strided and p.is_contiguous() and g.is_contiguous()
    return strided and g.dtype == p.dtype and p.device.type in DEVICES


def fused_adamw(p: Tensor, state: dict, group: dict[str, Any]) -> bool:
    """Steps `p` and returns True; or, where the kernel does not fit, leaves `p` alone and returns False."""
    g, betas = p.grad, group["betas"]
    if g is None or not kernel_fits(p, g) or (state and state.get("betas") != betas):
        for key in ("t", "betas"):  # m, v and the sums of their weights stay: all that `optim.adam` goes on from
            state.pop(key, None)
        return False
    if not state:
        state.update(m=torch.zeros_like(p), v=torch.zeros_like(p), m_ones=0.0, v_ones=0.0)
        state.update(t=torch.zeros((), device=p.device), betas=betas)
    state["t"] += 1
    state["m_ones"] = betas[0] * state["m_ones"] + (1 - betas[0])
    state["v_ones"] = betas[1] * state["v_ones"] + (1 - betas[1])
    torch._fused_adamw_(
        [p], [g], [state["m"]], [state["v"]], [], [state["t"]],
        lr=group["lr"], beta1=betas[0], beta2=betas[1], weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip
    return True
