"""The closed forms: against impulse responses, against the table written out, and against random walks."""

import copy
import functools
import math
from functools import partial

import pytest
import torch
from small import randn
from torch import nn

from minitrain import equilibrium as closed
from minitrain import optim
from minitrain.equilibrium import Equilibrium, Filter
from minitrain.lab.probes import angle
from minitrain.optim import SGD, Adam, AdamW, Lion, Optimizer

# --- closed forms against the impulse response of the direction itself -------------------------------------------------

AGES = 2000


def impulse_response(direction, **hyper):
    """`c_k`: what `direction` answers, `k` steps later, to a gradient of 1 that comes once."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    state = {}
    return torch.stack([direction(one if k == 0 else zero, state, **hyper).clone() for k in range(AGES)]).squeeze()


def adam_average(g, state, *, beta):
    """Adam's direction with its second moment held at 1, which leaves the filter of the first."""
    one = torch.ones_like(g)
    state |= {"v": one, "v_ones": 1.0, "m_ones": 1.0}
    return optim.adam(g, state, betas=(beta, 1.0), eps=0.0)


def lion_response(betas):
    """`c_k / c_0`: the gradient now that just outweighs, inside Lion's sign, a gradient of -1 of `k` steps ago."""
    state = {}
    gradients = -torch.eye(AGES, dtype=torch.float64).flip(0)  # coordinate k gets its impulse k steps before the last
    for g in gradients[:-1]:
        optim.lion(g, state, betas=betas)
    low, high = torch.zeros(AGES, dtype=torch.float64), torch.full((AGES,), 10.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        positive = optim.lion(gradients[-1] + middle, copy.deepcopy(state), betas=betas) > 0
        low, high = torch.where(positive, low, middle), torch.where(positive, middle, high)
    return low


def assert_filter(filter, c):
    assert filter.total == pytest.approx(c.sum().item(), rel=1e-9)
    assert filter.energy == pytest.approx(c.square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_sums_the_impulse_response_of_sgdm(nesterov):
    for momentum in (0.0, 0.5, 0.9, 0.98):
        c = impulse_response(optim.sgdm, momentum=momentum, nesterov=nesterov)
        assert_filter(closed.heavy_ball(momentum, nesterov), c)


def test_the_energy_of_the_heavy_ball_is_not_that_of_nesterov():
    with pytest.raises(AssertionError):
        assert_filter(closed.heavy_ball(0.9), impulse_response(optim.sgdm, momentum=0.9, nesterov=True))


def test_exponential_sums_the_impulse_response_of_adam():
    for beta in (0.0, 0.5, 0.9, 0.98):
        assert_filter(closed.exponential(beta), impulse_response(adam_average, beta=beta))
        nesterov = impulse_response(optim.sgdm, momentum=beta, nesterov=True) * (1 - beta)
        assert_filter(closed.exponential(beta, nesterov=True), nesterov)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98)])
def test_sign_of_two_averages_sums_the_impulse_response_of_lion(betas):
    c = lion_response(betas)
    assert c[0] == pytest.approx(1.0)
    filter = closed.sign_of_two_averages(betas)
    assert filter.total == pytest.approx(math.sqrt(2 / math.pi) * (c.sum() / c.square().sum().sqrt()).item(), rel=1e-6)
    assert filter.energy == 1.0


def test_the_constant_of_lion():
    """`K = .01 + .81 * .01 / 1.99` for the default betas, and the mean of a sign moves by `sqrt(2/(pi K))`."""
    assert closed.sign_of_two_averages((0.9, 0.99)).total == pytest.approx(math.sqrt(2 / math.pi / 0.0140703518))
    assert closed.sign_of_two_averages((0.0, 0.5)).total == pytest.approx(math.sqrt(2 / math.pi))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(SGD, momentum=0.9), Filter(10.0, 1 / 0.19)),
        (partial(SGD, momentum=0.9, nesterov=True), Filter(10.0, 3.61 + 0.6561 / 0.19)),
        (SGD, Filter(1.0, 1.0)),
        (partial(Adam, betas=(0.8, 0.9)), Filter(1.0, 0.2 / 1.8)),
        (partial(AdamW, betas=(0.8, 0.9)), Filter(1.0, 0.2 / 1.8)),
        (Lion, Filter(math.sqrt(2 / math.pi / 0.0140703518), 1.0)),
    ],
)
def test_each_optimizer_names_its_filter(make, expected):
    optimizer = make([nn.Parameter(randn(5, 3))])
    assert optimizer.momentum_filter(optimizer.param_groups[0]) == pytest.approx(expected)


