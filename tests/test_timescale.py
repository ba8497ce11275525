"""The average against training itself, the rules against each other, the forecast against walks, and wrong averages."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import BASE, assert_one_sentence, randn, same, tiny_gpt, train_in
from torch import nn

from minitrain.equilibrium import Equilibrium
from minitrain.optim import SGD, Adam, AdamW, Lion, Optimizer, adam, decay_by_lr, wrapped
from minitrain.recipe import by_kind, check_ownership, describe
from minitrain.schedules import cosine, warmup_stable_decay
from minitrain.techniques import timescale
from minitrain.techniques.step_in_backward import StepInBackward, clip_updates
from minitrain.techniques.timescale import (
    average_weights,
    forecast,
    rescaled,
    share_of_last,
    surviving,
    tau_in_steps,
    with_timescale,
)
from minitrain.techniques.weight_decay import with_decay

STEPS = 60
SCHEDULES = {
    "constant": lambda step: 1.0,
    "cosine": partial(cosine, steps=STEPS),
    "wsd": partial(warmup_stable_decay, steps=STEPS, warmup=10, cooldown=20),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def rates_of(schedule, lr=0.02, steps=STEPS):
    return [lr * schedule(step) for step in range(steps)]


# --- the average -------------------------------------------------------------------------------------------------------


def trained(schedule, weight_decay, lr=0.02):
    """A weight before and after training with the library's AdamW, and the updates of every step."""
    w, updates = nn.Parameter(randn(8, 5)), []

    def rule(w, u, state, *, lr, weight_decay):
        updates.append(u.clone())
        return decay_by_lr(w, u, state, lr=lr, weight_decay=weight_decay)

    hyper = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    optimizer = Optimizer([w], hyper, direction=adam, step_rule=rule)
    start = w.detach().clone()
    for step, rate in enumerate(rates_of(schedule, lr)):
        optimizer.param_groups[0]["lr"] = rate
        w.grad = (w.detach() - randn(8, 5, seed=1)) ** 3 + randn(8, 5, seed=step + 2)  # depends on the weight
        optimizer.step()
    return start, torch.stack(updates), w.detach()


def rebuilt(start, updates, average, weight_decay):
    """The final weight from the initial one and all updates."""
    return average.left * start - torch.einsum("s,s...->...", average.weights, updates) / weight_decay


@each_schedule
def test_the_average_is_the_trained_weight(schedule):
    for weight_decay in (0.1, 3.0, 40.0):
        start, updates, end = trained(schedule, weight_decay)
        average = average_weights(rates_of(schedule), weight_decay)
        torch.testing.assert_close(rebuilt(start, updates, average, weight_decay), end, rtol=1e-12, atol=1e-12)


@each_schedule
def test_all_weights_of_the_average_are_one(schedule):
    lrs = rates_of(schedule)
    for weight_decay in (1e-4, 1.0, 50.0):
        weights, left = average_weights(lrs, weight_decay)
        assert weights.shape == (STEPS,)
        assert (weights >= 0).all()
        assert weights.sum().item() + left == pytest.approx(1.0, abs=1e-12)
        assert left == pytest.approx(math.prod(1 - lr * weight_decay for lr in lrs), rel=1e-12)


def test_the_weights_by_hand():
    weights, left = average_weights([0.1, 0.2, 0.4], 2.0)  # rates 0.2, 0.4, 0.8
    assert weights.tolist() == pytest.approx([0.2 * 0.6 * 0.2, 0.4 * 0.2, 0.8])
    assert left == pytest.approx(0.8 * 0.6 * 0.2)
    assert surviving([0.1, 0.2, 0.4], 2.0).tolist() == pytest.approx([0.6 * 0.2, 0.2, 1.0])
    assert average_weights([0.5, 0.5], 2.0).weights.tolist() == [0.0, 1.0]  # each step replaces the weight


