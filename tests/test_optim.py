"""Optimizers against torch and float64 re-derivations; closed forms against impulse responses and random walks."""

import copy
import math
from functools import partial

import pytest
import torch
from small import FOUR, every_pair, four, fused, randn, readable, through_a_file
from torch import nn

from minitrain import optim
from minitrain.optim import SGD, Adam, AdamW, Lion, Optimizer, PlainStorage
from minitrain.runtime.fused import fused_adamw
from minitrain.techniques.rotational import RotationalAdamW
from minitrain.techniques.split_weights import SplitWeights


def trajectory(make_optimizer, w0, gradients, before_step=lambda optimizer, step: None, form=fused):
    """The weights after each step along given gradients."""
    w = nn.Parameter(w0.clone())
    optimizer = form(make_optimizer([w]))
    path = []
    for step, g in enumerate(gradients):
        before_step(optimizer, step)
        w.grad = g.clone()
        optimizer.step()
        path.append(w.detach().clone())
    return torch.stack(path)


def assert_same(actual, expected, rtol=1e-11, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


W0, GRADIENTS = randn(5, 3), randn(10, 5, 3, seed=1)
both_forms = pytest.mark.parametrize("form", [readable, fused])

# --- equal to a reference over ten steps -------------------------------------------------------------------------------

MOMENTA = [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}]
BETAS = [{"betas": betas, "eps": eps} for betas, eps in (((0.9, 0.999), 1e-8), ((0.0, 0.5), 0.0), ((0.8, 0.0), 0.1))]
TWINS = [(SGD, x) for x in MOMENTA] + [(make, x) for make in (Adam, AdamW) for x in BETAS]


@pytest.mark.parametrize(("twin", "lr", "weight_decay"), every_pair(TWINS, [1e-3, 1.0], [0.0, 0.5]))
def test_each_equals_its_twin_of_torch(twin, lr, weight_decay):
    make, arguments = twin
    arguments = {"lr": lr, "weight_decay": weight_decay, **arguments}
    expected = trajectory(partial(getattr(torch.optim, make.__name__), **arguments), W0, GRADIENTS)
    for form in (readable, fused):
        assert_same(trajectory(partial(make, **arguments), W0, GRADIENTS, form=form), expected)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_defaults_are_those_of_torch(make):
    twin = getattr(torch.optim, make.__name__)
    assert_same(trajectory(make, W0, GRADIENTS), trajectory(twin, W0, GRADIENTS))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_fused_adamw_is_tied_to_the_readable_form(dtype, tolerance):
    w0, gradients = (0.1 * randn(7, 9)).to(dtype), randn(20, 7, 9, seed=1).to(dtype)
    make = partial(AdamW, lr=0.01, weight_decay=0.2)
    expected = trajectory(make, w0, gradients, form=readable)
    assert_same(trajectory(make, w0, gradients), expected, rtol=tolerance, atol=tolerance)


def test_the_fused_form_really_runs():
    w = nn.Parameter(W0.clone())
    w.grad = GRADIENTS[0]
    optimizer = AdamW([w])
    state = {}
    assert fused_adamw(w, state, optimizer.param_groups[0])
    assert state["t"] == 1


def lion_reference(w0, gradients, lr, betas, weight_decay):
    """Chen et al., 2023, algorithm 2, spelled out."""
    beta1, beta2 = betas
    w, m, path = w0.clone(), torch.zeros_like(w0), []
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        m = beta2 * m + (1 - beta2) * g
        w = w - lr * (c.sign() + weight_decay * w)
        path.append(w)
    return torch.stack(path)


def lion_with_one_beta(g, state, *, betas):
    """Wrong: the average inside the sign is the one that is kept."""
    return optim.ema(state, "m", g, betas[0]).sign()


LION = {"lr": 0.1, "betas": (0.9, 0.6), "weight_decay": 0.5}


@pytest.mark.parametrize(
    ("lr", "weight_decay", "betas"), every_pair([1e-3, 1.0], [0.0, 0.5], [(0.9, 0.99), (0.5, 0.9), (0.0, 0.0)])
)
def test_lion_equals_its_definition(lr, weight_decay, betas):
    arguments = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    assert_same(trajectory(partial(Lion, **arguments), W0, GRADIENTS), lion_reference(W0, GRADIENTS, **arguments))


