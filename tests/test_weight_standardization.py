"""Standardized weights against numpy in float64; what a neuron no longer depends on; conversion; mistakes told apart."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small import (
    BASE,
    assert_one_sentence,
    assert_resumes_bitwise,
    in_own_process,
    randn,
    same,
    seeded,
    through_a_file,
    tiny_gpt,
    tiny_text,
)
from torch import Tensor, nn
from torch.nn import functional as F

import minitrain.techniques.weight_standardization as technique
from minitrain.gpt import GPT, MLP, SwiGLU
from minitrain.lab.probes import Norm
from minitrain.optim import SGD, AdamW, wrapped
from minitrain.recipe import by_kind, check_ownership, cross_entropy, describe
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.weight_standardization import (
    ScaledLinear,
    WeightStandardizedConv2d,
    WeightStandardizedLinear,
    convert,
    convert_scaled,
    converted,
    inside_blocks,
    scaled,
    standardize,
    weight_standardized,
)
from minitrain.train import train

standardized_gpt = partial(weight_standardized, tiny_gpt)
IN_BLOCKS = [f"blocks.0.{name}" for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.out")]
LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "linear": (partial(WeightStandardizedLinear, 6, 4), (5, 6)),
    "conv": (partial(WeightStandardizedConv2d, 4, 6, 3, padding=1, groups=2, padding_mode="reflect"), (2, 4, 5, 5)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def shaken(layer: nn.Module) -> nn.Module:
    """With weights and gains unlike those it was made with, and weights whose rows have a mean."""
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(1 + randn(*p.shape, seed=i))
    return layer


# --- the formula -------------------------------------------------------------------------------------------------------


def by_numpy(w: Tensor, gain: Tensor, init_std: Tensor, eps: float) -> np.ndarray:
    """Row by row, as the formula says it."""
    rows = w.detach().double().numpy().reshape(len(w), -1)
    out = [
        gain[i].item() * init_std[i].item() * (row - row.sum() / row.size) / (np.std(row, ddof=1) + eps)
        for i, row in enumerate(rows)
    ]
    return np.stack(out).reshape(w.shape)


def follows_the_formula(standardize: Callable, eps: float = 0.1) -> bool:
    """For a matrix and for filters, all of whose rows differ in mean and spread."""
    for shape in ((5, 7), (6, 3, 2, 2), (3, 3)):
        w = randn(*shape) * torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)) + randn(shape[-1], seed=1)
        gain, init_std = randn(shape[0], seed=2), randn(shape[0], seed=3).abs()
        found = standardize(w, gain, init_std, eps)
        if found.shape != w.shape or not np.allclose(found, by_numpy(w, gain, init_std, eps), rtol=1e-12, atol=0):
            return False
    return True


def test_each_row_is_what_the_formula_says():
    assert follows_the_formula(standardize)
    assert follows_the_formula(standardize, eps=0.0)


def wrong(correction: int = 1, dim: int | None = None, center: bool = True, inside: bool = False) -> Callable:
    def standardize(w: Tensor, gain: Tensor, init_std: Tensor, eps: float) -> Tensor:
        dims = tuple(range(1, w.ndim)) if dim is None else dim
        var, mean = torch.var_mean(w, dims, correction=correction, keepdim=True)
        std = (var + eps).sqrt() if inside else var.sqrt() + eps
        return (gain * init_std).view(-1, *[1] * (w.ndim - 1)) * (w - mean if center else w) / std

    return standardize


WRONG = {
    "biased std": wrong(correction=0),
    "over the outputs": wrong(dim=0),
    "over the last dimension": wrong(dim=-1),
    "no mean": wrong(center=False),
    "eps inside the root": wrong(inside=True),
    "no gain": lambda w, gain, init_std, eps: standardize(w, torch.ones_like(gain), init_std, eps),
    "no initial spread": lambda w, gain, init_std, eps: standardize(w, gain, torch.ones_like(gain), eps),
    "one spread for all rows": lambda w, gain, init_std, eps: standardize(
        w, gain, init_std.mean().expand_as(gain), eps
    ),
}


@pytest.mark.parametrize("standardize", WRONG.values(), ids=WRONG)
def test_a_wrong_formula_is_told_apart(standardize):
    assert follows_the_formula(wrong())
    assert not follows_the_formula(standardize)


@each_layer
def test_a_layer_is_a_plain_one_with_that_weight(make, shape):
    for eps in (0.0, 1e-5, 0.1):
        layer, x = shaken(make(eps=eps).double()), randn(*shape)
        w = torch.from_numpy(by_numpy(layer.weight, layer.gain, layer.init_std, eps))
        if isinstance(layer, nn.Linear):
            expected = F.linear(x, w, layer.bias)
        else:
            expected = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), w, layer.bias, groups=2)
        assert torch.allclose(layer(x), expected, rtol=1e-12)


def test_ten_steps_are_those_of_the_formula_written_out():
    """With a high rate and without decay among them, in float64."""
    x, y = randn(20, 6), randn(20, 4, seed=1)
    for lr, weight_decay in ((0.01, 0.1), (1.0, 0.0), (1.0, 0.5)):
        layer = seeded(partial(WeightStandardizedLinear, 6, 4, dtype=torch.float64))
        init_std = layer.init_std.clone()
        w, bias, gain = (nn.Parameter(p.detach().clone()) for p in (layer.weight, layer.bias, layer.gain))
        ours = AdamW(layer.parameters(), lr=lr, weight_decay=weight_decay)
        theirs = torch.optim.AdamW([w, bias, gain], lr=lr, weight_decay=weight_decay)
        for _ in range(10):
            z = w - w.mean(1, keepdim=True)
            std = (z.square().sum(1, keepdim=True) / 5).sqrt()
            (x @ (gain.view(-1, 1) * init_std.view(-1, 1) * z / (std + 1e-5)).T + bias - y).square().mean().backward()
            (layer(x) - y).square().mean().backward()
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        for name, p in (("weight", w), ("bias", bias), ("gain", gain)):
            assert torch.allclose(getattr(layer, name), p, rtol=1e-9, atol=1e-12)


# --- what a neuron no longer depends on ---------------------------------------------------------------------------------


@each_layer
def test_a_row_times_a_power_of_two_gives_the_same_bits_and_a_shorter_gradient(make, shape):
    def outputs_and_gradients(factor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        layer = seeded(partial(make, eps=0.0))
        with torch.no_grad():
            layer.weight.copy_(technique.scale_rows(layer.weight, factor))
        y = layer(randn(*shape, dtype=torch.float32))
        y.square().sum().backward()
        return y.detach(), {name: p.grad for name, p in layer.named_parameters()}

    factor = 2.0 ** torch.tensor([-20, -3, 0, 1, 7, 25])[: len(make().weight)]
    y, gradients = outputs_and_gradients(torch.ones_like(factor))
    y2, gradients2 = outputs_and_gradients(factor)
    assert same(y2, y)
    assert same(technique.scale_rows(gradients2.pop("weight"), factor), gradients.pop("weight"))
    assert same(gradients2, gradients)


@each_layer
def test_a_shifted_row_gives_the_same(make, shape):
    layer, x = shaken(make().double()), randn(*shape)
    y = layer(x)
    with torch.no_grad():
        layer.weight.add_(technique.scale_rows(torch.ones_like(layer.weight), randn(len(layer.weight), seed=9)))
    assert torch.allclose(layer(x), y, rtol=1e-10)


@each_layer
def test_the_gradient_of_a_row_is_orthogonal_to_it_and_to_ones(make, shape):
    layer = shaken(make(eps=0.0).double())
    layer(randn(*shape)).pow(3).sum().backward()
    w, g = layer.weight.detach().flatten(1), layer.weight.grad.flatten(1)
    size = g.norm(dim=1)
    assert (size > 1e-3).all()
    assert ((w * g).sum(1).abs() < 1e-12 * size * w.norm(dim=1)).all()
    assert (g.sum(1).abs() < 1e-12 * size).all()


# --- conversion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mlp", [MLP, SwiGLU])
def test_the_converted_gpt_is_the_old_one_without_row_means(mlp):
    build = partial(tiny_gpt, mlp=mlp)
    plain, model = seeded(build), convert(seeded(build), eps=0.0)
    tokens = tiny_text().batch(0, 0, 4)[0]
    before = plain(tokens)
    with torch.no_grad():
        for name in converted(model):
            w = plain.get_submodule(name).weight
            w.sub_(torch.std_mean(w, 1, keepdim=True)[1])
    assert same(model(tokens), plain(tokens))
    assert not torch.allclose(model(tokens), before)
    close = convert(seeded(build), eps=1e-5)(tokens)
    assert torch.allclose(close, plain(tokens), rtol=0.01, atol=1e-3)


def test_a_scaled_gpt_is_the_old_one_bit_for_bit_and_learns_a_gain():
    plain, model = seeded(tiny_gpt), seeded(partial(scaled, tiny_gpt))
    inputs, targets = tiny_text().batch(0, 0, 4)
    assert same(model(inputs), plain(inputs))
    assert converted(model) == IN_BLOCKS
    for m in (model, plain):
        cross_entropy(m, inputs, targets).backward()
    for name in IN_BLOCKS:
        layer, old = model.get_submodule(name), plain.get_submodule(name)
        assert same(layer.weight.grad, old.weight.grad)
        # d loss / d gain is what the weight's own gradient says along the weight
        assert torch.allclose(layer.gain.grad, (old.weight.grad * old.weight).sum(1), rtol=1e-3, atol=1e-7)
    layer.gain.data[1] = 3.0
    assert same(layer.effective_weight()[1], 3 * layer.weight[1])
    x = randn(5, 6, dtype=torch.float32)
    assert same(*(seeded(partial(make, 6, 4))(x) for make in (ScaledLinear, nn.Linear)))


def test_by_default_layers_inside_blocks_are_converted_and_nothing_else_is_touched():
    plain, model = seeded(tiny_gpt), seeded(tiny_gpt)
    objects = dict(model.named_parameters())
    assert convert(model) is model
    assert converted(model) == IN_BLOCKS
    assert type(model.head) is nn.Linear
    found = model.state_dict()
    assert set(found) - set(plain.state_dict()) == {f"{name}.{x}" for name in IN_BLOCKS for x in ("gain", "init_std")}
    assert all(same(found[name], x) for name, x in plain.state_dict().items())
    assert all(model.get_parameter(name) is p for name, p in objects.items())


def test_the_initial_sizes_survive_with_the_residual_scaling():
    model = seeded(partial(weight_standardized, partial(GPT, depth=4, width=64)))
    for name in converted(model):
        layer = model.get_submodule(name)
        expected = (layer.in_features * (8 if name.endswith(".out") else 1)) ** -0.5
        assert layer.init_std.square().mean().sqrt().item() == pytest.approx(expected, rel=0.03)
        assert torch.allclose(layer.effective_weight().std(1), layer.init_std, rtol=1e-3)


def test_the_choice_is_a_predicate_or_names():
    only_mlp = convert(tiny_gpt(), lambda name, layer: "mlp" in name)
    assert converted(only_mlp) == IN_BLOCKS[2:]
    assert converted(convert(tiny_gpt(), IN_BLOCKS[:1])) == IN_BLOCKS[:1]
    assert converted(convert(tiny_gpt(), IN_BLOCKS[0])) == IN_BLOCKS[:1]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    assert converted(convert(net, lambda name, layer: True)) == ["0", "3"]
    assert [type(layer) for layer in net][::3] == [WeightStandardizedConv2d, WeightStandardizedLinear]
    assert net(randn(2, 3, 5, 5, dtype=torch.float32)).shape == (2, 5)


def test_a_converted_layer_keeps_dtype_hooks_and_whether_it_learns():
    layer = nn.Linear(6, 4, dtype=torch.float64).requires_grad_(False)
    seen: list[Any] = []
    layer.register_forward_hook(lambda *args: seen.append(args))
    assert convert(layer, [""]) is layer
    assert layer(randn(5, 6)).dtype == layer.gain.dtype == layer.init_std.dtype == torch.float64
    assert seen
    assert not layer.gain.requires_grad


def test_a_layer_that_is_used_twice_is_converted_once():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    assert converted(convert(model, lambda name, layer: True)) == ["0"]
    assert model[0] is model[2]
    check_ownership(model, by_kind(model))


# --- in a run -----------------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_one_group_and_gains_do_not_decay():
    model = standardized_gpt()
    groups = by_kind(model)
    check_ownership(model, groups)
    names = {p: name for name, p in model.named_parameters()}
    by_group = {group["name"]: {names[p] for p in group["params"]} for group in groups}
    assert by_group["matrices"] == {f"{name}.weight" for name in IN_BLOCKS}
    assert by_group["gains"] == {*(f"{name}.gain" for name in IN_BLOCKS), *(n for n in names.values() if "norm" in n)}
    decays = {group["name"]: group["weight_decay"] for group in AdamW(groups, weight_decay=0.1).param_groups}
    assert decays == {"matrices": 0.1, "embeddings": 0.0, "head": 0.0, "gains": 0.0}


RECIPE = replace(BASE, build_model=standardized_gpt)


def test_a_stopped_run_goes_on_bitwise_in_a_fresh_process(tmp_path):
    run = assert_resumes_bitwise(tmp_path, RECIPE, elsewhere=(__name__, "RECIPE"))
    assert run.losses[-1] < run.losses[0]


def loads_what_was_saved(load: Callable[[nn.Module, dict], Any]) -> bool:
    """Whether a model with other initial weights computes the same bits once the trained one's state is loaded."""
    model = train(replace(RECIPE, steps=5)).model
    torch.manual_seed(1)
    fresh = standardized_gpt()
    load(fresh, through_a_file(model.state_dict()))
    tokens = tiny_text().batch(0, 0, 4)[0]
    return same(fresh(tokens), model(tokens)) and same(copy.deepcopy(model)(tokens), model(tokens))


