"""Ghost noise: the noise of small batches in batch norm, without small batches.

Batch norm measures each sample against its batch, so its output depends a little on the company a sample keeps. That noise
regularizes, the more the smaller the batch. Ghost batch norm makes it by normalizing parts of the batch, the ghost batches,
each by itself; but then a sample also takes part in its own yardstick, in training and not in evaluation. Ghost noise
injection keeps the noise only: every sample is shifted and scaled by the moments of a random ghost batch.

    idx[i, j] uniform in the batch, with replacement      i: sample, j = 1..N; the same for all channels, fresh in each layer
    m_i = mean_j a[idx_ij]                                a, q: mean and mean square of each sample and channel
    v_i = mean_j q[idx_ij] - m_i^2
    shift_i = m_i - mu    scale_i = sqrt((v_i + eps) / (var + eps))     mu, var: moments of the whole batch
    y_i = (x_i - shift_i) / scale_i                       in training; in evaluation y = x

The noise counts as a constant in the backward pass. It belongs between the statistics and the affine of a norm: a mean that
is not zero would be scaled with the rest.

Reference: Kosson, Fan & Jaggi, 2023, arXiv 2305.17205, and its official code (injection, exclusive batch norm, noisy
affine); Hoffer et al., 2017, arXiv 1705.08741 (ghost batch norm).

When it does not help: where there is data enough, for it is a regularizer; with micro batches or several ranks of a few
samples, whose moments are those of the micro batch; where every sample and channel is normalized by itself (instance norm),
which leaves nothing to differ; in a GPT a token's noise comes from moments over all tokens of the samples, so that in
training it sees a little of those that come later.

Deviations: running variances are the unbiased ones, as in torch, and evaluation uses the layer's own eps. In layer norms the
noise stands before the gain and bias, as in batch norms; the authors' vision transformer has it behind them. `NoisyAffine`
supposes inputs of unit variance. A batch of one sample is left as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minitrain.modules import Which, choose
from minitrain.optim import widened

EPS = 1e-3  # of the noise, as in all of the authors' experiments; a norm has its own


# --8<-- [start:noise]
def instance_moments(
    x: Float[Tensor, "B ..."], channels_last: bool = False
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Mean and mean square of each sample and channel, in float32 at least. Channels are dimension 1, or the last one.

    A variance from them loses its digits where the mean is hundreds of times the spread, which it is not behind a norm.
    """
    wide = widened(x)
    inner = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    # Two means, since var_mean over a part of the dimensions is slow on CPUs; of an empty tuple, mean takes all dimensions.
    return (wide.mean(inner), (wide * wide).mean(inner)) if inner else (wide, wide * wide)


def ghost_noise(
    a: Float[Tensor, "B C"], q: Float[Tensor, "B C"], idx: Int[Tensor, "G N"], eps: float = EPS
) -> tuple[Float[Tensor, "G C"], Float[Tensor, "G C"]]:
    """`shift` and `scale` of the ghost batches whose samples `idx` lists, from the instance moments `a` and `q`."""
    mu = a.mean(0)
    var = (q.mean(0) - mu * mu).clamp(min=0)
    # How often each sample is in each ghost batch: a product with it is cheaper than to gather N rows for every sample.
    counts = a.new_zeros(len(idx), len(a)).scatter_add_(1, idx, a.new_ones(()).expand(idx.shape))
    with torch.autocast(a.device.type, enabled=False):
        m, square = (counts @ torch.cat((a, q), 1) / idx.shape[1]).chunk(2, 1)
    v = (square - m * m).clamp(min=0)
    return m - mu, ((v + eps) / (var + eps)).sqrt()


def inject(
    x: Float[Tensor, "B ..."],
    shift: Float[Tensor, "B C"],
    scale: Float[Tensor, "B C"],
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    channels_last: bool = False,
) -> Float[Tensor, "B ..."]:
    """`(x - shift) / scale * weight + bias` as one multiplication and addition, given in the dtype of `x`."""
    factor = 1 / scale if weight is None else weight / scale
    offset = -shift * factor if bias is None else bias - shift * factor
    ones = [1] * (x.ndim - 2)
    shape = [len(x), *ones, factor.shape[1]] if channels_last else [*factor.shape, *ones]
    inner = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    return Affine.apply(x, factor.view(shape), offset.view(shape), inner)