def test_at_a_constant_rate_it_is_the_exponential_average():
    weights, left = average_weights([0.01] * 500, 0.5)
    ages = torch.arange(499, -1, -1)
    torch.testing.assert_close(weights, 0.005 * 0.995 ** ages.double())
    assert left == pytest.approx(0.995**500)
    tau = round(tau_in_steps(0.01, 0.5))
    assert weights[-1 - tau] / weights[-1] == pytest.approx(math.exp(-1), rel=0.01)


def test_the_share_of_the_last_steps():
    lrs = [0.01] * 400
    for weight_decay in (0.25, 5.0):
        weights, left = average_weights(lrs, weight_decay)
        assert share_of_last(lrs, weight_decay) == pytest.approx(weights[-40:].sum().item() / (1 - left), rel=1e-9)
        kept = 1 - 0.01 * weight_decay
        assert share_of_last(lrs, weight_decay) == pytest.approx((1 - kept**40) / (1 - kept**400), rel=1e-9)
    assert share_of_last(lrs, 0.0) == pytest.approx(0.1)
    assert share_of_last(lrs, 1e-9) == pytest.approx(0.1, rel=1e-6)
    assert share_of_last(lrs, 1.0, part=1.0) == 1.0
    assert share_of_last([1.0, 3.0], 0.0) == 0.75  # a tenth of two steps is still one
    cooled = [0.01 * SCHEDULES["wsd"](step) for step in range(STEPS)]
    assert share_of_last(cooled, 1.0) < share_of_last([0.01] * STEPS, 1.0) / 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_weights([0.1], 0.0), "weight_decay above 0"),
        (lambda: average_weights([0.5, 1.0], 1.1), "from 0.55 to 1.1"),
        (lambda: average_weights([-0.1], 1.0), "from -0.1"),
        (lambda: average_weights([], 1.0), "at least one number"),
        (lambda: average_weights([math.nan], 1.0), "from nan"),
        (lambda: share_of_last([0.1], 1.0, part=0.0), "above 0 and at most 1"),
        (lambda: share_of_last([0.1], 1.0, part=1.5), "above 0 and at most 1"),
        (lambda: tau_in_steps(0.1, 0.0), "weight_decay above 0"),
        (lambda: tau_in_steps(0.0, 0.1), "lr must be a number above 0"),
        (lambda: timescale.decay_for(0.0, 0.1), "tau_steps must be a number above 0"),
        (lambda: timescale.decay_for(math.inf, 0.1), "tau_steps must be a number above 0"),
        (lambda: timescale.steps_per_epoch(100, 200), "count both in tokens"),
        (lambda: timescale.steps_per_epoch(0, 0), "data_size must be"),
        (lambda: timescale.steps_to_runs(1.0, 0), "run_steps must be"),
        (lambda: timescale.runs_to_steps(1.0, -5), "run_steps must be"),
        (lambda: rescaled(0.1, 0.1, data=0.0), "data must be"),
        (lambda: rescaled(0.1, 0.0), "weight_decay above 0"),
        (lambda: timescale.retimed_for_one_pass(0.1, -1.0, 0.5), "tokens_per_parameter_ratio must be"),
        (lambda: forecast(AdamW(nn.Linear(2, 2).parameters()), 0), "steps must be at least 1"),
        (
            lambda: forecast(torch.optim.SGD([torch.ones(2)], lr=0.0, weight_decay=0.1), 5),
            "group 0: the peak learning rate",
        ),
        (lambda: forecast(AdamW([torch.ones(2)], lr=1.0, weight_decay=1.5), 5), "goes from 1.5 to 1.5"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(call, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert_one_sentence(error.value, words)


# --- units and rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau_epochs", [0.25, 37.0])
def test_there_and_back_in_every_unit(tau_epochs):
    size = {"data_size": 65_536, "batch_size": 1024}
    tau = timescale.epochs_to_steps(tau_epochs, **size)
    assert tau == 64 * tau_epochs
    assert timescale.steps_to_epochs(tau, **size) == pytest.approx(tau_epochs)
    decay = timescale.decay_for(tau, lr=4e-3)
    assert decay == pytest.approx(1 / (4e-3 * 64 * tau_epochs))
    assert tau_in_steps(4e-3, decay) == pytest.approx(tau)
    assert timescale.runs_to_steps(timescale.steps_to_runs(tau, 1024), 1024) == pytest.approx(tau)
    assert timescale.steps_to_runs(256, 1024) == 0.25
    rows = {"data_size": 65_536 / 64, "batch_size": 1024 / 64}
    assert timescale.epochs_to_steps(tau_epochs, **rows) == tau  # tokens or rows, if both are counted alike
    for data_size, batch_size, factor in ((131_072, 1024, 0.5), (65_536, 2048, 2.0)):
        other = timescale.epochs_to_steps(tau_epochs, data_size, batch_size)
        assert timescale.decay_for(other, lr=4e-3) == pytest.approx(factor * decay)


@pytest.mark.parametrize(
    ("change", "lr", "weight_decay"),
    [
        ({"data": 4.0}, 1.0, 0.25),
        ({"width": 4.0}, 0.25, 4.0),
        ({"batch": 4.0}, 1.0, 4.0),
        ({"batch": 4.0, "lr_power": 0.5}, 2.0, 2.0),
        ({"batch": 4.0, "lr_power": 0.5, "data": 8.0}, 2.0, 0.25),
        ({"batch": 4.0, "lr_power": 1.0}, 4.0, 1.0),
        ({}, 1.0, 1.0),
    ],
)
def test_rules_keep_the_average_as_long_in_epochs(change, lr, weight_decay):
    new_lr, new_decay = rescaled(6e-3, 0.2, **change)
    assert (new_lr, new_decay) == pytest.approx((6e-3 * lr, 0.2 * weight_decay))
    old = timescale.steps_to_epochs(tau_in_steps(6e-3, 0.2), 1e6, 1e3)
    data, batch = 1e6 * change.get("data", 1.0), 1e3 * change.get("batch", 1.0)
    assert timescale.steps_to_epochs(tau_in_steps(new_lr, new_decay), data, batch) == pytest.approx(old)


def test_one_pass_is_a_power_law():
    assert timescale.retimed_for_one_pass(0.2, 10.0, 0.0) == 0.2
    assert timescale.retimed_for_one_pass(0.2, 4.0, -0.5) == pytest.approx(0.1)
    once, twice = (
        timescale.retimed_for_one_pass(0.2, 6.0, -0.3),
        timescale.retimed_for_one_pass(timescale.retimed_for_one_pass(0.2, 2.0, -0.3), 3.0, -0.3),
    )
    assert once == pytest.approx(twice)


# --- in a recipe -------------------------------------------------------------------------------------------------------

MAKERS = {"adamw": AdamW, "lion": Lion, "torch": torch.optim.AdamW}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_optimizer_gets_the_decay_that_belongs_to_its_rate(make):
    model = tiny_gpt()
    groups = by_kind(model)
    groups[0]["lr"], groups[1]["lr"] = 5e-4, 1e-4
    optimizer = with_timescale(groups, make=make, tau_steps=200.0, lr=2e-3, betas=(0.9, 0.95))
    assert type(optimizer) is make
    check_ownership(model, optimizer.param_groups)
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found[0] == pytest.approx((5e-4, 10.0))  # a rate of its own
    assert found[1:] == [(1e-4, 0.0), (2e-3, 0.0), (2e-3, 0.0)]  # a decay of their own
    assert "weight_decay" not in groups[0]  # the caller's groups stay as they are
    plain = with_timescale(model.parameters(), make=make, tau_steps=200.0, lr=2e-3)
    assert plain.param_groups[0]["weight_decay"] == pytest.approx(2.5)


def test_a_run_with_it_is_the_run_with_that_decay(tmp_path):
    how = {"lr": 1e-2, "betas": (0.9, 0.95)}
    recipe = replace(BASE, make_optimizer=partial(with_timescale, make=AdamW, tau_steps=50.0, **how))
    described = describe(recipe)
    assert described["make_optimizer"] == "minitrain.techniques.timescale.with_timescale"
    assert described["make_optimizer.tau_steps"] == "50.0"
    ours = train_in(tmp_path / "ours", recipe)
    plain = train_in(tmp_path / "plain", replace(BASE, make_optimizer=partial(AdamW, weight_decay=2.0, **how)))
    assert same(ours.losses, plain.losses)
    assert same(ours.model.state_dict(), plain.model.state_dict())


def test_other_decays_are_refused():
    for make in (SGD, Adam, torch.optim.SGD, torch.optim.Adam, partial(torch.optim.AdamW, amsgrad=True)):
        with pytest.raises(ValueError, match="does not multiply weights by 1 - lr") as error:
            with_timescale(nn.Linear(2, 2).parameters(), make=make, tau_steps=10.0, lr=0.1)
        assert_one_sentence(error.value, "give AdamW or Lion")


# --- the forecast ------------------------------------------------------------------------------------------------------


def walker(make, std=0.1, shape=(32, 128)):
    """An optimizer on a weight whose gradients are noise, in double precision."""
    w = nn.Parameter(std * randn(*shape))
    return w, make([{"params": [w], "name": "walk"}])


def walk(w, optimizer, steps):
    """The size of the weight, the turn per step of its rows, and the turn of the first step."""
    sizes, turns = [], []
    for step in range(steps):
        old = w.detach().clone()
        w.grad = randn(*w.shape, seed=step + 1)
        optimizer.step()
        new = w.detach()
        sizes.append(new.square().mean().sqrt().item())
        chord = (nn.functional.normalize(new, dim=1) - nn.functional.normalize(old, dim=1)).norm(dim=1)
        turns.append((2 * torch.asin(chord / 2)).square().mean().sqrt().item())
    return sizes, turns


@pytest.mark.parametrize(
    ("make", "rtol"),
    [
        (partial(AdamW, lr=0.01, weight_decay=0.25, betas=(0.9, 0.95)), 0.03),
        (partial(torch.optim.AdamW, lr=0.01, weight_decay=0.25, betas=(0.9, 0.95)), 0.03),
        (partial(Lion, lr=0.01, weight_decay=0.25, betas=(0.9, 0.95)), 0.06),
    ],
    ids=["adamw", "torch", "lion"],
)
def test_the_forecast_comes_true(make, rtol):
    w, optimizer = walker(make)
    (found,) = forecast(optimizer, 2000)
    assert found.size == pytest.approx(w.square().mean().sqrt().item(), rel=1e-6)
    sizes, turns = walk(w, optimizer, 2000)
    assert turns[0] == pytest.approx(found.first_angle, rel=0.02)
    assert sum(sizes[-600:]) / 600 == pytest.approx(found.settled_size, rel=rtol)
    assert sum(turns[-600:]) / 600 == pytest.approx(found.settled_angle, rel=rtol)
    assert (found.tau, found.time_constant, found.time_constants) == pytest.approx((400.0, 200.0, 10.0))
    assert found.left == pytest.approx(0.9975**2000)
    assert found.last_tenth == pytest.approx(1 - 0.9975**200, rel=0.01)
    assert not found.never_settles


def test_what_a_schedule_takes_from_the_clock():
    _, optimizer = walker(partial(AdamW, lr=0.01, weight_decay=1.0))
    schedule = partial(cosine, steps=200, floor=0.0)
    (plain,), (cooled,) = forecast(optimizer, 200), forecast(optimizer, 200, schedule)
    assert plain.time_constants == pytest.approx(4.0)
    assert cooled.time_constants == pytest.approx(2.0, rel=0.01)
    assert (plain.never_settles, cooled.never_settles) == (False, True)
    assert cooled.left == pytest.approx(math.prod(1 - 0.01 * schedule(step) for step in range(200)))
    assert cooled.last_tenth < plain.last_tenth / 10
    warm = forecast(optimizer, 200, partial(warmup_stable_decay, steps=200, warmup=10))[0]
    assert warm.first_angle == pytest.approx(plain.first_angle / 10, rel=0.02)
    assert warm.settled_angle == plain.settled_angle  # at the peak rate


@pytest.mark.parametrize("make", [SGD, torch.optim.SGD])
def test_sgd_has_an_angle_and_no_size(make):
    _, optimizer = walker(partial(make, lr=0.1, momentum=0.9, weight_decay=1e-2))
    (found,) = forecast(optimizer, 1000)
    assert (found.first_angle, found.settled_size) == (None, None)
    assert found.settled_angle == pytest.approx(math.sqrt(2 * 1e-3 / 1.9))
    assert found.tau == pytest.approx(100.0)  # momentum amplifies the decay ten times
    assert found.time_constant == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("make", "kind", "first"),
    [
        (AdamW, float, 0.0),
        (AdamW, float, 0.01),
        (torch.optim.AdamW, float, 0.0),
        (torch.optim.AdamW, torch.tensor, 0.01),
    ],
)
def test_the_peak_is_read_where_a_scheduler_keeps_it(make, kind, first):
    """Torch's LambdaLR overwrites `lr` as soon as it is attached."""

    def schedule(step):
        return min(1.0, first + step / 100)

    optimizer = make([randn(4, 3).float()], lr=kind(0.01), weight_decay=0.5)
    (before,) = forecast(optimizer, 300, schedule)
    torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01 * first)
    assert forecast(optimizer, 300, schedule) == (before,)
    assert (before.lr, before.tau) == pytest.approx((0.01, 200.0))