def test_lion_with_one_beta_is_told_apart():
    make = partial(Optimizer, hyper=LION, direction=lion_with_one_beta, step_rule=optim.decay_by_lr)
    with pytest.raises(AssertionError):
        assert_same(trajectory(make, W0, GRADIENTS), lion_reference(W0, GRADIENTS, **LION))


# --- decay rules -------------------------------------------------------------------------------------------------------

LR, INITIAL_LR, DECAY = 0.25, 0.5, 0.1


def set_lr(optimizer, step):
    optimizer.param_groups[0]["lr"] = LR


@pytest.mark.parametrize(("rule", "factor"), [(optim.no_decay, 1.0), (optim.decay_by_lr, 1 - 0.025)])
def test_decay_rule_is_one_line_of_arithmetic(rule, factor):
    hyper = {"lr": INITIAL_LR, "weight_decay": DECAY, "momentum": 0.0, "nesterov": False}
    make = partial(Optimizer, hyper=hyper, direction=optim.sgdm, step_rule=rule)
    path = trajectory(make, W0, GRADIENTS[:1], set_lr)
    assert_same(path[0], factor * W0 - LR * GRADIENTS[0])


@both_forms
def test_zero_gradient_decays_adamw_weights_and_nothing_else(form):
    make = partial(AdamW, lr=0.1, weight_decay=0.1)
    path = trajectory(make, W0, torch.zeros(3, 5, 3, dtype=torch.float64), form=form)
    assert_same(path[-1], 0.99**3 * W0, rtol=1e-14, atol=0.0)


@four
def test_zero_gradient_without_decay_moves_nothing(make):
    path = trajectory(partial(make, weight_decay=0.0), W0, torch.zeros(3, 5, 3, dtype=torch.float64))
    assert torch.equal(path[-1], W0)


def test_zero_learning_rate_of_a_schedule_moves_nothing():
    for make in FOUR.values():
        path = trajectory(make, W0, GRADIENTS, lambda optimizer, step: optimizer.param_groups[0].update(lr=0.0))
        assert torch.equal(path[-1], W0)


# --- the exact symmetry of AdamW on a scale-invariant loss -------------------------------------------------------------


def normalized_layer_path(w0, form, **hyper):
    """Fifty steps of `W` in `(head . norm(W x) - y)^2`, whose value ignores the length of `W`'s rows together."""
    x, head, y = (randn(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(8, 4), (6, 2), (8, 2)]))
    w = nn.Parameter(w0.clone())
    optimizer = form(AdamW([w], **hyper))
    path = []
    for _ in range(50):
        h = x @ w.T
        loss = (h / h.square().mean(dim=-1, keepdim=True).sqrt() @ head - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(w.detach().clone())
    return torch.stack(path)


@both_forms
def test_adamw_twice_the_scale_is_bitwise_the_same_run(form):
    w0 = randn(6, 4, seed=3, dtype=torch.float32)
    path = normalized_layer_path(w0, form, lr=0.01, weight_decay=0.5, eps=1e-6)
    assert torch.equal(normalized_layer_path(2 * w0, form, lr=0.02, weight_decay=0.25, eps=5e-7), 2 * path)
    assert not torch.equal(normalized_layer_path(2 * w0, form, lr=0.02, weight_decay=0.5, eps=5e-7), 2 * path)
    assert not torch.equal(normalized_layer_path(2 * w0, form, lr=0.02, weight_decay=0.25, eps=1e-4), 2 * path)


# --- betas that change in mid-run --------------------------------------------------------------------------------------


def average(xs, betas):
    """The mean of `xs` with the weights that exponential averaging gives them, divided by the weights' sum."""
    weights = [(1 - beta) * math.prod(betas[i + 1 :]) for i, beta in enumerate(betas)]
    return sum(weight * x for weight, x in zip(weights, xs, strict=True)) / sum(weights)


def adamw_reference(w0, gradients, betas, lr, weight_decay, eps):
    """AdamW whose betas at step `i` are `betas[i]`, from the definition of an average."""
    w, path = w0.clone(), []
    for t in range(1, len(gradients) + 1):
        m = average(gradients[:t], [beta1 for beta1, _ in betas[:t]])
        v = average(gradients[:t].square(), [beta2 for _, beta2 in betas[:t]])
        w = (1 - lr * weight_decay) * w - lr * m / (v.sqrt() + eps)
        path.append(w)
    return torch.stack(path)


def adam_with_power_correction(g, state, *, betas, eps):
    """Wrong once a beta has changed: corrects by `1 - beta^t` with today's beta."""
    beta1, beta2 = betas
    m, v = optim.ema(state, "m", g, beta1), optim.ema(state, "v", g.square(), beta2)
    state["t"] = state.get("t", 0) + 1
    return m / (1 - beta1 ** state["t"]) / ((v / (1 - beta2 ** state["t"])).sqrt() + eps)


ADAMW = {"lr": 0.1, "weight_decay": 0.5, "eps": 1e-8}
CONSTANT = [(0.9, 0.99)] * 10
CHANGED = [(0.9, 0.99)] * 4 + [(0.9, 0.999)] * 3 + [(0.8, 0.95)] * 3


def with_betas(betas):
    return lambda optimizer, step: optimizer.param_groups[0].update(betas=betas[step])


def wrong_adamw(params):
    hyper = {**ADAMW, "betas": (0.9, 0.99)}
    return Optimizer(params, hyper, direction=adam_with_power_correction, step_rule=optim.decay_by_lr)


@both_forms
@pytest.mark.parametrize("betas", [CONSTANT, CHANGED], ids=["constant", "changed"])
def test_adamw_divides_by_the_weights_its_averages_hold(betas, form):
    path = trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS, with_betas(betas), form)
    assert_same(path, adamw_reference(W0, GRADIENTS, betas, **ADAMW))


