"""16-bit weights without a float32 copy: the optimizer keeps only the bits that the weight lacks.

Mixed precision keeps a 16-bit weight for the model and a float32 master copy of it for the optimizer. A bfloat16 is the
upper half of a float32, so the master says the same thing twice: here the parameter is the upper half, `high`, the
optimizer's state holds the lower one, `low`, and every step joins them, steps in float32, and splits the result. Training
is bit for bit that with a master whose forward pass uses the master's upper half, at 2 bytes a weight less. Fewer than 16
extra bits save more, 8 of them a third byte, and are training with a master that is rounded after every step.

    bits(w) = 2^16 high + low    on bit patterns, `low` with its sign: it is negative where `high` was rounded up

Rounding `high` to the nearest, ties away from zero, is invertible because the sign of `low` tells which way it went.
Ties to even, as `.bfloat16()` has them, is not: around a tie two different weights have the same two halves.

Reference: Lewandowski & Kosson, 2023, "Memory Efficient Mixed-Precision Optimizers", arXiv 2309.12381. Stochastic
rounding and Kahan summation (arXiv 2010.06192) are the alternatives: no extra bits, or 16 of another kind.

When it does not help: where weights are not what fills the memory (activations and the loss's logits often are); where the
model's layers need float32 weights, for this is not float32 training nor autocast, which keep float32 gradients; with few
bits and small steps, for rounding to the nearest loses a step below half of the last bit kept (0 bits stall), where
stochastic rounding keeps it on average. Cutting off needs all 16 bits: with fewer, any step toward zero, however small,
would cost a whole unit of the last bit. Kahan summation is not a peer of 16 bits for steps below about 2^-17 to 2^-16 of
the weight: they can stall, in either direction, where the part kept has grown to a tie. Moments in bf16 stall in the same
way as few bits: a second moment with `1 - beta2` below 2^-9 can never fall.

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
from minitrain.runtime.fused import begin, forget_count, kernel

Rounding = Literal["nearest", "truncate", "stochastic", "kahan"]


# --8<-- [start:split]
def split(x: Float32[Tensor, "..."], truncate: bool = False) -> tuple[BFloat16[Tensor, "..."], Int16[Tensor, "..."]]:
    """The two halves of each number: `high` is `x` to the nearest, ties away from zero (or cut off), `low` the rest."""
    bits = x.view(torch.int32)
    low = bits.to(torch.int16)
    high = (bits if truncate else bits - low) >> 16  # 2^16 more where low is negative: one unit of high
    return high.to(torch.int16).view(torch.bfloat16), low


def join(high: BFloat16[Tensor, "..."], low: Int16[Tensor, "..."], truncate: bool = False) -> Float32[Tensor, "..."]:
    """The reverse of `split`, bit for bit."""
    upper = high.view(torch.int16).int() << 16
    return (upper | low.int() & 0xFFFF if truncate else upper + low).view(torch.float32)


# --8<-- [end:split]
def round_to(x: Float32[Tensor, "..."], bits: int, seed: int | None = None) -> Float32[Tensor, "..."]:
    """`x` with the last `16 - bits` bits zero: to the nearest, ties away from zero, or stochastically where a seed is given.

    Stochastic rounding goes up as often as what it drops says: no bias.
    """
    unit = 1 << (16 - bits)  # of the last bit kept, on the bit pattern, which counts away from zero
    if seed is None:
        add = unit // 2
    else:
        generator = torch.Generator(x.device).manual_seed(seed)
        add = torch.randint(unit, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    return ((x.view(torch.int32) + add) & -unit).view(torch.float32)


LARGEST = torch.finfo(torch.bfloat16).max
PIECE = {"cpu": 2**17}  # how many weights are joined at once in the fused step: as many as a CPU's cache has room for
OTHER_PIECE = 2**22


class SplitStorage(PlainStorage):
    """The parameter is bf16, the state's `low` has `bits` more (int8 up to 8, int16 above), and the rule sees their float32.

    `moments` is the dtype that whatever else the state holds is kept in between steps. The state's `split` says how the
    weight was split, so that bits are never read in another way than they were written.
    """

    def __init__(self, bits: int = 16, rounding: Rounding = "nearest", moments: torch.dtype = torch.float32):
        self.bits, self.rounding, self.moments = bits, rounding, moments
        self.truncate = rounding == "truncate"
        self.way = f"{rounding} {bits}"
        self.finite: list[tuple[Tensor, torch.Size]] = []  # of each weight stepped, whether it still is a number
        self.before = PlainStorage()  # what `join_weights` puts back

    def load(self, p: Tensor, state: dict) -> Tensor:
        self.refuse_other_ways(p, state)
        convert_moments(state, p, torch.float32)
        return self.whole(p, state)

    def store(self, p: Tensor, w: Tensor, state: dict) -> None:
        seed = state["seed"] if self.rounding == "stochastic" else None
        high, low = split(round_to(w, self.bits, seed), self.truncate)
        self.note(w, p.shape)
        if self.bits:
            state["low"] = low if self.bits > 8 else (low >> 8).to(torch.int8)
        if seed is not None:
            state["seed"] = seed + 1
        state["split"] = self.way
        convert_moments(state, p, self.moments)
        p.copy_(high)

    def fused_adamw(self, p: Tensor, state: dict, group: dict[str, Any]) -> bool:
        """Piece by piece, so that what was joined is still in the cache when it is split again."""
        if type(self) is not SplitStorage or self.way != "nearest 16" or self.moments != torch.float32:
            return False
        self.refuse_other_ways(p, state)
        if p.grad is None or not state["low"].is_contiguous() or not begin(p, state, group["betas"], torch.float32):
            forget_count(state)
            return False
        tensors = (p, state["low"], p.grad, state["m"], state["v"])
        size = PIECE.get(p.device.type, OTHER_PIECE)
        for high, low, g, m, v in zip(*(x.view(-1).split(size) for x in tensors), strict=True):
            w = high.float()
            bits = w.view(torch.int32)  # the same memory
            bits += low
            kernel(w, g.float(), m, v, state["t"], group)
            self.note(w, p.shape)
            low.copy_(bits)
            bits -= low
            high.copy_(w)
        return True

    def whole(self, p: Tensor, state: dict) -> Tensor:
        """The weight with all the bits there are, in float32."""
        if not self.bits:
            return p.float()
        low = state["low"]
        return join(p, low if self.bits > 8 else low.short() << 8, self.truncate)

    def note(self, w: Tensor, shape: torch.Size) -> None:
        """Notes whether a weight is finite, before it is stored; asking any device but a CPU at once would make it wait."""
        if not is_fake(w) and w.numel():
            low, high = w.aminmax()  # NaN where there is one
            self.finite.append(((low >= -LARGEST) & (high <= LARGEST), shape))
            if w.device.type == "cpu":
                self.finish()

    def finish(self) -> None:
        """Raises `FloatingPointError` where a weight that was noted is no number any more."""
        noted, self.finite = self.finite, []
        if noted and not torch.stack([finite.to(noted[0][0].device) for finite, _ in noted]).all():
            shape = next(shape for finite, shape in noted if not finite)
            raise FloatingPointError(
                f"a weight of shape {tuple(shape)} is no longer a finite bf16 number, and the optimizer's moments hold the "
                "gradient that made it so; go back to a checkpoint, and lower lr or warm up for longer"
            )

    def refuse_other_ways(self, p: Tensor, state: dict) -> None:
        """Raises `ValueError` for a weight that is not split, or in another way than this one."""
        if p.dtype != torch.bfloat16 or state.get("split") != self.way:
            raise ValueError(
                f"a {p.dtype} weight of shape {tuple(p.shape)}, split as {state.get('split')!r}, came where a bf16 one, "
                f"split as {self.way!r}, is needed; load a state that was saved with these bits and rounding, or split "
                "the weights once all groups are there"
            )


class KahanStorage(SplitStorage):
    """The rule sees the bf16 weight alone; what rounding took from its steps is kept in bf16 and added to the next one."""

    def __init__(self, moments: torch.dtype = torch.float32):
        super().__init__(16, "kahan", moments)

    def load(self, p: Tensor, state: dict) -> Tensor:
        super().load(p, state)
        return p.float()

    def store(self, p: Tensor, w: Tensor, state: dict) -> None:
        old = p.float()
        # k <- k + step,  high <- w + k,  k <- k + (w - high)
        k = (state.get("low", 0) + (w - old)).bfloat16()
        high = (old + k).bfloat16()
        self.note(w, p.shape)
        state["low"], state["split"] = (k + (old - high)).bfloat16(), self.way
        convert_moments(state, p, self.moments)
        p.copy_(high)

    def whole(self, p: Tensor, state: dict) -> Tensor:
        return p.float() + state["low"]


def convert_moments(state: dict, p: Tensor, dtype: torch.dtype) -> None:
    """Brings to `dtype` what the state has of the weight's size, but for the weight's own bits."""
    for name, x in state.items():
        if name != "low" and isinstance(x, Tensor) and x.is_floating_point() and x.shape == p.shape:
            state[name] = x.to(dtype)


@torch.no_grad()
def SplitWeights(  # a function spelled like the optimizers that it stands among
    optimizer: torch.optim.Optimizer,
    bits: int = 16,
    rounding: Rounding = "nearest",
    moments: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Optimizer:
    """Makes the optimizer's parameters bf16, puts their missing bits into its state, and returns the same optimizer.

    Load float32 weights before, move a model to its device before, and leave a frozen parameter's dtype to your model. A
    state saved with split weights belongs into an optimizer split alike; one that is not split would leave its bits unused.
    The seeds of stochastic rounding are drawn once, from `generator` or torch's default one; then the state holds them, so
    that checkpoints are exact. Raises `ValueError` for what does not fit together, before anything is converted.
    """
    optimizer = own(optimizer)
    check(optimizer, bits, rounding, moments, generator)
    storage = KahanStorage(moments) if rounding == "kahan" else SplitStorage(bits, rounding, moments)
    storage.before = optimizer.storage
    for p, state in parameters(optimizer):
        if rounding == "stochastic":
            state["seed"] = draw_seed(generator)
        w = p.detach().float()
        p.grad, p.data = None, w.bfloat16()
        storage.store(p, w, state)
    storage.finish()
    optimizer.storage = storage
    return optimizer


@torch.no_grad()
def join_weights(optimizer: torch.optim.Optimizer) -> Optimizer:
    """The reverse of `SplitWeights`: float32 parameters with all their bits, nothing of them in the state, the old storage.

    Raises `ValueError` for weights that are not split, or in another way, before anything is converted.
    """
    optimizer = own(optimizer)
    storage = optimizer.storage
    if not isinstance(storage, SplitStorage):
        raise ValueError("this optimizer's weights are not split; call SplitWeights(optimizer) before join_weights")
    for p, state in parameters(optimizer):
        storage.refuse_other_ways(p, state)
    for p, state in parameters(optimizer):
        p.grad, p.data = None, storage.whole(p, state)
        convert_moments(state, p, torch.float32)
        for name in ("low", "seed", "split"):
            state.pop(name, None)
    optimizer.storage = storage.before
    return optimizer


def own(optimizer: torch.optim.Optimizer) -> Optimizer:
    """The same optimizer. Raises `ValueError` where it is not one of minitrain's, whose weights pass through a storage."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"only minitrain's own optimizers can be split and joined, not {type(optimizer).__module__}."
            f"{type(optimizer).__name__}; put StepInBackward around afterwards"
        )
    return optimizer


