"""Ghost noise against its exact moments, the norms it comes from against loops in float64, and mistakes told apart."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import (
    BASE,
    CONTEXT,
    VOCAB,
    assert_one_sentence,
    in_own_process,
    same,
    stop_at,
    tiny_gpt,
    tiny_text,
    train_in,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minitrain.gpt import GPT, LayerNorm
from minitrain.recipe import by_kind, check_ownership, cross_entropy, describe
from minitrain.resnet import cifar_resnet
from minitrain.runtime.checkpoint import load_checkpoint
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.ghost_noise import (
    EPS,
    NOISY,
    ExclusiveBatchNorm2d,
    GhostBatchNorm2d,
    GhostNoise,
    NoisyAffine,
    ghost_noise,
    ghost_noised,
    inject,
    instance_moments,
    noisy,
    noisy_batch_norm,
    noisy_layer_norm,
    with_ghost_noise,
)
from minitrain.train import train

B, N, C = 12, 4, 5


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(dtype: torch.dtype = torch.float64, batch: int = B) -> Tensor:
    """Channels that differ in mean and spread and depend on each other, samples that differ too; channels last."""
    x = randn(batch, C, 4, 3) + randn(batch, C, 1, 1, seed=1) + randn(batch, 1, 1, 1, seed=2)
    x = x * torch.linspace(0.5, 2, C, dtype=torch.float64).view(-1, 1, 1) + randn(C, 1, 1, seed=3)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def seeded(function: Callable, *args: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return function(*args)


def partition(batch: int, size: int) -> Tensor:
    """Every sample's ghost batch is the one it lies in."""
    return torch.arange(batch).view(-1, 1, size).expand(-1, size, -1).reshape(batch, size)


# --- the formula -------------------------------------------------------------------------------------------------------


def by_loops(x: Tensor, idx: Tensor, eps: float) -> Tensor:
    """Sample by sample and channel by channel, from the pixels of the ghost batch."""
    y = torch.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            ghost, whole = x[idx[i], c], x[:, c]
            scale = ((ghost.var(correction=0) + eps) / (whole.var(correction=0) + eps)).sqrt()
            y[i, c] = (x[i, c] - (ghost.mean() - whole.mean())) / scale
    return y


