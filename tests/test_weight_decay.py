"""The five meanings of weight decay against formulas and torch's own optimizers; which library means what."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from small import BASE, assert_one_sentence, assert_resumes_bitwise, randn, through_a_file, tiny_gpt, train_in
from torch import nn

from minitrain.lab.probes import angle
from minitrain.optim import SGD, Adam, AdamW, Lion, Optimizer, decay_by_lr, no_decay, plain_gradient, sgdm, wrapped
from minitrain.recipe import by_kind, check_ownership, describe
from minitrain.techniques.split_weights import SplitWeights, join_weights
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.techniques.weight_decay import LIBRARIES, RULES, check, share, with_decay
from minitrain.train import train

LR, DECAY = 0.2, 0.3
W0, GRADIENTS = randn(5, 3), randn(10, 5, 3, seed=1)
SCHEDULE = [1.0, 0.5, 0.5, 0.8, 1.0, 0.1, 0.1, 0.3, 0.7, 0.2]
MEANINGS = list(RULES)
MAKERS = {
    "sgd": partial(SGD, momentum=0.9),
    "adamw": partial(AdamW, betas=(0.8, 0.9), eps=1e-3),
    "lion": partial(Lion, betas=(0.9, 0.6)),
}
each_meaning = pytest.mark.parametrize("meaning", MEANINGS)
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def decayed(make, meaning, **hyper):
    """A maker of an optimizer whose decay has that meaning."""
    return lambda params: with_decay(make(params, **{"lr": LR, "weight_decay": DECAY, **hyper}), meaning)


def trajectory(make_optimizer, gradients=GRADIENTS, w0=W0, schedule=SCHEDULE, before_step=None):
    """The weights after each step along given gradients, the learning rate scheduled by torch's own scheduler."""
    w = nn.Parameter(w0.clone())
    optimizer = make_optimizer([w])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule[min(step, len(schedule) - 1)])
    path = []
    for step, g in enumerate(gradients):
        w.grad = g.clone()
        if before_step:
            before_step(optimizer, w, step)
        optimizer.step()
        scheduler.step()
        path.append(w.detach().clone())
    return torch.stack(path)


assert_same = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)

# --- equal to the formulas ------------------------------------------------------------------------------------------------


def heavy_ball_reference(gs):
    return sum(0.9**k * g for k, g in enumerate(reversed(gs)))


def adam_reference(gs):
    t = len(gs)
    m = sum(0.2 * 0.8**k * g for k, g in enumerate(reversed(gs))) / (1 - 0.8**t)
    v = sum(0.1 * 0.9**k * g * g for k, g in enumerate(reversed(gs))) / (1 - 0.9**t)
    return m / (v.sqrt() + 1e-3)


def lion_reference(gs):
    *past, g = gs
    m = sum((0.4 * 0.6**k * old for k, old in enumerate(reversed(past))), torch.zeros_like(g))
    return (0.9 * m + 0.1 * g).sign()


UPDATES = {"sgd": heavy_ball_reference, "adamw": adam_reference, "lion": lion_reference}


def reference(update, meaning):
    """Each meaning as its formula has it, from the whole history of gradients."""
    w, seen, path = W0.clone(), [], []
    for s, gradient in zip(SCHEDULE, GRADIENTS, strict=True):
        lr = s * LR
        seen.append(gradient + DECAY * w if meaning == "l2" else gradient)
        off = {"l2": 0.0, "adamw": lr * DECAY, "schedule_only": s * DECAY, "constant": DECAY}
        w = w - off.get(meaning, lr**2 * DECAY) * w - lr * update(seen)
        path.append(w)
    return torch.stack(path)


@each_meaning
def test_every_meaning_with_every_direction_is_its_formula(meaning):
    for name, make in MAKERS.items():
        assert_same(trajectory(decayed(make, meaning)), reference(UPDATES[name], meaning))


@pytest.mark.parametrize(
    ("make", "meaning", "twin"),
    [
        (partial(SGD, momentum=0.9, nesterov=True), "l2", partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
        (AdamW, "l2", torch.optim.Adam),
        (Adam, "l2", torch.optim.Adam),
        (Adam, "adamw", torch.optim.AdamW),
        (AdamW, "adamw", torch.optim.AdamW),
    ],
)
def test_equal_to_torch_under_a_schedule(make, meaning, twin):
    for hyper in (
        {"lr": 1e-3, "weight_decay": 0.1},
        {"lr": 1.0, "weight_decay": 0.5},
        {"lr": 1.0, "weight_decay": 0.0},
    ):
        assert_same(trajectory(decayed(make, meaning, **hyper)), trajectory(partial(twin, **hyper)))


# --- which library means what --------------------------------------------------------------------------------------------


def add_to_the_gradient(optimizer, w, step):
    w.grad += DECAY * w.detach()


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name.startswith("torch")])
def test_what_torch_means(name):
    """L2: the decay added to the gradient by hand does the same. Decoupled: without gradients, only the product is left."""
    make = partial(getattr(torch.optim, name.rpartition(".")[2]), lr=LR, weight_decay=DECAY)
    if name.endswith("SGD"):
        make = partial(make, momentum=0.9)
    by_hand = trajectory(partial(make, weight_decay=0.0), before_step=add_to_the_gradient)
    shrunk = trajectory(make, torch.zeros_like(GRADIENTS))[-1]
    product = math.prod(1 - s * LR * DECAY for s in SCHEDULE)
    assert torch.allclose(trajectory(make), by_hand, rtol=1e-9) == (LIBRARIES[name] == "l2")
    assert torch.allclose(shrunk, product * W0, rtol=1e-9) == (LIBRARIES[name] == "adamw")


