"""Probes: the chord formula is exact where the cosine's is not, each measures what was done to the weight, nothing moves."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import BASE, CONTEXT, VARIANTS, VOCAB, assert_one_sentence, same, tiny_gpt, train_small
from torch import Tensor, nn

from minitrain.equilibrium import Equilibrium, equilibrium, exponential, heavy_ball
from minitrain.lab.alignment import Alignment
from minitrain.lab.noise import NoiseScale
from minitrain.lab.probes import Norm, RelativeUpdate, Rotation, WeightProbe, angle, check_neurons, predict, rows
from minitrain.lab.watch import watch
from minitrain.optim import SGD, Adam, AdamW, Lion, wrapped
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import StepInBackward


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def turned(w: Tensor, by: Tensor | float) -> Tensor:
    """Each row turned by its angle towards a random direction, computed in float64."""
    w64, other = w.double(), torch.randn(w.shape, dtype=torch.float64)
    unit = w64 / w64.norm(dim=-1, keepdim=True)
    sideways = other - (other * unit).sum(-1, keepdim=True) * unit
    sideways = sideways / sideways.norm(dim=-1, keepdim=True)
    by = torch.as_tensor(by, dtype=torch.float64)[..., None]
    return (w64.norm(dim=-1, keepdim=True) * (unit * by.cos() + sideways * by.sin())).to(w.dtype)


# --- the angle --------------------------------------------------------------------------------------------------------

ANGLES = [1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0, math.pi / 2, 2.0, 3.0, 3.1, math.pi]


def angle_by_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The usual way: near zero the cosine has no digits left in float32."""
    return torch.acos((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))


def worst_error(measure: Any, true: float, width: int) -> float:
    """The largest relative error over 200 pairs of float32 vectors at the angle `true`."""
    a = torch.randn(200, width)
    return ((measure(a, turned(a, true)).double() - true).abs().max() / true).item()


@pytest.mark.parametrize("true", ANGLES)
def test_angle_is_as_accurate_as_rounded_vectors_allow(true: float):
    """In float32 from a ten thousandth of a radian on; along an axis and in float64 everywhere."""
    for width in (2, 64, 1024):
        assert true < 1e-4 or worst_error(angle, true, width) < 1e-3
    axis, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(true), math.sin(true)])
    assert angle(axis, b).item() == pytest.approx(true, rel=1e-3)
    a = torch.randn(200, 64, dtype=torch.float64)
    assert true >= 3.1 or angle(a, turned(a, true)).numpy() == pytest.approx(true, rel=1e-9)


def test_the_angle_by_the_cosine_is_not():
    for true in (1e-4, 3e-4, 1e-3):
        assert not worst_error(angle_by_cosine, true, width=64) < 1e-3


def test_below_that_the_chord_is_right_on_average_where_the_cosine_finds_nothing():
    for true in (1e-6, 1e-5):
        a = torch.randn(200, 64)
        b = turned(a, true)
        assert angle(a, b).median().item() == pytest.approx(true, rel=0.02)
        assert angle_by_cosine(a, b).median().item() != pytest.approx(true, rel=0.02)
        assert worst_error(angle, true, width=64) * true < 2e-7  # the rounding of the vectors


def test_angle_is_taken_over_the_last_dimension_and_does_not_depend_on_lengths():
    a, b = torch.randn(2, 3, 4, 5)
    assert angle(a, b).shape == (3, 4)
    assert torch.equal(angle(a, b)[1, 2], angle(a[1, 2], b[1, 2]))
    torch.testing.assert_close(angle(1e-3 * a, 1e3 * b), angle(a, b))
    assert (angle(a, a) == 0).all()
    assert angle(torch.zeros(3), torch.ones(3)).isnan()
    assert angle(torch.ones(3), torch.zeros(3)).isnan()


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_neurons():
    for shape, row_dims, expected in (
        ((4, 6), 1, (4, 6)),
        ((4, 6, 3, 3), 1, (4, 54)),
        ((4, 6, 3), 2, (24, 3)),
        ((4, 6, 3, 3), 2, (24, 9)),
        ((4, 6), 2, (24, 1)),
        ((4,), 1, (4, 1)),
    ):
        w = torch.arange(math.prod(shape)).float().view(shape)
        assert rows(w, row_dims).shape == expected
        assert torch.equal(rows(w, row_dims).flatten(), w.flatten())


