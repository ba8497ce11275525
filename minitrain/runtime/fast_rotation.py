"""The rotational step (`techniques/rotational.py`) in fewer passes over memory: the same numbers to rounding.

A row's new length follows from three sums and need not be measured. With `u` centred, `along = <u, w> / |w|^2` and the
squared length `across = |u|^2 - along <u, w>` of what is left of it across `w`, Pythagoras gives

    |w - c (u - along w)|^2 = |w|^2 + c^2 across        so that        w <- q (1 + c along) w - q c u

is the turned row at its old length, written in one go. The present `|w|^2` is summed as well, and the stored length
restored, so that rounding does not add up. Adam's `u` comes from torch's fused kernel in one more pass. The compiled
form does all of it row by row, so that memory is read and written once, as by torch's fused AdamW alone.

For a CPU, where memory is what a step waits for. Elsewhere, and for 16-bit weights or other layouts than contiguous and
channels last, the readable form is used.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from minitrain.runtime.fused import forget_count, kernel
from minitrain.runtime.rotate_rows import row_kernel

BLOCK = 1 << 20  # numbers that are turned at once: few calls, and still in a CPU's cache


def layout(x: Tensor) -> str | None:
    """How a tensor lies in memory, if its neurons are rows one after the other."""
    if x.layout != torch.strided:
        return None
    if x.is_contiguous():
        return "contiguous"
    return "channels last" if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else None


def as_rows(x: Tensor, rows: int) -> Float[Tensor, "O I"]:
    """The same memory, one row per neuron; the order of a row's numbers is the memory's."""
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).view(rows, -1)


def usable(across: Float[Tensor, "O 1"], dot: Float[Tensor, "O 1"]) -> Float[Tensor, "O 1"]:
    """Squared lengths of what an update has across a row, or 0 where they are too small or large to divide by.

    `dot` is the update's inner product with the row: where that is no finite number, the answer is NaN.
    """
    limits = torch.finfo(across.dtype)
    return across.where((across > 1e8 * limits.tiny) & (across < 1e-8 * limits.max), dot * 0)


class FastRotation:
    """Keeps what one step after the other can use: two blocks of scratch memory, and compiled kernels."""

    def __init__(self, compiled: bool = False):
        self.compiled = compiled
        self.scratch: dict[tuple[torch.dtype, int], Tensor] = {}
        self.kernels: dict[torch.dtype, Callable[..., None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"compiled": self.compiled, "scratch": {}, "kernels": {}}

    def fits(self, p: Tensor, g: Tensor, state: dict, group: dict[str, Any]) -> bool:
        """Whether the fast form can step `p`; the first step, which stores the length, is the readable form's."""
        if "norm" not in state or p.dtype not in (torch.float32, torch.float64) or p.device.type != "cpu" or is_fake(p):
            return False
        if not p.numel() or not p.dtype == g.dtype == state["norm"].dtype == state["size"].dtype:
            return False
        rows = math.prod(p.shape[: group.get("row_dims", 1)]) if group["per_neuron"] else 1
        if g.is_neg() or any(x.shape != (rows, 1) or not x.is_contiguous() for x in (state["norm"], state["size"])):
            return False  # a kernel sees memory only
        kind = layout(p)
        conv = group["per_neuron"] and group.get("row_dims", 1) == 1
        return kind == layout(g) and (kind == "contiguous" or (kind is not None and conv))

    def adam(self, p: Tensor, g: Tensor, state: dict, group: dict[str, Any]) -> bool:
        """Turns `p` against Adam's direction, with the moments updated; or returns False where no kernel fits.

        Torch's fused kernel corrects averages by `1 - beta^t`, which is right for betas that never changed, as those of a
        state whose only step so far was taken with them, and while no step was taken without counting it in `t`.
        """
        betas, m, v = tuple(group["betas"]), state["m"], state["v"]
        if any((x.dtype, x.shape, x.stride()) != (p.dtype, p.shape, p.stride()) for x in (m, v)):
            return False
        rows = self.compiled_rows(p.dtype)
        if rows:
            forget_count(state)
        elif "t" not in state and (state["m_ones"], state["v_ones"]) == (1 - betas[0], 1 - betas[1]):
            state.update(t=torch.ones((), device=p.device), betas=betas)
        if not rows and state.get("betas") != betas:
            return False
        state["m_ones"] = betas[0] * state["m_ones"] + (1 - betas[0])
        state["v_ones"] = betas[1] * state["v_ones"] + (1 - betas[1])
        if rows:
            numbers = (1 - betas[0], 1 - betas[1], 1 / state["m_ones"], state["v_ones"] ** -0.5, group["eps"])
            self.turn_rows(rows, p, g, state, group, numbers)
            return True
        state["t"] += 1
        # With lr * weight_decay = 1 the kernel forgets the weight it is given, and with lr = -1 it leaves u there.
        for_u = {**group, "lr": -1.0, "weight_decay": -1.0}

        def direction(block: slice, u: Tensor) -> None:
            kernel(u, rows_of_g[block], rows_of_m[block], rows_of_v[block], state["t"], for_u)

        rows_of_g, rows_of_m, rows_of_v = (as_rows(x, len(state["norm"])) for x in (g, m, v))
        self.turn_blocks(p, direction, state, group)
        return True

    def turn(self, p: Tensor, u: Tensor, state: dict, group: dict[str, Any]) -> None:
        """Turns `p` against an update `u`, which stays as it is."""
        if (layout(u), u.dtype) != (layout(p), p.dtype):
            u = torch.empty_like(p).copy_(u)
        if rows := self.compiled_rows(p.dtype):
            self.turn_rows(rows, p, u, state, group)
            return
        rows_of_u = as_rows(u, len(state["norm"]))
        self.turn_blocks(p, lambda block, scratch: scratch.copy_(rows_of_u[block]), state, group)

    def compiled_rows(self, dtype: torch.dtype) -> Callable[..., None] | None:
        """The compiled kernel, where it is asked for and there is a compiler."""
        if self.compiled and dtype not in self.kernels:
            try:
                self.kernels[dtype] = row_kernel(dtype)
            except Exception as error:  # whatever a compiler may raise
                self.compiled = False
                warnings.warn(f"compiling the rotation failed, so the fast form goes on: {error!r:.200}", stacklevel=2)
        return self.kernels[dtype] if self.compiled else None

    def turn_rows(
        self, rows: Callable[..., None], p: Tensor, given: Tensor, state: dict, group: dict[str, Any],
        adam: tuple[float, float, float, float, float] | None = None,
    ) -> None:  # fmt: skip
        """Turns `p` in place by the compiled kernel, against an update, or with Adam's numbers by a gradient."""
        ones, reach = begin(state, group)
        numbers = [group["rms_decay"], 1 - group["rms_decay"], ones, *(adam or [0.0] * 5)]
        m, v = (state["m"], state["v"]) if adam else (given, given)
        shape = len(reach), p.numel() // len(reach)
        rows(
            p, given, m, v, state["norm"], state["size"], reach, torch.tensor(numbers, dtype=torch.float64), *shape,
            adam is not None, group["center"], torch.get_num_threads(),
        )  # fmt: skip
        torch.autograd.graph.increment_version(p)

    def turn_blocks(
        self, p: Tensor, direction: Callable[[slice, Tensor], object], state: dict, group: dict[str, Any]
    ) -> None:
        """Turns `p` in place, block of rows by block; `direction(block, u)` writes a block's update into `u`."""
        norm, size, (ones, reach) = state["norm"], state["size"], begin(state, group)
        w = as_rows(p, len(norm))
        height = max(1, BLOCK // w.shape[1])
        for start in range(0, len(w), height):
            block = slice(start, start + height)
            rows = w[block]
            u, product = self.memory(0, rows), self.memory(1, rows)
            direction(block, u)
            turn_block(
                rows, u, product, norm[block], size[block], reach[block],
                rms_decay=group["rms_decay"], ones=ones, center=group["center"],
            )  # fmt: skip

    def memory(self, i: int, like: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """The first or second block of scratch memory, in a shape."""
        found = self.scratch.get((like.dtype, i))
        if found is None or found.numel() < like.numel():
            found = self.scratch[like.dtype, i] = torch.zeros(max(BLOCK, like.numel()), dtype=like.dtype)
        return found[: like.numel()].view(like.shape)


def begin(state: dict, group: dict[str, Any]) -> tuple[float, Float[Tensor, "O 1"]]:
    """Counts a step in `size_ones`, and returns it with each row's reach: its angle times its length."""
    ones = state["size_ones"] = group["rms_decay"] * state["size_ones"] + (1 - group["rms_decay"])
    reach = state["norm"] * group["angle"]
    return ones, reach.mul_(state["speed"]) if "speed" in state else reach


def turn_block(
    w: Tensor, u: Tensor, product: Tensor, norm: Tensor, size: Tensor, reach: Tensor, *,
    rms_decay: float, ones: float, center: bool,
) -> None:  # fmt: skip
    """Turns the rows of `w` by `reach`, each row's angle times its length, and updates `size`, both in place.

    `u` and `product` are used up.
    """
    whole: Any = 0.0
    if center:
        mean = u.mean(dim=1, keepdim=True)
        u.sub_(mean)
        whole = mean.square_().mul_(u.shape[1])
    squared = torch.linalg.vector_norm(u, dim=1, keepdim=True).square_()
    dot = torch.mul(u, w, out=product).sum(dim=1, keepdim=True)
    w_squared = torch.linalg.vector_norm(w, dim=1, keepdim=True).square_()
    along = dot / w_squared
    across = torch.addcmul(squared, dot, along, value=-1)
    whole = squared.add_(whole)
    rare = not bool((across >= 0.05 * whole).all())
    if rare:
        # nearly all of a row's u is along w, and the difference of two large numbers has few digits: project u itself
        u.addcmul_(w, along, value=-1)
        along.zero_()
        across = torch.linalg.vector_norm(u, dim=1, keepdim=True).square_()
        across = across.where(across > (8 * torch.finfo(u.dtype).eps) ** 2 * whole, 0.0)
    across = usable(across, dot)
    size.lerp_(across, 1 - rms_decay)
    # c = angle n / r,  q = n / |w - c u|;  rows without an update stay as they are
    c = (size / ones).rsqrt_().mul_(reach).where(across != 0, 0.0)
    q = norm.mul(w_squared.addcmul_(c, c * across).rsqrt_()).where(across != 0, 1.0)
    c = c.mul_(q)
    w.mul_(q.addcmul_(c, along)).addcmul_(u, c, value=-1)
    if rare:
        u.zero_()  # a NaN must not be met by the next tensor