# The decay takes 2 % per step at the peak, and what it takes when the rate falls to a half, as a share of that.
MEANINGS = {
    "adamw": (2.0, 1 / 2),
    "schedule_only": (0.02, 1 / 2),
    "constant": (0.02, 1.0),
    "lr_squared": (200.0, 1 / 4),
}


@pytest.mark.parametrize("meaning", MEANINGS)
def test_every_decoupled_decay_has_its_clock(meaning):
    number, falls_to = MEANINGS[meaning]
    optimizer = with_decay(AdamW([randn(4, 3)], lr=0.01, weight_decay=number), meaning)
    (found,) = forecast(optimizer, 200, lambda step: 1.0 if step < 100 else 0.5)
    assert (found.tau, found.time_constant) == pytest.approx((50.0, 25.0))
    assert found.time_constants == pytest.approx(4 * (1 + falls_to))
    assert found.left == pytest.approx(0.98**100 * (1 - 0.02 * falls_to) ** 100)
    assert (found.last_tenth is not None) == (falls_to == 1 / 2)  # only there it follows the rate
    assert "this run reaches equilibrium" in found.verdict
    (short,) = forecast(optimizer, 74, lambda step: 0.0)  # only one goes on without a rate
    assert short.time_constants == pytest.approx(2.96 if meaning == "constant" else 0.0)
    assert "never reaches equilibrium" in short.verdict