# --- rotation ---------------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """Two matrices, a weight of three dimensions and a gain."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 20))
        self.second = nn.Parameter(torch.randn(5, 20))
        self.heads = nn.Parameter(torch.randn(2, 3, 20))
        self.gain = nn.Parameter(torch.ones(20))


def run_like() -> Any:
    """What a probe asks of a run: a model and an optimizer."""
    model = Weights()
    groups = [
        {"name": "matrices", "params": [model.second, model.first]},
        {"name": "heads", "params": [model.heads], "row_dims": 2},
        {"name": "gains", "params": [model.gain]},
    ]
    return SimpleNamespace(model=model, optimizer=torch.optim.SGD(groups, lr=0.1))


def seen_by(probe: WeightProbe, run: Any, **new: Tensor) -> dict[str, Any]:
    """All that the probe reports when the named weights change in place."""
    probe.before(run)
    with torch.no_grad():
        for name, w in new.items():
            getattr(run.model, name).copy_(w)
    return probe.after(run)


def measure(probe: Rotation, run: Any, **new: Tensor) -> dict[str, float]:
    """Of that, the rotation."""
    return next(value for key, value in seen_by(probe, run, **new).items() if key.startswith("rotation"))


def test_rotation_is_the_angle_the_weight_was_turned_by_or_its_root_mean_square_over_neurons():
    for by in (1e-3, 0.2, 3.0):
        run = run_like()
        seen = measure(Rotation(), run, first=turned(run.model.first, by))
        assert seen == {"first": pytest.approx(by, rel=1e-3), "second": 0.0}
        assert type(seen["first"]) is float
    run, by = run_like(), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    seen = measure(Rotation(), run, first=turned(run.model.first, by))
    assert seen["first"] == pytest.approx(by.square().mean().sqrt().item(), rel=1e-3)


def test_growing_is_not_turning():
    run = run_like()
    seen = measure(Rotation(), run, first=3 * run.model.first * torch.rand(6, 1))
    assert seen["first"] < 1e-6


def test_a_zero_neuron_has_no_angle_and_is_left_out():
    run = run_like()
    with torch.no_grad():
        run.model.first[0] = 0
    new = turned(run.model.first, 0.2)
    new[0] = 1.0
    assert measure(Rotation(), run, first=new)["first"] == pytest.approx(0.2, rel=1e-3)


def test_row_dims_2_measures_each_head_by_itself_and_1_all_of_a_neurons_inputs_together():
    run = run_like()
    seen = measure(Rotation("heads"), run, heads=turned(run.model.heads, torch.tensor([[0.3, 0, 0], [0, 0, 0]])))
    assert seen == {"heads": pytest.approx(0.3 / 6**0.5, rel=1e-3)}
    run = run_like()
    run.optimizer.param_groups[1]["row_dims"] = 1
    new = turned(run.model.heads.detach().flatten(1), torch.tensor([0.3, 0.0])).view(2, 3, 20)
    assert measure(Rotation("heads"), run, heads=new) == {"heads": pytest.approx(0.3 / 2**0.5, rel=1e-3)}


def test_each_step_is_measured_from_its_own_start():
    run, probe = run_like(), Rotation()
    measure(probe, run, first=turned(run.model.first, 1.0))
    assert measure(probe, run, first=turned(run.model.first, 0.1))["first"] == pytest.approx(0.1, rel=1e-3)