def optax_chain(w, u, s):
    """The decay joins the update, then both are multiplied by the learning rate."""
    return w - s * LR * (u + DECAY * w)


def optax_adafactor(w, u, s):
    """The decay joins after the multiplication by the learning rate, and only the sign is turned after it."""
    return w - (s * LR * u + DECAY * w)


def authors_code(w, u, s):
    """The multiplier `s` of the schedule is applied to the decay, the peak learning rate is not."""
    return w - s * LR * u - (s * DECAY) * w


def nanodo(w, u, s):
    """The chain of Optax, given the decay divided by the peak learning rate."""
    return w - s * LR * (u + DECAY / LR * w)


FORMULAS = {
    "optax.adamw": (optax_chain, "adamw"),
    "optax.lion": (optax_chain, "lion"),
    "optax.adafactor": (optax_adafactor, "adamw"),  # with another direction: only the decay is compared
    "loshchil/AdamW-and-SGDW": (authors_code, "adamw"),
    "google-deepmind/nanodo": (nanodo, "adamw"),
}


def test_every_library_of_the_table_is_checked():
    assert set(LIBRARIES) == set(FORMULAS) | {name for name in LIBRARIES if name.startswith("torch.optim.")}


@pytest.mark.parametrize("name", FORMULAS)
def test_what_others_mean(name):
    step, direction = FORMULAS[name]
    w, path = W0.clone(), []
    for t, s in enumerate(SCHEDULE):
        w = step(w, UPDATES[direction](list(GRADIENTS[: t + 1])), s)
        path.append(w)
    for meaning in MEANINGS:
        difference = (trajectory(decayed(MAKERS[direction], meaning)) - torch.stack(path)).abs().max()
        assert (difference < 1e-9) == (meaning == LIBRARIES[name]), meaning


# --- properties ----------------------------------------------------------------------------------------------------------


@each_maker
def test_two_scheduled_steps_tell_all_meanings_apart(make):
    """The same numbers throughout. At the peak two are still alike; half the rate separates them too."""
    paths = {meaning: trajectory(decayed(make, meaning), GRADIENTS[:2]) for meaning in MEANINGS}
    assert torch.equal(paths["schedule_only"][0], paths["constant"][0])
    for a, b in combinations(MEANINGS, 2):
        assert (paths[a][1] - paths[b][1]).norm() > 0.02 * W0.norm(), (a, b)


@each_maker
def test_at_a_constant_rate_four_are_one_rule_in_other_units(make):
    same_share = {"adamw": 0.05 / LR, "schedule_only": 0.05, "constant": 0.05, "lr_squared": 0.05 / LR**2}
    paths = [trajectory(decayed(make, meaning, weight_decay=x), schedule=[1.0]) for meaning, x in same_share.items()]
    for path in paths[1:]:
        assert_same(path, paths[0])
    l2 = trajectory(decayed(make, "l2", weight_decay=0.05 / LR), schedule=[1.0])
    assert (l2 - paths[0]).abs().max() > 1e-2


def test_sgd_without_momentum_knows_no_difference_between_l2_and_decoupled():
    make = partial(SGD, momentum=0.0)
    assert_same(trajectory(decayed(make, "l2")), trajectory(decayed(make, "adamw")))


def test_without_gradients_weights_shrink_by_the_product_and_under_l2_run_for_zero():
    nothing = torch.zeros(10, 5, 3, dtype=torch.float64)
    product = math.prod(1 - s * LR * DECAY for s in SCHEDULE)
    assert_same(trajectory(decayed(AdamW, "adamw"), nothing)[-1], product * W0, rtol=1e-13, atol=0.0)
    first = trajectory(decayed(Adam, "l2", lr=1e-3), nothing)[0] - W0
    assert_same(first, -1e-3 * W0.sign(), rtol=1e-6, atol=0.0)