def parameters(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Every parameter with its state, in order, without what torch's fused kernel counted in it, if it ran before."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            forget_count(state)
            yield p, state


def draw_seed(generator: torch.Generator | None) -> int:
    """A whole number from a generator, by default torch's own."""
    with unset_fake_temporarily():  # a fake tensor would have no value
        device = generator.device if generator else torch.device("cpu")
        return int(torch.randint(2**62, (), generator=generator, device=device))


def check(optimizer: Any, bits: Any, rounding: Any, moments: Any, generator: Any) -> None:
    """Raises `ValueError` with one sentence where the arguments of `SplitWeights` do not fit together."""
    if isinstance(optimizer.storage, SplitStorage):
        raise ValueError("this optimizer's weights are already split; call join_weights(optimizer) first")
    if not isinstance(optimizer.storage, PlainStorage):
        raise ValueError(
            f"only weights that parameters themselves hold can be split, not those of {type(optimizer.storage).__name__}; "
            "split them under a PlainStorage"
        )
    if type(bits) is not int or not 0 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 0 to 16, not {bits!r}")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, not {rounding!r}")
    if rounding == "stochastic" and bits == 16:
        raise ValueError("with 16 extra bits nothing is left to round stochastically; give fewer, bits=0 for none")
    if rounding == "truncate" and bits != 16:
        raise ValueError(
            f"cut off to {bits} extra bits, any step toward zero would cost a whole unit of the last; give 16, or another "
            "rounding"
        )
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
            if not is_fake(p) and not (p.abs() <= LARGEST).all():  # also refuses NaN
                raise ValueError(
                    f"a weight of shape {tuple(p.shape)} does not fit into bf16 (largest finite 3.39e38); nothing was "
                    "converted, so give it finite values first"
                )