def test_adam_with_power_correction_is_told_apart_once_betas_change():
    constant = trajectory(wrong_adamw, W0, GRADIENTS, with_betas(CONSTANT))
    assert_same(constant, adamw_reference(W0, GRADIENTS, CONSTANT, **ADAMW))
    changed = trajectory(wrong_adamw, W0, GRADIENTS, with_betas(CHANGED))
    with pytest.raises(AssertionError):
        assert_same(changed, adamw_reference(W0, GRADIENTS, CHANGED, **ADAMW))


# --- where the fused kernel does not apply -----------------------------------------------------------------------------


def adamw_step(w, g, form):
    p = nn.Parameter(w)
    optimizer = form(AdamW([p], lr=0.1))
    for _ in range(3):
        p.grad = g
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("g", [randn(3, 5, seed=1).T, randn(5, 1, seed=1).expand(5, 3)], ids=["transposed", "expanded"])
def test_adamw_takes_a_gradient_laid_out_otherwise_than_the_weight(g):
    assert_same(adamw_step(W0.clone(), g, fused), adamw_step(W0.clone(), g, readable))


@both_forms
def test_adamw_of_a_slice_leaves_the_rest_alone(form):
    whole = torch.cat([W0, W0], dim=1)
    part = adamw_step(whole[:, :3], GRADIENTS[0], form)
    assert_same(part, adamw_step(W0.clone(), GRADIENTS[0], readable))
    assert torch.equal(whole[:, 3:], W0)


def test_fused_adamw_hands_over_to_the_readable_form_at_any_step():
    """As happens when a checkpoint moves to a device without the kernel, or a storage is put in."""

    def change_form(optimizer, step):
        if step == 5:
            readable(optimizer)

    path = trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS, change_form)
    assert_same(path, trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS))


@pytest.mark.parametrize("fresh", [False, True], ids=["same state", "loaded"])
def test_adamw_may_take_its_two_forms_in_turn(fresh):
    """As under `with_decay(optimizer, ...)` and back: the kernel's count ends with a step that it did not take."""

    def change_form(optimizer, step):
        if step == 3:
            readable(optimizer)
        if step == 6:
            del optimizer.update
            if fresh:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    path = trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS, change_form)
    assert_same(path, trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS))