def test_an_optimizer_without_a_filter_says_so():
    hyper = {"lr": 1e-3, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    optimizer = Optimizer([nn.Parameter(randn(5, 3))], hyper, direction=optim.sgdm, step_rule=optim.no_decay)
    assert optimizer.momentum_filter(optimizer.param_groups[0]) is None
    assert optimizer.equilibrium(optimizer.param_groups[0], fan_in=3) is None


# --- equilibrium: the table written out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "decay", "C", "a"), [(1e-3, 0.1, 512, 0.0), (0.05, 0.02, 64, 0.6), (1e-3, 0.1, 512, 0.9)]
)
def test_equilibrium_is_the_table_of_the_paper(lr, decay, C, a):
    adamw = closed.equilibrium(closed.exponential(a), lr, decay, C)
    assert adamw.update == pytest.approx(lr * math.sqrt(C * (1 - a) / (1 + a)))
    assert adamw.norm == pytest.approx(math.sqrt(lr * C / (2 * decay)))
    assert adamw.rotation == pytest.approx(math.sqrt(2 * lr * decay * (1 - a) / (1 + a)))
    assert adamw.steps == pytest.approx(1 / (2 * lr * decay))

    sgdm = closed.equilibrium_l2(closed.heavy_ball(a), lr, decay, unit_gradient=3.0)
    assert sgdm.norm == pytest.approx((lr * 9 / (2 * decay * (1 - a))) ** (1 / 4))
    assert sgdm.update == pytest.approx(lr * 3.0 / sgdm.norm / math.sqrt(1 - a**2))
    assert sgdm.rotation == pytest.approx(math.sqrt(2 * lr * decay / (1 + a)))
    assert sgdm.steps == pytest.approx((1 - a) / (4 * lr * decay))

    lion = closed.equilibrium(closed.sign_of_two_averages((a, 0.99)), lr, decay, C)
    K = (1 - a) ** 2 + a**2 * 0.01 / 1.99
    assert lion.update == pytest.approx(lr * math.sqrt(C))
    assert lion.norm == pytest.approx(math.sqrt(lr * C / (math.pi * decay * K)))
    assert lion.rotation == pytest.approx(math.sqrt(math.pi * lr * decay * K))
    assert lion.steps == pytest.approx(1 / (2 * lr * decay))

    rms = torch.linspace(0.5, 2.0, C, dtype=torch.float64)
    adam = closed.equilibrium_adam_l2(closed.exponential(a), lr, decay, C, rms)
    assert adam.update == pytest.approx(adamw.update)
    assert adam.norm == pytest.approx((lr / (2 * decay) * rms.sum().item()) ** (1 / 3))
    assert adam.rotation == pytest.approx(adam.update / adam.norm)
    assert adam.steps == pytest.approx(1.25 / adam.norm / (3 * lr * decay))
    assert closed.equilibrium_adam_l2(closed.exponential(a), lr, decay, C, 1.25) == pytest.approx(adam)


def test_nesterov_turns_by_its_own_energy():
    nesterov = closed.equilibrium_l2(closed.heavy_ball(0.9, nesterov=True), 0.1, 0.01, 1.0)
    plain = closed.equilibrium_l2(closed.heavy_ball(0.9), 0.1, 0.01, 1.0)
    assert nesterov.rotation == pytest.approx(1.189 * math.sqrt(0.1 * 0.01), rel=1e-3)
    assert plain.rotation == pytest.approx(1.026 * math.sqrt(0.1 * 0.01), rel=1e-3)
    assert nesterov.norm == pytest.approx(plain.norm)


# --- equilibrium: random walks with the real optimizers ----------------------------------------------------------------


def walk(make_optimizer, unit_rms, start, steps):
    """Every row walks among noise as if a normalization followed: gradients orthogonal to it, of size `1/|w|`.

    Returns the norms, the angles and the step lengths across `w`, each of shape `(steps, rows)`; `unit_rms` `(rows, fan_in)`
    is the root mean square of each coordinate's gradient at norm 1, `start` the norm of each row at the start.
    """
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(start.reshape(-1, 1) * nn.functional.normalize(torch.randn(unit_rms.shape, generator=generator)))
    optimizer = make_optimizer([w])
    records = []
    for _ in range(steps):
        old = w.detach().clone()
        norm = old.norm(dim=1, keepdim=True)
        direction = old / norm
        noise = unit_rms * torch.randn(unit_rms.shape, generator=generator)
        w.grad = (noise - direction * (noise * direction).sum(dim=1, keepdim=True)) / norm
        optimizer.step()
        change = w.detach() - old
        across = change - direction * (change * direction).sum(dim=1, keepdim=True)
        records.append(torch.stack([w.detach().norm(dim=1), angle(old, w.detach()), across.norm(dim=1)]))
    return torch.stack(records, dim=1)