# What a quarter of the learning rate does, in the long run, to the rotation and to the norm, each as a factor.
A_QUARTER = {"adamw": (1 / 2, 1 / 2), "schedule_only": (1 / 2, 1 / 2), "constant": (1, 1 / 4), "lr_squared": (1 / 4, 1)}


@pytest.mark.parametrize("meaning", A_QUARTER)
def test_where_rotation_and_norm_go_when_the_rate_falls(meaning):
    """A walk among noise at right angles to the weights; `weight_decay` takes 1 % per step at the initial rate."""
    number = {"adamw": 0.5, "schedule_only": 0.01, "constant": 0.01, "lr_squared": 25.0}[meaning]
    w = nn.Parameter(randn(16, 200, dtype=torch.float32) / 7)
    optimizer = with_decay(AdamW([w], lr=0.02, betas=(0.9, 0.99), weight_decay=number), meaning)
    generator, late = torch.Generator().manual_seed(0), []
    for lr, steps in ((0.02, 300), (0.005, 1000)):
        optimizer.param_groups[0]["lr"] = lr
        turned, norms = [], []
        for _ in range(steps):
            unit = nn.functional.normalize(w.detach())
            noise = torch.randn(w.shape, generator=generator)
            w.grad = noise - unit * (noise * unit).sum(1, keepdim=True)
            optimizer.step()
            turned.append(angle(unit, w.detach()).mean())
            norms.append(w.detach().norm(dim=1).mean())
        late.append((torch.stack(turned[-100:]).mean(), torch.stack(norms[-100:]).mean()))
    rotation, norm = (after / before for before, after in zip(*late, strict=True))
    assert (rotation.item(), norm.item()) == pytest.approx(A_QUARTER[meaning], rel=0.05)
    settled = optimizer.equilibrium(optimizer.param_groups[0], 200)
    assert settled is not None
    assert [x.item() for x in late[1]] == pytest.approx([settled.rotation, settled.norm], rel=0.05)


def test_what_is_predicted_of_whom():
    group = {
        "lr": 0.05,
        "initial_lr": 0.1,
        "weight_decay": 0.3,
        "momentum": 0.9,
        "nesterov": False,
        "betas": (0.9, 0.9),
    }
    for meaning in MEANINGS[1:]:
        twin = {**group, "weight_decay": share(meaning, group) / 0.05}
        for make in MAKERS.values():
            found, own = decayed(make, meaning)([W0]).equilibrium(group, 9), decayed(make, "adamw")([W0])
            assert found == pytest.approx(own.equilibrium(twin, 9), nan_ok=True)
            assert math.isnan(found.norm) == (make is MAKERS["sgd"])
    assert decayed(SGD, "l2")([W0]).equilibrium(group, 9) == pytest.approx(SGD([W0]).equilibrium(group, 9), nan_ok=True)
    assert decayed(AdamW, "l2")([W0]).equilibrium(group, 9) is None  # the size of the gradients would have to be known
    assert decayed(Lion, "l2")([W0]).equilibrium(group, 9) is None


def test_share_is_what_a_step_takes():
    found = [share(meaning, {"lr": 0.05, "initial_lr": 0.1, "weight_decay": 0.3}) for meaning in MEANINGS]
    assert found == pytest.approx([0.0, 0.015, 0.15, 0.3, 0.00075], rel=1e-12)


# --- switched off, saved, copied -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "own"), [(SGD, "l2"), (Adam, "l2"), (AdamW, "adamw"), (Lion, "adamw")])
def test_an_optimizer_given_its_own_meaning_is_bitwise_itself(make, own):
    hyper = {"lr": LR, "weight_decay": DECAY}
    assert torch.equal(trajectory(decayed(make, own)), trajectory(partial(make, **hyper)))

    def there_and_back(params):
        return with_decay(with_decay(make(params, **hyper), "constant"), own)

    assert torch.equal(trajectory(there_and_back), trajectory(partial(make, **hyper)))


@each_maker
def test_without_decay_all_are_bitwise_one(make):
    first, *others = (trajectory(decayed(make, meaning, weight_decay=0.0)) for meaning in MEANINGS)
    for path in others:
        assert_same(path, first)


@each_meaning
def test_state_goes_through_a_file_and_the_run_goes_on_bitwise(meaning):
    make = MAKERS["adamw"]
    w = nn.Parameter(W0.clone())
    optimizer = decayed(make, meaning)([w])
    for step, (s, g) in enumerate(zip(SCHEDULE, GRADIENTS, strict=True)):
        if step == 5:
            state = through_a_file(optimizer.state_dict())
            optimizer = decayed(make, meaning)([w])
            optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = s * LR
        w.grad = g.clone()
        optimizer.step()
    assert torch.equal(w.detach(), trajectory(decayed(make, meaning))[-1])
    w = nn.Parameter(W0.clone())
    copied = copy.deepcopy(decayed(AdamW, meaning)([w]))
    (p,) = copied.param_groups[0]["params"]
    p.grad = GRADIENTS[0].clone()
    copied.step()
    assert torch.equal(p.detach(), trajectory(decayed(AdamW, meaning))[0])


