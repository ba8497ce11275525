"""The noise scale: known by construction, exact for one row a part, unbiased over many batches, and without a trace."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from small import BASE, CONTEXT, assert_one_sentence, dropout_gpt, tiny_gpt, train_small
from torch import Tensor, nn

from minitrain.lab import noise
from minitrain.lab.noise import NoiseScale, mean_noise_scale, signal_and_noise
from minitrain.optim import SGD
from minitrain.recipe import Recipe, by_kind
from minitrain.techniques.ghost_noise import GhostNoise
from minitrain.techniques.online_norm import OnlineNorm2d
from minitrain.train import Run, build, gradient

WIDTH, SCALES, SIGMA = 16, [1.0, 2.0, 0.0], 0.8
MEAN = torch.full((WIDTH,), 0.2)
SIGNAL, NOISE = float(MEAN.square().sum()), SIGMA**2 * WIDTH  # of a neuron of scale 1


class Planted:
    """Rows that are the gradients themselves: a mean, and noise of known size around it."""

    row_size, size, digest = 1, 1_000_000, "planted"

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        return MEAN + SIGMA * torch.randn(rows, WIDTH, generator=generator), torch.zeros(rows)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(0, 0, rows)]


class Neurons(nn.Module):
    """Three neurons, whose gradients are the row times 1, 2 and 0; and one weight that the loss does not see."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(len(SCALES), WIDTH))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.mT @ torch.tensor(SCALES)


def mean_output(model: Callable, x: Tensor, y: Tensor) -> Tensor:
    return model(x).mean()


PLANTED = Recipe(
    build_model=Neurons, data=Planted, steps=3, batch_size=8, loss=mean_output, make_optimizer=partial(SGD, lr=1e-3)
)


def measured(probe: NoiseScale, run: Run) -> dict[str, Any]:
    probe.before(run)
    return probe.after(run)


# --- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "B"), [(1, 8), (2, 4), (3, 300)])
def test_two_batch_sizes_give_signal_and_noise_back(b: int, B: int):
    signal, noise = torch.tensor([2.0, 0.5]), torch.tensor([30.0, 0.0])
    seen = signal_and_noise(signal + noise / b, signal + noise / B, b, B)
    torch.testing.assert_close(seen, (signal, noise))


