"""The ResNet against one written down by hand; its start, memory layout, norms; and the techniques that are put on it."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import assert_one_sentence, assert_resumes_bitwise, same, seeded
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minitrain.lab.probes import angle
from minitrain.optim import SGD, wrapped
from minitrain.recipe import Recipe, by_kind, check_ownership, cross_entropy, describe
from minitrain.resnet import Block, ResNet, cifar_resnet, layer_norm, resnet18
from minitrain.runtime.checkpoint import load_checkpoint
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.rotational import RotationalSGD
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.techniques.weight_standardization import convert, converted, weight_standardized
from minitrain.train import build, train

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": layer_norm,
    "none": nn.Identity,
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def tiny_resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> ResNet:
    """Two stages; the second has a block that changes the shape and one that does not."""
    return ResNet([(8, 1), (16, 2)], classes=5, norm=norm)


def some_images(rows: int = 6, size: int = 9, seed: int = 0) -> Tensor:
    """An odd size, so that what a stride leaves out is seen."""
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Colours:
    """Data: noise with a tint that is its class."""

    row_size, size, digest = 1, 64, "colours"

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(rows) % 5
        tint = torch.linspace(-1, 1, 5)[labels].view(-1, 1, 1, 1)
        return tint + 0.3 * some_images(rows, seed=1000 * seed + step), labels

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(9, 9, rows)]


RECIPE = Recipe(
    build_model=tiny_resnet,
    data=Colours,
    steps=20,
    batch_size=10,
    make_optimizer=partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
)


# --- what it computes -------------------------------------------------------------------------------------------------


def normalized(x: Tensor, dims: tuple[int, ...], gain: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt() * gain[:, None, None] + bias[
        :, None, None
    ]


class ByHand:
    """The tiny net as a function of its weights; `after`, `reads` and `last` are how others would have built it."""

    def __init__(self, weights: dict[str, Tensor], dims: tuple[int, ...], after=False, reads="branch", last=True):
        self.weights, self.dims, self.after, self.reads, self.last = weights, dims, after, reads, last

    def norm(self, name: str, x: Tensor) -> Tensor:
        return normalized(x, self.dims, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        w = self.weights[f"{name}.weight"]
        return F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)

    def block(self, name: str, x: Tensor, stride: int) -> Tensor:
        read = self.norm(f"{name}.norm1", x).relu()
        branch = self.conv(f"{name}.conv1", read, stride)
        branch = self.conv(f"{name}.conv2", self.norm(f"{name}.norm2", branch).relu())
        if stride == 1 and f"{name}.shortcut.weight" not in self.weights:
            y = x + branch
        else:
            y = branch + self.conv(f"{name}.shortcut", read if self.reads == "branch" else x, stride)
        return y.relu() if self.after else y

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv("stem", x)
        for i, stride in enumerate((1, 2, 1)):
            x = self.block(f"blocks.{i}", x, stride)
        x = (self.norm("norm", x) if self.last else x).relu()
        return x.mean(3).mean(2) @ self.weights["head.weight"].mT + self.weights["head.bias"]


def shaken(norm: Callable[[int], nn.Module]) -> ResNet:
    """In float64, with gains and biases that are not one and zero."""
    model = seeded(partial(tiny_resnet, norm)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    return model


DIMS = {"batch": (0, 2, 3), "layer": (1, 2, 3)}


@pytest.mark.parametrize("name", DIMS)
def test_logits_and_gradients_equal_those_by_hand(name: str):
    model, images = shaken(NORMS[name]), some_images().double()
    weights = {key: p.detach().clone().requires_grad_() for key, p in model.named_parameters()}
    logits, expected = model(images), ByHand(weights, DIMS[name])(images)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    for y in (logits, expected):
        F.cross_entropy(y, torch.arange(6) % 5).backward()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, weights[key].grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("wrong", [{"after": True}, {"reads": "input"}, {"last": False}], ids=str)
def test_other_nets_with_the_same_weights_give_other_logits(wrong: dict):
    model, images = shaken(layer_norm), some_images().double()
    other = ByHand(dict(model.named_parameters()), DIMS["layer"], **wrong)
    assert (model(images) - other(images)).abs().max() > 0.01


def test_in_evaluation_batch_norm_uses_what_it_saw():
    model = seeded(tiny_resnet)
    for step in range(5):
        model(some_images(seed=step))
    model.eval()
    images = some_images(seed=9)
    together = model(images)
    assert torch.allclose(together[:2], model(images[:2]), atol=1e-5)
    assert not torch.allclose(together, model.train()(images), atol=1e-2)


@pytest.mark.parametrize("name", ["layer", "none"])
def test_without_batch_norm_an_image_does_not_know_the_others(name: str):
    model, images = seeded(partial(tiny_resnet, NORMS[name])), some_images()
    assert torch.allclose(model(images)[:2], model(images[:2]), atol=1e-4)


# --- its shape --------------------------------------------------------------------------------------------------------


def test_depth_counts_the_layers_on_the_longest_way():
    for depth in (8, 14, 20):
        model = cifar_resnet(depth, width=4)
        on_the_way = [name for name, m in model.named_modules() if hasattr(m, "weight") and m.weight.ndim > 1]
        assert sum("shortcut" not in name for name in on_the_way) == depth
        shortcuts = [name for name in on_the_way if "shortcut" in name]
        assert shortcuts == [f"blocks.{depth // 6 * i}.shortcut" for i in (1, 2)]


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (partial(cifar_resnet, 14, 4), [(4, 32)] * 2 + [(8, 16)] * 2 + [(16, 8)] * 2),
        (partial(resnet18, 4), [(4, 32)] * 2 + [(8, 16)] * 2 + [(16, 8)] * 2 + [(32, 4)] * 2),
    ],
)
def test_each_stage_but_the_first_halves_the_sides(build: Callable[..., ResNet], shapes: list[tuple[int, int]]):
    model, seen = build(classes=7, channels=1), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:3])))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert seen == shapes


def test_sizes_are_those_of_the_literature():
    count = sum(p.numel() for p in cifar_resnet(20).parameters())
    assert count == pytest.approx(0.27e6, rel=0.02)  # table 6 of 1512.03385
    assert sum(p.numel() for p in resnet18().parameters()) == pytest.approx(11.2e6, rel=0.01)
    assert all(type(net.norm) is nn.BatchNorm2d for net in (ResNet([(4, 1)]), cifar_resnet(8), resnet18(4)))


def test_every_norm_is_a_module_of_its_own_and_is_told_its_channels():
    asked: list[int] = []

    def norm(channels: int) -> nn.Module:
        asked.append(channels)
        return nn.BatchNorm2d(channels)

    model = tiny_resnet(norm)
    assert sorted(asked) == [8, 8, 8, 16, 16, 16, 16]
    assert len({id(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}) == len(asked)


# --- its start --------------------------------------------------------------------------------------------------------


@every_norm
def test_it_starts_as_a_uniform_guess(norm: Callable[[int], nn.Module]):
    loss = cross_entropy(cifar_resnet(8, classes=7, norm=norm), some_images(), torch.arange(6))
    assert loss.item() == pytest.approx(math.log(7), abs=1e-6)


def test_convolutions_start_with_a_variance_of_two_over_the_inputs():
    torch.manual_seed(0)
    for name, module in resnet18().named_modules():
        if isinstance(module, nn.Conv2d):
            w = module.weight
            assert w.std().item() == pytest.approx((2 / w[0].numel()) ** 0.5, rel=0.05), name
            assert abs(w.mean().item()) < 4 * (2 / w[0].numel() / w.numel()) ** 0.5, name


# --- how it lies in memory --------------------------------------------------------------------------------------------


def channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@every_norm
def test_images_and_weights_lie_channels_last_throughout(norm: Callable[[int], nn.Module]):
    model, seen = seeded(partial(tiny_resnet, norm)), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | Block):
            module.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    model(some_images()).sum().backward()
    assert len(seen) == 2 * (3 + 1 + 6 + 1)
    assert all(map(channels_last, seen))
    weights = [p for p in model.parameters() if p.ndim == 4]
    assert all(channels_last(x) for p in weights for x in (p, p.grad))


def test_the_layout_of_the_images_changes_nothing():
    model, images = seeded(tiny_resnet), some_images()
    assert not channels_last(images)
    assert same(model(images), model(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("move", [copy.deepcopy, nn.Module.double], ids=["copied", "in float64"])
def test_the_layout_survives(move: Callable[[Any], Any]):
    model = move(tiny_resnet())
    model.load_state_dict({name: x.contiguous() for name, x in seeded(tiny_resnet).state_dict().items()})
    assert all(channels_last(p) for p in model.parameters() if p.ndim == 4)


def test_it_is_traced_without_memory():
    with FakeTensorMode():
        model = resnet18()
        loss = cross_entropy(model, torch.empty(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64))
        loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert cifar_resnet(8)(torch.empty(1, 3, 32, 32)).device.type == "cpu"
    with torch.device("meta"):
        assert cifar_resnet(8)(torch.empty(1, 3, 32, 32)).is_meta


# --- in a run ---------------------------------------------------------------------------------------------------------


@every_norm
def test_every_parameter_is_in_one_group_and_only_convolutions_decay(norm: Callable[[int], nn.Module]):
    model = tiny_resnet(norm)
    groups = by_kind(model)
    check_ownership(model, groups)
    names = {p: name for name, p in model.named_parameters()}
    found = {group["name"]: [names[p] for p in group["params"]] for group in groups}
    assert set(found["matrices"]) == {name for name, p in model.named_parameters() if p.ndim == 4}
    assert found["head"] == ["head.weight", "head.bias"]
    assert all("norm" in name for name in found.get("gains", []))


@pytest.mark.parametrize(
    ("name", "precision"), [("batch", "fp32"), ("batch", "bf16"), ("layer", "bf16"), ("none", "fp32")]
)
def test_it_learns_in_either_precision(name: str, precision: Any):
    run = train(replace(RECIPE, build_model=partial(tiny_resnet, NORMS[name]), precision=precision))
    assert run.losses[-3:].mean() < 0.7 * math.log(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        features = run.model.features(some_images())
    assert features.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_stopped_run_goes_on_bitwise(tmp_path: Path):
    """The running statistics too, which are no parameters."""
    assert_resumes_bitwise(tmp_path, RECIPE)
    assert any("running_mean" in name for name in load_checkpoint(tmp_path / "whole")["model"])


def test_a_recipe_names_its_model():
    lines = describe(replace(RECIPE, build_model=partial(cifar_resnet, depth=8, norm=layer_norm)))
    assert lines["build_model"] == "minitrain.resnet.cifar_resnet"
    assert lines["build_model.norm"] == "minitrain.resnet.layer_norm"


# --- with the techniques ----------------------------------------------------------------------------------------------


@every_norm
def test_recomputed_blocks_have_the_same_gradients(norm: Callable[[int], nn.Module]):
    def gradients(build_model: Callable[[], nn.Module]) -> list[Any]:
        model = seeded(build_model)
        cross_entropy(model, *Colours().batch(0, 0, 10)).backward()
        return [p.grad for p in model.parameters()]

    plain = partial(tiny_resnet, norm)
    assert same(gradients(partial(recompute_blocks, plain)), gradients(plain))


def test_standardized_convolutions_are_those_of_the_blocks():
    plain, model = seeded(partial(tiny_resnet, layer_norm)), convert(seeded(partial(tiny_resnet, layer_norm)), eps=0.0)
    inside = [name for name, m in plain.named_modules() if isinstance(m, nn.Conv2d) and name != "stem"]
    assert converted(model) == inside
    assert len(inside) == 7
    with torch.no_grad():
        for name in inside:
            w = plain.get_submodule(name).weight
            w.sub_(w.mean((1, 2, 3), keepdim=True))
    assert torch.allclose(model(some_images()), plain(some_images()), rtol=1e-3, atol=1e-4)
    assert all(channels_last(p) for p in model.parameters() if p.ndim == 4)
    losses = train(replace(RECIPE, build_model=partial(weight_standardized, partial(tiny_resnet, layer_norm)))).losses
    assert losses[-1] < 0.7 * losses[0]


def test_rotational_sgd_turns_every_filter_and_keeps_its_length():
    make = partial(RotationalSGD, lr=0.1, momentum=0.9, weight_decay=0.01, rms_decay=0.0)
    run = build(replace(RECIPE, make_optimizer=make))
    filters = {name: p for name, p in run.model.named_parameters() if p.ndim == 4}
    old = {name: p.detach().flatten(1).clone() for name, p in filters.items()}
    nn.init.normal_(run.model.head.weight, std=0.1)
    cross_entropy(run.model, *run.data.batch(0, 0, 10)).backward()
    run.optimizer.step()
    expected = math.atan((2 * 0.1 * 0.01 / 1.9) ** 0.5)
    for name, p in filters.items():
        new = p.detach().flatten(1)
        assert torch.allclose(new.norm(dim=1), old[name].norm(dim=1), rtol=1e-5), name
        assert torch.allclose(angle(old[name], new), torch.full((len(new),), expected), rtol=1e-2), name
        assert channels_last(p)


def test_stepping_in_backward_gives_the_same_bits():
    by: dict[str, tuple] = {"plain": (), "in backward": (StepInBackward,)}
    make = {name: partial(wrapped, make=RECIPE.make_optimizer, by=x) for name, x in by.items()}
    plain, stepped = (train(replace(RECIPE, make_optimizer=make[name])) for name in by)
    assert same(plain.losses, stepped.losses)
    assert same(plain.model.state_dict(), stepped.model.state_dict())


def test_weights_can_be_split():
    make = partial(wrapped, make=RECIPE.make_optimizer, by=(partial(SplitWeights),))
    # torch's batch norm on a CPU refuses gains in bf16 beside running statistics in float32
    run = train(replace(RECIPE, build_model=partial(tiny_resnet, layer_norm), make_optimizer=make, precision="bf16"))
    weights = [p for p in run.model.parameters() if p.ndim == 4]
    assert all(p.dtype == torch.bfloat16 and channels_last(p) for p in weights)
    assert run.losses[-1] < 0.7 * run.losses[0]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(ResNet, []), "at least one stage"),
        (partial(ResNet, [(8, 0)]), "blocks must be at least 1, not 0"),
        (partial(ResNet, [(8, 1), (0, 1)]), "width must be at least 1, not 0"),
        (partial(ResNet, [(8, 1)], classes=0), "classes must be at least 1, not 0"),
        (partial(ResNet, [(8, 1)], channels=-1), "channels must be at least 1, not -1"),
        (partial(cifar_resnet, 18), "depth must be 6n"),
        (partial(cifar_resnet, 2), "8, 14, 20 and so on, not 2"),
        (partial(cifar_resnet, -4), "not -4"),
        (partial(resnet18, 0), "width must be at least 1, not 0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(build: Callable[[], nn.Module], words: str):
    with pytest.raises(ValueError, match=words) as error:
        build()
    assert_one_sentence(error.value)