def recipe(meaning, *others):
    make = partial(AdamW, lr=1e-2, weight_decay=0.1)
    by = (partial(with_decay, meaning=meaning), *others)
    return replace(BASE, make_optimizer=partial(wrapped, make=make, by=by))


def test_a_recipe_names_the_meaning_and_a_stopped_run_goes_on_bitwise(tmp_path: Path):
    mine = recipe("schedule_only")
    assert describe(mine)["make_optimizer.by.0.meaning"] == "'schedule_only'"
    run = assert_resumes_bitwise(tmp_path, mine)
    assert not torch.equal(run.losses, train_in(tmp_path / "other", recipe("constant")).losses)


# --- with what else is put around an optimizer ---------------------------------------------------------------------------


@each_meaning
def test_split_weights_before_or_after(meaning):
    """Split weights go through the readable form, as does a decay that is not the fused kernel's."""
    orders = {
        "after": lambda w: with_decay(SplitWeights(AdamW([w], lr=LR, weight_decay=DECAY)), meaning),
        "before": lambda w: SplitWeights(with_decay(AdamW([w], lr=LR, weight_decay=DECAY), meaning)),
        "plain": lambda w: with_decay(AdamW([w], lr=LR, weight_decay=DECAY), meaning),
    }
    found = {}
    for order, make in orders.items():
        w = nn.Parameter(W0.bfloat16().float())
        optimizer = make(w)
        for g in GRADIENTS[:5]:
            w.grad = g.bfloat16().to(w.dtype)
            optimizer.step()
        if order != "plain":
            join_weights(optimizer)
        w.grad = GRADIENTS[5].float()
        optimizer.step()
        found[order] = w.detach()
    assert torch.equal(found["after"], found["before"])
    torch.testing.assert_close(found["before"], found["plain"], rtol=1e-5, atol=1e-6)


def test_step_in_backward_comes_last():
    plain, inside = (train(replace(recipe("constant", *x), before_step=())) for x in ((), (StepInBackward,)))
    assert torch.equal(plain.losses, inside.losses)


def test_each_group_decays_by_its_own_number():
    model = tiny_gpt()
    optimizer = with_decay(AdamW(by_kind(model), lr=0.1, weight_decay=0.2), "constant")
    check_ownership(model, optimizer.param_groups)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        decays = name.startswith("blocks.") and p.ndim == 2
        assert torch.equal(p.detach(), before[name].mul(0.8) if decays else before[name]), name


# --- what is refused -----------------------------------------------------------------------------------------------------


def turn(w, u, state, *, lr, weight_decay):
    return w - lr * u


class OwnRules(AdamW):
    def rules(self, group):
        return plain_gradient, turn


HYPER = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.0, "nesterov": False}
REFUSED = {
    "unknown": (AdamW, "decoupled", "meaning must be one of l2, adamw, .*, not 'decoupled'"),
    "nothing": (AdamW, None, "not None"),
    "torch's": (torch.optim.AdamW, "l2", r"not torch\.optim\.adamw\.AdamW; put StepInBackward around afterwards"),
    "wrapped": (
        lambda params: StepInBackward(AdamW(params)),
        "l2",
        r"not .*\.StepInBackward; put StepInBackward around",
    ),
    "no decay": (
        lambda params: Optimizer(params, {"lr": 0.1}, direction=lambda g, state: g, step_rule=no_decay),
        "adamw",
        "Optimizer has no weight_decay",
    ),
    "another step": (partial(Optimizer, hyper=HYPER, direction=sgdm, step_rule=turn), "l2", "rules of its own"),
    "another input": (
        partial(Optimizer, hyper=HYPER, direction=sgdm, step_rule=decay_by_lr, input_rule=lambda g, w: 2 * g),
        "l2",
        "Optimizer moves weights by rules of its own",
    ),
    "rules of a class": (OwnRules, "l2", "OwnRules moves weights by rules of its own"),
    "AdamW's number": (
        partial(AdamW, lr=1e-3, weight_decay=1.0),
        "constant",
        "under 'constant' a weight_decay of 1 would take 1 of every weight",
    ),
    "more than all": (partial(Lion, lr=10.0, weight_decay=0.1), "lr_squared", "would take 10 of every weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(case):
    make, meaning, words = REFUSED[case]
    optimizer = make([nn.Parameter(W0.clone())])
    before = [getattr(optimizer, name, None) for name in ("input_rule", "step_rule")]
    with pytest.raises(ValueError, match=words) as error:
        check(optimizer, meaning)
    assert_one_sentence(error.value)
    assert [getattr(optimizer, name, None) for name in ("input_rule", "step_rule")] == before
