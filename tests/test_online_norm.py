"""Online norm against loops and closed forms; the gradient it is controlled towards; what it refuses; checkpoints."""

import copy
import inspect
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
from minitrain.techniques import online_norm
from minitrain.techniques.online_norm import (
    OnlineNorm2d,
    for_batch_size,
    gradient_of_sample,
    normalize_sample,
    with_online_norm,
)
from minitrain.train import build, train

BUFFERS = ("mean", "var", "u", "v")


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


def sequentially(layer: OnlineNorm2d, x: Tensor, g: Tensor) -> list[Tensor]:
    """Output, input gradient and buffers by a loop over the samples."""
    m, s, u, v = (getattr(layer, name).clone() for name in BUFFERS)
    outputs, backs = [], []
    for one in x.flatten(2) if x.ndim > 2 else x[:, :, None]:
        y, r, m, s = normalize_sample(one, m, s, layer.forward_decay, layer.eps)
        outputs.append((y, r))
    for one, (y, r) in zip(g.reshape(*g.shape[:2], -1), outputs, strict=True):
        back, u, v = gradient_of_sample(one, y, r, u, v, layer.backward_decay)
        backs.append(back)
    return [torch.stack([y for y, _ in outputs]).view_as(x), torch.stack(backs).view_as(x), m, s, u, v]


def all_of(layer: OnlineNorm2d, x: Tensor, g: Tensor) -> list[Tensor]:
    return [*through(layer, x, g), *(getattr(layer, name) for name in BUFFERS)]


# --- the definition -----------------------------------------------------------------------------------------------------


def statistics_are_right(normalize: Callable) -> bool:
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


def control_is_right(gradient: Callable) -> bool:
    """`u` is the sum of the means of what was handed back, `v` that of `h y`; both written out over the whole past."""
    (y, g), decay = stream(30, 2, 5), 0.8
    y = y / 3  # small enough that a sample never takes away more than all of `v`
    r = 1 + randn(30, 2).abs()
    u = v = torch.zeros(2, dtype=y.dtype)
    hs, backs, expected = [], [], []
    for t in range(30):
        along = sum(((h * y[k]).mean(1) for k, h in enumerate(hs)), torch.zeros(2, dtype=y.dtype))
        h = g[t] - (1 - decay) * along[:, None] * y[t]
        past = [(1 - decay) * decay ** (t - 1 - k) * (hs[k] / r[k][:, None]).mean(1, keepdim=True) for k in range(t)]
        hs.append(h)
        back, u, v = gradient(g[t], y[t], r[t], u, v, decay)
        backs.append(back)
        expected.append(h / r[t][:, None] - sum(past))
    found = torch.stack([torch.stack(backs).mean(2).sum(0), (torch.stack(hs) * y).mean(2).sum(0)])
    return torch.allclose(torch.stack(backs), torch.stack(expected)) and torch.allclose(torch.stack([u, v]), found)


WRONG_FORWARD = [  # (what is there, what is put in its place)
    ("square().mean(1)", "square().sum(1) / (x.shape[1] - 1)"),
    ("(a - m).square()", "(decay * (a - m)).square()"),  # the distance from the new mean
    (" + decay * (1 - decay) * (a - m).square()", ""),
    ("    r =", "    m = decay * m + (1 - decay) * a\n    r ="),  # the sample in its own mean
    ("(s + eps).sqrt()", "s.sqrt() + eps"),
]
WRONG_BACKWARD = [
    ("h = g -", "h = g +"),
    ("(g * y).mean(1)", "(g * y).sum(1)"),
    ("(g * y).mean(1)", "(g * y).mean(1) / r"),
    ("(1 - (1 - decay) * y.square().mean(1)).clamp(min=0) * v", "v"),
    ("h / r[:, None] - (1 - decay) * u[:, None]", "(h - (1 - decay) * u[:, None]) / r[:, None]"),
    ("back.mean(1)", "(h / r[:, None]).mean(1)"),
]


def instead(function: Callable, old: str, new: str) -> Callable:
    """The function with a mistake."""
    source, names = inspect.getsource(function), dict(vars(online_norm))
    assert old in source
    exec(source.replace(old, new), names)
    return names[source.split("(")[0].removeprefix("def ")]


