"""Online normalization: a layer normalizes with what it saw before, one sample after another, so a batch of one will do.

A sample is normalized by running averages over those before it, never by itself or its batch, in training as in evaluation.
No gradient can flow through such averages, and without one the weights drift along the directions that a normalizer should
not feel. So the backward pass is given a controller that restores, on average over time, the two conditions that the
gradient of a true normalizer obeys: it sums to zero, and it has nothing along the output.

    forward     y = (x - m) / r        with r = sqrt(s + eps)
                s <- df s + (1 - df) q + df (1 - df) (a - m)^2
                m <- df m + (1 - df) a
    backward    h = g - (1 - db) v y        v <- v + mean(h y)
                g' = h / r - (1 - db) u     u <- u + mean(g')

All this is per channel; `a` and `q` are the sample's mean and variance over space, `df` and `db` the decays. Then follow
gain and bias, and a guard against outputs that outrun the averages. With `db=1` the control is off. The backward pass is
not the Jacobian of the forward pass, on purpose.

Reference: Chiley et al., 2019, arXiv 1905.05894; their code (Cerebras/online-normalization) for the defaults and guards.

When it does not help: where batches are large enough for batch norm, which is faster and has nothing to tune. The order of
the samples counts, and so do forward and backward passes: one backward pass for each forward pass, before the next one.
Activation checkpointing and double backward are refused. Statistics are those of one process; `torch.compile` leaves the
layer to eager execution.

Deviations: `1 - (1 - db) mean(y^2)`, the share of `v` that a sample leaves, is kept from falling below 0, where `v` could
grow without bound (the authors do so, at 1e-5, in one of their variants). Samples are taken together by linear recurrences.

A sample that is not finite spoils the averages, and every output after it, for good. `train` ends at such a loss before it
saves; in a loop of one's own look at the loss before saving, and go back to the last checkpoint. A batch of no samples
changes nothing.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minitrain.optim import widened

Guard = Literal["clamp", "scale", "none"]


# --- one sample: the definition ---------------------------------------------------------------------------------------


# --8<-- [start:forward]
def normalize_sample(
    x: Float[Tensor, "C S"], m: Float[Tensor, " C"], s: Float[Tensor, " C"], decay: float, eps: float
) -> tuple[Float[Tensor, "C S"], Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, " C"]]:
    """The output `y` for a sample with S pixels, the `r` it was divided by, and the next mean and variance."""
    a = x.mean(1)
    q = (x - a[:, None]).square().mean(1)
    r = (s + eps).sqrt()
    y = (x - m[:, None]) / r[:, None]
    s = decay * s + (1 - decay) * q + decay * (1 - decay) * (a - m).square()
    m = decay * m + (1 - decay) * a
    return y, r, m, s


# --8<-- [end:forward]
# --8<-- [start:backward]
def gradient_of_sample(
    g: Float[Tensor, "C S"],
    y: Float[Tensor, "C S"],
    r: Float[Tensor, " C"],
    u: Float[Tensor, " C"],
    v: Float[Tensor, " C"],
    decay: float,
) -> tuple[Float[Tensor, "C S"], Float[Tensor, " C"], Float[Tensor, " C"]]:
    """The gradient to hand back for a sample whose output has gradient `g`, and the next `u` and `v`."""
    h = g - (1 - decay) * v[:, None] * y
    # v <- v + mean(h y), written so that one can see what is left of v
    v = (1 - (1 - decay) * y.square().mean(1)).clamp(min=0) * v + (g * y).mean(1)
    back = h / r[:, None] - (1 - decay) * u[:, None]
    u = u + back.mean(1)
    return back, u, v


# --8<-- [end:backward]
# --- a batch: the same, all samples at once ---------------------------------------------------------------------------


# --8<-- [start:recurrence]
def recurrence(
    x: Float[Tensor, "B C"], first: Float[Tensor, " C"], factor: float | Float[Tensor, "B C"]
) -> Float[Tensor, "B1 C"]:
    """`z[0] = first, z[t + 1] = factor[t] * z[t] + x[t]`: steps are merged in pairs, pairs of pairs and so on."""
    z, f, span = torch.cat([first[None], x]), factor, 1  # f[i]: what z[span + i] keeps of z[i]
    while span < len(z):
        z[span:].add_(f * z[:-span])
        f = f[span:] * f[:-span] if isinstance(f, Tensor) else f * f
        span *= 2
    return z


# --8<-- [end:recurrence]


def flat(x: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C S"]:
    """With its pixels in one dimension."""
    return x.flatten(2) if x.ndim > 2 else x[:, :, None]


def with_gain(
    y: Float[Tensor, "B C S"], weight: Float[Tensor, " C"] | None, bias: Float[Tensor, " C"] | None
) -> Float[Tensor, "B C S"]:
    """`y`, or a new tensor, with gain and bias."""
    y = y if weight is None else y * weight[:, None]
    return y if bias is None else y + bias[:, None]


class Normalize(torch.autograd.Function):
    """A batch through a layer in training: moves its `mean` and `var`, and on the way back its `u` and `v`.

    Its time is that of passes over memory, of which fresh memory is the dearest. So results are written over what is done
    with, and the gradients of gain and bias come from means that the control needs anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, pixels: Float[Tensor, "B C S"], weight: Tensor | None, bias: Tensor | None, layer: "OnlineNorm2d"
    ) -> Float[Tensor, "B C S"]:
        d, x = layer.forward_decay, widened(pixels)
        a = x.mean(2)
        y = (x - a[:, :, None]).square_()
        q = y.mean(2)
        # m moves by distances from where it was, so that a constant input has exactly its own mean
        m = layer.mean + recurrence((1 - d) * (a - layer.mean), torch.zeros_like(layer.mean), d)
        s = recurrence((1 - d) * (q + d * (a - m[:-1]).square()), layer.var, d)
        layer.mean.copy_(m[-1])
        layer.var.copy_(s[-1])
        m, scale = m[:-1], (s[:-1] + layer.eps).rsqrt()
        torch.sub(x, m[:, :, None], out=y).mul_(scale[:, :, None])
        mean = (a - m) * scale  # of y, and below of its square
        ctx.save_for_backward(y.to(pixels.dtype), scale, mean, q * scale.square() + mean.square(), weight)
        ctx.layer, ctx.turn = layer, layer.turn
        return with_gain(y, weight, bias).to(pixels.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B C S"]) -> tuple[Tensor | None, ...]:
        layer, (y, scale, mean, square, weight) = ctx.layer, ctx.saved_tensors
        if ctx.turn != layer.turn:
            raise RuntimeError(
                "online norm needs one backward pass for each forward pass, before the next forward pass; sum losses over "
                "one batch, and make every other forward pass in evaluation mode"
            )
        layer.turn += 1
        share, g = 1 - layer.backward_decay, widened(gradient)
        back = g * y
        gy, g1 = back.mean(2), g.mean(2)
        wanted, gain = ctx.needs_input_grad[1:3], scale
        of_gain = [z.sum(0) * g.shape[2] if needed else None for z, needed in zip((gy, g1), wanted, strict=True)]
        if weight is not None:
            gy, g1, gain = gy * weight, g1 * weight, scale * weight
        v = recurrence(gy, layer.v, (1 - share * square).clamp(min=0))
        along = share * v[:-1]
        u = recurrence((g1 - along * mean) * scale, layer.u, layer.backward_decay)
        layer.u.copy_(u[-1])
        layer.v.copy_(v[-1])
        torch.mul(g, gain[:, :, None], out=back).addcmul_(y, (along * scale)[:, :, None], value=-1)
        back.sub_(share * u[:-1, :, None])
        return back.to(gradient.dtype), *of_gain, None


# --- the layer --------------------------------------------------------------------------------------------------------


# --8<-- [start:layer]
class OnlineNorm2d(nn.Module):
    """Normalizes `(B, C)` or `(B, C, ...)`, in the place of batch norm; the samples of a batch in their order.

    The horizons of its averages are `1 / (1 - decay)` samples. `guard`: "clamp" outputs to -5..5, or "scale" each sample to
    a mean square of 1 over all channels, or "none". `mean`, `var`, `u` and `v` (C,) are float32 buffers, in half-precision
    models too, and part of the state. Raises `ValueError` for values out of range.
    """

    rows_depend = True  # on each other in training, which who measures parts of a batch must know
    mean: Tensor
    var: Tensor
    u: Tensor
    v: Tensor

    def __init__(
        self,
        channels: int,
        forward_decay: float = 0.999,
        backward_decay: float = 0.99,
        eps: float = 1e-5,
        guard: Guard = "clamp",
        affine: bool = True,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, not {channels}")
        for name, decay in (("forward_decay", forward_decay), ("backward_decay", backward_decay)):
            if not 0 <= decay <= 1:
                raise ValueError(f"{name} must be from 0 to 1, a share kept per sample such as 0.99, not {decay}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps must be a finite number above 0, not {eps}")
        if guard not in ("clamp", "scale", "none"):
            raise ValueError(f"guard must be 'clamp', 'scale' or 'none', not {guard!r}")
        self.forward_decay, self.backward_decay, self.eps, self.guard = forward_decay, backward_decay, eps, guard
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        for name, start in (("mean", 0.0), ("var", 1.0), ("u", 0.0), ("v", 0.0)):
            self.register_buffer(name, torch.full((channels,), start))
        self.turn = 0  # counts forward and backward passes, to tell when one is missing

    @torch.compiler.disable(reason="online norm keeps state between forward and backward passes")
    def forward(self, x: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        n = len(self.mean)
        if x.ndim < 2 or x.shape[1] != n or 0 in x.shape[2:]:
            raise ValueError(f"online norm of {n} channels needs (B, {n}, ...) with pixels, not {tuple(x.shape)}")
        if self.training:
            z = self.with_moving_statistics(flat(x))
        else:
            y = (widened(flat(x)) - self.mean[:, None]) * (self.var + self.eps).rsqrt()[:, None]
            z = with_gain(y, self.weight, self.bias)
        z = z.view(x.shape)
        if self.guard == "clamp":
            z = F.hardtanh(z, -5, 5)  # as clamp, with a backward pass in one go
        elif self.guard == "scale":
            z = F.rms_norm(z, z.shape[1:], eps=1e-5)
        return z.to(x.dtype)

    def with_moving_statistics(self, x: Float[Tensor, "B C S"]) -> Float[Tensor, "B C S"]:
        """Raises `RuntimeError` where a backward pass asks for it, which would move the statistics a second time."""
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "online norm cannot be recomputed in the backward pass, for its statistics would move twice; leave "
                "activation checkpointing out, or take group norm"
            )
        inputs = (x, self.weight, self.bias)
        if torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in inputs):
            self.turn += 1
        return Normalize.apply(*inputs, self)

    # --8<-- [end:layer]
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the layer to a device or dtype; in half precision an average of 1,000 samples would stand still."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.itemsize < 4:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, forward_decay={self.forward_decay}, backward_decay={self.backward_decay}, {self.guard!r}"


# --- other people's models, other batch sizes -------------------------------------------------------------------------


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_online_norm(
    model: nn.Module, forward_decay: float = 0.999, backward_decay: float = 0.99, guard: Guard = "clamp"
) -> nn.Module:
    """Puts online norm in the place of every batch norm in the model, and returns the model.

    Gains, biases, `eps` and running statistics are taken over, so that in evaluation the model computes what it did, but
    for the guard. Gains and biases stay the same parameters. Raises `ValueError` for a model without batch norm.
    """
    found = [(name, old) for name, old in model.named_modules(remove_duplicate=False) if type(old) in BATCH_NORMS]
    made = {}
    for _, old in found:
        new = OnlineNorm2d(old.num_features, forward_decay, backward_decay, old.eps, guard, affine=False)
        new.weight, new.bias = old.weight, old.bias
        if old.running_mean is not None and old.running_var is not None:
            new.mean, new.var = (widened(x.detach()).clone() for x in (old.running_mean, old.running_var))
        place = old.running_mean if old.weight is None else old.weight
        if place is not None:
            new.to(place.device)
        made[old] = new.train(old.training)
    for name, old in found:  # all of them could be made
        if name:
            model.set_submodule(name, made[old])
        else:
            model = made[old]
    if not made:
        raise ValueError(f"this {type(model).__name__} has no batch norm to replace; build it with norm=OnlineNorm2d")
    return model


# --8<-- [start:batch]
def for_batch_size(lr: float, momentum: float, tuned_at: int, batch_size: int) -> tuple[float, float]:
    """Learning rate and momentum for SGD at another batch size than that which they were tuned at.

    Counted in samples, a gradient is forgotten as fast as before and moves the weights as far in all. Weight decay stays as
    it is. This is the rule of the authors' code (Cerebras/online-normalization, `experiments/resnet/utils.py`). Raises
    `ValueError` for values out of range.
    """
    if min(tuned_at, batch_size) < 1 or not 0 <= momentum < 1:
        raise ValueError(
            f"batch sizes must be at least 1 and momentum from 0 to below 1, not {tuned_at}, {batch_size} and {momentum}"
        )
    share = batch_size / tuned_at
    new = momentum**share
    return lr * share * (1 - new) / (1 - momentum), new


# --8<-- [end:batch]