# --8<-- [end:noise]
class Affine(torch.autograd.Function):
    """`x * factor + offset`, which are constant in the dimensions `inner`; torch's own form goes over `x` more often."""

    @staticmethod
    def forward(x: Tensor, factor: Tensor, offset: Tensor, inner: tuple[int, ...]) -> Tensor:
        wide = widened(x)  # in bf16, addcmul is slow
        return torch.addcmul(offset, wide, factor, out=None if wide is x else wide).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.inner = inputs[3]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x, factor), (g,) = ctx.saved_tensors, outputs
        of_factor = total(g * x, ctx.inner, factor.dtype) if ctx.needs_input_grad[1] else None
        of_offset = total(g, ctx.inner, factor.dtype) if ctx.needs_input_grad[2] else None
        return g * factor.to(g.dtype), of_factor, of_offset, None


def total(x: Tensor, inner: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The sum over some dimensions, which stay; of no dimensions, sum would take all."""
    return x.sum(inner, keepdim=True, dtype=dtype) if inner else x.to(dtype)


def check_size(ghost_batch_size: int, least: int = 2, reason: str = "one sample has no spread") -> None:
    """Raises `ValueError` for a ghost batch that is too small."""
    if type(ghost_batch_size) is not int or ghost_batch_size < least:
        raise ValueError(
            f"ghost_batch_size must be a whole number of at least {least}, not {ghost_batch_size!r}: {reason}"
        )


# --- noise alone ------------------------------------------------------------------------------------------------------


class Noise(nn.Module):
    """What the two kinds of noise share: in training `(x - shift) / scale`, in evaluation `x`; no parameters, no buffers.

    `x` is a batch of any shape, its channels in dimension 1 or, with `channels_last`, in the last one (tokens, `B T C`).
    Random numbers come from the device's default generator, so that checkpoints of a run and recomputed blocks replay them;
    a call may give another `generator`, but not in a compiled model.
    """

    def __init__(self, ghost_batch_size: int, shift: bool = True, scale: bool = True, channels_last: bool = False):
        super().__init__()
        check_size(ghost_batch_size)
        if not shift and not scale:
            raise ValueError("with neither shift nor scale there is no noise; leave it out")
        self.ghost_batch_size, self.shift, self.scale = ghost_batch_size, shift, scale
        self.channels_last = channels_last

    def forward(self, x: Float[Tensor, "B ..."], generator: torch.Generator | None = None) -> Float[Tensor, "B ..."]:
        return self.apply_to(x, None, None, generator) if self.training else x

    def apply_to(
        self, x: Float[Tensor, "B ..."], weight: Tensor | None, bias: Tensor | None, generator: Any = None
    ) -> Float[Tensor, "B ..."]:
        """The noise, then a norm's gain and bias (C,), where it has them."""
        if x.ndim < 2:
            raise ValueError(f"ghost noise needs a batch of at least two dimensions, not the shape {tuple(x.shape)}")
        shift, scale = self.draw(x.detach(), generator)
        shift = shift if self.shift else torch.zeros_like(shift)
        scale = scale if self.scale else torch.ones_like(scale)
        return inject(x, shift, scale, weight, bias, self.channels_last)

    def draw(self, x: Tensor, generator: Any) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        """A shift and a scale for each sample and channel."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.ghost_batch_size}, shift={self.shift}, scale={self.scale}, channels_last={self.channels_last}"


# --8<-- [start:module]
class GhostNoise(Noise):
    """Ghost noise injection: by the moments of a random ghost batch for each sample, which may be larger than the batch."""

    rows_depend = True  # on each other in training, which who measures parts of a batch must know

    def draw(self, x: Tensor, generator: Any = None) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        B = len(x)
        a, q = instance_moments(x, self.channels_last)
        if B < 2:  # the only ghost batch is the batch
            return torch.zeros_like(a), torch.ones_like(a)
        idx = torch.randint(B, (B, self.ghost_batch_size), device=x.device, generator=generator)
        return ghost_noise(a, q, idx)


class NoisyAffine(Noise):
    """The analytic counterpart: by the moments of N numbers of a unit normal, for each sample and channel by itself.

    `shift` is normal with variance 1/N, and `N scale^2` is chi-squared with N - 1 degrees of freedom: what ghost noise would
    be if each sample had one pixel, all of them normal and independent, also between channels. Raises `ValueError` for an N
    below 3, with which the mean of `1 / scale` is infinite.
    """

    def __init__(self, ghost_batch_size: int, shift: bool = True, scale: bool = True, channels_last: bool = False):
        super().__init__(ghost_batch_size, shift, scale, channels_last)
        check_size(ghost_batch_size, 3, "with less, the mean of 1 / scale is infinite")

    def draw(self, x: Tensor, generator: Any = None) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        sizes = self.ghost_batch_size, len(x), x.shape[-1 if self.channels_last else 1]
        z = torch.randn(sizes, device=x.device, dtype=widened(x[:0]).dtype, generator=generator)
        var, mean = torch.var_mean(z, 0, correction=0)
        return mean, var.sqrt()


# --8<-- [end:module]
# --- noise inside a norm ------------------------------------------------------------------------------------------------


class Noisy:
    """What noisy norms share: statistics, then noise, then gain and bias. Parameters, buffers and names are the norm's own.

    In evaluation it is the norm, bit for bit, and so it is from `noise.eval()` to the next `train()` of the model. To have
    the noise off for good, load the weights into a model without it.
    """

    noise: Noise

    def forward(self: Any, input: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        if not (self.training and self.noise.training):
            return super().forward(input)
        # RMS norm has no bias.
        return self.noise.apply_to(self.normalized(input), self.weight, getattr(self, "bias", None))

    def normalized(self, x: Tensor) -> Tensor:
        """Without gain and bias."""
        raise NotImplementedError


class NoisyBatchNorm(Noisy):
    """Batch norms of all kinds, in training."""

    def normalized(self: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, True, count_batch(self), self.eps)


def count_batch(norm: Any) -> float:
    """Counts a batch, as torch's batch norms do, and returns its share in the running statistics."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


class NoisyBatchNorm1d(NoisyBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` with noise."""


class NoisyBatchNorm2d(NoisyBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` with noise."""


class NoisyBatchNorm3d(NoisyBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` with noise."""


class NoisyGroupNorm(Noisy, nn.GroupNorm):
    """`nn.GroupNorm` with noise."""

    def normalized(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, eps=self.eps)


class NoisyLayerNorm(Noisy, nn.LayerNorm):
    """`nn.LayerNorm` with noise."""

    def normalized(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, eps=self.eps)


class NoisyRMSNorm(Noisy, nn.RMSNorm):  # ty: ignore[lost-keyword-for-regular-parameter]
    """`nn.RMSNorm` with noise."""

    def normalized(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, eps=self.eps)


NOISY: dict[type, type] = {
    nn.BatchNorm1d: NoisyBatchNorm1d,
    nn.BatchNorm2d: NoisyBatchNorm2d,
    nn.BatchNorm3d: NoisyBatchNorm3d,
    nn.GroupNorm: NoisyGroupNorm,
    nn.LayerNorm: NoisyLayerNorm,
    nn.RMSNorm: NoisyRMSNorm,
}


def outside_attention(name: str, norm: nn.Module) -> bool:
    """Whether a norm is not one of an attention's queries and keys, which are named `q_norm` and `k_norm`."""
    return not name.endswith(("q_norm", "k_norm"))


# --8<-- [start:convert]
def with_ghost_noise(
    model: nn.Module,
    ghost_batch_size: int = 16,
    shift: bool = True,
    scale: bool = True,
    which: Which = outside_attention,
    noise: Callable[..., Noise] = GhostNoise,
) -> nn.Module:
    """Puts noise into the model's norms, between statistics and affine, and returns the model; `noisy` lists the norms.

    The norms are changed in place and stay the same objects, with their parameters, running statistics and names. `which`
    is a collection of norm names, or says yes or no to `(name, norm)`. Batch norms and group norms have channels in
    dimension 1, layer norms and RMS norms of one dimension in the last one; the batch is dimension 0 for all of them.
    Raises `ValueError` for what cannot take noise, before anything is changed.
    """
    for norm in chosen(model, which).values():
        norm.noise = noise(ghost_batch_size, shift, scale, isinstance(norm, nn.LayerNorm | nn.RMSNorm))
        norm.__class__ = NOISY[type(norm)]
    return model


# --8<-- [end:convert]
def noisy(model: nn.Module) -> dict[str, str]:
    """The norms with noise, by name, and what each of them is: `{"norm": "BatchNorm2d with GhostNoise(16, ...)"}`."""
    found = {name: norm for name, norm in model.named_modules() if isinstance(norm, Noisy)}
    return {name: f"{type(norm).__name__.removeprefix('Noisy')} with {norm.noise!r}" for name, norm in found.items()}


def ghost_noised(
    build_model: Callable[[], nn.Module],
    ghost_batch_size: int = 16,
    shift: bool = True,
    scale: bool = True,
    which: Which = outside_attention,
    noise: Callable[..., Noise] = GhostNoise,
) -> nn.Module:
    """`with_ghost_noise` for a recipe: `build_model=partial(ghost_noised, partial(GPT, depth=2))`."""
    return with_ghost_noise(build_model(), ghost_batch_size, shift, scale, which, noise)


def noisy_batch_norm(
    channels: int, ghost_batch_size: int = 16, shift: bool = True, scale: bool = True, noise: Callable = GhostNoise
) -> nn.Module:
    """Batch norm of images with noise, as a model's `norm`: `partial(noisy_batch_norm, ghost_batch_size=16)`."""
    return with_ghost_noise(nn.BatchNorm2d(channels), ghost_batch_size, shift, scale, [""], noise)


def noisy_layer_norm(
    channels: int, ghost_batch_size: int = 16, shift: bool = True, scale: bool = True, noise: Callable = GhostNoise
) -> nn.Module:
    """The same with layer norm of images: a group norm of one group."""
    return with_ghost_noise(nn.GroupNorm(1, channels), ghost_batch_size, shift, scale, [""], noise)


def chosen(model: nn.Module, which: Which) -> dict[str, Any]:
    """The norms that take noise, by name. Raises `ValueError` for a choice that cannot."""
    norms = choose(model, which, NOISY)
    for name, norm in norms.items():
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and len(norm.normalized_shape) != 1:
            raise ValueError(f"{name} normalizes over {norm.normalized_shape} and has no channels; leave it out")
        if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels > 1:
            raise ValueError(
                f"{name} normalizes every channel of every sample by itself, and noise would do nothing; leave it out"
            )
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            raise ValueError(f"{name} takes tokens first and samples second; build it with batch_first=True")
    return norms


# --- the norms that the noise comes from --------------------------------------------------------------------------------


# --8<-- [start:norms]
class GhostNorm(nn.BatchNorm2d):
    """What ghost and exclusive batch norm share. A ghost batch is `ghost_batch_size` samples that follow one another.

    Parameters and buffers are those of `nn.BatchNorm2d`, and so is evaluation. Raises `ValueError` for a batch that does
    not divide into ghost batches.
    """

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__(num_features, eps, momentum, affine)
        check_size(ghost_batch_size)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, input: Float[Tensor, "B C *pixels"]) -> Float[Tensor, "B C *pixels"]:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        B, C, N = *input.shape[:2], self.ghost_batch_size
        if self.num_features != C:
            raise ValueError(f"this norm has {self.num_features} channels and its input {C}; give the norm as many")
        if B % N or not B:
            raise ValueError(f"a batch of {B} does not divide into ghost batches of {N}; choose sizes that do")
        wide = widened(input)
        a = wide.mean((2, 3))
        own = a.detach()
        z = wide - own[..., None, None]  # about its own mean: in a mean of squares a large mean would take all digits
        # Mean and variance of each sample. The latter's derivative by the sample's mean is 0.
        a, w = (x.unflatten(0, (-1, N)) for x in (a, (z * z).mean((2, 3))))
        self.track(a.detach(), w.detach(), input[0, 0].numel())
        share = self.shares(N).to(a)[..., None]
        mean = (share * a[:, None]).sum(2)  # [g, i]: what sample i of ghost batch g is measured against
        var = (share * (w[:, None] + (a[:, None] - mean[:, :, None]).square())).sum(2)
        std = (var + self.eps).sqrt()
        return inject(z, mean.flatten(0, 1) - own, std.flatten(0, 1), self.weight, self.bias).to(input.dtype)

    def shares(self, N: int) -> Float[Tensor, "N N"]:
        """`[i, j]`: the weight of sample j of a ghost batch in what sample i is measured against."""
        raise NotImplementedError

    def track(self: Any, a: Float[Tensor, "G N C"], w: Float[Tensor, "G N C"], pixels: int) -> None:
        """Moves the running statistics towards the moments of the batches, averaged over them; of N samples each."""
        mean, n, share = a.mean(1), a.shape[1] * pixels, count_batch(self)
        var = (w + (a - mean[:, None]).square()).mean(1) * (n / (n - 1))
        self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.mean(0).to(self.running_var.dtype), share)


class GhostBatchNorm2d(GhostNorm):
    """Batch norm of each ghost batch by itself."""

    def shares(self, N: int) -> Float[Tensor, "N N"]:
        return torch.full((N, N), 1 / N, dtype=torch.float64)


class ExclusiveBatchNorm2d(GhostNorm):
    """Normalizes each sample by the moments of the others of its ghost batch, so that it takes no part in its yardstick.

    Nothing bounds its output: where the others are alike, a sample that is not grows by up to `1 / sqrt(eps)` in each layer,
    and a deep network may overflow.
    """

    def shares(self, N: int) -> Float[Tensor, "N N"]:
        return (1 - torch.eye(N, dtype=torch.float64)) / (N - 1)

    def track(self, a: Float[Tensor, "G N C"], w: Float[Tensor, "G N C"], pixels: int) -> None:
        """The running statistics are those of the whole batch."""
        super().track(a.flatten(0, 1)[None], w.flatten(0, 1)[None], pixels)


# --8<-- [end:norms]
