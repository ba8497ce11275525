"""AdamW of one parameter by torch's fused kernel: the same numbers as `optim.adam` with `optim.decay_by_lr`, in one pass.

The kernel corrects the averages by `1 - beta^t`, which is right only while the betas stand still; once they have
changed, the parameter's state is handed over to the readable form for good.
"""

from typing import Any

import torch
from torch import Tensor

DEVICES = {"cpu", "cuda", "mps"}


def fused_adamw(p: Tensor, state: dict, group: dict[str, Any]) -> bool:
    """Steps `p` and returns True; or, where the kernel does not apply, leaves `p` alone and returns False."""
    g = p.grad
    if (
        "m_ones" in state
        or p.device.type not in DEVICES
        or g is None
        or g.layout != torch.strided
        or g.dtype != p.dtype
    ):
        return False
    if not state:
        state.update(
            m=torch.zeros_like(p), v=torch.zeros_like(p), t=torch.zeros((), device=p.device), betas=group["betas"]
        )
    if state["betas"] != group["betas"]:
        t, (beta1, beta2) = state.pop("t").item(), state.pop("betas")
        state.update(m_ones=1 - beta1**t, v_ones=1 - beta2**t)
        return False
    state["t"] += 1
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        [p], [g], [state["m"]], [state["v"]], [], [state["t"]],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip
    return True
