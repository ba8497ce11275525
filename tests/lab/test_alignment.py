"""Alignment: known by construction, tied to norms by an identity, and measured on the inputs that the step had."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import BASE, CONTEXT, VARIANTS, assert_one_sentence, tiny_gpt, train_small
from torch import Tensor, nn

from minitrain.lab.alignment import Alignment, alignment
from minitrain.lab.probes import RelativeUpdate
from minitrain.lab.watch import watch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layer(outputs: int = 48, inputs: int = 64, tokens: int = 100, dtype: torch.dtype = torch.float64) -> Any:
    """Old weight, new weight and inputs."""
    w, dw = torch.randn(2, outputs, inputs, dtype=dtype)
    return w, w + 0.01 * dw, torch.randn(tokens, inputs, dtype=dtype)


def values(old: Tensor, new: Tensor, x: Tensor) -> dict[str, float]:
    return {key: m.layer.item() for key, m in alignment(old, new, x).items()}


# --- the formula ------------------------------------------------------------------------------------------------------


def test_a_neuron_at_a_known_angle_to_its_input_is_aligned_by_the_cosine():
    angles = torch.tensor([0.0, 0.3, 1.0, math.pi / 2], dtype=torch.float64)
    w = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    seen = alignment(w, 2 * w, torch.tensor([[0.7, 0.0]], dtype=torch.float64))
    for key in ("weight_alignment", "update_alignment"):
        torch.testing.assert_close(seen[key].neurons, angles.cos())
        assert seen[key].layer.item() == pytest.approx(angles.cos().square().mean().sqrt().item())


def by_spectral_norm(old: Tensor, new: Tensor, x: Tensor) -> float:
    """A wrong one: the largest stretch in place of the Frobenius norm."""
    return ((x @ (new - old).mT).norm() / torch.linalg.matrix_norm(new - old, 2) / x.norm()).item()


def from_the_new_weight(old: Tensor, new: Tensor, x: Tensor) -> float:
    """A wrong one: the new weight in place of its change."""
    return ((x @ new.mT).norm() / new.norm() / x.norm()).item()


def mean_over_tokens(old: Tensor, new: Tensor, x: Tensor) -> float:
    """A wrong one: the mean of the tokens' alignments, of which short tokens count as much as long ones."""
    dy = (x @ (new - old).mT).norm(dim=1)
    return (dy / (new - old).norm() / x.norm(dim=1)).mean().item()


def fulfils_the_identity(update_alignment: Callable) -> bool:
    """`|dY| / |Y| = update_alignment / weight_alignment * |dW| / |W|`, with `Y` from a layer's own forward pass."""
    old, new, x = layer()
    x[:50] *= 10
    linear = nn.Linear(64, 48, bias=False, dtype=torch.float64)
    linear.weight.data = old
    before = linear(x)
    linear.weight.data = new
    change = ((linear(x) - before).norm() / before.norm()).item()
    ratio = update_alignment(old, new, x) / values(old, new, x)["weight_alignment"]
    return change == pytest.approx(ratio * ((new - old).norm() / old.norm()).item(), rel=1e-6)


def test_the_outputs_change_by_the_alignment_ratio_times_the_relative_update():
    assert fulfils_the_identity(lambda *layer: values(*layer)["update_alignment"])


@pytest.mark.parametrize("wrong", [by_spectral_norm, from_the_new_weight, mean_over_tokens])
def test_another_formula_breaks_the_identity(wrong: Callable):
    assert not fulfils_the_identity(wrong)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ratio_and_change_of_representation_follow_from_the_alignments(dtype: torch.dtype):
    old, new, x = layer(dtype=dtype)
    seen = values(old, new, x)
    assert seen["alignment_ratio"] == pytest.approx(seen["update_alignment"] / seen["weight_alignment"], rel=1e-6)
    relative_update = ((new - old).norm() / old.norm()).item()
    assert seen["representation_change"] == pytest.approx(seen["alignment_ratio"] * relative_update, rel=1e-6)