def recompute_initial_std(model: nn.Module, state: dict) -> None:
    """Wrong: as if the initial spread were set in the first forward pass after loading."""
    model.load_state_dict(state)
    for name in converted(model):
        layer = model.get_submodule(name)
        layer.init_std = layer.weight.std(1)


def forget_initial_std(model: nn.Module, state: dict) -> None:
    """Wrong: as if the initial spread were not in the state."""
    model.load_state_dict({name: x for name, x in state.items() if "init_std" not in name}, strict=False)


def test_a_fresh_model_takes_up_a_checkpoint_with_its_initial_spreads():
    assert loads_what_was_saved(nn.Module.load_state_dict)
    assert not loads_what_was_saved(recompute_initial_std)
    assert not loads_what_was_saved(forget_initial_std)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_recomputed_blocks_have_the_same_gradients(bf16):
    def gradients(build: Callable[[], nn.Module]) -> list[Tensor]:
        model = seeded(build)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            cross_entropy(model, *tiny_text().batch(0, 0, 4)).backward()
        return [p.grad for p in model.parameters()]

    expected = gradients(standardized_gpt)
    assert same(gradients(partial(recompute_blocks, standardized_gpt)), expected)
    assert same(gradients(partial(weight_standardized, partial(recompute_blocks, tiny_gpt))), expected)