@pytest.mark.parametrize("eps", [0.0, EPS, 0.5])
def test_the_noise_is_what_the_formula_says(eps: float):
    x, idx = images(), torch.randint(B, (B, 7), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(inject(x, *ghost_noise(*instance_moments(x), idx, eps)), by_loops(x, idx, eps), rtol=1e-12)


@pytest.mark.parametrize("size", [2, N, B, 5 * B])
def test_the_layer_draws_its_ghost_batches_for_all_channels_at_once(size: int):
    """Also where there are more in a ghost batch than in the batch."""
    x, layer = images(), GhostNoise(size)
    idx = seeded(torch.randint, B, (B, size))
    assert torch.allclose(seeded(layer, x), by_loops(x, idx, EPS), rtol=1e-12)
    assert same(layer(x, torch.Generator().manual_seed(0)), seeded(layer, x))
    assert not torch.allclose(layer(x), layer(x))


def test_only_shift_only_scale_and_evaluation():
    x = images()
    shift, scale = seeded(GhostNoise(N).draw, x)
    assert torch.allclose(seeded(GhostNoise(N, scale=False), x), x - shift[..., None, None])
    assert torch.allclose(seeded(GhostNoise(N, shift=False), x), x / scale[..., None, None])
    for kind in (GhostNoise, NoisyAffine):
        assert kind(N).eval()(x) is x
        assert not [*kind(N).parameters(), *kind(N).buffers()]


@pytest.mark.parametrize("shape", [(B, 6, C), (B, C), (B, 2, 6, C)])
@pytest.mark.parametrize("kind", [GhostNoise, NoisyAffine])
def test_channels_last_is_the_transpose(kind: Any, shape: tuple[int, ...]):
    x = randn(*shape)
    moved = seeded(kind(N), x.movedim(-1, 1)).movedim(1, -1)
    assert torch.allclose(seeded(kind(N, channels_last=True), x), moved, rtol=1e-12)


def test_the_noise_is_a_constant_in_the_backward_pass():
    x: Any = images().requires_grad_()
    g = randn(B, C, 4, 3, seed=9)
    _, scale = seeded(GhostNoise(N).draw, x)
    (seeded(GhostNoise(N), x) * g).sum().backward()
    assert torch.allclose(x.grad, g / scale[..., None, None], rtol=1e-12)


@pytest.mark.parametrize(("shape", "last"), [((2, 3, 2, 2), False), ((2, 2, 3), True), ((2, 3), False)])
def test_the_shift_and_scale_of_inject_have_the_right_gradients(shape: tuple[int, ...], last: bool):
    x, weight, bias = randn(*shape), randn(3, seed=3), randn(3, seed=4)
    shift, scale = randn(2, 3, seed=1), randn(2, 3, seed=2).exp()
    inputs = [t.requires_grad_() for t in (x, shift, scale, weight, bias)]
    assert torch.autograd.gradcheck(partial(inject, channels_last=last), inputs)
    assert torch.autograd.gradgradcheck(partial(inject, channels_last=last), inputs)


def test_one_sample_alone_has_no_noise():
    x = images(batch=1)
    assert same(GhostNoise(N)(x), x)
    for shape in ((0, C), (0, C, 2, 2)):
        assert GhostNoise(N)(torch.zeros(shape)).shape == shape
    norm = noisy_batch_norm(C).double()
    assert torch.allclose(norm(x), nn.BatchNorm2d(C).double()(x), rtol=1e-12)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(x[..., :1, :1])


# --- exact moments -------------------------------------------------------------------------------------------------------


def samples(draw: Callable[[int], tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    shifts, scales = zip(*(draw(i) for i in range(count)), strict=True)
    return torch.cat(shifts), torch.cat(scales)


def agrees(values: Tensor, expected: Tensor | float) -> bool:
    """Whether the mean over the first dimension is what is expected, within 4.5 standard errors."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() < 4.5 * error).all())


def has_the_moments_of_ghost_noise(draw: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> bool:
    """Mean 0, covariance `cov(a) / N` across channels, and a variance that is small by `var(a) / N` on average."""
    a, q = instance_moments(x)
    centred = a - a.mean(0)
    cov = centred.T @ centred / B
    var = q.mean(0) - a.mean(0) ** 2
    torch.manual_seed(3)
    shift, scale = samples(lambda _: draw(x), 2500)
    v = scale**2 * (var + EPS) - EPS
    products = shift[:, :, None] * shift[:, None, :]
    return agrees(shift, 0.0) and agrees(products, cov / N) and agrees(v, var - cov.diagonal() / N)


def one_for_each_channel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong: indices of its own for each channel."""
    each = [GhostNoise(N).draw(x[:, c : c + 1]) for c in range(C)]
    return torch.cat([shift for shift, _ in each], 1), torch.cat([scale for _, scale in each], 1)


def without_replacement(x: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong: no sample twice in a ghost batch, as in ghost batch norm."""
    return ghost_noise(*instance_moments(x), torch.rand(B, B).argsort(1)[:, :N])


def unbiased(x: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong: the variance of a ghost batch corrected by N / (N - 1)."""
    shift, scale = GhostNoise(N).draw(x)
    return shift, scale * (N / (N - 1)) ** 0.5


def of_the_noisy_affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """Another noise: independent channels, all of the spread."""
    return NoisyAffine(N).draw(x)


def test_the_noise_has_its_exact_moments_and_wrong_noise_has_not():
    x = images()
    assert has_the_moments_of_ghost_noise(lambda x: GhostNoise(N).draw(x), x)
    for draw in (one_for_each_channel, without_replacement, unbiased, of_the_noisy_affine):
        assert not has_the_moments_of_ghost_noise(draw, x)


def test_a_partition_has_less_noise_and_none_at_the_whole_batch():
    x = images()
    a, q = instance_moments(x)
    torch.manual_seed(0)
    shift, _ = samples(lambda _: ghost_noise(a, q, torch.rand(B, B).argsort(1)[:, :N]), 2500)
    assert agrees(shift**2, a.var(0, correction=0) / N * (B - N) / (B - 1))
    shift, scale = ghost_noise(a, q, partition(B, B))
    assert shift.abs().max() < 1e-14
    assert (scale - 1).abs().max() < 1e-14
    assert GhostNoise(B).draw(x)[0].abs().max() > 0.01


def test_the_noisy_affine_is_the_noise_of_a_normal_batch():
    """shift ~ N(0, 1/N); N scale^2 ~ chi^2 of N - 1; independent of each other and across channels."""
    size, x = 16, torch.zeros(200, C, 2, dtype=torch.float64)
    torch.manual_seed(0)
    shift, scale = samples(lambda _: NoisyAffine(size).draw(x), 50)
    assert agrees(shift, 0.0)
    assert agrees(shift**2, 1 / size)
    assert agrees(shift**4, 3 / size**2)
    assert agrees(scale**2, (size - 1) / size)
    assert agrees((scale**2 - (size - 1) / size) ** 2, 2 * (size - 1) / size**2)
    assert agrees(1 / scale, 1.0883)
    assert agrees(shift[:, 0] * shift[:, 1], 0.0)
    assert agrees(shift**2 * scale**2, (size - 1) / size**2)


# --- the norms that the noise comes from ---------------------------------------------------------------------------------


def normalized(x: Tensor, company: Callable[[int], list[int]], eps: float) -> Tensor:
    """Each sample by the moments of the samples that `company(i)` lists."""
    y = torch.empty_like(x)
    for i in range(len(x)):
        var, mean = torch.var_mean(x[company(i)], (0, 2, 3), correction=0, keepdim=True)
        y[i] = ((x[i] - mean) / (var + eps).sqrt())[0]
    return y


def ghosts(i: int) -> list[int]:
    return list(range(i // N * N, i // N * N + N))


def others(i: int) -> list[int]:
    return [j for j in ghosts(i) if j != i]


@pytest.mark.parametrize(("kind", "company"), [(GhostBatchNorm2d, ghosts), (ExclusiveBatchNorm2d, others)])
def test_ghost_and_exclusive_batch_norm_are_these_loops_with_their_gradients(kind: Any, company: Callable):
    layer, x, g = kind(C, N, eps=1e-3).double(), images().requires_grad_(), randn(B, C, 4, 3, seed=9)
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, mean=1.0 + i)
    weight, bias = layer.weight.view(-1, 1, 1), layer.bias.view(-1, 1, 1)
    found, expected = layer(x), normalized(x, company, 1e-3) * weight + bias
    assert torch.allclose(found, expected, rtol=1e-10)
    gradients = [torch.autograd.grad((y * g).sum(), [x, *layer.parameters()]) for y in (found, expected)]
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*gradients, strict=True))
    layer.eval()
    running = layer.running_mean.view(-1, 1, 1), layer.running_var.view(-1, 1, 1)
    assert torch.allclose(layer(x), (x - running[0]) / (running[1] + 1e-3).sqrt() * weight + bias)


@pytest.mark.parametrize(("kind", "company"), [(GhostBatchNorm2d, ghosts), (ExclusiveBatchNorm2d, others)])
def test_neither_a_large_mean_nor_an_outlier_takes_the_digits_of_a_variance(kind: Any, company: Callable):
    x = images()
    x[:, 0] += 3000
    x[0, 1] *= 1e5
    x = x.float()
    layer, expected = kind(C, N), normalized(x.double(), company, 1e-5)
    off = (layer(x) - expected).abs() / (1 + expected.abs())
    assert off.max() < 1e-3
    whole = nn.BatchNorm2d(C).double()
    whole(x.double())
    if kind is ExclusiveBatchNorm2d:
        assert torch.allclose(layer.running_var.double(), whole.state_dict()["running_var"], rtol=1e-4)


def test_running_statistics_are_averages_over_ghosts_or_of_the_whole_batch():
    x = images()
    ghost: Any = GhostBatchNorm2d(C, N)
    exclusive: Any = ExclusiveBatchNorm2d(C, N)
    whole: Any = nn.BatchNorm2d(C)
    for layer in (ghost.double(), exclusive.double(), whole.double()):
        layer(x)
    assert torch.allclose(exclusive.running_var, whole.running_var, rtol=1e-12)
    assert torch.allclose(exclusive.running_mean, whole.running_mean, rtol=1e-12)
    parts = torch.stack([part.var((0, 2, 3)) for part in x.split(N)])
    assert torch.allclose(ghost.running_var, 0.9 + 0.1 * parts.mean(0), rtol=1e-12)
    assert ghost.num_batches_tracked == exclusive.num_batches_tracked == 1


def test_a_ghost_batch_as_large_as_the_batch_is_batch_norm():
    x, layer, whole = images(), GhostBatchNorm2d(C, B).double(), nn.BatchNorm2d(C).double()
    assert torch.allclose(layer(x), whole(x), rtol=1e-10, atol=1e-12)
    assert all(torch.allclose(a.double(), b.double()) for a, b in zip(layer.buffers(), whole.buffers(), strict=True))


def test_ghost_batch_norm_is_batch_norm_and_the_noise_of_a_partition():
    """Exactly, with eps = 0; so to normalize beforehand changes nothing."""
    x, ghost = images(), GhostBatchNorm2d(C, N, eps=0.0).double()
    z = normalized(x, lambda i: list(range(B)), 0.0)
    noise = ghost_noise(*instance_moments(z), partition(B, N), eps=0.0)
    assert (inject(z, *noise) - ghost(x)).abs().max() < 1e-13
    assert (ghost(z) - ghost(x)).abs().max() < 1e-13


def sees_itself(layer: nn.Module) -> float:
    """How much of the derivative of a sample's output by itself goes through the statistics: what is off the diagonal."""
    x = images()
    jacobian: Any = torch.autograd.functional.jacobian(lambda own: layer(torch.cat((own[None], x[1:])))[0], x[0])
    matrix = jacobian.reshape(x[0].numel(), x[0].numel())
    return (matrix - matrix.diagonal().diag()).abs().max().item()


def test_only_in_exclusive_batch_norm_does_a_sample_not_see_itself():
    assert sees_itself(ExclusiveBatchNorm2d(C, N).double()) == 0
    assert sees_itself(GhostBatchNorm2d(C, N).double()) > 0.01
    assert sees_itself(nn.BatchNorm2d(C).double()) > 0.001


def test_ghost_batch_norm_bounds_what_exclusive_batch_norm_does_not():
    """Without pixels to average over, no output of ghost batch norm is beyond sqrt(N - 1)."""
    x = torch.zeros(N, 1, 1, 1, dtype=torch.float64)
    x[0], x[1] = 1e6, 1e-3
    assert GhostBatchNorm2d(1, N).double()(x).max().item() == pytest.approx((N - 1) ** 0.5)
    assert ExclusiveBatchNorm2d(1, N).double()(x).max() > 1e6


# --- inside a model ------------------------------------------------------------------------------------------------------


NORMS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(C), (B, C)),
    "batch 2d": (lambda: nn.BatchNorm2d(C, momentum=None), (B, C, 4, 3)),
    "batch 3d": (lambda: nn.BatchNorm3d(C, affine=False), (B, C, 2, 2, 2)),
    "no running statistics": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (B, C, 4, 3)),
    "group": (lambda: nn.GroupNorm(1, C), (B, C, 4, 3)),
    "layer": (lambda: nn.LayerNorm(C), (B, 6, C)),
    "rms": (lambda: nn.RMSNorm(C), (B, 6, C)),
}


