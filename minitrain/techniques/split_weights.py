"""16-bit weights without a float32 copy: the optimizer keeps only the bits that the weight lacks.

Mixed precision keeps a 16-bit weight for the model and a float32 master copy of it for the optimizer. A bfloat16 is the
upper half of a float32, so the master says the same thing twice: here the parameter is the upper half, `high`, the
optimizer's state holds the lower one, `low`, and every step joins them, steps in float32, and splits the result. Training
is bit for bit that with a master whose forward pass uses the master's upper half, at 2 bytes a weight less (with 8 extra
bits, 3 less).

    w = 2^16 (high + (low >> 15)) | (low & 0xffff)    on bit patterns; `low >> 15` is -1 where `high` was rounded up, else 0

Rounding `high` to the nearest, ties away from zero, is invertible because the sign of `low` tells which way it went.
Ties to even, as `.bfloat16()` has them, is not: around a tie two different weights have the same two halves.

Reference: Lewandowski & Kosson, 2023, "Memory Efficient Mixed-Precision Optimizers", arXiv 2309.12381. Stochastic
rounding and Kahan summation (arXiv 2010.06192) are the peers: no extra bits, or 16 of another kind.

When it does not help: where weights are not what fills the memory (activations and the loss's logits often are); where the
model's layers need float32 weights, for this is not float32 training nor autocast, which keep float32 gradients; with few
bits and small steps, for a step below half of the last bit kept is lost (0 bits stall). Moments in bf16 stall in the
same way: a second moment with `1 - beta2` below 2^-9 can never fall.

Deviations: written after the paper's abstract; how the paper rounds, and how it keeps fewer than 16 bits, was not checked.
The split into nearest and signed rest is that of NVIDIA's Apex. fp16, whose exponent is another, is not supported.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import BFloat16, Float32, Int16
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake, unset_fake_temporarily

from minitrain.optim import Optimizer, PlainStorage

Rounding = Literal["nearest", "truncate", "stochastic", "kahan"]


def split(x: Float32[Tensor, "..."], truncate: bool = False) -> tuple[BFloat16[Tensor, "..."], Int16[Tensor, "..."]]:
    """The two halves of each number: `high` is `x` to the nearest, ties away from zero (or cut off), `low` the rest."""
    bits = x.view(torch.int32)
    low = bits.to(torch.int16)
    high = (bits >> 16) if truncate else (bits >> 16) - (low >> 15)  # one more where low is negative
    return high.to(torch.int16).view(torch.bfloat16), low


def join(high: BFloat16[Tensor, "..."], low: Int16[Tensor, "..."], truncate: bool = False) -> Float32[Tensor, "..."]:
    """The reverse of `split`, bit for bit."""
    upper = high.view(torch.int16).int()
    upper = upper if truncate else upper + (low >> 15)
    return (upper << 16 | low.int() & 0xFFFF).view(torch.float32)


def round_to(x: Float32[Tensor, "..."], bits: int, rounding: Rounding, seed: int = 0) -> Float32[Tensor, "..."]:
    """`x` with the last `16 - bits` bits zero. Stochastic rounding goes up as often as what it drops says: no bias."""
    unit = 1 << (16 - bits)  # of the last bit kept, on the bit pattern, which counts away from zero
    if rounding == "stochastic":
        generator = torch.Generator(x.device).manual_seed(seed)
        add = torch.randint(unit, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    else:
        add = 0 if rounding == "truncate" else unit // 2
    return ((x.view(torch.int32) + add) & -unit).view(torch.float32)


class SplitStorage(PlainStorage):
    """The parameter is bf16, the state's `low` has `bits` more (int8 up to 8, int16 above), and the rule sees their float32.

    `moments` is the dtype that whatever else the state holds is kept in between steps.
    """

    def __init__(self, bits: int = 16, rounding: Rounding = "nearest", moments: torch.dtype = torch.float32):
        self.bits, self.rounding, self.moments = bits, rounding, moments
        self.truncate = rounding == "truncate"
        self.low_dtype = torch.int16 if bits > 8 else torch.int8 if bits else None

    def load(self, p: Tensor, state: dict) -> Tensor:
        if p.dtype != torch.bfloat16 or self.low_dtype != (state["low"].dtype if "low" in state else None):
            raise ValueError(
                f"a {p.dtype} weight of shape {tuple(p.shape)} came without its {self.bits} extra bits; load the state "
                "saved with it, or split the weights once all groups are there"
            )
        convert_moments(state, torch.float32)
        return self.whole(p, state)

    def store(self, p: Tensor, w: Tensor, state: dict) -> None:
        high, low = split(round_to(w, self.bits, self.rounding, state.get("seed", 0)), self.truncate)
        refuse_nonfinite(w, high)
        if self.low_dtype:
            state["low"] = low if self.bits > 8 else (low >> 8).to(torch.int8)
        if "seed" in state:
            state["seed"] += 1
        convert_moments(state, self.moments)
        p.copy_(high)

    def whole(self, p: Tensor, state: dict) -> Tensor:
        """The weight with all the bits there are, in float32."""
        if not self.bits:
            return p.float()
        low = state["low"]
        return join(p, low if self.bits > 8 else low.short() << 8, self.truncate)


class KahanStorage(SplitStorage):
    """The rule sees the bf16 weight alone; what rounding took from its steps is kept in bf16 and added to the next one."""

    def __init__(self, moments: torch.dtype = torch.float32):
        super().__init__(16, "kahan", moments)
        self.low_dtype = torch.bfloat16

    def load(self, p: Tensor, state: dict) -> Tensor:
        super().load(p, state)
        return p.float()

    def store(self, p: Tensor, w: Tensor, state: dict) -> None:
        old = p.float()
        # k <- k + step,  high <- w + k,  k <- k + (w - high)
        k = (state.get("low", 0) + (w - old)).bfloat16()
        high = (old + k).bfloat16()
        refuse_nonfinite(w, high)
        state["low"] = (k + (old - high)).bfloat16()
        convert_moments(state, self.moments)
        p.copy_(high)

    def whole(self, p: Tensor, state: dict) -> Tensor:
        return p.float() + state["low"]


def convert_moments(state: dict, dtype: torch.dtype) -> None:
    """Brings all of the state that is not the weight's own bits to `dtype`."""
    for name, x in state.items():
        if name != "low" and isinstance(x, Tensor) and x.is_floating_point():
            state[name] = x.to(dtype)