def test_scales_of_inputs_weight_and_update_do_not_matter():
    old, new, x = layer()
    expected = values(old, new, x)
    assert values(old, new, 7 * x) == pytest.approx(expected)
    del expected["representation_change"]  # which is a size
    both = values(5 * old, 5 * new, x), values(old, old + 1e-3 * (new - old), x)
    for seen in both:
        del seen["representation_change"]
        assert seen == pytest.approx(expected)


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_alignments_are_between_zero_and_one(tokens: int):
    for scale in (1e-6, 1.0, 1e6):
        old, new, x = layer(tokens=tokens, dtype=torch.float32)
        seen = alignment(scale * old, scale * new, x)
        for key in ("update_alignment", "weight_alignment"):
            found = torch.cat([seen[key].neurons, seen[key].layer[None]])
            assert ((found >= 0) & (found <= 1 + 1e-6)).all()


@pytest.mark.parametrize("width", [32, 128, 512])
def test_a_random_weight_and_a_random_update_are_aligned_by_one_over_the_root_of_the_width(width: int):
    seen = values(*layer(inputs=width, tokens=400))
    assert seen["weight_alignment"] * width**0.5 == pytest.approx(1, rel=0.05)
    assert seen["update_alignment"] * width**0.5 == pytest.approx(1, rel=0.05)


def test_the_gradient_of_one_sample_is_fully_aligned_with_it_and_its_sign_by_root_two_over_pi():
    x, error = torch.randn(1, 4096, dtype=torch.float64), torch.randn(48, 1, dtype=torch.float64)
    old = torch.randn(48, 4096, dtype=torch.float64)
    assert values(old, old - 0.1 * error @ x, x)["update_alignment"] == pytest.approx(1)
    sign = values(old, old - 0.1 * (error @ x).sign(), x)["update_alignment"]
    assert sign == pytest.approx((2 / math.pi) ** 0.5, rel=0.03)


def test_of_zeros_there_is_no_alignment_and_no_crash():
    old, new, x = layer()
    zero = torch.zeros_like(old)
    assert math.isnan(values(zero, new, x)["weight_alignment"])
    assert math.isnan(values(zero, new, x)["representation_change"])
    assert math.isnan(values(old, old, x)["update_alignment"])
    assert values(old, old, x)["representation_change"] == 0
    assert all(map(math.isnan, values(old, new, 0 * x).values()))
    old[3] = 0
    seen = alignment(old, new, x)["weight_alignment"]
    assert seen.neurons.isnan().nonzero().tolist() == [[3]]
    assert seen.layer.isfinite()


# --- the probe --------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two linear layers, of which one is called by keyword and twice, and a table that is no linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5, bias=False)
        self.table = nn.Parameter(torch.randn(5, 6))
        self.read: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.first(input=y)
        self.read = [x.detach(), y.detach()]
        return self.second(z) + F.linear(x, self.table)


def loop_of(model: nn.Module) -> Any:
    return SimpleNamespace(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def take_step(run: Any, probe: Alignment, *batches: Tensor) -> dict[str, Any]:
    probe.before(run)
    for x in batches:
        run.model(x).square().sum().backward()
    run.optimizer.step()
    return probe.after(run)


def test_inputs_are_those_of_every_call_and_the_weight_is_the_one_before_the_step():
    run, x = loop_of(Two()), torch.randn(3, 7, 6)
    old = run.model.first.weight.detach().clone()
    seen = take_step(run, Alignment(neurons="all"), x)
    read = torch.cat(run.model.read).reshape(-1, 6)
    for key, expected in alignment(old, run.model.first.weight.detach(), read).items():
        assert seen[key].keys() == {"first.weight", "second.weight"}
        assert seen[key]["first.weight"] == pytest.approx(expected.layer.item())
        assert seen[f"{key}_per_neuron"]["first.weight"] == pytest.approx(expected.neurons.tolist())
    assert not run.model.first._forward_hooks


@pytest.mark.parametrize("tokens", [1, 8, 10, 100])
def test_the_first_tokens_of_all_micro_batches_are_kept(tokens: int):
    model = nn.Sequential(nn.Linear(6, 4))
    run, (x, y) = loop_of(model), torch.randn(2, 2, 4, 6)
    old = model[0].weight.detach().clone()
    seen = take_step(run, Alignment(tokens=tokens), x, y)["update_alignment"]["0.weight"]
    expected = values(old, model[0].weight.detach(), torch.cat([x, y]).reshape(-1, 6)[:tokens])
    assert seen == pytest.approx(expected["update_alignment"])


def test_an_evaluation_on_the_way_is_not_an_input():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(8, 6)
    run, probe = loop_of(model), Alignment()
    probe.before(run)
    with torch.no_grad():
        model(torch.randn(100, 6))
    old = model[0].weight.detach().clone()
    model(x).square().sum().backward()
    run.optimizer.step()
    assert probe.after(run)["update_alignment"]["0.weight"] == pytest.approx(
        values(old, model[0].weight.detach(), x)["update_alignment"]
    )


def test_inputs_changed_in_place_later_on_are_kept_as_they_were():
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 6, bias=False).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            x.zero_()
            return y

    model = Doubles()
    group = {"name": "matrices", "params": [model.frozen.weight]}
    run, probe = SimpleNamespace(model=model, optimizer=torch.optim.SGD([group], lr=0.1)), Alignment()
    probe.before(run)
    model(torch.ones(2, 6))
    assert probe.after(run)["weight_alignment"]["frozen.weight"] > 0