def test_adamw_takes_moments_laid_out_otherwise_than_the_weight():
    """As when the state of a channels-last model is loaded into a contiguous one."""

    def turn_around(optimizer, step):
        if step == 5:
            for state in optimizer.state.values():
                state.update({name: state[name].T.contiguous().T for name in ("m", "v")})

    path = trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS, turn_around)
    assert_same(path, trajectory(partial(AdamW, **ADAMW), W0, GRADIENTS))


def test_the_kernel_notices_betas_that_are_changed_in_place():
    p, state = nn.Parameter(W0.clone()), {}
    p.grad = GRADIENTS[0]
    group = {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0}
    with torch.no_grad():
        assert fused_adamw(p, state, group)
        group["betas"][0] = 0.3
        assert not fused_adamw(p, state, group)
    assert "t" not in state


def test_adamw_goes_on_when_the_gradient_changes_its_dtype():
    w = nn.Parameter(W0.float())
    w.grad_dtype = None  # any
    optimizer = AdamW([w], **ADAMW)
    for step, g in enumerate(GRADIENTS.bfloat16()):
        w.grad = g if step in (5, 6) else g.float()
        optimizer.step()
    expected = trajectory(partial(AdamW, **ADAMW), W0.float(), GRADIENTS.bfloat16().float())
    assert_same(w.detach(), expected[-1], rtol=1e-5, atol=1e-5)


# --- a good citizen of torch -------------------------------------------------------------------------------------------


@four
def test_state_goes_through_a_file_and_the_run_goes_on_bitwise(make):
    def save_and_load(optimizer, step):
        if step == 5:
            fresh = make([nn.Parameter(torch.zeros_like(W0))])
            fresh.load_state_dict(through_a_file(optimizer.state_dict()))
            optimizer.state.clear()
            optimizer.load_state_dict(fresh.state_dict())

    assert torch.equal(trajectory(make, W0, GRADIENTS, save_and_load), trajectory(make, W0, GRADIENTS))
    cleared = trajectory(make, W0, GRADIENTS, lambda optimizer, step: optimizer.state.clear())
    assert not torch.equal(cleared, trajectory(make, W0, GRADIENTS))


@pytest.mark.parametrize("at", [3, 4, 6])
def test_state_goes_round_bitwise_before_and_after_betas_change(at):
    def reload(optimizer, step):
        with_betas(CHANGED)(optimizer, step)
        if step == at:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    make = partial(AdamW, **ADAMW)
    assert torch.equal(trajectory(make, W0, GRADIENTS, reload), trajectory(make, W0, GRADIENTS, with_betas(CHANGED)))


def test_loaded_state_belongs_to_the_optimizer_alone():
    w, copied = nn.Parameter(W0.clone()), nn.Parameter(W0.clone())
    w.grad, copied.grad = GRADIENTS[0], GRADIENTS[0]
    optimizer, other = AdamW([w]), AdamW([copied])
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    before = optimizer.state[w]["m"].clone()
    other.step()
    assert torch.equal(optimizer.state[w]["m"], before)


@four
def test_state_of_bf16_weights_keeps_its_own_dtype_when_loaded(make):
    w = nn.Parameter(W0.float())
    optimizer = SplitWeights(make([w]))
    w.grad = GRADIENTS[0].bfloat16()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict()["state"][0])
    optimizer.load_state_dict(optimizer.state_dict())
    floats = [name for name, x in saved.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    assert floats
    for name in [*floats, "low"]:
        assert optimizer.state[w][name].dtype == saved[name].dtype != torch.bfloat16
        assert torch.equal(optimizer.state[w][name], saved[name])


@four
def test_a_deep_copy_steps_on_by_itself(make):
    path = trajectory(make, W0, GRADIENTS[:2])
    w = nn.Parameter(W0.clone())
    optimizer = make([w])
    w.grad = GRADIENTS[0]
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    (p,) = copied.param_groups[0]["params"]
    p.grad = GRADIENTS[1].clone()
    copied.step()
    assert torch.equal(p.detach(), path[1])
    assert torch.equal(w.detach(), path[0])


@four
def test_a_parameter_without_a_gradient_is_left_out(make):
    w, unused = nn.Parameter(W0.clone()), nn.Parameter(W0.clone())
    optimizer = make([unused, w])
    w.grad = GRADIENTS[0]
    optimizer.step()
    assert torch.equal(unused.detach(), W0)
    assert set(optimizer.state) == {w}
    assert_same(w.detach(), trajectory(make, W0, GRADIENTS[:1])[0], rtol=0.0, atol=0.0)


def test_a_tied_weight_gets_one_step():
    def path(optimizer_class):
        table = nn.Embedding(7, 4)
        table.weight.data = randn(7, 4, dtype=torch.float32)
        head = nn.Linear(4, 7, bias=False)
        head.weight = table.weight
        model = nn.Sequential(table, head)
        optimizer = optimizer_class(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.arange(7)), torch.arange(7).flip(0)).backward()
            optimizer.step()
        return table.weight.detach()

    assert_same(path(AdamW), path(torch.optim.AdamW), rtol=1e-5, atol=1e-6)