def test_a_decay_that_is_no_share_has_no_average():
    (found,) = forecast(SGD([randn(4, 3)], lr=1.0, momentum=0.99, weight_decay=0.02), 10)  # 2 with all of the momentum
    assert (found.left, found.last_tenth, found.tau, found.time_constants, found.settled_angle) == (None,) * 5
    assert "is not known" in found.verdict
    (whole,) = forecast(AdamW([randn(4, 3)], lr=0.1, weight_decay=10.0), 10)
    assert (whole.left, whole.last_tenth) == (0.0, 1.0)


def test_the_table_is_for_people():
    model = tiny_gpt()
    text = str(forecast(AdamW(by_kind(model), lr=1e-3, weight_decay=0.01), 1000))
    *table, matrices, embeddings, head, gains = text.splitlines()
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == ["group", "matrices", "embeddings", "head", "gains"]
    assert matrices == "matrices: this run never reaches equilibrium: it lasts 0.02 time constants, and 3 are needed."
    assert gains == "gains: no decay, so that there is no equilibrium to reach."
    for line in (embeddings, head):
        assert "no decay" in line
    assert "nan" not in text
    assert "inf" not in text
    reached = str(forecast(AdamW(by_kind(model), lr=1e-2, weight_decay=1.0), 1000))
    assert "matrices: this run reaches equilibrium: it lasts 20 time constants" in reached
    unknown = str(forecast(Adam(model.parameters(), weight_decay=0.1), 10))
    assert "depends on its gradients, or is not known" in unknown