def test_a_layer_that_reads_nothing_is_not_a_number():
    run = loop_of(Two())
    run.model.idle = nn.Linear(6, 2)
    run.optimizer.add_param_group({"params": [run.model.idle.weight]})
    seen = take_step(run, Alignment(), torch.randn(3, 6))
    assert math.isnan(seen["weight_alignment"]["idle.weight"])
    assert seen["weight_alignment"]["first.weight"] > 0


def test_a_forward_pass_that_hooks_cannot_see_is_an_error_and_leaves_no_hook():
    run, probe = loop_of(Two()), Alignment()
    probe.before(run)
    with pytest.raises(ValueError, match="no input of a linear layer was seen") as caught:
        probe.after(run)
    assert_one_sentence(caught.value, "uncompiled")
    assert not run.model.first._forward_hooks


def test_a_group_without_linear_layers_is_refused():
    model = nn.Sequential(nn.Conv1d(2, 2, 3))
    with pytest.raises(ValueError, match=r"no weight of an nn.Linear") as caught:
        Alignment().before(loop_of(model))
    assert_one_sentence(caught.value)
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        Alignment(tokens=0)


@pytest.mark.parametrize("variant", ["fp32", "bf16", "accumulated", "dropout"])
def test_in_a_run_the_identity_ties_two_probes(variant: str):
    run = train_small(VARIANTS[variant], probes=[Alignment(every=5), RelativeUpdate(every=5)])
    lines = [line for line in run.metrics if "alignment_ratio" in line]
    assert len(lines) == 4
    for line in lines:
        assert len(line["alignment_ratio"]) == 4
        for name, change in line["representation_change"].items():
            expected = line["alignment_ratio"][name] * line["relative_update"][name]
            assert change == pytest.approx(expected, rel=1e-5)


def test_accumulated_micro_batches_are_read_like_one_batch():
    """The first step, because the next gradients differ by rounding."""
    both = [
        train_small(replace(BASE, steps=1, schedules={}, micro_batch_size=size), probes=[Alignment(every=1)]).metrics[1]
        for size in (None, CONTEXT)
    ]
    for name, value in both[0]["weight_alignment"].items():
        assert both[1]["weight_alignment"][name] == pytest.approx(value, rel=1e-5)


def test_a_tied_head_is_measured_under_the_name_of_its_table():
    recipe = replace(BASE, build_model=partial(tiny_gpt, tied=True))
    run = train_small(recipe, probes=[Alignment("embeddings", every=20)])
    assert run.metrics[-1]["weight_alignment_of_embeddings"].keys() == {"embedding.weight"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs_is_nan():
    model = nn.Linear(0, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, [Alignment(group=None, every=1)]) as seen:
        model(torch.randn(4, 0)).sum().backward()
        optimizer.step()
    assert math.isnan(seen.metrics[0]["weight_alignment_of_all"]["weight"])
