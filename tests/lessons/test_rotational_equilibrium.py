"""The lesson's probes against weights and gradients kept from every step, and its schedule."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from small import BASE, CONTEXT, STEPS, tiny_gpt

from minitrain.lab.lessons import load_lesson
from minitrain.lab.noise import NoiseScale
from minitrain.optim import Adam
from minitrain.recipe import by_kind
from minitrain.techniques.weight_standardization import weight_standardized
from minitrain.train import Run, train

lesson = load_lesson("rotational_equilibrium")
RECIPE = replace(BASE, build_model=partial(weight_standardized, tiny_gpt, eps=0.0), before_step=())


class Keep:
    """A probe that keeps the block matrices before and after every step, and their gradients, in float64."""

    every = 1

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, torch.Tensor], ...]] = []

    def matrices(self, run: Run) -> dict[str, Any]:
        (group,) = (group for group in by_kind(run.model) if group["name"] == "matrices")
        names = {p: name for name, p in run.model.named_parameters()}
        return {names[p]: p for p in group["params"]}

    def before(self, run: Run) -> None:
        self.old = {name: p.detach().double().clone() for name, p in self.matrices(run).items()}

    def after(self, run: Run) -> dict[str, Any]:
        found = self.matrices(run)
        new = {name: p.detach().double().clone() for name, p in found.items()}
        self.steps.append((self.old, new, {name: p.grad.double().clone() for name, p in found.items()}))
        return {}


def angles(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """By the cosine, which float64 can afford."""
    return torch.acos(((old * new).sum(1) / old.norm(dim=1) / new.norm(dim=1)).clamp(-1, 1))


def three(x: torch.Tensor) -> list[float]:
    return torch.quantile(x, torch.tensor([0.05, 0.5, 0.95], dtype=x.dtype)).tolist()


def test_the_probes_are_root_mean_squares_of_angles_over_windows():
    kept = Keep()
    lines = train(RECIPE, probes=[kept, lesson.Neurons(window=5), lesson.LateNeurons(window=10)]).metrics
    found = [line for line in lines if "turned" in line]
    assert [line["step"] for line in found] == [5, 10, 15, 20]
    for line in [*found, *(line for line in lines if "late_turned" in line)]:
        for key, window in (("", 5), ("late_", 10)):
            if f"{key}turned" in line:
                steps = kept.steps[line["step"] - window : line["step"]]
                turned = {
                    name: torch.stack([angles(old[name], new[name]) for old, new, _ in steps]).square().mean(0).sqrt()
                    for name in steps[0][0]
                }
                assert line[f"{key}turned"] == pytest.approx(three(torch.cat(list(turned.values()))), rel=1e-3)
                sizes = torch.cat([w.square().mean(1).sqrt() for w in steps[-1][1].values()])
                assert line[f"{key}size"] == pytest.approx(three(sizes), rel=1e-3)
        if "late_by_matrix" in line:
            middle = {name.removesuffix(".weight"): x.median().item() for name, x in turned.items()}
            assert line["late_by_matrix"] == pytest.approx(middle, rel=1e-3)


@pytest.mark.parametrize(("build", "smallest"), [(RECIPE.build_model, 0.0), (tiny_gpt, 0.05)])
def test_gradients_point_along_the_weights_of_a_plain_network_only(build: Any, smallest: float):
    kept = Keep()
    lines = train(replace(RECIPE, build_model=build), probes=[kept, lesson.LateNeurons(window=10)]).metrics
    old, _, g = kept.steps[-1]
    cosines = torch.cat([(old[x] * g[x]).sum(1) / old[x].norm(dim=1) / g[x].norm(dim=1) for x in old])
    along = lines[-1]["gradient_along"]
    assert along == pytest.approx(cosines.square().nanmean().sqrt().item(), rel=1e-3, abs=1e-6)
    sizes = torch.cat([old[x].norm(dim=1) * g[x].norm(dim=1) for x in old])
    assert lines[-1]["gradient_size"] == pytest.approx(three(sizes), rel=1e-3)
    assert smallest <= along < (1.0 if smallest else 1e-5)


def test_the_prediction_is_logged_where_it_changes_and_only_where_there_is_one():
    factor = {("*", "lr"): partial(lesson.there_and_back, there=10, back=15)}
    lines = train(replace(RECIPE, schedules=factor), probes=[lesson.Neurons(window=5)]).metrics
    found = {line["step"]: line["predicted"] for line in lines if "predicted" in line}
    lr, energy = 1e-2, 0.1 / 1.9
    for step in (10, 15, 20):  # the warmup is 20 steps long
        now = lr * lesson.there_and_back(step - 1, there=10, back=15)
        assert found[step] == pytest.approx([(2 * now * 0.1 * energy) ** 0.5, (now / (2 * 0.1)) ** 0.5])
    constant = train(replace(RECIPE, schedules={}), probes=[lesson.Neurons(window=5)]).metrics
    assert [line["step"] for line in constant if "predicted" in line] == [5]
    l2 = replace(RECIPE, make_optimizer=partial(Adam, lr=1e-2, weight_decay=0.1))
    assert not any("predicted" in line for line in train(l2, probes=[lesson.Neurons(window=5)]).metrics)


def test_a_window_that_was_not_seen_whole_is_left_out():
    probe, run = lesson.Neurons(window=5), replace(RECIPE, steps=10)
    lines = train(run, probes=[probe]).metrics
    assert [line["step"] for line in lines if "turned" in line] == [5, 10]
    late = lesson.Neurons(window=5)
    late.seen = -2  # as in a run that was taken up again two steps into a window
    late.squares = dict.fromkeys(Keep().matrices(train(replace(RECIPE, steps=1))), torch.zeros(()))
    assert [line["step"] for line in train(run, probes=[late]).metrics if "turned" in line] == [10]


def test_signal_and_noise_of_a_batch_add_up_to_its_squared_gradient():
    rows = BASE.batch_size // CONTEXT
    plain, ours = (
        NoiseScale(group="matrices", every=STEPS, parts=rows),
        lesson.Noise("matrices", every=STEPS, parts=rows),
    )
    kept = Keep()
    line = train(RECIPE, probes=[plain, ours, kept]).metrics[-1]
    assert line["noise"] == pytest.approx(line["total_gradient_noise_of_matrices"] / rows)
    whole = sum(g.square().sum().item() for g in kept.steps[-1][2].values())
    assert line["signal"] + line["noise"] == pytest.approx(whole, rel=1e-3)


def test_the_rate_goes_there_and_back():
    values = [lesson.there_and_back(step, there=30, back=40) for step in (0, 9, 19, 29, 30, 39, 40, 100)]
    assert values == pytest.approx([0.05, 0.5, 1, 1, 4, 4, 1, 1])