def test_the_definition_is_that_of_the_weighted_stream_and_of_the_integral_controller_and_no_other():
    assert statistics_are_right(normalize_sample)
    assert control_is_right(gradient_of_sample)
    for change in WRONG_FORWARD:
        assert not statistics_are_right(instead(normalize_sample, *change))
    for change in WRONG_BACKWARD:
        assert not control_is_right(instead(gradient_of_sample, *change))


# --- a batch at once ----------------------------------------------------------------------------------------------------


def assert_close(found: list[Tensor], expected: list[Tensor], **tolerance: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), two.double(), **tolerance)


@pytest.mark.parametrize("shape", [(300, 4, 5, 3), (600, 4), (20, 3, 7), (1, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("decays", [(0.95, 0.9), (0.999, 0.99), (0.0, 0.0), (0.9, 1.0)], ids=str)
def test_a_batch_is_the_loop_over_its_samples(shape, decays):
    layer = bare(shape[1], *decays).double()
    for i, name in enumerate(BUFFERS):
        getattr(layer, name).copy_(0.5 + randn(shape[1], seed=i + 2).abs())
    x, g = stream(*shape)
    if len(shape) == 3:
        x[12, 1] = torch.nan  # what came before stays what it was
    expected = sequentially(layer, x, g)
    assert_close(all_of(layer, x, g), expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_where_the_statistics_lag_far_behind_the_control_forgets_and_stays_bounded():
    layer, (x, g) = bare(3, backward_decay=0.5).double(), stream(200, 3)
    x[100:] *= 1e3  # y is so large that more than all of v would be taken away
    y, *_ = expected = sequentially(layer, x, g)
    assert_close(all_of(layer, x, g), expected, rtol=1e-9)
    assert layer.v.abs().max() < 2 * (g * y).abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mean", "tolerance"), [(0, 2e-5), (1000, 2e-3)])  # float32 knows 1000 to 6e-5
def test_in_float32_the_batch_is_close_to_the_loop_in_either_layout(layout, mean, tolerance):
    layer = bare(6, 0.999, 0.99)
    layer.mean.fill_(mean)
    x, g = (z.float().contiguous(memory_format=layout) for z in stream(128, 6, 8, 8))
    x += mean
    wide = sequentially(copy.deepcopy(layer).double(), x.double(), g.double())
    found = all_of(layer, x, g)
    assert_close(found, wide, rtol=tolerance, atol=tolerance)
    assert all(z.is_contiguous(memory_format=layout) for z in [layer(x), *found[:2]])


def test_gain_and_bias_are_those_of_batch_norm_and_the_control_sees_the_gradient_behind_them():
    x, g = stream(40, 3, 4, 4)
    layer: Any = OnlineNorm2d(3, 0.95, 0.9, guard="none").double()
    inner, weight, bias = bare(3).double(), layer.weight, layer.bias
    for parameter in (weight, bias):
        nn.init.normal_(parameter)
    z, back = through(nn.Sequential(layer, nn.ReLU(inplace=True)), x, g)
    y, expected = through(inner, x, g * (z > 0) * weight[:, None, None].detach())
    assert_close([z, back], [(y * weight[:, None, None] + bias[:, None, None]).relu(), expected])
    g = g * (z > 0)
    assert_close([weight.grad, bias.grad], [(g * y).sum((0, 2, 3)), g.sum((0, 2, 3))])
    weight.requires_grad_(False).grad = None
    through(layer, x, g)
    assert weight.grad is None
    layer(x).sum().backward()  # where nobody asks for the input's gradient
    assert torch.allclose(bias.grad, 2 * g.sum((0, 2, 3)) + 40 * 16)
    before = copy.deepcopy(layer.state_dict())
    z, back = through(layer, x[:0], g[:0])
    assert z.shape == back.shape == (0, 3, 4, 4)
    assert same(dict(layer.state_dict()), dict(before))


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


@pytest.mark.parametrize(("backward_decay", "low", "high"), [(0.99, 0.99, 1.0), (1.0, -1.0, 0.9)])
def test_with_control_and_only_so_the_gradient_is_that_of_a_large_batch(backward_decay, low, high):
    x = 2 + 3 * randn(20_000, 4)
    g = 0.7 * (x - 2) / 3 + 0.5 + randn(20_000, 4, seed=1)
    y, back = through(bare(4, 0.999, backward_decay).double(), x, g)
    late = slice(5000, None)  # the averages have found the stream
    _, right = through(nn.BatchNorm1d(4, affine=False).double(), x, g)  # with the whole stream as its batch
    cosine = F.cosine_similarity(back[late], right[late], dim=0)
    assert ((low < cosine) & (cosine < high)).all()
    left = 3 * torch.stack([back[late].mean(0), (back * y)[late].mean(0)]).abs()
    assert ((left < 0.01) if low > 0 else (left > 0.3)).all()


def test_guards_bound_what_leaves_the_layer():
    x, found = 100 * randn(8, 3, 4, 4, dtype=torch.float32), {}
    for guard in ("none", "clamp", "scale"):
        layer: Any = OnlineNorm2d(3, guard=guard)
        nn.init.constant_(layer.weight, 2.0)
        nn.init.constant_(layer.bias, 1.0)
        found[guard] = layer(x)
    plain = found["none"]
    assert same(found["clamp"], plain.clamp(-5, 5))
    assert torch.allclose(found["scale"], plain / (plain.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt())


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
    nn.init.constant_(layer.mean, 1 + 1e-6)
    exact = layer.mean.clone()
    assert same(layer.bfloat16().mean, exact)
    z, back = through(layer, randn(5, 3, dtype=torch.bfloat16), torch.ones(5, 3, dtype=torch.bfloat16))
    assert [x.dtype for x in (z, back, layer.weight.grad, layer.v)] == [torch.bfloat16] * 3 + [torch.float32]
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


def assert_refused(error: type[Exception], words: str, work: Callable, *arguments: Any, **named: Any) -> None:
    """With one sentence that has these words."""
    with pytest.raises(error) as found:
        work(*arguments, **named)
    assert_one_sentence(found.value, words)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused(reentrant):
    x = randn(5, 3, dtype=torch.float32).requires_grad_()
    y = checkpoint(nn.Sequential(OnlineNorm2d(3), nn.ReLU()), x, use_reentrant=reentrant)
    assert_refused(RuntimeError, "leave activation checkpointing out", y.sum().backward)


def test_two_forward_passes_before_a_backward_pass_are_refused():
    layer, x = OnlineNorm2d(3), randn(5, 3, dtype=torch.float32).requires_grad_()
    one_for_each = "one backward pass for each forward pass, before the next forward pass; sum losses over one batch"
    assert_refused(RuntimeError, one_for_each, (layer(x) + layer(x)).sum().backward)
    again = layer(x)
    layer(x.detach())  # of which only gain and bias learn
    assert_refused(RuntimeError, one_for_each, again.sum().backward)
    again = layer(x)
    layer.eval()(x)
    with torch.no_grad():
        layer.train()(x)  # neither asks for a gradient
    again.sum().backward(retain_graph=True)
    assert_refused(RuntimeError, "every other forward pass in evaluation mode", again.sum().backward)
    layer(x)  # whose gradient nobody asks for
    through(pickle.loads(pickle.dumps(copy.deepcopy(layer))), x, torch.ones(5, 3))


def test_a_second_derivative_is_refused():
    x = randn(5, 3, dtype=torch.float32).requires_grad_()
    (g,) = torch.autograd.grad(OnlineNorm2d(3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        g.sum().backward()


def test_values_and_inputs_out_of_range_are_refused():
    assert_refused(ValueError, "channels must be at least 1", OnlineNorm2d, 0)
    assert_refused(ValueError, "forward_decay must be from 0 to 1", OnlineNorm2d, 3, 1.01)
    assert_refused(ValueError, "backward_decay must be from 0 to 1", OnlineNorm2d, 3, backward_decay=float("nan"))
    assert_refused(ValueError, "eps must be a finite number above 0", OnlineNorm2d, 3, eps=0.0)
    for shape in ((4, 5), (4, 5, 3), (4, 3, 0)):
        assert_refused(ValueError, "3 channels needs (B, 3, ...) with pixels", OnlineNorm2d(3), torch.zeros(shape))


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
    refused = {
        "no batch norm to replace": both,
        "eps must be": nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, eps=0)),
    }
    for words, model in refused.items():
        before = list(model)
        assert_refused(ValueError, words, with_online_norm, model)
        assert list(model) == before
    shared.bias = None  # ty: ignore[invalid-assignment]
    nn.init.constant_(shared.weight, 2.0)
    x, alone = randn(4, 3, dtype=torch.float32), with_online_norm(nn.Sequential(shared), guard="none").eval()
    assert torch.allclose(alone(x), shared.eval()(x))


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
        assert_refused(ValueError, "batch sizes must be at least 1 and momentum", for_batch_size, *wrong)
