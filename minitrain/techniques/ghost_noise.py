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
which leaves nothing to differ; in a GPT a token's noise comes
from moments over all tokens of the samples, so that in training it sees a little of those that come later.

Deviations: running variances are the unbiased ones, as in torch, and evaluation uses the layer's own eps. In layer norms the
noise stands before the gain and bias, as in batch norms; the authors' vision transformer has it behind them. `NoisyAffine`
supposes inputs of unit variance. A batch of one sample is left as it is.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

EPS = 1e-3  # of the noise, as in all of the authors' experiments; a norm has its own
Which = Callable[[str, nn.Module], bool] | Collection[str]


# --8<-- [start:noise]
def instance_moments(
    x: Float[Tensor, "B ..."], channels_last: bool = False
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Mean and mean square of each sample and channel, in float32 at least. Channels are dimension 1, or the last one."""
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
    """`(x - shift) / scale * weight + bias` as one multiplication and addition, in the dtype of `x`."""
    factor = 1 / scale if weight is None else weight / scale
    offset = -shift * factor if bias is None else bias - shift * factor
    ones = [1] * (x.ndim - 2)
    shape = [len(x), *ones, -1] if channels_last else [len(x), -1, *ones]
    return torch.addcmul(offset.to(x.dtype).view(shape), x, factor.to(x.dtype).view(shape))


# --8<-- [end:noise]
def widened(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def check_size(ghost_batch_size: int) -> None:
    """Raises `ValueError` for a ghost batch that has no spread."""
    if type(ghost_batch_size) is not int or ghost_batch_size < 2:
        raise ValueError(
            f"ghost_batch_size must be a whole number of at least 2, not {ghost_batch_size!r}: one sample has no spread"
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

    def draw(self, x: Tensor, generator: Any = None) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        B = len(x)
        a, q = instance_moments(x, self.channels_last)
        if B == 1:  # the only ghost batch is the batch
            return torch.zeros_like(a), torch.ones_like(a)
        idx = torch.randint(B, (B, self.ghost_batch_size), device=x.device, generator=generator)
        return ghost_noise(a, q, idx)


class NoisyAffine(Noise):
    """The analytic counterpart: by the moments of N numbers of a unit normal, for each sample and channel by itself.

    `shift` is normal with variance 1/N, and `N scale^2` is chi-squared with N - 1 degrees of freedom: what ghost noise would
    be if all pixels of all samples were independent and channels knew nothing of each other.
    """

    def draw(self, x: Tensor, generator: Any = None) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        sizes = self.ghost_batch_size, len(x), x.shape[-1 if self.channels_last else 1]
        z = torch.randn(sizes, device=x.device, dtype=widened(x[:0]).dtype, generator=generator)
        var, mean = torch.var_mean(z, 0, correction=0)
        return mean, var.sqrt()


# --8<-- [end:module]
# --- noise inside a norm ------------------------------------------------------------------------------------------------


class Noisy:
    """What noisy norms share: statistics, then noise, then gain and bias. Parameters, buffers and names are the norm's own.

    In evaluation, or once `noise.eval()` has switched the noise off, it is the norm, bit for bit.
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
    modules = dict(model.named_modules())
    if callable(which):
        names = [name for name, norm in modules.items() if type(norm) in NOISY and which(name, norm)]
    else:
        names = [which] if isinstance(which, str) else list(which)
    kinds = ", ".join(kind.__name__ for kind in NOISY)
    if not names:
        raise ValueError(f"this {type(model).__name__} has no norm to put noise into ({kinds}) that `which` chooses")
    for name in names:
        norm: Any = modules.get(name)
        if norm is None:
            raise ValueError(
                f"this {type(model).__name__} has no module {name!r}; give names as named_modules() has them"
            )
        if isinstance(norm, Noisy):
            raise ValueError(f"{name or 'this norm'} has noise already; make the model anew for another")
        if type(norm) not in NOISY:
            raise ValueError(
                f"{name} is a {type(norm).__name__}, and only {kinds} themselves can take noise; leave it out"
            )
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and len(norm.normalized_shape) != 1:
            raise ValueError(f"{name} normalizes over {norm.normalized_shape} and has no channels; leave it out")
        if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels > 1:
            raise ValueError(
                f"{name} normalizes every channel of every sample by itself, and noise would do nothing; leave it out"
            )
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            raise ValueError(f"{name} takes tokens first and samples second; build it with batch_first=True")
    return {name: modules[name] for name in names}


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

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if not self.training:
            return super().forward(input)
        B, N = len(input), self.ghost_batch_size
        if B % N or not B:
            raise ValueError(f"a batch of {B} does not divide into ghost batches of {N}; choose sizes that do")
        a, q = (x.unflatten(0, (-1, N)) for x in instance_moments(input))
        self.track(a.detach(), q.detach(), input[0, 0].numel())
        mean, square = self.company(a), self.company(q)
        std = ((square - mean * mean).clamp(min=0) + self.eps).sqrt()
        y = inject(widened(input), mean.flatten(0, 1), std.flatten(0, 1), self.weight, self.bias)
        return y.to(input.dtype)

    def company(self, x: Float[Tensor, "G N C"]) -> Float[Tensor, "G N C"]:
        """The mean over those samples that a sample is measured against."""
        raise NotImplementedError

    def track(self: Any, a: Float[Tensor, "G N C"], q: Float[Tensor, "G N C"], pixels: int) -> None:
        """Moves the running statistics towards the moments of the batches, averaged over them; of N samples each."""
        mean, n, share = a.mean(1), a.shape[1] * pixels, count_batch(self)
        var = (q.mean(1) - mean * mean).clamp(min=0) * (n / (n - 1))
        self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.mean(0).to(self.running_var.dtype), share)


class GhostBatchNorm2d(GhostNorm):
    """Batch norm of each ghost batch by itself."""

    def company(self, x: Float[Tensor, "G N C"]) -> Float[Tensor, "G N C"]:
        return x.mean(1, keepdim=True).expand_as(x)


class ExclusiveBatchNorm2d(GhostNorm):
    """Normalizes each sample by the moments of the others of its ghost batch, so that it takes no part in its yardstick."""

    def company(self, x: Float[Tensor, "G N C"]) -> Float[Tensor, "G N C"]:
        return (x.sum(1, keepdim=True) - x) / (x.shape[1] - 1)

    def track(self, a: Float[Tensor, "G N C"], q: Float[Tensor, "G N C"], pixels: int) -> None:
        """The running statistics are those of the whole batch."""
        super().track(a.flatten(0, 1)[None], q.flatten(0, 1)[None], pixels)


# --8<-- [end:norms]
