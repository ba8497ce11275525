"""Schedules: exact values at every boundary, areas, identities, bounds, and their use with an optimizer."""

import inspect
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minitrain.schedules import (
    constant,
    cosine,
    cosine_shape,
    exponential_decay,
    exponential_warmup,
    inverse_sqrt,
    linear,
    linear_to_floor,
    linear_warmup,
    lowered_linear,
    mirror_cosine,
    one_cycle,
    one_minus_sqrt,
    piecewise_linear,
    set_schedules,
    square,
    warmup_stable_decay,
)

properties = settings(derandomize=True, deadline=None)
fractions = st.floats(0.0, 1.0, exclude_max=True)

SHAPES = [linear, one_minus_sqrt, lowered_linear, cosine_shape, mirror_cosine, square, piecewise_linear]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)


@st.composite
def parts(draw):
    """Steps, and a warmup and a cooldown that fit into them."""
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    return {"steps": steps, "warmup": warmup, "cooldown": draw(st.integers(0, steps - warmup))}


# --- warmup ------------------------------------------------------------------------------------------------------------


def test_linear_warmup_starts_above_zero_and_is_full_at_its_last_step():
    assert [linear_warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_exponential_warmup_rises_by_one_factor():
    values = [exponential_warmup(step, 4, start=0.0001) for step in range(6)]
    assert values == pytest.approx([0.001, 0.01, 0.1, 1.0, 1.0, 1.0])


def test_no_warmup_is_full_at_once():
    for warm in (linear_warmup, exponential_warmup, lambda step, warmup: constant(step, warmup=warmup)):
        assert warm(0, 0) == warm(0, 1) == 1.0 > warm(0, 2)


# --- cooldown shapes ---------------------------------------------------------------------------------------------------

QUARTERS = {
    linear: (0.75, 0.5, 0.25),
    one_minus_sqrt: (0.5, 0.292893, 0.133975),
    lowered_linear: (0.525, 0.35, 0.175),
    cosine_shape: (0.853553, 0.5, 0.146447),
    mirror_cosine: (0.646447, 0.5, 0.353553),
    square: (0.9375, 0.75, 0.4375),
    piecewise_linear: (0.75, 0.5, 0.25),
}
AREAS = {
    linear: 50.5,
    one_minus_sqrt: 33.854,
    lowered_linear: 35.35,
    cosine_shape: 50.5,
    mirror_cosine: 50.5,
    square: 67.165,
    piecewise_linear: 50.5,
}


@each_shape
def test_shape_at_its_ends_and_quarters_and_its_area(shape):
    assert shape(0.0) == (0.7 if shape is lowered_linear else 1.0)
    assert [shape(x) for x in (0.25, 0.5, 0.75)] == pytest.approx(QUARTERS[shape], abs=1e-6)
    assert shape(1.0) == pytest.approx(0.0, abs=1e-12)
    total = sum(warmup_stable_decay(step, steps=100, cooldown=100, shape=shape) for step in range(100))
    assert total == pytest.approx(AREAS[shape], abs=5e-4)


@each_shape
@properties
@given(x=fractions, y=fractions)
def test_shape_falls_between_one_and_zero(shape, x, y):
    low, high = min(x, y), max(x, y)
    assert 1 >= shape(low) >= shape(high) - 1e-15
    assert shape(high) >= 0


@properties
@given(x=fractions)
def test_identities_between_shapes(x):
    assert mirror_cosine(x) + cosine_shape(x) == pytest.approx(2 * linear(x))
    assert one_minus_sqrt(x, power=1.0) == linear(x)
    assert one_minus_sqrt(x, power=2.0) == pytest.approx(square(x))
    assert lowered_linear(x, start=1.0) == linear(x)
    assert piecewise_linear(x) == pytest.approx(linear(x), abs=1e-15)
    assert piecewise_linear(x, points=(), start=0.7) == pytest.approx(lowered_linear(x), abs=1e-15)


@properties
@given(x=fractions)
def test_order_of_shapes(x):
    assert square(x) >= linear(x) >= one_minus_sqrt(x) >= 0
    gap = mirror_cosine(x) - linear(x)
    assert gap <= 1e-15 if x < 0.5 else gap >= -1e-15


def test_piecewise_linear_goes_through_its_points():
    shape = partial(piecewise_linear, points=(0.6, 0.5), start=0.9)
    assert [shape(k / 6) for k in range(7)] == pytest.approx([0.9, 0.75, 0.6, 0.55, 0.5, 0.25, 0.0])


def test_power_of_x_is_not_a_lowered_start():
    """The misreading of "lowered linear 0.7" as `1 - x^0.7` is another curve."""
    assert one_minus_sqrt(0.0, power=0.7) != lowered_linear(0.0)
    assert abs(one_minus_sqrt(0.5, power=0.7) - lowered_linear(0.5)) > 0.02


# --- warmup, plateau, cooldown -----------------------------------------------------------------------------------------

WSD = partial(warmup_stable_decay, steps=100, warmup=10, cooldown=20)


@each_shape
def test_boundaries_of_warmup_stable_decay(shape):
    f = partial(WSD, shape=shape)
    assert [f(0), f(8), f(9), f(10), f(79)] == [0.1, 0.9, 1.0, 1.0, 1.0]
    assert f(80) == shape(0.0)
    assert f(99) == shape(19 / 20) > 0
    assert [f(100), f(1000)] == [0.0, 0.0]
    f = partial(WSD, shape=shape, floor=0.2)
    assert f(9) == 1.0
    assert [f(step) for step in (80, 90, 99)] == pytest.approx([0.2 + 0.8 * shape(x) for x in (0.0, 0.5, 0.95)])
    assert [f(100), f(1000)] == [0.2, 0.2]
    assert partial(WSD, shape=shape, floor=1.0)(99) == pytest.approx(1.0)


@each_shape
@properties
@given(fit=parts(), floor=st.floats(0.0, 1.0))
def test_warmup_stable_decay_rises_stays_and_falls(shape, fit, floor):
    values = [warmup_stable_decay(step, **fit, shape=shape, floor=floor) for step in range(fit["steps"])]
    warmup, hold = fit["warmup"], fit["steps"] - fit["cooldown"]
    assert all(0 < value <= 1 + 1e-12 for value in values)
    assert values[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert values[warmup:hold] == [1.0] * (hold - warmup)
    assert values[hold:] == pytest.approx(sorted(values[hold:], reverse=True), abs=1e-12)
    assert all(value >= floor - 1e-12 for value in values[hold:])


@pytest.mark.parametrize("schedule", [warmup_stable_decay, exponential_decay])
@properties
@given(short=parts(), longer=st.integers(0, 200))
def test_runs_of_different_length_agree_until_the_shorter_cools_down(schedule, short, longer):
    long = {**short, "steps": short["steps"] + longer}
    for step in range(short["steps"] - short["cooldown"]):
        assert schedule(step, **short) == schedule(step, **long)


def test_a_cosine_has_no_such_prefix():
    assert cosine(50, steps=100) != cosine(50, steps=200)


@pytest.mark.parametrize(("schedule", "shape"), [(cosine, cosine_shape), (linear_to_floor, linear)])
@properties
@given(fit=parts(), floor=st.floats(0.0, 1.0))
def test_schedules_without_a_plateau_cool_down_from_the_warmup_on(schedule, shape, fit, floor):
    steps, warmup = fit["steps"], fit["warmup"]
    for step in (*range(steps), steps, steps + 7):
        expected = warmup_stable_decay(
            step, steps=steps, warmup=warmup, cooldown=steps - warmup, shape=shape, floor=floor
        )
        assert schedule(step, steps=steps, warmup=warmup, floor=floor) == expected


def test_boundaries_of_cosine():
    f = partial(cosine, steps=100, warmup=20)
    assert [f(0), f(18), f(19), f(20)] == [0.05, 0.95, 1.0, 1.0]
    assert f(60) == pytest.approx(0.55)
    assert f(99) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 79 / 80)) / 2)
    assert [f(100), f(101)] == [0.1, 0.1]