def test_a_forecast_takes_no_step_and_draws_nothing():
    model = tiny_gpt()
    optimizer = AdamW(by_kind(model), lr=1e-3)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    forecast(optimizer, 10)
    assert same(dict(model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        (torch.optim.AdamW, AdamW),
        (partial(torch.optim.AdamW, lr=torch.tensor(0.1), weight_decay=1.0), AdamW),
        (partial(torch.optim.AdamW, amsgrad=True), None),
        (torch.optim.SGD, SGD),
        (partial(torch.optim.SGD, momentum=0.9, dampening=0.5), None),
        (torch.optim.Adam, None),
        (torch.optim.RMSprop, None),
    ],
)
def test_torchs_optimizers_have_their_counterparts(make, ours):
    optimizer = make(nn.Linear(2, 2).parameters())
    assert type(timescale.counterpart(optimizer, optimizer.param_groups[0])) is (ours or type(None))
    assert "group 0: " in str(forecast(optimizer, 5))


def test_an_imposed_angle_is_there_from_the_first_step():
    class Imposing(AdamW):
        def equilibrium(self, group, fan_in):
            return Equilibrium(math.nan, math.nan, 0.02, 0.0)

    (found,) = forecast(Imposing(nn.Linear(2, 2).parameters(), weight_decay=0.1), 5)
    assert (found.settled_angle, found.settled_size, found.tau, found.first_angle) == (0.02, None, None, None)
    assert found.verdict == "group 0: this optimizer turns weights as in equilibrium from the first step."