def test_an_unknown_group_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="no group named 'matrizes'") as caught:
        Rotation("matrizes").before(run_like())
    assert "\n" not in str(caught.value)


class SGDWithPrediction(torch.optim.SGD):
    """Predicts a rotation for one of its groups only."""

    def equilibrium(self, group: dict[str, Any], fan_in: int) -> Equilibrium | None:
        return Equilibrium(math.nan, math.nan, 0.25, 100.0) if group["name"] == "heads" else None


def test_a_prediction_is_shown_beside_the_measurement_where_there_is_one():
    run = run_like()
    run.optimizer = SGDWithPrediction(run.optimizer.param_groups, lr=0.1)
    for group, key, names, predicted in (
        ("heads", "rotation_of_heads", {"heads"}, {"predicted_rotation_of_heads": 0.25}),
        ("matrices", "rotation", {"first", "second"}, {}),
    ):
        probe = Rotation(group)
        probe.before(run)
        seen = probe.after(run)
        assert seen.pop(key).keys() == names
        assert seen == predicted


# --- norm and relative update -----------------------------------------------------------------------------------------


def of_lengths(*lengths: float) -> Tensor:
    """A row of 20 numbers for each length, in a random direction."""
    return nn.functional.normalize(torch.randn(len(lengths), 20)) * torch.tensor(lengths)[:, None]


def test_norm_is_the_root_mean_square_length_of_the_neurons_after_the_step():
    seen = seen_by(Norm(), run_like(), first=of_lengths(1, 1, 2, 2, 3, 3), second=of_lengths(5, 5, 5, 5, 5))
    assert seen == {"norm": {"first": pytest.approx((28 / 6) ** 0.5), "second": pytest.approx(5.0)}}


def test_relative_update_is_the_frobenius_norm_of_the_step_over_that_of_the_weight_before():
    run = run_like()
    with torch.no_grad():
        run.model.first.copy_(of_lengths(1, 1, 1, 1, 4, 4))
    step = of_lengths(0.3, 0.3, 0.3, 0.3, 0, 0)
    seen = seen_by(RelativeUpdate(neurons="all"), run, first=run.model.first.detach() + step)
    assert seen["relative_update"] == {"first": pytest.approx(0.6 / 6), "second": 0.0}
    assert seen["relative_update_per_neuron"]["first"] == pytest.approx([0.3] * 4 + [0.0] * 2)


def test_a_zero_neuron_has_a_norm_and_no_relative_update():
    run = run_like()
    with torch.no_grad():
        run.model.first[0] = 0
    seen = seen_by(RelativeUpdate(neurons="all"), run, first=torch.ones(6, 20))
    assert math.isnan(seen["relative_update_per_neuron"]["first"][0])
    assert math.isfinite(seen["relative_update"]["first"])


@pytest.mark.parametrize("probe", [Rotation, RelativeUpdate])
def test_a_weight_of_zeros_only_is_not_a_number_and_no_crash(probe: Callable):
    run = run_like()
    with torch.no_grad():
        run.model.first.zero_()
    for neurons in (None, "quantiles", "all"):
        seen = seen_by(probe(neurons=neurons), run, first=torch.zeros(6, 20))
        assert math.isnan(seen[probe.key]["first"])
        assert not math.isnan(seen[probe.key]["second"])


def test_a_small_step_sideways_rotates_by_the_relative_update():
    run = run_like()
    new = turned(run.model.first, 0.01)
    both = [seen_by(probe(), copy.deepcopy(run), first=new)[probe.key]["first"] for probe in (Rotation, RelativeUpdate)]
    assert both == pytest.approx([0.01, 0.01], rel=1e-3)


# --- single neurons ---------------------------------------------------------------------------------------------------