def test_boundaries_of_linear_to_floor():
    f = partial(linear_to_floor, steps=100, warmup=20)
    assert [f(step) for step in (0, 18, 19, 20, 21, 60, 99, 100)] == pytest.approx(
        [0.05, 0.95, 1.0, 1.0, 79 / 80, 0.5, 1 / 80, 0.0]
    )
    assert linear_to_floor(60, steps=100, warmup=20, floor=0.2) == pytest.approx(0.6)


def test_the_default_of_a_warmup_stable_decay_without_parts_is_constant_to_its_end():
    assert [warmup_stable_decay(step, steps=3) for step in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_constant_stays():
    assert [constant(step, warmup=2) for step in (0, 1, 2, 10**9)] == [0.5, 1.0, 1.0, 1.0]


# --- the exponential cooldown ------------------------------------------------------------------------------------------


def test_boundaries_of_exponential_decay():
    f = partial(exponential_decay, steps=100, warmup=10, cooldown=20)
    assert [f(0), f(8), f(9), f(79), f(80)] == [0.1, 0.9, 1.0, 1.0, 1.0]
    assert [f(90), f(99), f(100), f(200)] == pytest.approx([0.1, 0.01 ** (19 / 20), 0.01, 0.01])


def test_exponential_decay_falls_by_one_factor():
    values = [exponential_decay(step, steps=50, cooldown=50, floor=0.2) for step in range(51)]
    ratios = [b / a for a, b in pairwise(values)]
    assert ratios == pytest.approx([0.2 ** (1 / 50)] * 50)
    assert sum(values[:50]) / 50 == pytest.approx(0.8 / math.log(5), rel=0.02)


def test_exponential_decay_without_a_cooldown_drops_at_the_end():
    assert [exponential_decay(step, steps=3, floor=0.5) for step in range(5)] == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_exponential_decay_needs_a_floor_above_zero():
    for floor in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"floor above 0, not {floor}"):
            exponential_decay(0, steps=10, cooldown=5, floor=floor)