@pytest.mark.parametrize("name", NORMS)
def test_in_a_norm_the_noise_comes_before_gain_and_bias_and_all_else_is_the_norms_own(name: str):
    make, shape = NORMS[name]
    x = randn(*shape) * 3 + 1
    plain: Any = make().double()
    for i, p in enumerate(plain.parameters()):
        nn.init.normal_(p, mean=2.0 + i)
    norm = copy.deepcopy(plain)
    parameters = dict(norm.named_parameters())
    assert with_ghost_noise(norm, N) is norm
    assert dict(norm.named_parameters()) == parameters
    assert norm.state_dict().keys() == plain.state_dict().keys()
    bare = copy.deepcopy(plain)
    for i, p in enumerate(bare.parameters()):
        nn.init.constant_(p, 1.0 - i)
    last = norm.noise.channels_last
    assert last == (name in ("layer", "rms"))
    view = (-1,) if last or x.ndim == 2 else (-1, *[1] * (x.ndim - 2))
    expected = seeded(norm.noise, bare(x))
    if plain.weight is not None:
        expected = expected * plain.weight.view(view)
    if getattr(plain, "bias", None) is not None:
        expected = expected + plain.bias.view(view)
    assert torch.allclose(seeded(norm, x), expected, rtol=1e-10)
    if plain.state_dict().get("running_mean") is not None:
        plain(x)
        assert same(dict(norm.state_dict()), dict(plain.state_dict()))
    norm.noise.eval()  # switched off, it is the norm
    assert same(norm(x), plain(x))
    norm.train().eval(), plain.eval()
    assert same(norm(x), plain(x))