def test_under_autocast_weights_are_standardized_in_float32():
    model, x = standardized_gpt(), randn(5, 32, dtype=torch.float32)
    layer = model.blocks[0].mlp.up
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.effective_weight().dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
        assert same(layer(x), F.linear(x, layer.effective_weight().bfloat16()))
    run = train(replace(RECIPE, precision="bf16"))
    assert run.losses[-1] < run.losses[0]


def test_bf16_weights_are_standardized_in_float32():
    layer = WeightStandardizedLinear(64, 4)
    layer.weight.data += 1.0
    half = copy.deepcopy(layer).bfloat16()
    half.init_std = layer.init_std
    with torch.no_grad():
        layer.weight.copy_(half.weight)
        assert half.effective_weight().dtype == torch.bfloat16
        assert same(half.effective_weight(), layer.effective_weight().bfloat16())
    split = partial(wrapped, make=partial(AdamW, lr=1e-2), by=(partial(SplitWeights),))
    assert train(replace(RECIPE, make_optimizer=split)).losses[-1].isfinite()


def compile_and_compare() -> None:
    """Prints how far compiled layers, in one graph each, are from the eager ones."""
    for make, shape in LAYERS.values():
        layer, x = make(), randn(*shape, dtype=torch.float32)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        print((compiled(x) - layer(x)).abs().max().item())