# --- inverse square root and 1cycle ------------------------------------------------------------------------------------


def test_inverse_sqrt_rises_and_then_falls_with_the_root():
    f = partial(inverse_sqrt, warmup=4)
    assert [f(step) for step in (0, 1, 2, 3, 15, 63)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.25])
    assert f(3) == 1.0
    assert f(4) == pytest.approx(math.sqrt(4 / 5))


@properties
@given(warmup=st.integers(1, 1000), step=st.integers(0, 100_000))
def test_inverse_sqrt_is_above_zero_and_at_most_one(warmup, step):
    assert 0 < inverse_sqrt(step, warmup=warmup) <= 1
    assert inverse_sqrt(warmup - 1, warmup=warmup) == 1


def test_inverse_sqrt_needs_a_warmup():
    for warmup in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1 step, not {warmup}"):
            inverse_sqrt(0, warmup=warmup)


def test_one_cycle_has_two_equal_legs_and_a_last_fall():
    f = partial(one_cycle, steps=100, start=0.1, annealing=0.1, end=0.001)
    assert [f(0), f(45), f(90), f(100), f(500)] == pytest.approx([0.1, 1.0, 0.1, 0.001, 0.001])
    assert [f(step) for step in range(46)] == pytest.approx([f(90 - step) for step in range(46)])


def test_each_leg_of_one_cycle_is_straight():
    for leg in (range(46), range(45, 91), range(90, 101)):
        values = [one_cycle(step, steps=100) for step in leg]
        first, last = values[0], values[-1]
        assert values == pytest.approx([first + (last - first) * k / (len(leg) - 1) for k in range(len(leg))])


@properties
@given(steps=st.integers(1, 300), start=st.floats(0.01, 1.0), annealing=st.floats(0.0, 1.0))
def test_one_cycle_is_above_zero_and_at_most_one(steps, start, annealing):
    assert all(0 < one_cycle(step, steps=steps, start=start, annealing=annealing) <= 1 for step in range(steps + 2))


def test_one_cycle_without_a_last_fall_ends_at_its_start():
    assert one_cycle(99, steps=100, annealing=0.0) == pytest.approx(0.1 + 0.9 / 50)


# --- what is refused ---------------------------------------------------------------------------------------------------

ANY_WSD = [warmup_stable_decay, exponential_decay]


@pytest.mark.parametrize("schedule", ANY_WSD)
def test_parts_that_do_not_fit_are_refused(schedule):
    for warmup, cooldown in ((6, 5), (11, 0), (0, 11), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"warmup {warmup} and cooldown {cooldown} do not fit into 10 steps"):
            schedule(0, steps=10, warmup=warmup, cooldown=cooldown)


@pytest.mark.parametrize("schedule", [cosine, linear_to_floor])
def test_a_warmup_that_does_not_fit_is_refused(schedule):
    for warmup in (11, -1):
        with pytest.raises(ValueError, match=f"warmup {warmup} and cooldown .* do not fit into 10 steps"):
            schedule(0, steps=10, warmup=warmup)


@pytest.mark.parametrize("schedule", [cosine, linear_to_floor, one_cycle, *ANY_WSD])
def test_a_run_without_steps_and_a_floor_that_is_no_share_are_refused(schedule):
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps.* {steps}"):
            schedule(0, steps=steps)
    for floor in () if schedule is one_cycle else (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"floor .*not {floor}"):
            schedule(0, steps=10, floor=floor)


def test_parts_that_just_fit_are_let_in():
    assert warmup_stable_decay(9, steps=10, warmup=5, cooldown=5) > 0
    assert cosine(9, steps=10, warmup=10) == 1.0
    assert exponential_decay(9, steps=10, warmup=10) == 1.0