def test_groups_step_by_their_own_hyperparameters():
    fast, slow = nn.Parameter(W0.clone()), nn.Parameter(W0.clone())
    optimizer = AdamW([fast], lr=0.1, weight_decay=0.3)
    optimizer.add_param_group({"params": [slow], "lr": 0.01, "betas": (0.5, 0.9)})
    fast.grad, slow.grad = GRADIENTS[0].clone(), GRADIENTS[0].clone()
    optimizer.step()
    assert_same(fast.detach(), trajectory(partial(AdamW, lr=0.1, weight_decay=0.3), W0, GRADIENTS[:1])[0])
    alone = partial(AdamW, lr=0.01, weight_decay=0.3, betas=(0.5, 0.9))
    assert_same(slow.detach(), trajectory(alone, W0, GRADIENTS[:1])[0])
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_a_closure_computes_the_loss_with_gradients_on():
    w = nn.Parameter(W0.clone())
    optimizer = SGD([w], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(W0.square().sum().item())
    assert_same(w.detach(), 0.5 * W0)
    assert optimizer.step() is None


# --- what is refused, and what is let in -------------------------------------------------------------------------------


@four
def test_a_sparse_gradient_is_refused(make):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients.*sparse=False"):
        optimizer.step()


@four
def test_a_complex_parameter_or_an_unknown_argument_is_refused(make):
    with pytest.raises(ValueError, match="complex parameters are not supported"):
        make([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="unexpected keyword argument 'amsgrad'"):
        make([nn.Parameter(W0.clone())], amsgrad=True)


@four
def test_an_unknown_group_key_is_refused(make):
    with pytest.raises(ValueError, match=r"does not know the group key 'weight_deacy'; it knows .*weight_decay"):
        make([{"params": [nn.Parameter(W0.clone())], "weight_deacy": 1.0}])
    with pytest.raises(ValueError, match="SGD does not know the group key 'betas'"):
        SGD([{"params": [nn.Parameter(W0.clone())], "betas": (0.9, 0.99)}])


@four
def test_the_keys_that_describe_a_group_are_kept(make):
    about = {"name": "matrices", "kind": "hidden", "initial_lr": 0.5, "row_dims": 2}
    optimizer = make([{"params": [nn.Parameter(W0.clone())], **about}])
    assert {key: optimizer.param_groups[0][key] for key in about} == about


OUT_OF_RANGE = [
    (SGD, "lr", [-0.1, 0.0, math.nan, math.inf]),
    (AdamW, "weight_decay", [-0.1, math.nan, math.inf]),
    (Adam, "eps", [-1e-8, math.nan]),
    (SGD, "momentum", [-0.1, 1.0, math.nan]),
    (Lion, "betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan)]),
]


@pytest.mark.parametrize(("make", "name", "values"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name_and_in_a_group_before_it_is_added(make, name, values):
    optimizer = make([nn.Parameter(W0.clone())])
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be .*, not ") as error:
            make([nn.Parameter(W0.clone())], **{name: value})
        assert repr(value) in str(error.value)
        with pytest.raises(ValueError, match=f"^{name} must be .*, not "):
            optimizer.add_param_group({"params": [nn.Parameter(W0.clone())], name: value})
        assert len(optimizer.param_groups) == 1


def test_a_value_that_is_no_number_and_betas_that_are_not_two_are_refused():
    for betas in (0.9, (0.9,), (0.9, 0.99, 0.999), None):
        with pytest.raises(ValueError, match="betas must be two numbers"):
            AdamW([{"params": [nn.Parameter(W0.clone())], "betas": betas}])
    for name in ("lr", "weight_decay", "eps", "momentum"):
        with pytest.raises(ValueError, match=f"{name} must be .* not 'much'"):
            optim.check_hyperparameters({name: "much"})


def test_the_edges_of_the_ranges_are_let_in():
    for edge in ({"lr": 1e-30}, {"weight_decay": 0.0}, {"eps": 0.0}, {"betas": (0.0, 0.0)}):
        AdamW([nn.Parameter(W0.clone())], **edge)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov=True needs a momentum above 0"):
        SGD([nn.Parameter(W0.clone())], nesterov=True)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
def test_a_value_that_float32_cannot_hold_is_refused(name):
    with pytest.raises(ValueError, match=name):
        AdamW([nn.Parameter(randn(2, 2))], **{name: 1e39})


def test_a_tensor_is_no_learning_rate():
    with pytest.raises(ValueError, match="lr must be a number"):
        Optimizer(
            [nn.Parameter(randn(2, 2))], {"lr": torch.tensor(1e-3)}, direction=optim.adam, step_rule=optim.no_decay
        )


def test_the_state_of_a_torch_optimizer_is_refused():
    p = nn.Parameter(randn(2, 2))
    torchs = torch.optim.AdamW([p])
    p.grad = randn(2, 2)
    torchs.step()
    with pytest.raises(ValueError, match="saved by an optimizer of torch"):
        AdamW([p]).load_state_dict(torchs.state_dict())


def test_the_state_of_an_optimizer_with_other_hyperparameters_is_refused():
    p = nn.Parameter(randn(2, 4))
    optimizer = RotationalAdamW([p])
    with pytest.raises(ValueError, match="has no 'center', which RotationalAdamW needs") as error:
        optimizer.load_state_dict(AdamW([p]).state_dict())
    assert "\n" not in str(error.value)
    assert "center" in optimizer.param_groups[0]


def test_no_equilibrium_is_predicted_where_the_rate_times_the_decay_is_nothing():
    optimizer = AdamW([nn.Parameter(randn(2, 2))], lr=5e-324, weight_decay=0.1)
    assert optimizer.equilibrium(optimizer.param_groups[0], fan_in=2) is None
    plain = Optimizer([nn.Parameter(randn(2, 2))], {"lr": 0.1}, direction=lambda g, state: g, step_rule=optim.no_decay)
    assert plain.equilibrium(plain.param_groups[0], fan_in=2) is None


def test_a_step_finishes_the_storage_once_after_all_weights():
    calls = []

    class Told(PlainStorage):
        def store(self, p, w, state):
            super().store(p, w, state)
            calls.append("store")

        def finish(self):
            calls.append("finish")

    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = SGD(params, lr=0.1)
    optimizer.storage = Told()
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    assert calls == ["store", "store", "finish"]


KINDS = [AdamW, Adam, Lion, partial(SGD, momentum=0.9), RotationalAdamW, lambda params: SplitWeights(AdamW(params))]


@pytest.mark.parametrize("make", KINDS)
def test_a_state_of_weights_of_another_shape_is_refused(make):
    """Torch's kernel does not look at shapes, and would write past the end of the moments."""
    p = nn.Parameter(torch.randn(4, 6))
    saved = make([p])
    p.grad = torch.ones_like(p)
    saved.step()
    for shape in ((8, 6), (6, 4), (2, 6)):
        with pytest.raises(ValueError, match=r"of a weight of shape \(4, 6\), where the optimizer has one of"):
            make([nn.Parameter(torch.randn(shape))]).load_state_dict(saved.state_dict())


def test_the_kernel_never_reads_moments_of_another_shape():
    p = nn.Parameter(torch.randn(4, 6))
    optimizer = AdamW([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.grad, p.data = None, torch.randn(2, 6)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="must match"):
        optimizer.step()