def settled(records, last=500, rows=slice(None)):
    """Root mean squares of norm, rotation and update over the last steps."""
    norm, rotation, update = records[:, -last:, rows].double().square().mean(dim=(1, 2)).sqrt().tolist()
    return Equilibrium(update, norm, rotation, math.nan)


def assert_settled(measured, predicted, tolerance):
    assert measured[:3] == pytest.approx(predicted[:3], rel=tolerance)


def time_constant(squared_norm, end, first, last):
    """Steps in which the distance of `squared_norm` from its end falls by 1/e, from two moments."""
    distance = (squared_norm / end - 1).log()
    return (last - first) / (distance[first] - distance[last]).item()


def filter_of(make_optimizer):
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    return optimizer.momentum_filter(optimizer.param_groups[0])


ROWS, FAN_IN = 48, 256
ONES = torch.ones(ROWS, FAN_IN)

ADAMW_WALK = partial(AdamW, lr=0.01, betas=(0.9, 0.995), weight_decay=0.2)
ADAMW_SETTLES = closed.equilibrium(filter_of(ADAMW_WALK), 0.01, 0.2, FAN_IN)
SCALES = torch.tensor([0.01, 1.0, 30.0]).repeat_interleave(ROWS // 3)


@functools.cache
def adamw_walk():
    """With gradients of three scales."""
    start = torch.full((ROWS,), 1.3 * ADAMW_SETTLES.norm)
    return walk(ADAMW_WALK, SCALES.reshape(-1, 1) * ONES, start, steps=2000)


def test_adamw_settles_where_predicted():
    assert_settled(settled(adamw_walk()), ADAMW_SETTLES, 0.02)


def test_adamw_rotation_ignores_the_scale_of_the_gradients():
    rotations = [settled(adamw_walk(), rows=scale == SCALES).rotation for scale in SCALES.unique()]
    assert rotations == pytest.approx([ADAMW_SETTLES.rotation] * 3, rel=0.02)


def test_adamw_squared_norm_nears_its_end_in_the_predicted_time():
    make = partial(AdamW, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    predicted = closed.equilibrium(filter_of(make), 0.01, 0.1, FAN_IN)
    assert predicted.steps == pytest.approx(500)
    records = walk(make, ONES, torch.full((ROWS,), 2.5 * predicted.norm), steps=600)
    squared = records[0].double().square().mean(dim=1)
    assert time_constant(squared, predicted.norm**2, 50, 550) == pytest.approx(predicted.steps, rel=0.05)


def sgd_settles(momentum_filter, weight_decay):
    return closed.equilibrium_l2(momentum_filter, 0.1, weight_decay, math.sqrt(FAN_IN - 1))


@functools.cache
def sgd_walk(nesterov):
    start = torch.full((ROWS,), 1.3 * sgd_settles(closed.heavy_ball(0.9), 0.002).norm)
    return walk(partial(SGD, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.002), ONES, start, steps=1200)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_settles_where_predicted(nesterov):
    momentum_filter = filter_of(partial(SGD, momentum=0.9, nesterov=nesterov))
    assert_settled(settled(sgd_walk(nesterov)), sgd_settles(momentum_filter, 0.002), 0.02)


def test_a_prediction_for_nesterov_from_the_heavy_ball_is_told_apart():
    with pytest.raises(AssertionError):
        assert_settled(settled(sgd_walk(True)), sgd_settles(closed.heavy_ball(0.9), 0.002), 0.02)


def test_sgd_fourth_power_of_the_norm_nears_its_end_in_the_predicted_time():
    make = partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.0005)
    predicted = sgd_settles(filter_of(make), 0.0005)
    assert predicted.steps == pytest.approx(500)
    records = walk(make, ONES, torch.full((ROWS,), 1.5 * predicted.norm), steps=600)
    fourth = records[0].double().pow(4).mean(dim=1)
    assert time_constant(fourth, predicted.norm**4, 50, 550) == pytest.approx(predicted.steps, rel=0.05)


def test_lion_settles_where_predicted():
    make = partial(Lion, lr=1e-3, betas=(0.9, 0.99), weight_decay=1.0)
    predicted = closed.equilibrium(filter_of(make), 1e-3, 1.0, FAN_IN)
    records = walk(make, ONES, torch.full((ROWS,), 1.1 * predicted.norm), steps=2500)
    assert_settled(settled(records), predicted, 0.05)


ADAM_WALK = partial(Adam, lr=0.01, betas=(0.9, 0.99), weight_decay=0.15)


def adam_settles(unit_rms):
    return closed.equilibrium_adam_l2(filter_of(ADAM_WALK), 0.01, 0.15, FAN_IN, unit_rms)


@functools.cache
def adam_walk():
    """Adam with L2, gradients of two scales, each half of the rows from 1.2 times its own norm of equilibrium."""
    scales = torch.tensor([1.0, 8.0]).repeat_interleave(ROWS // 2)
    start = torch.tensor([1.2 * adam_settles(scale).norm for scale in scales.tolist()])
    return walk(ADAM_WALK, scales.reshape(-1, 1) * ONES, start, steps=2000)


SMALL, LARGE = slice(None, ROWS // 2), slice(ROWS // 2, None)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, SMALL), (8.0, LARGE)])
def test_adam_with_l2_settles_where_predicted(scale, rows):
    assert_settled(settled(adam_walk(), rows=rows), adam_settles(scale), 0.02)


def test_adam_with_l2_turns_as_the_minus_third_power_of_the_gradient():
    small, large = (settled(adam_walk(), rows=rows).rotation for rows in (SMALL, LARGE))
    assert math.log(large / small) / math.log(8) == pytest.approx(-1 / 3, abs=0.01)


def test_adam_with_l2_nears_its_end_in_the_predicted_time():
    """Measured from half a time constant on, where what is left is small enough to be linear."""
    predicted = adam_settles(8.0)
    squared = adam_walk()[0, :, LARGE].double().square().mean(dim=1)
    first, last = round(0.5 * predicted.steps), round(1.5 * predicted.steps)
    assert time_constant(squared, predicted.norm**2, first, last) == pytest.approx(predicted.steps, rel=0.1)


def test_adam_with_l2_adds_up_the_sizes_of_unequal_coordinates():
    rms = torch.exp(0.5 * randn(FAN_IN, dtype=torch.float32))
    predicted = adam_settles(rms)
    measured = settled(walk(ADAM_WALK, rms * ONES, torch.full((ROWS,), 1.1 * predicted.norm), steps=1500))
    assert_settled(measured, predicted, 0.02)
    with pytest.raises(AssertionError):  # the root mean square over coordinates is not what counts
        assert_settled(measured, adam_settles(rms.square().mean().sqrt()), 0.02)


def test_adam_with_l2_under_a_filter_that_is_no_average_settles_where_predicted():
    """Twice the update at half the rate is the same optimizer; the closed form knows it by the filter's total."""
    once, twice = closed.exponential(0.9), Filter(2.0, 4 * closed.exponential(0.9).energy)
    at_rate = closed.equilibrium_adam_l2(once, 0.02, 0.01, 64, 0.3)
    assert closed.equilibrium_adam_l2(twice, 0.01, 0.01, 64, 0.3) == pytest.approx(at_rate)


# --- what an optimizer says of itself ------------------------------------------------------------------------------------


def decoupled_sgd(params):
    """The decay beside the heavy ball and not through it, so that it is not amplified by the filter's total."""
    optimizer = SGD(params, lr=0.1, momentum=0.9, weight_decay=0.02)
    optimizer.input_rule, optimizer.step_rule = optim.plain_gradient, optim.decay_by_lr
    return optimizer


def test_sgd_with_decoupled_decay_turns_as_it_says():
    optimizer = decoupled_sgd([nn.Parameter(torch.zeros(1))])
    predicted = optimizer.equilibrium(optimizer.param_groups[0], FAN_IN)
    assert predicted.rotation == pytest.approx(math.sqrt(2 * 0.1 * 0.02 * (1 - 0.9) / (1 + 0.9)))
    assert math.isnan(predicted.norm)
    norm = (0.1 * 10**2 * (FAN_IN - 1) / (2 * 0.02)) ** 0.25  # |w|^4 = lr S^2 G^2 / (2 weight_decay)
    records = walk(decoupled_sgd, ONES, torch.full((ROWS,), 1.3 * norm), steps=1200)
    assert settled(records).rotation == pytest.approx(predicted.rotation, rel=0.02)
    assert settled(records).norm == pytest.approx(norm, rel=0.02)
    fourth = records[0].double().pow(4).mean(dim=1)
    assert time_constant(fourth, norm**4, 20, 200) == pytest.approx(predicted.steps, rel=0.1)


@pytest.mark.parametrize("make", [AdamW, Lion])
def test_what_counts_is_the_share_that_a_step_rule_takes(make):
    """Twice the decay under another name is the same optimizer."""

    def half_as_much(w, u, state, *, lr, weight_decay):
        return w.mul(1 - lr * weight_decay / 2).sub_(u, alpha=lr)

    plain, other = (make([nn.Parameter(torch.zeros(1))], lr=0.01, weight_decay=x) for x in (0.1, 0.2))
    other.step_rule = half_as_much
    expected = plain.equilibrium(plain.param_groups[0], 64)
    assert other.equilibrium(other.param_groups[0], 64) == pytest.approx(expected, rel=1e-9)