def test_all_neurons_are_listed_in_the_order_of_the_rows():
    run, by = run_like(), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    seen = seen_by(Rotation(neurons="all"), run, first=turned(run.model.first, torch.tensor(by)))
    assert seen["rotation_per_neuron"]["first"] == pytest.approx(by, rel=1e-3, abs=1e-6)
    assert seen["rotation_per_neuron"]["second"] == [0.0] * 5


def test_quantiles_are_those_of_the_neurons_that_have_an_angle():
    run = run_like()
    run.model.first = nn.Parameter(torch.randn(102, 20))
    run.optimizer.param_groups[0]["params"][1] = run.model.first
    with torch.no_grad():
        run.model.first[7] = 0
    new = turned(run.model.first, torch.cat([torch.arange(7), torch.zeros(1), torch.arange(7, 101)]) / 100)
    new[7] = 0
    seen = seen_by(Rotation(neurons="quantiles"), run, first=new)["rotation_per_neuron"]["first"]
    expected = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    assert seen == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}


def test_the_group_stands_in_the_keys_of_neurons_too():
    assert seen_by(Rotation("heads", neurons="all"), run_like()).keys() == {
        "rotation_of_heads",
        "rotation_per_neuron_of_heads",
    }


def test_another_way_to_report_neurons_is_refused():
    with pytest.raises(ValueError, match="neurons must be 'quantiles', 'all' or None, not 'mean'") as caught:
        check_neurons("mean")
    assert_one_sentence(caught.value)


# --- which weights ----------------------------------------------------------------------------------------------------


def test_none_measures_all_groups():
    seen = seen_by(Rotation(None), run_like())
    assert seen == {"rotation_of_all": {"first": 0.0, "second": 0.0, "heads": 0.0, "gain": 0.0}}


def test_groups_without_names_are_those_of_by_kind():
    model = tiny_gpt(tied=True)
    model.blocks[0].mlp.up.weight.requires_grad_(False)
    run = SimpleNamespace(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    assert seen_by(Rotation(), run)["rotation"].keys() == {
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.out.weight",
        "blocks.0.mlp.out.weight",
    }
    assert seen_by(Norm("embeddings"), run)["norm_of_embeddings"].keys() == {"embedding.weight"}


@pytest.mark.parametrize("names", [True, False])
def test_an_optimizer_of_another_model_is_refused(names: bool):
    run = run_like()
    run.model = nn.Linear(2, 2)
    if not names:
        run.optimizer = torch.optim.SGD(Weights().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the model's parameters") as caught:
        Rotation().before(run)
    assert_one_sentence(caught.value)


def test_the_kernel_of_a_convolution_is_a_neuron_per_channel_or_by_row_dims_per_filter():
    model = nn.Sequential(nn.Conv2d(3, 4, 5, bias=False))
    w = model[0].weight
    for row_dims, count in ((1, 4), (2, 12)):
        group = {"name": "matrices", "params": [w], "row_dims": row_dims}
        run = SimpleNamespace(model=model, optimizer=torch.optim.SGD([group], lr=0.1))
        probe = Rotation(neurons="all")
        probe.before(run)
        by = torch.linspace(0.1, 1.0, count)
        with torch.no_grad():
            w.copy_(turned(w.detach().reshape(count, -1), by).view_as(w))
        assert probe.after(run)["rotation_per_neuron"]["0.weight"] == pytest.approx(by.tolist(), rel=1e-3)


def test_bf16_weights_are_measured_in_float32():
    run = run_like()
    run.model.bfloat16()
    new = turned(run.model.first.float(), 0.2).bfloat16()
    true = angle(run.model.first.detach().float(), new.float()).square().mean().sqrt().item()
    assert seen_by(Rotation(), copy.deepcopy(run), first=new)["rotation"]["first"] == pytest.approx(true, rel=1e-5)
    true = new.float().norm(dim=1).square().mean().sqrt().item()
    assert seen_by(Norm(), run, first=new)["norm"]["first"] == pytest.approx(true, rel=1e-5)


# --- predictions ------------------------------------------------------------------------------------------------------

W = {"lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(torch.optim.AdamW, betas=(0.8, 0.9), **W), equilibrium(exponential(0.8), 0.01, 0.1, 20)),
        (partial(torch.optim.Adam, decoupled_weight_decay=True, **W), equilibrium(exponential(0.9), 0.01, 0.1, 20)),
        (partial(AdamW, betas=(0.8, 0.9), **W), equilibrium(exponential(0.8), 0.01, 0.1, 20)),
        (
            partial(torch.optim.AdamW, lr=torch.tensor(0.5), weight_decay=0.1),
            equilibrium(exponential(0.9), 0.5, 0.1, 20),
        ),
    ],
)
def test_of_decoupled_decay_norm_and_rotation_are_predicted(make: Callable, expected: Equilibrium):
    optimizer = make([nn.Parameter(torch.zeros(1))])
    assert predict(optimizer, optimizer.param_groups[0], 20) == pytest.approx(expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_of_sgd_the_rotation_is_predicted_and_the_norm_is_not(nesterov: bool):
    filter = heavy_ball(0.9, nesterov)
    rotation = (2 * 0.01 * 0.1 * filter.energy / filter.total) ** 0.5
    for make in (SGD, torch.optim.SGD):
        optimizer = make([nn.Parameter(torch.zeros(1))], momentum=0.9, nesterov=nesterov, **W)
        seen = predict(optimizer, optimizer.param_groups[0], 20)
        assert seen.rotation == pytest.approx(rotation)
        assert math.isnan(seen.norm)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, **W),
        partial(Adam, **W),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
        partial(torch.optim.AdamW, amsgrad=True, **W),
        partial(torch.optim.SGD, momentum=0.9, dampening=0.5, **W),
        partial(torch.optim.RMSprop, **W),
        Lion,
    ],
)
def test_nothing_is_predicted_where_nothing_is_known(make: Callable):
    optimizer = make([nn.Parameter(torch.zeros(1))])
    assert predict(optimizer, optimizer.param_groups[0], 20) is None