def test_a_model_is_changed_in_place_and_says_what_was_changed():
    model, plain = seeded(cifar_resnet, 8, 4), seeded(cifar_resnet, 8, 4)
    names = [f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)] + ["norm"]
    assert with_ghost_noise(model, 8, scale=False) is model
    assert list(noisy(model)) == names
    assert noisy(model)["norm"] == "BatchNorm2d with GhostNoise(8, shift=True, scale=False, channels_last=False)"
    assert same(dict(model.state_dict()), dict(plain.state_dict()))
    assert noisy(plain) == {}
    one = with_ghost_noise(plain, which=["norm"])
    assert list(noisy(one)) == ["norm"]
    with pytest.raises(ValueError, match="norm is a NoisyBatchNorm2d, and only"):
        with_ghost_noise(one, which="norm")
    assert set(noisy(cifar_resnet(8, 4, norm=noisy_layer_norm))) == set(names)
    assert noisy(cifar_resnet(8, 4, norm=partial(noisy_batch_norm, noise=NoisyAffine)))["norm"].endswith("False)")


def test_a_norm_with_two_names_takes_noise_once_by_either():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.BatchNorm1d(C)

    for which in ("two", ["one", "two"], lambda name, norm: True):
        assert list(noisy(with_ghost_noise(Twice(), which=which))) == ["one"]