def test_with_one_row_a_part_it_is_the_sample_variance_and_the_mean_less_its_share():
    run = build(PLANTED)
    x, _ = run.data.batch(0, 0, 8)
    variance, square = x.var(dim=0).sum().item(), x.mean(dim=0).square().sum().item()
    seen = measured(NoiseScale(parts=8, neurons="all"), run)
    assert seen["gradient_noise_per_neuron"]["w"] == pytest.approx([s**2 * variance for s in SCALES], rel=1e-4)
    expected = [s**2 * (square - variance / 8) for s in SCALES]
    assert seen["gradient_signal_per_neuron"]["w"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert seen["gradient_noise"]["w"] == pytest.approx(5 * variance, rel=1e-4)
    assert seen["gradient_noise"]["unused"] == seen["gradient_signal"]["unused"] == 0
    assert seen["total_gradient_noise"] == pytest.approx(5 * variance, rel=1e-4)
    assert seen["noise_scale"]["w"] == pytest.approx(seen["gradient_noise"]["w"] / seen["gradient_signal"]["w"])


def far(values: list[float], true: float) -> float:
    """How many standard errors the mean is off."""
    return abs(statistics.fmean(values) - true) / (statistics.stdev(values) / len(values) ** 0.5)


@pytest.fixture(scope="module", params=[2, 4, 8])
def draws(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Measurements of 250 batches, by parts of 4, 2 and 1 rows."""
    run, probe, found = build(PLANTED), NoiseScale("matrices", parts=request.param), []
    for step in range(250):
        run.step = step
        found.append(measured(probe, run))
    return found


def test_signal_and_noise_are_unbiased(draws: list[dict[str, Any]]):
    assert far([seen["gradient_signal_of_matrices"]["w"] for seen in draws], 5 * SIGNAL) < 3.5
    assert far([seen["gradient_noise_of_matrices"]["w"] for seen in draws], 5 * NOISE) < 3.5


def test_mean_noise_over_mean_signal_is_the_noise_scale_and_the_mean_of_ratios_is_not(draws: list[dict[str, Any]]):
    metrics = [{key.removesuffix("_of_matrices"): value for key, value in seen.items()} for seen in draws]
    assert mean_noise_scale(metrics) == pytest.approx(NOISE / SIGNAL, rel=0.35)
    ratios = [seen["total_noise_scale"] for seen in metrics]
    assert statistics.fmean(ratios) != pytest.approx(NOISE / SIGNAL, rel=0.35)


def length_of_the_batch_gradient(small: Tensor, large: Tensor, b: int, B: int) -> tuple[Tensor, Tensor]:
    """A wrong one: noise left in the signal."""
    return large, signal_and_noise(small, large, b, B)[1]


def spread_around_the_own_mean(small: Tensor, large: Tensor, b: int, B: int) -> tuple[Tensor, Tensor]:
    """A wrong one: the spread of the parts around their own mean, without the correction `n / (n-1)`."""
    return signal_and_noise(small, large, b, B)[0], b * (small - large)


@pytest.mark.parametrize("wrong", [length_of_the_batch_gradient, spread_around_the_own_mean])
def test_a_biased_estimate_is_told_apart(wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(noise, "signal_and_noise", wrong)
    run, found = build(PLANTED), []
    for run.step in range(250):
        found.append(measured(NoiseScale(), run))
    off = [
        far([seen["total_gradient_signal"] for seen in found], 5 * SIGNAL),
        far([seen["total_gradient_noise"] for seen in found], 5 * NOISE),
    ]
    assert max(off) > 3.5


# --- the batch and its parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "matrices"])
def test_signal_and_noise_make_up_the_very_gradient_of_the_step(group: str | None):
    run = build(replace(BASE, batch_size=8 * CONTEXT))
    seen = measured(NoiseScale(group, parts=4), run)
    of = "" if group is None else "_of_matrices"
    assert all(p.grad is None for p in run.model.parameters())
    gradient(run, run.model)
    names = seen[f"gradient_signal{of}"].keys()
    assert len(names) == (4 if group else len(list(run.model.parameters())))
    for name, p in run.model.named_parameters():
        if name in names:
            square = seen[f"gradient_signal{of}"][name] + seen[f"gradient_noise{of}"][name] / 8
            assert square == pytest.approx(p.grad.square().sum().item(), rel=1e-3, abs=1e-9)


def sizes(recipe: Recipe, parts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows went through the model at once."""
    seen: list[int] = []
    forward = Neurons.forward
    monkeypatch.setattr(Neurons, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    measured(NoiseScale(parts=parts), build(recipe))
    return seen


@pytest.mark.parametrize(
    ("batch", "micro", "parts", "expected"),
    [
        (8, None, 2, [4, 4]),
        (8, None, 8, [1] * 8),
        (8, None, 100, [1] * 8),
        (8, 2, 2, [2] * 4),
        (7, None, 3, [2] * 3),
        (2, None, 8, [1, 1]),
    ],
)
def test_parts_are_equal_and_fit_into_a_micro_batch(
    batch: int, micro: int | None, parts: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
):
    assert sizes(replace(PLANTED, batch_size=batch, micro_batch_size=micro), parts, monkeypatch) == expected


def test_no_signal_is_an_infinite_scale_which_a_log_leaves_empty():
    run = build(PLANTED)
    for run.step in range(100):
        seen = measured(NoiseScale(), run)
        if seen["total_gradient_signal"] <= 0:
            break
    assert seen["total_noise_scale"] == math.inf
    assert seen["noise_scale"]["w"] == math.inf
    assert mean_noise_scale([seen]) == math.inf
    assert math.isnan(noise.noise_scale(torch.tensor(math.nan), torch.tensor(math.nan)))
    assert math.isnan(mean_noise_scale([{"step": 1, "loss": 2.0}]))


def test_the_late_mean_is_over_the_last_measurements():
    metrics = [{"total_gradient_noise": float(n), "total_gradient_signal": 2.0} for n in (100, 100, 8, 4)]
    assert mean_noise_scale([{"step": 0}, *metrics], share=0.5) == 3


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="parts must be at least 2") as caught:
        NoiseScale(parts=1)
    assert_one_sentence(caught.value)
    with pytest.raises(ValueError, match="at least 2 rows") as caught:
        NoiseScale().before(build(replace(PLANTED, batch_size=1)))
    assert_one_sentence(caught.value)
    run = build(PLANTED)
    run.model.requires_grad_(False)
    with pytest.raises(ValueError, match="asks for a gradient") as caught:
        NoiseScale().before(run)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm, OnlineNorm2d, lambda width: GhostNoise(4)])
def test_rows_that_depend_on_each_other_are_refused(norm: Callable[[int], nn.Module]):
    run = build(PLANTED)
    run.model.add_module("norm", norm(WIDTH))
    with pytest.raises(ValueError, match="batch normalization") as caught:
        NoiseScale().before(run)
    assert_one_sentence(caught.value, "LayerNorm")
    run.model.norm.eval()  # with fixed statistics rows are on their own
    assert measured(NoiseScale(), run)


# --- without a trace --------------------------------------------------------------------------------------------------


def test_gradients_hooks_of_parameters_and_random_numbers_notice_nothing():
    run = build(replace(BASE, build_model=dropout_gpt))
    for p in run.model.parameters():
        p.grad = torch.randn_like(p)
    fired: list[Tensor] = []
    next(run.model.parameters()).register_post_accumulate_grad_hook(fired.append)
    run.model.register_forward_hook(lambda *_: None)
    before = [p.grad.clone() for p in run.model.parameters()]
    random = torch.get_rng_state()
    first, second = measured(NoiseScale(), run), measured(NoiseScale(), run)
    assert first == second  # the same random numbers as well
    assert torch.equal(torch.get_rng_state(), random)
    assert not fired
    assert all(torch.equal(x, p.grad) for x, p in zip(before, run.model.parameters(), strict=True))


def with_frozen(model: nn.Module) -> list[dict[str, Any]]:
    model.blocks[0].mlp.up.weight.requires_grad_(False)
    return by_kind(model)


def test_frozen_and_tied_weights():
    recipe = replace(BASE, build_model=partial(tiny_gpt, tied=True), param_groups=with_frozen)
    seen = train_small(recipe, probes=[NoiseScale(every=20)]).metrics[-1]["noise_scale"]
    assert "blocks.0.mlp.up.weight" not in seen
    assert "head.weight" not in seen
    assert "embedding.weight" in seen