def test_predicted_norm_goes_by_fan_in_and_rotation_is_one_number():
    run = run_like()
    run.model.second = nn.Parameter(torch.randn(5, 80))
    run.optimizer = AdamW([{"name": "matrices", "params": [run.model.first, run.model.second]}], **W)
    norm = equilibrium(exponential(0.9), 0.01, 0.1, 20).norm
    assert seen_by(Norm(), run)["predicted_norm"] == {"first": pytest.approx(norm), "second": pytest.approx(2 * norm)}
    rotation = pytest.approx(equilibrium(exponential(0.9), 0.01, 0.1, 1).rotation)
    assert seen_by(Rotation(), run)["predicted_rotation"] == rotation
    assert seen_by(RelativeUpdate(), run)["predicted_relative_update"] == rotation


def test_predicted_rotation_is_by_name_where_it_differs():
    run = run_like()
    run.optimizer = torch.optim.AdamW(
        [
            {"params": [run.model.first], **W},
            {"params": [run.model.second], **W, "lr": 0.04},
            {"params": [run.model.heads]},
        ]
    )
    seen = seen_by(Rotation(), run)["predicted_rotation"]
    assert seen["second"] == pytest.approx(2 * seen["first"])
    assert seen.keys() == {"first", "second", "heads"}
    for group in run.optimizer.param_groups[1:]:
        group["weight_decay"] = 0.0
    assert seen_by(Rotation(), run)["predicted_rotation"] == {"first": seen["first"]}


# --- the run is as it was ---------------------------------------------------------------------------------------------