def refuse_nonfinite(w: Tensor, high: Tensor) -> None:
    """Raises `FloatingPointError` for a weight that is no number any more; waits for the device to know."""
    if not is_fake(w) and not (w.isfinite() & high.isfinite()).all():
        raise FloatingPointError(
            f"a weight of shape {tuple(w.shape)} is no longer a finite bf16 number; lower lr or warm up for longer"
        )


@torch.no_grad()
def SplitWeights(  # a function spelled like the optimizers that it stands among
    optimizer: Optimizer,
    bits: int = 16,
    rounding: Rounding = "nearest",
    moments: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Optimizer:
    """Makes the optimizer's parameters bf16, puts their missing bits into its state, and returns the same optimizer.

    Load float32 weights before, move a model to its device before, and leave a frozen parameter's dtype to your model. The
    seeds of stochastic rounding are drawn once, from `generator` or torch's default one; then the state holds them, so
    that checkpoints are exact. Raises `ValueError` for what does not fit together.
    """
    check(optimizer, bits, rounding, moments, generator)
    storage = KahanStorage(moments) if rounding == "kahan" else SplitStorage(bits, rounding, moments)
    for p, state in parameters(optimizer):
        if rounding == "stochastic":
            state["seed"] = draw_seed(generator)
        w = p.detach().float()
        p.grad, p.data = None, w.bfloat16()
        storage.store(p, w, state)
    optimizer.storage = storage
    return optimizer


@torch.no_grad()
def join_weights(optimizer: Optimizer) -> Optimizer:
    """The reverse of `SplitWeights`: float32 parameters with all their bits, and nothing of them in the state."""
    for p, state in parameters(optimizer):
        p.grad, p.data = None, optimizer.storage.whole(p, state)
        convert_moments(state, torch.float32)
        for name in ("low", "seed"):
            state.pop(name, None)
    optimizer.storage = PlainStorage()
    return optimizer


def parameters(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Every parameter with its state, in order, without what torch's fused kernel counted in it, if it ran before."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if state.pop("betas", None):
                del state["t"]
            yield p, state


def draw_seed(generator: torch.Generator | None) -> int:
    """A whole number from a generator, by default torch's own."""
    with unset_fake_temporarily():  # a fake tensor would have no value
        device = generator.device if generator else torch.device("cpu")
        return int(torch.randint(2**62, (), generator=generator, device=device))


def check(optimizer: Any, bits: Any, rounding: Any, moments: Any, generator: Any) -> None:
    """Raises `ValueError` with one sentence where the arguments of `SplitWeights` do not fit together."""
    if type(optimizer.storage) is not PlainStorage:
        raise ValueError("this optimizer already has a storage of its own; call join_weights(optimizer) first")
    if type(bits) is not int or not 0 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 0 to 16, not {bits!r}")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, not {rounding!r}")
    if rounding == "stochastic" and bits == 16:
        raise ValueError("with 16 extra bits nothing is left to round stochastically; give fewer, bits=0 for none")
    if rounding == "kahan" and bits != 16:
        raise ValueError(f"Kahan summation keeps 16 extra bits, not {bits}; leave bits out")
    if moments not in (torch.float32, torch.bfloat16):
        raise ValueError(f"moments must be torch.float32 or torch.bfloat16, not {moments}")
    if generator is not None and rounding != "stochastic":
        raise ValueError(f"generator is for rounding='stochastic'; {rounding!r} draws nothing, so leave it out")
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(
                    f"only float32 and bfloat16 weights can be split, not {p.dtype}; convert the model first"
                )