# --- wrong ones must fail ----------------------------------------------------------------------------------------------


def no_later(lrs, weight_decay):
    return torch.ones(len(lrs), dtype=torch.float64)


def decayed_by_its_own_step(lrs, weight_decay):
    return surviving(lrs, weight_decay) * (1 - weight_decay * torch.as_tensor(lrs, dtype=torch.float64))


def earlier_in_place_of_later(lrs, weight_decay):
    return surviving(lrs[::-1], weight_decay).flip(0)


def exponential(lrs, weight_decay):
    lrs = torch.as_tensor(lrs, dtype=torch.float64)
    return torch.exp(-weight_decay * (lrs.sum() - lrs.cumsum(0)))


@pytest.mark.parametrize("wrong", [no_later, decayed_by_its_own_step, earlier_in_place_of_later, exponential])
def test_another_product_is_no_average(wrong, monkeypatch):
    monkeypatch.setattr(timescale, "surviving", wrong)
    with pytest.raises(AssertionError):
        test_the_average_is_the_trained_weight(SCHEDULES["wsd"])
    if wrong is not earlier_in_place_of_later:  # whose weights are one as well
        with pytest.raises(AssertionError):
            test_all_weights_of_the_average_are_one(SCHEDULES["wsd"])


def test_what_stands_around_an_optimizer_does_not_hide_it():
    def made(by) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        return wrapped([nn.Parameter(torch.randn(8, 8))], make=AdamW, by=by, lr=1e-2, weight_decay=0.1)

    assert str(forecast(made((StepInBackward,)), 100)) == str(forecast(made(()), 100))
    params = [nn.Parameter(torch.randn(8, 8))]
    around = with_timescale(params, make=partial(wrapped, make=AdamW, by=(StepInBackward,)), tau_steps=100, lr=1e-3)
    assert around.param_groups[0]["weight_decay"] == pytest.approx(10.0)


def test_the_forecast_of_sgd_does_not_mistake_clipped_updates_for_normalized_ones():
    p = nn.Parameter(torch.randn(4, 16))
    optimizer = clip_updates(with_decay(SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01), "adamw"))
    settled = optimizer.equilibrium(optimizer.param_groups[0], 16)
    assert settled is not None
    assert math.isnan(settled.norm)
    assert math.isnan(settled.update)