def test_a_negative_warmup_of_a_constant_is_refused():
    with pytest.raises(ValueError, match="-5"):
        constant(0, warmup=-5)


def test_parts_of_one_cycle_out_of_range_are_refused():
    for name, value in (("annealing", -0.5), ("annealing", 1.5), ("start", -0.1), ("start", 2.0)):
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            one_cycle(5, steps=10, **{name: value})


# --- with an optimizer -------------------------------------------------------------------------------------------------

EVERY = [
    partial(constant, warmup=5),
    partial(warmup_stable_decay, steps=20, warmup=5, cooldown=10),
    partial(cosine, steps=20, warmup=5),
    partial(linear_to_floor, steps=20),
    partial(exponential_decay, steps=20, cooldown=20),
    partial(inverse_sqrt, warmup=5),
    partial(one_cycle, steps=20),
]


def groups():
    """A plain torch optimizer with the groups `matrices` and `gains`."""
    names = ("matrices", "gains")
    members = [{"params": [nn.Parameter(torch.ones(2))], "name": name} for name in names]
    members[1]["lr"] = 0.5
    return torch.optim.AdamW(members, lr=0.1, weight_decay=0.01)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.func.__name__)
def test_schedule_drives_lambda_lr(schedule):
    optimizer = groups()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(20):
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * schedule(step), 0.5 * schedule(step)]
        optimizer.step()
        scheduler.step()


def scheduled(plan, step):
    """The two groups after `plan` was followed up to `step`."""
    optimizer = groups()
    for earlier in range(step):
        set_schedules(optimizer, plan, earlier)
    set_schedules(optimizer, plan, step)
    return optimizer.param_groups


def betas_by_step(step):
    return (0.9, 1 - 0.5**step)


def test_star_sets_every_group_and_initial_values_are_multiplied_anew_at_every_step():
    matrices, gains = scheduled({("*", "lr"): partial(constant, warmup=4)}, step=1)
    assert (matrices["lr"], gains["lr"]) == (0.05, 0.25)
    assert matrices["weight_decay"] == 0.01
    matrices, _ = scheduled({("*", "lr"): lambda step: 0.5}, step=5)
    assert matrices["lr"] == 0.05


def test_an_own_entry_beats_the_star():
    plan = {("*", "lr"): lambda step: 0.5, ("gains", "lr"): lambda step: 0.1}
    for order in (plan, dict(reversed(plan.items()))):
        matrices, gains = scheduled(order, step=0)
        assert (matrices["lr"], gains["lr"]) == pytest.approx((0.05, 0.05))


def test_an_entry_for_one_group_leaves_the_others_alone():
    matrices, gains = scheduled({("gains", "weight_decay"): lambda step: 3.0}, step=2)
    assert (matrices["weight_decay"], gains["weight_decay"]) == (0.01, pytest.approx(0.03))
    assert (matrices["lr"], gains["lr"]) == (0.1, 0.5)


def test_betas_are_set_as_they_are_zero_is_a_value_and_a_key_that_a_group_lacks_is_left_out():
    plan = {("*", "betas"): betas_by_step, ("*", "lr"): lambda step: 0.0, ("*", "momentum"): lambda step: 0.5}
    matrices, gains = scheduled(plan, step=3)
    assert matrices["betas"] == gains["betas"] == (0.9, 0.875)
    assert matrices["lr"] == 0.0
    assert "momentum" not in matrices


def test_initial_values_go_through_a_state_dict():
    plan = {("*", "lr"): partial(constant, warmup=4), ("*", "weight_decay"): lambda step: 0.5}
    optimizer, resumed = groups(), groups()
    for step in range(2):
        set_schedules(optimizer, plan, step)
    resumed.load_state_dict(optimizer.state_dict())
    set_schedules(resumed, plan, 2)
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx([0.075, 0.375])
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.005, 0.005]


def test_groups_without_names_follow_the_star():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    set_schedules(optimizer, {("*", "lr"): lambda step: 0.5, ("gains", "lr"): lambda step: 0.1}, 0)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_scheduled_yes_or_no_stays_one():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9, nesterov=False)
    set_schedules(optimizer, {("*", "nesterov"): lambda step: step >= 5}, 5)
    assert optimizer.param_groups[0]["nesterov"] is True


@pytest.mark.parametrize("schedule", [constant, inverse_sqrt])
def test_a_warmup_of_no_number_is_refused(schedule):
    with pytest.raises(ValueError, match="nan"):
        inspect.unwrap(schedule)(5, warmup=math.nan)  # as it is without the tests' checking of types
