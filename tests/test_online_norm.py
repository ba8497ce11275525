"""Online norm against loops and closed forms; the gradient it is controlled towards; what it refuses; checkpoints."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import assert_one_sentence, in_own_process, same, stop_at, train_in
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minitrain.data.images import Images
from minitrain.optim import SGD
from minitrain.recipe import Recipe, by_kind
from minitrain.resnet import ResNet, cifar_resnet
from minitrain.runtime.checkpoint import load_checkpoint
from minitrain.techniques.online_norm import (
    OnlineNorm2d,
    for_batch_size,
    gradient_of_sample,
    normalize_sample,
    recurrence,
    varying_recurrence,
    with_online_norm,
)
from minitrain.train import build, train

BUFFERS = ("mean", "var", "u", "v")
SHAPES = [(300, 4, 5, 3), (600, 4), (20, 3, 7), (1, 3, 4, 4)]


def bare(channels: int, forward_decay: float = 0.95, backward_decay: float = 0.9) -> OnlineNorm2d:
    """The normalization alone."""
    return OnlineNorm2d(channels, forward_decay, backward_decay, guard="none", affine=False)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stream(*shape: int) -> tuple[Tensor, Tensor]:
    """Inputs with a mean and a spread that change on the way, and gradients that break both conditions."""
    x = 1 + randn(*shape) * torch.linspace(0.5, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return x, 0.5 + 0.7 * x + randn(*shape, seed=1)


def through(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    assert x.grad is not None
    return y.detach(), x.grad


def sequentially(layer: OnlineNorm2d, x: Tensor, g: Tensor, normalize: Callable, gradient: Callable) -> list[Tensor]:
    """Output, input gradient and buffers by a loop over the samples."""
    m, s, u, v = (getattr(layer, name).clone() for name in BUFFERS)
    outputs, backs = [], []
    for one in x.flatten(2) if x.ndim > 2 else x[:, :, None]:
        y, r, m, s = normalize(one, m, s, layer.forward_decay, layer.eps)
        outputs.append((y, r))
    for one, (y, r) in zip(g.reshape(*g.shape[:2], -1), outputs, strict=True):
        back, u, v = gradient(one, y, r, u, v, layer.backward_decay)
        backs.append(back)
    return [torch.stack([y for y, _ in outputs]).view_as(x), torch.stack(backs).view_as(x), m, s, u, v]


def all_of(layer: OnlineNorm2d, x: Tensor, g: Tensor) -> list[Tensor]:
    return [*through(layer, x, g), *(getattr(layer, name) for name in BUFFERS)]


# --- the definition -----------------------------------------------------------------------------------------------------


def statistics_are_right(normalize: Callable, gradient: Callable) -> bool:
    """Mean and variance are those of the weighted stream, the start included; `y` is by those before the sample."""
    (x, _), decay, eps = stream(30, 2, 5), 0.8, 0.1
    m, s = torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)
    for t, one in enumerate(x):
        weights = np.array([decay**t, *((1 - decay) * decay ** np.arange(t)[::-1])])
        before = np.concatenate([np.zeros((1, 2, 5)), x[:t].numpy()])
        mean = (weights[:, None] * before.mean(2)).sum(0)
        squares = (before**2).mean(2) + np.eye(t + 1)[0][:, None]  # at the start, mean 0 and variance 1
        r = np.sqrt((weights[:, None] * squares).sum(0) - mean**2 + eps)
        y, found, m, s = normalize(one, m, s, decay, eps)
        expected = (x[t].numpy() - mean[:, None]) / r[:, None]
        if not (np.allclose(found.numpy(), r, rtol=1e-12) and np.allclose(y.numpy(), expected, rtol=1e-10)):
            return False
    return True


def control_is_right(normalize: Callable, gradient: Callable) -> bool:
    """`u` is the sum of the means of what was handed back, `v` that of `h y`; both written out over the whole past."""
    (y, g), decay = stream(30, 2, 5), 0.8
    y = y / 3  # small enough that a sample never takes away more than all of `v`
    r = 1 + randn(30, 2).abs()
    u = v = torch.zeros(2, dtype=y.dtype)
    hs, backs = [], []
    for t in range(30):
        along = sum(((h * y[k]).mean(1) for k, h in enumerate(hs)), torch.zeros(2, dtype=y.dtype))
        h = g[t] - (1 - decay) * along[:, None] * y[t]
        past = [(1 - decay) * decay ** (t - 1 - k) * (hs[k] / r[k][:, None]).mean(1, keepdim=True) for k in range(t)]
        hs.append(h)
        back, u, v = gradient(g[t], y[t], r[t], u, v, decay)
        backs.append(back)
        if not torch.allclose(back, h / r[t][:, None] - sum(past), rtol=1e-9, atol=1e-12):
            return False
    sums = [torch.stack(x).mean(2).sum(0) for x in (backs, [h * y[k] for k, h in enumerate(hs)])]
    return torch.allclose(u, sums[0], rtol=1e-9) and torch.allclose(v, sums[1], rtol=1e-9)


def test_the_definition_is_that_of_the_weighted_stream_and_of_the_integral_controller():
    assert statistics_are_right(normalize_sample, gradient_of_sample)
    assert control_is_right(normalize_sample, gradient_of_sample)


def normalize(x: Tensor, m: Tensor, s: Tensor, decay: float, eps: float, wrong: str) -> tuple[Tensor, ...]:
    a, q = x.mean(1), x.var(1, correction=1 if wrong == "unbiased" else 0)
    m2 = decay * m + (1 - decay) * a
    s2 = decay * s + (1 - decay) * q + decay * (1 - decay) * (a - (m2 if wrong == "new mean in s" else m)).square()
    if wrong == "no spread of means":
        s2 = decay * s + (1 - decay) * q
    if wrong == "updated before use":
        m, s = m2, s2
    r = s.sqrt() + eps if wrong == "eps outside" else (s + eps).sqrt()
    return (x - m[:, None]) / r[:, None], r, m2, s2


def gradient(
    g: Tensor, y: Tensor, r: Tensor, u: Tensor, v: Tensor, decay: float, wrong: str
) -> tuple[Tensor, Tensor, Tensor]:
    sign, mean = -1 if wrong == "sign" else 1, torch.sum if wrong == "sum over space" else torch.mean
    h = g - sign * (1 - decay) * v[:, None] * y
    v2 = v + mean((g if wrong == "v from g" else h) * y, 1)
    h = h / r[:, None]
    if wrong == "v after r":
        v2 = v + mean(h * y, 1)
    if wrong == "u before r":
        h = h * r[:, None]
    back = h - (1 - decay) * u[:, None]
    u2 = u + mean(h if wrong == "u from h" else back, 1)
    return (back / r[:, None] if wrong == "u before r" else back), u2, v2


WRONG_FORWARD = ["unbiased", "new mean in s", "no spread of means", "updated before use", "eps outside"]
WRONG_BACKWARD = ["sign", "sum over space", "v from g", "v after r", "u before r", "u from h"]


@pytest.mark.parametrize("wrong", [*WRONG_FORWARD, *WRONG_BACKWARD])
def test_a_wrong_definition_is_told_apart(wrong):
    forward, backward = partial(normalize, wrong=wrong), partial(gradient, wrong=wrong)
    assert statistics_are_right(forward, backward) == (wrong not in WRONG_FORWARD)
    assert control_is_right(forward, backward) == (wrong not in WRONG_BACKWARD)


# --- a batch at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("decays", [(0.95, 0.9), (0.999, 0.99), (0.0, 0.0), (0.9, 1.0)], ids=str)
def test_a_batch_is_the_loop_over_its_samples(shape, decays):
    layer = bare(shape[1], *decays).double()
    for i, name in enumerate(BUFFERS):
        getattr(layer, name).copy_(0.5 + randn(shape[1], seed=i + 2).abs())
    x, g = stream(*shape)
    expected = sequentially(layer, x, g, normalize_sample, gradient_of_sample)
    for one, two in zip(all_of(layer, x, g), expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-12)


def test_where_the_statistics_lag_far_behind_the_control_forgets_and_stays_bounded():
    layer, (x, g) = bare(3, backward_decay=0.5).double(), stream(200, 3)
    x[100:] *= 1e3  # y is so large that more than all of v would be taken away
    expected = sequentially(layer, x, g, normalize_sample, gradient_of_sample)
    for one, two in zip(all_of(layer, x, g), expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-9)
    assert layer.v.abs().max() < 2 * (g * expected[0]).abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_float32_the_batch_is_close_to_the_loop_in_either_layout(layout):
    layer = bare(6, 0.999, 0.99)
    x, g = (z.float().contiguous(memory_format=layout) for z in stream(128, 6, 8, 8))
    wide = sequentially(copy.deepcopy(layer).double(), x.double(), g.double(), normalize_sample, gradient_of_sample)
    for one, two in zip(all_of(layer, x, g), wide, strict=True):
        assert torch.allclose(one.double(), two, rtol=1e-4, atol=1e-4)
    assert layer(x).is_contiguous(memory_format=layout)


def test_recurrences_over_long_streams_neither_overflow_nor_vanish():
    x, first = randn(2000, 2, dtype=torch.float32), torch.ones(2)
    for decay in (0.0, 0.01, 0.9999, 1.0):
        z = [first]
        for one in x:
            z.append(decay * z[-1] + one)
        for found in (recurrence(x, first, decay), varying_recurrence(x, first, torch.full_like(x, decay))):
            assert torch.allclose(found, torch.stack(z), rtol=1e-3, atol=1e-3)


def test_a_batch_is_as_many_batches_of_one():
    """Which batch norm cannot say of itself; the same of a whole network."""
    x, g = (z.float() for z in stream(40, 3, 4, 4))
    whole, single = bare(3), bare(3)
    y, back = through(whole, x, g)
    parts = [through(single, x[i : i + 1], g[i : i + 1]) for i in range(40)]
    for one, two in zip(map(torch.cat, zip(*parts, strict=True)), (y, back), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)
    for name in BUFFERS:
        assert torch.allclose(getattr(single, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


# --- properties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5.0, 1000.0])
def test_a_constant_input_is_passed_on_at_first_and_vanishes_in_the_end(value):
    layer = bare(2, 0.9)
    y = layer(torch.full((400, 2, 3, 3), value))
    assert torch.allclose(y[0], torch.tensor(value), rtol=1e-4)
    assert y[-50:].abs().max() < 0.1  # float32 knows 1000 to 6e-5, and r is 0.003 now
    assert torch.allclose(layer.mean, torch.tensor(value))
    assert (layer.var < 1e-3).all()
    assert (layer.var >= 0).all()


def test_evaluation_is_the_formula_and_leaves_the_state_alone():
    layer, (x, g) = OnlineNorm2d(3, 0.95, 0.9, guard="none").double(), stream(40, 3, 4, 4)
    through(layer, x, g)
    before = copy.deepcopy(layer.state_dict())
    y, back = through(layer.eval(), x, g)
    assert same(dict(layer.state_dict()), dict(before))
    m, r = (z.view(1, 3, 1, 1) for z in (layer.mean, (layer.var + 1e-5).sqrt()))
    assert torch.allclose(y, (x - m) / r)
    assert torch.allclose(back, g / r)


def test_without_control_the_gradient_is_divided_by_r_and_nothing_else():
    layer, (x, g) = bare(3, backward_decay=1.0).double(), stream(40, 3, 4, 4)
    expected = sequentially(layer, x, g, partial(normalize, wrong=""), lambda g, y, r, u, v, _: (g / r[:, None], u, v))
    assert torch.allclose(through(layer, x, g)[1], expected[1])


def of_batch_norm(x: Tensor, g: Tensor) -> Tensor:
    """The gradient that batch norm gives with the whole stream as its batch."""
    return through(nn.BatchNorm1d(x.shape[1], affine=False).double(), x, g)[1]


@pytest.mark.parametrize(("backward_decay", "low", "high"), [(0.99, 0.99, 1.0), (1.0, -1.0, 0.9)])
def test_with_control_and_only_so_the_gradient_is_that_of_a_large_batch(backward_decay, low, high):
    x = 2 + 3 * randn(20_000, 4)
    g = 0.7 * (x - 2) / 3 + 0.5 + randn(20_000, 4, seed=1)
    y, back = through(bare(4, 0.999, backward_decay).double(), x, g)
    late = slice(5000, None)  # the averages have found the stream
    cosine = F.cosine_similarity(back[late], of_batch_norm(x, g)[late], dim=0)
    assert ((low < cosine) & (cosine < high)).all()
    bounds = (back[late].mean(0).abs() * 3, (back * y)[late].mean(0).abs() * 3)
    for bound in bounds:
        assert ((bound < 0.01) if low > 0 else (bound > 0.3)).all()


@pytest.mark.parametrize("guard", ["clamp", "scale"])
def test_guards_bound_what_leaves_the_layer(guard):
    layer: Any = OnlineNorm2d(3, guard=guard)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 1.0)
    x = 100 * randn(8, 3, 4, 4, dtype=torch.float32)
    z = copy.deepcopy(layer)(x)
    layer.guard = "none"
    plain = layer(x)
    if guard == "clamp":
        assert same(z, plain.clamp(-5, 5))
    else:
        sizes = plain.square().mean((1, 2, 3), keepdim=True)
        assert torch.allclose(z, plain / (sizes + 1e-5).sqrt())


# --- in training --------------------------------------------------------------------------------------------------------


def tiny_images() -> Images:
    """Noise, brighter where the class is higher."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 4
    images = (random.integers(0, 120, (96, 8, 8, 3)) + 40 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return Images(images[:64], labels[:64], images[64:], labels[64:], pad=1)


tiny_batch = partial(ResNet, [(4, 1), (8, 1)], classes=4)
tiny_online = partial(tiny_batch, norm=partial(OnlineNorm2d, forward_decay=0.95, backward_decay=0.9))


RECIPE = Recipe(
    build_model=tiny_online,
    data=tiny_images,
    steps=20,
    batch_size=16,
    make_optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
)


def test_micro_batches_of_one_train_as_the_whole_batch_does():
    whole, single = train(RECIPE), train(replace(RECIPE, micro_batch_size=1))
    assert torch.allclose(whole.losses, single.losses, rtol=1e-3, atol=1e-4)
    assert whole.losses[-5:].mean() < 0.7 * whole.losses[0]
    batch = replace(RECIPE, build_model=tiny_batch)
    assert not torch.allclose(train(batch).losses, train(replace(batch, micro_batch_size=2)).losses, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path, precision: Any):
    recipe = replace(RECIPE, precision=precision)
    whole = train_in(tmp_path / "whole", recipe)
    train_in(tmp_path / "resumed", recipe, probes=[stop_at(7)])
    resumed = train_in(tmp_path / "resumed", recipe, resume=True)
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert same(resumed.losses, whole.losses)
    names = [f"blocks.0.norm1.{name}" for name in BUFFERS]
    assert all(whole.model.state_dict()[name].abs().sum() > 0 for name in names)
    assert load_checkpoint(tmp_path / "whole")["model"].keys() >= set(names)


def test_gains_and_biases_do_not_decay_and_statistics_are_no_parameters():
    groups = {group["name"]: group for group in by_kind(build(RECIPE).model)}
    assert groups["gains"]["weight_decay"] == 0.0
    assert len(groups["gains"]["params"]) == 2 * 5
    assert not list(bare(3).parameters())


def test_under_autocast_statistics_are_those_of_float32():
    x, g = (z.bfloat16() for z in stream(64, 3, 6, 6))
    layer, wide = bare(3), bare(3)
    y, back = through(wide, x.float(), g.float())
    with torch.autocast("cpu", torch.bfloat16):
        y2, back2 = through(layer, x, g)
    assert (y2.dtype, back2.dtype) == (torch.bfloat16, torch.bfloat16)
    for name in ("mean", "var"):
        assert same(getattr(layer, name), getattr(wide, name))
    assert torch.allclose(y2.float(), y, rtol=1e-2, atol=1e-2)
    assert torch.allclose(back2.float(), back, rtol=3e-2, atol=3e-2)
    assert torch.allclose(layer.v, wide.v, rtol=1e-2, atol=0.1)


def test_a_model_in_half_precision_keeps_its_statistics_in_float32():
    layer: Any = OnlineNorm2d(3)
    layer(randn(5, 3, dtype=torch.float32))
    exact = layer.mean.clone()
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    assert same(layer.mean, exact)
    assert layer(randn(5, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.double().mean.dtype == torch.float64


def compile_and_compare() -> None:
    """Prints how far a compiled network's losses are from the eager one's."""
    torch.set_num_threads(1)
    recipe = replace(RECIPE, steps=3)
    torch.compile = partial(torch.compile, backend="aot_eager")
    print(float((train(recipe, compile=True).losses - train(recipe).losses).abs().max()))
    try:  # here, where no type checker is quicker
        OnlineNorm2d(3, guard="soft")  # ty: ignore[invalid-argument-type]
    except ValueError as error:
        print(error)


def test_compilation_leaves_the_layer_to_eager_execution():
    found = in_own_process("sys; import test_online_norm as here; here.compile_and_compare()").splitlines()
    assert float(found[0]) < 1e-4
    assert found[1] == "guard must be 'clamp', 'scale' or 'none', not 'soft'"


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused(reentrant):
    layer, x = OnlineNorm2d(3), randn(5, 3, dtype=torch.float32).requires_grad_()
    y = checkpoint(nn.Sequential(layer, nn.ReLU()), x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="leave activation checkpointing out") as error:
        y.sum().backward()
    assert_one_sentence(error.value)


def test_two_forward_passes_before_a_backward_pass_are_refused():
    layer, x = OnlineNorm2d(3), randn(5, 3, dtype=torch.float32).requires_grad_()
    first = layer(x)
    second = layer(x)
    with pytest.raises(RuntimeError, match="one backward pass for each forward pass") as error:
        (first + second).sum().backward()
    assert_one_sentence(error.value)
    again = layer(x)
    layer.eval()(x)
    with torch.no_grad():
        layer.train()(x)  # neither asks for a gradient
    again.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass for each forward pass"):
        again.sum().backward()
    layer(x)  # whose gradient nobody asks for
    through(pickle.loads(pickle.dumps(copy.deepcopy(layer))), x, torch.ones(5, 3))


def test_a_second_derivative_is_refused():
    x = randn(5, 3, dtype=torch.float32).requires_grad_()
    (g,) = torch.autograd.grad(OnlineNorm2d(3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        g.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"forward_decay": 1.01}, "forward_decay must be from 0 to 1"),
        ({"backward_decay": float("nan")}, "backward_decay must be from 0 to 1"),
        ({"eps": 0.0}, "eps must be a finite number above 0"),
    ],
)
def test_values_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        OnlineNorm2d(**{"channels": 3} | arguments)
    assert_one_sentence(error.value)


def test_inputs_of_other_channels_are_refused():
    for shape in ((4, 5), (4, 5, 3)):
        with pytest.raises(ValueError, match=r"online norm of 3 channels needs \(B, 3, \.\.\.\)"):
            OnlineNorm2d(3)(torch.zeros(shape))


# --- other people's models, other batch sizes ---------------------------------------------------------------------------


def test_batch_norms_of_any_model_are_replaced_and_evaluate_as_before():
    torch.manual_seed(0)
    model = cifar_resnet(depth=8, width=4)
    nn.init.normal_(model.head.weight)
    for _ in range(20):
        model(3 * randn(8, 3, 8, 8, dtype=torch.float32))
    images = randn(4, 3, 8, 8, dtype=torch.float32)
    expected, parameters = model.eval()(images), list(model.parameters())
    assert with_online_norm(model, guard="none") is model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4)
    assert {id(p) for p in model.parameters()} == {id(p) for p in parameters}
    assert with_online_norm(nn.BatchNorm1d(3, affine=False, track_running_stats=False)).training
    shared = nn.BatchNorm1d(3)
    both: Any = with_online_norm(nn.Sequential(shared, nn.Sequential(shared)))
    assert isinstance(both[0], OnlineNorm2d)
    assert both[0] is both[1][0]
    with pytest.raises(ValueError, match="no batch norm to replace") as error:
        with_online_norm(both)
    assert_one_sentence(error.value)


def test_the_rule_for_small_batches():
    """A gradient's share of the velocity, by sample, and the way it moves the weights in all, stay what they were."""
    lr, momentum = for_batch_size(0.1, 0.9, tuned_at=256, batch_size=32)
    assert (lr, momentum) == pytest.approx((0.0016355, 0.98691628), rel=1e-4)
    assert for_batch_size(0.1, 0.9, 128, 128) == pytest.approx((0.1, 0.9))
    for batch_size in (1, 8, 128, 512):
        lr, momentum = for_batch_size(0.1, 0.9, 128, batch_size)
        assert momentum ** (128 / batch_size) == pytest.approx(0.9)
        moved = sum(lr / batch_size * momentum**k for k in range(200_000))
        assert moved == pytest.approx(0.1 / 128 / 0.1, rel=1e-6)
    assert for_batch_size(0.1, 0.0, 128, 64) == (0.05, 0.0)
    for wrong in ((0.1, 1.0, 128, 1), (0.1, -0.1, 128, 1), (0.1, 0.9, 0, 1), (0.1, 0.9, 128, 0)):
        with pytest.raises(ValueError, match="batch sizes must be at least 1 and momentum") as error:
            for_batch_size(*wrong)
        assert_one_sentence(error.value)