def test_it_compiles_into_one_graph():
    found = in_own_process("compile_and_compare()", module=__name__)
    assert [float(line) < 1e-6 for line in found.split()] == [True, True]


def test_without_decay_every_step_of_sgd_makes_every_neuron_longer():
    """By Pythagoras, since gradients are orthogonal to the weights; neurons of plain layers get shorter as well."""

    def lengths(build_model: Callable[[], nn.Module]) -> list[Tensor]:
        optimizer = partial(SGD, lr=0.5, weight_decay=0.0)
        recipe = replace(BASE, build_model=build_model, make_optimizer=optimizer, schedules={}, before_step=())
        lines = train(recipe, probes=[Norm(every=5, neurons="all")]).metrics
        found = [line["norm_per_neuron"] for line in lines if "norm" in line]
        return [torch.cat([torch.tensor(x) for x in neurons.values()]) for neurons in found]

    assert all((new >= old * (1 - 1e-6)).all() for old, new in pairwise(lengths(standardized_gpt)))
    assert any((new < old * (1 - 1e-3)).any() for old, new in pairwise(lengths(tiny_gpt)))


def test_a_recipe_names_what_it_does_to_the_model():
    lines = describe(replace(BASE, build_model=partial(weight_standardized, tiny_gpt, eps=0.0)))
    assert lines["build_model"] == "minitrain.techniques.weight_standardization.weight_standardized"
    assert lines["build_model.0"] == "small.tiny_gpt"
    assert lines["build_model.eps"] == "0.0"
    lines = describe(partial(scaled, tiny_gpt, which=inside_blocks))
    assert lines["which"] == "minitrain.techniques.weight_standardization.inside_blocks"


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan"), float("inf")])
def test_a_row_without_a_direction_is_refused_before_anything_is_converted(value):
    model = tiny_gpt()
    with torch.no_grad():
        model.blocks[0].mlp.out.weight[2] = value
    with pytest.raises(ValueError, match="no direction to keep") as error:
        convert(model)
    assert_one_sentence(error.value, "row 2 of blocks.0.mlp.out", "leave the layer out")
    assert not converted(model)
    assert set(model.state_dict()) == set(tiny_gpt().state_dict())
    assert converted(convert(model, IN_BLOCKS[:3])) == IN_BLOCKS[:3]
    convert_scaled(model, IN_BLOCKS[3:])  # which needs no direction


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (["blocks.0.mlp.down"], "this GPT has no module 'blocks.0.mlp.down'; give names as named_modules"),
        (["embedding"], "embedding is a Embedding, and only nn.Linear or nn.Conv2d itself can be changed"),
        (lambda name, layer: False, "no nn.Linear or nn.Conv2d of this GPT was chosen"),
        ([], "no nn.Linear or nn.Conv2d of this GPT was chosen"),
        (["head"], "row 0 of head has no direction"),
    ],
)
def test_a_choice_that_cannot_be_converted_is_refused(which, words):
    with pytest.raises(ValueError, match=words) as error:
        convert(tiny_gpt(), which)
    assert_one_sentence(error.value)