class BatchNormed(nn.Module):
    """Has running statistics, which a forward pass changes, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 24)
        self.norm, self.drop = nn.BatchNorm1d(24), nn.Dropout(0.2)
        self.up, self.head = nn.Linear(24, 24), nn.Linear(24, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens).mT).mT
        return self.head(self.drop(self.up(x).relu()))


RECIPES = {
    **VARIANTS,
    "tied": replace(BASE, build_model=partial(tiny_gpt, tied=True)),
    "batch norm": replace(BASE, build_model=BatchNormed, micro_batch_size=2 * CONTEXT),
}
MAKERS = {
    "rotation": partial(Rotation, every=1, neurons="quantiles"),
    "norm": partial(Norm, None, every=2),
    "relative update": partial(RelativeUpdate, every=3),
    "alignment": partial(Alignment, every=2, neurons="all"),
    "noise": partial(NoiseScale, every=3, parts=2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_with_all_probes_is_bit_for_bit_the_run_without(name: str):
    makers = [make for probe, make in MAKERS.items() if (probe, name) != ("noise", "batch norm")]  # refused there
    watched = train_small(RECIPES[name], probes=[make() for make in makers])
    random = torch.get_rng_state()
    alone = train_small(RECIPES[name])
    assert torch.equal(torch.get_rng_state(), random)
    assert same(watched.losses, alone.losses)
    assert same(watched.model.state_dict(), alone.model.state_dict())
    assert same(watched.optimizer.state_dict(), alone.optimizer.state_dict())
    assert not any(module._forward_hooks for module in watched.model.modules())
    own = {key for line in alone.metrics for key in line}
    assert same(
        [{k: v for k, v in m.items() if k in own} for m in watched.metrics if own & m.keys() > {"step"}], alone.metrics
    )


@pytest.mark.parametrize("name", MAKERS)
def test_a_probe_is_the_same_alone_as_among_others(name: str):
    recipe = RECIPES["dropout"]
    alone = train_small(recipe, probes=[MAKERS[name]()]).metrics
    together = {line["step"]: line for line in train_small(recipe, probes=[make() for make in MAKERS.values()]).metrics}
    assert all(same(together[line["step"]][key], line[key]) for line in alone for key in line)


@pytest.mark.parametrize("name", MAKERS)
def test_makers_are_pickled_and_reports_are_written_as_json(name: str):
    probe = pickle.loads(pickle.dumps(MAKERS[name]))()
    for line in train_small(BASE, probes=[probe]).metrics:
        assert json.loads(json.dumps(line)) == line


def test_measuring_leaves_no_state_for_a_weight_that_was_never_stepped():
    model = nn.Linear(4, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    model.weight.requires_grad_(False)
    with watch(model, optimizer, [Rotation(group=None, every=1)]):
        model(torch.ones(4)).sum().backward()
        optimizer.step()
    assert model.weight not in optimizer.state


@pytest.mark.parametrize("wrap", [[], [StepInBackward]], ids=str)
def test_steps_smaller_than_the_bits_of_a_split_weight_are_measured(wrap: list):
    """In bf16 alone a step is nothing or a whole unit of the last bit, so that its length is off by a lot."""
    seen = {}
    for by in ((), (SplitWeights, *wrap)):
        torch.manual_seed(0)
        model = nn.Linear(64, 8, bias=False)
        optimizer = wrapped([{"params": model.parameters(), "name": "matrices"}], make=SGD, by=by, lr=1e-5)
        with watch(model, optimizer, [Rotation(every=1), RelativeUpdate(every=1), Norm(every=1)]) as watched:
            x = torch.linspace(-1, 1, 64, dtype=model.weight.dtype)
            model(x).float().square().sum().backward()
            optimizer.step()
        seen[by] = watched.metrics[0]
    for key in ("rotation", "relative_update", "norm"):
        plain, split_up = (metrics[key]["weight"] for metrics in seen.values())
        assert split_up == pytest.approx(plain, rel=0.02), key


def test_no_rotation_is_predicted_for_a_single_number():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with watch(model, optimizer, [Rotation(group=None, every=1)]) as seen:
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    assert seen.metrics[0]["predicted_rotation_of_all"].keys() == {"weight"}