def test_a_gpt_takes_noise_where_its_blocks_and_its_head_read():
    model = ghost_noised(tiny_gpt, 8)
    assert list(noisy(model)) == ["blocks.0.attention_norm", "blocks.0.mlp_norm", "norm"]
    assert len(noisy(ghost_noised(partial(tiny_gpt), which=lambda name, norm: True))) == 5
    check_ownership(model, by_kind(model))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    assert len(noisy(with_ghost_noise(encoder))) == 4
    x = randn(3, 5, 16, dtype=torch.float32)
    assert not torch.equal(encoder(x), encoder(x))
    assert torch.equal(encoder.eval()(x), encoder(x))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "size 1": (lambda: GhostNoise(1), "at least 2"),
    "an infinite mean": (lambda: noisy_batch_norm(C, 2, noise=NoisyAffine), "at least 3"),
    "no images": (lambda: GhostBatchNorm2d(C, N)(torch.zeros(N, C)), "4D"),
    "one channel": (lambda: ExclusiveBatchNorm2d(C, N)(torch.zeros(N, 1, 2, 2)), "5 channels"),
    "an empty batch": (lambda: GhostBatchNorm2d(C, N)(torch.zeros(0, C, 2, 2)), "does not divide"),
    "size 0": (lambda: noisy_batch_norm(C, 0), "at least 2"),
    "ghost norm of 1": (lambda: ExclusiveBatchNorm2d(C, 1), "at least 2"),
    "no noise": (lambda: GhostNoise(N, shift=False, scale=False), "leave it out"),
    "one dimension": (lambda: GhostNoise(N)(torch.zeros(3)), "two dimensions"),
    "indivisible": (lambda: GhostBatchNorm2d(C, N)(torch.zeros(N + 1, C, 2, 2)), "does not divide"),
    "larger than the batch": (lambda: ExclusiveBatchNorm2d(C, 2 * N)(torch.zeros(N, C, 2, 2)), "does not divide"),
    "no norm": (lambda: with_ghost_noise(nn.Linear(2, 2)), "was chosen"),
    "no such name": (lambda: with_ghost_noise(nn.Sequential(nn.BatchNorm1d(2)), which=["1"]), "no module"),
    "not a norm": (lambda: with_ghost_noise(nn.Sequential(nn.Linear(2, 2)), which=["0"]), "Linear"),
    "a norm of another kind": (lambda: with_ghost_noise(nn.InstanceNorm2d(2), which=[""]), "InstanceNorm2d"),
    "noise that does nothing": (lambda: with_ghost_noise(nn.GroupNorm(2, 2)), "do nothing"),
    "no channels": (lambda: with_ghost_noise(nn.LayerNorm([2, 3])), "no channels"),
    "tokens first": (lambda: with_ghost_noise(nn.TransformerEncoderLayer(8, 2, 8)), "batch_first=True"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused_with_one_sentence(name: str):
    make, words = BAD[name]
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert_one_sentence(error.value, words)


# --- in a run --------------------------------------------------------------------------------------------------------------


def test_in_bf16_moments_are_taken_in_float32():
    x = images(torch.bfloat16)
    found, wide = seeded(GhostNoise(N).draw, x), seeded(GhostNoise(N).draw, x.float())
    assert same(list(found), list(wide))
    assert found[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert same(list(seeded(GhostNoise(N).draw, x)), list(wide))
    for layer in (noisy_batch_norm(C), GhostBatchNorm2d(C, N), ExclusiveBatchNorm2d(C, N)):
        y, expected = seeded(layer, x), seeded(layer, x.float())
        assert y.dtype == torch.bfloat16
        assert (y - expected).abs().max() < 0.03
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_variance_that_cancels_is_no_nan():
    x = torch.full((B, C, 4, 3), 1000.0) + 1e-3 * images(torch.float32)
    for layer in (GhostNoise(N), GhostBatchNorm2d(C, N), ExclusiveBatchNorm2d(C, N)):
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("norm", [noisy_batch_norm, noisy_layer_norm, partial(noisy_batch_norm, noise=NoisyAffine)])
def test_a_recomputed_layer_replays_its_noise(norm: Any):
    def gradient(call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        layer = norm(C)
        x: Any = images(torch.float32).requires_grad_()
        seeded(call, layer, x).square().mul(x).sum().backward()
        return x.grad

    def forgetful(layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)

    plain = gradient(lambda layer, x: layer(x))
    assert same(gradient(lambda layer, x: checkpoint(layer, x, use_reentrant=False)), plain)
    assert not same(gradient(forgetful), plain)


def test_recomputed_blocks_have_the_same_gradients():
    def gradients(build: Callable[[], nn.Module]) -> list[Any]:
        model = seeded(build)
        nn.init.normal_(model.head.weight, std=0.1)
        cross_entropy(model, *tiny_text().batch(0, 0, 4)).backward()
        return [p.grad for p in model.parameters()]

    plain = gradients(partial(ghost_noised, tiny_gpt))
    assert same(gradients(partial(recompute_blocks, partial(ghost_noised, tiny_gpt))), plain)
    assert same(gradients(partial(ghost_noised, partial(recompute_blocks, tiny_gpt))), plain)


def compile_and_compare() -> None:
    """Prints how far compiled layers, in one graph each, are from the eager ones, in training and in evaluation."""
    x = images(torch.float32)
    for norm in (noisy_batch_norm, noisy_layer_norm, GhostBatchNorm2d, ExclusiveBatchNorm2d):
        layer: Any = norm(C, ghost_batch_size=N)
        compiled: Any = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
        training = (seeded(compiled, x) - seeded(layer, x)).abs().max().item()
        print(training, (compiled.eval()(x) - layer.eval()(x)).abs().max().item())
    try:
        torch.compile(GhostNoise(N), backend="eager", fullgraph=True)(x, torch.Generator())
    except Exception:
        print("refused")


def test_compiled_layers_are_one_graph_and_the_same_but_take_no_generator():
    *layers, refused = in_own_process("sys; import test_ghost_noise as here; here.compile_and_compare()").split()
    assert len(layers) == 8
    assert all(float(x) < 1e-6 for x in layers)
    assert refused == "refused"


PLAIN = partial(GPT, vocab_size=VOCAB, depth=1, width=32, context=CONTEXT, norm=LayerNorm)
RECIPE = replace(BASE, build_model=partial(ghost_noised, PLAIN, 8))


def finish(folder: str) -> None:
    torch.set_num_threads(1)
    train_in(Path(folder), RECIPE, resume=True)


def test_a_stopped_run_goes_on_bitwise_in_a_fresh_process(tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run = train_in(whole, RECIPE)
    assert run.losses[-1] < run.losses[0]
    assert not train_in(stopped, RECIPE, probes=[stop_at(7)]).finished
    in_own_process(f"sys; import test_ghost_noise as here; here.finish({str(stopped)!r})")
    assert same(load_checkpoint(stopped), load_checkpoint(whole))


def without_noise(build_model: Callable[[], nn.Module]) -> nn.Module:
    model = build_model()
    for name in noisy(model):
        noise: Any = model.get_submodule(f"{name}.noise")
        noise.eval().train = lambda mode=True: None  # whatever the loop asks
    return model


def test_switched_off_a_run_is_bit_for_bit_the_baseline():
    off = train(replace(RECIPE, build_model=partial(without_noise, RECIPE.build_model)))
    assert same(off.losses, train(replace(RECIPE, build_model=PLAIN)).losses)
    assert not same(off.losses, train(RECIPE).losses)
    assert describe(RECIPE)["build_model"].endswith("ghost_noised")


@pytest.mark.parametrize("kind", NOISY)
def test_every_kind_of_norm_has_a_class_with_noise(kind: type):
    assert issubclass(NOISY[kind], kind)
    assert NOISY[kind].__name__ == f"Noisy{kind.__name__}"