def test_a_second_conversion_is_refused():
    for again in (convert, convert_scaled):
        with pytest.raises(ValueError, match=r"blocks\.0\.attention\.qkv is a WeightStandardizedLinear") as error:
            again(standardized_gpt())
        assert_one_sentence(error.value)


def test_a_subclass_whose_weight_others_read_is_refused():
    """Attention of torch reads its `out_proj.weight` by itself, and would not see it standardized."""
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.MultiheadAttention(8, 2)])})
    with pytest.raises(ValueError, match=r"blocks\.0\.out_proj is a NonDynamicallyQuantizableLinear"):
        convert(model)


def test_a_tied_weight_is_refused():
    model = tiny_gpt(tied=True)
    assert converted(convert(model)) == IN_BLOCKS  # the tie is outside of them
    for one in ("head", IN_BLOCKS[2]):
        model = tiny_gpt(tied=True)
        model.blocks[0].mlp.register_parameter("also", model.blocks[0].mlp.up.weight)
        with pytest.raises(ValueError, match="are one tied weight") as error:
            convert(model, [one])
        assert_one_sentence(error.value, one, "untie them")


def test_an_eps_out_of_range_is_refused():
    for eps in (-1e-5, float("nan"), float("inf")):
        for make in (partial(WeightStandardizedLinear, 6, 4), partial(convert, tiny_gpt())):
            with pytest.raises(ValueError, match="eps must be a finite number of 0 or above") as error:
                make(eps=eps)
            assert_one_sentence(error.value)


def test_rows_too_short_to_learn_are_refused():
    conv, none = partial(WeightStandardizedConv2d, 4, 4, 1, groups=4), nn.Sequential(nn.Linear(4, 1))
    none[0].weight = nn.Parameter(torch.empty(0, 4))
    for make in (partial(WeightStandardizedLinear, 2, 4), conv, partial(convert, none, ["0"])):
        with pytest.raises(ValueError, match="weights, and of fewer than 3") as error:
            make()
        assert_one_sentence(error.value, "leave it out")


def test_layers_are_built_without_memory():
    layer = WeightStandardizedLinear(6, 4, device="meta")
    assert layer.init_std.is_meta
    assert layer(torch.empty(2, 6, device="meta")).shape == (2, 4)
