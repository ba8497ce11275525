"""Rotational steps against a float64 reference written out; the angles and lengths they promise; mistakes told apart."""

import copy
import io
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small import BASE, assert_one_sentence, same, tiny_gpt, tiny_text
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minitrain.lab.probes import Norm, Rotation, angle
from minitrain.optim import SGD, AdamW, Lion
from minitrain.recipe import by_kind, cross_entropy
from minitrain.techniques.rotational import (
    RotationalAdamW,
    RotationalLion,
    RotationalSGD,
    centered,
    neurons,
    rotate,
    unbalance,
    which_rotate,
)
from minitrain.techniques.split_weights import SplitWeights, join_weights
from minitrain.techniques.step_in_backward import StepInBackward, clip_updates
from minitrain.train import train

MAKERS = {
    "adamw": partial(RotationalAdamW, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    "high lr": partial(RotationalAdamW, lr=1.0, betas=(0.5, 0.9), weight_decay=0.5),
    "sgd": partial(RotationalSGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(RotationalSGD, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    "no momentum": partial(RotationalSGD, lr=0.01, weight_decay=0.1),
    "lion": partial(RotationalLion, lr=1e-3, weight_decay=0.5),
}
FORMS = ["readable", "fast", pytest.param("compiled", marks=pytest.mark.slow)]
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def walk(make, steps=10, shape=(6, 40), dtype=torch.float64, gradient=None, start=None, **options):
    """The optimizer and the trajectory `(steps + 1, *shape)` of a weight among random gradients."""
    w = (randn(*shape, seed=1) if start is None else start).to(dtype).clone().requires_grad_()
    optimizer = make([w], **options)
    path = [w.detach().clone()]
    for step in range(steps):
        g = randn(*shape, seed=100 + step)
        w.grad = (gradient(g, step, w.detach()) if gradient else g).to(dtype)
        optimizer.step()
        path.append(w.detach().clone())
    return optimizer, torch.stack(path)


def turned(path, row_dims=1):
    """The angle of each step and neuron."""
    rows = path.double().flatten(row_dims + 1)
    return angle(rows[:-1], rows[1:])


# --- the reference: one neuron after the other, in numpy -----------------------------------------------------------------


def filter_sums(kind, hyper):
    """S and E2 by brute force, from what becomes of one gradient."""
    if kind == "lion":
        b1, b2 = hyper["betas"]
        c = [1 - b1] + [b1 * (1 - b2) * b2**k for k in range(5000)]
        return math.sqrt(2 / math.pi / sum(x * x for x in c)), 1.0
    if kind == "adamw":
        b = hyper["betas"][0]
        c = [(1 - b) * b**k for k in range(5000)]
    else:
        a, b = hyper["momentum"], 0.0
        c = []
        for k in range(5000):
            b = a * b + (k == 0)
            c.append((k == 0) + a * b if hyper["nesterov"] else b)
    return sum(c), sum(x * x for x in c)


def kind_of(optimizer):
    return {RotationalAdamW: "adamw", RotationalSGD: "sgd", RotationalLion: "lion"}[type(optimizer)]


def expected_angle(optimizer):
    group, kind = optimizer.param_groups[0], kind_of(optimizer)
    S, E2 = filter_sums(kind, group)
    return math.sqrt(2 * group["lr"] * group["weight_decay"] * E2 / (S if kind == "sgd" else S * S))


def reference(optimizer, w, gradients):
    """The trajectory of one neuron, or of a tensor taken for one."""
    group, kind, eta = optimizer.param_groups[0], kind_of(optimizer), expected_angle(optimizer)
    f, path, m, v, s = group["rms_decay"], [w], 0 * w, 0 * w, 0.0
    n = np.sqrt(w @ w)
    for t, g in enumerate(gradients, start=1):
        if kind == "adamw":
            b1, b2 = group["betas"]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + group["eps"])
        elif kind == "lion":
            b1, b2 = group["betas"]
            u, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        else:
            m = group["momentum"] * m + g
            u = g + group["momentum"] * m if group["nesterov"] else m
        u = u - u.mean() if group["center"] else u
        u = u - w * (u @ w) / n**2
        s = f * s + (1 - f) * (u @ u)
        w = w - eta * n * u / np.sqrt(s / (1 - f**t))
        w = n * w / np.sqrt(w @ w)
        path.append(w)
    return np.array(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"center": False}, {"per_neuron": False}, {"rms_decay": 0.0}, {"row_dims": 2}], ids=str
)
@each
def test_ten_steps_are_those_of_the_reference(make, options, form):
    shape = (3, 2, 7) if options else (6, 40)
    row_dims = options.pop("row_dims", 1)
    w = randn(*shape, seed=1)
    groups = [{"params": [w.requires_grad_()], "row_dims": row_dims}]
    optimizer = make(groups, form=form, **options)
    start, gradients = w.detach().clone(), [randn(*shape, seed=100 + step) for step in range(10)]
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
        assert torch.equal(w.grad, g)  # nothing writes into what it was given
    per_neuron = options.get("per_neuron", True)
    rows = [neurons(x, row_dims, per_neuron).numpy() for x in (start, *gradients)]
    for i, row in enumerate(neurons(w.detach(), row_dims, per_neuron).numpy()):
        path = reference(optimizer, rows[0][i], [g[i] for g in rows[1:]])
        np.testing.assert_allclose(row, path[-1], rtol=1e-9)
        assert not np.allclose(row, path[0], rtol=1e-3)
    options["row_dims"] = row_dims


@each
def test_the_angle_is_that_of_the_filter_and_follows_the_root_of_the_rate(make):
    optimizer, _ = walk(make, steps=1)
    group = optimizer.param_groups[0]
    assert optimizer.angle(group) == pytest.approx(expected_angle(optimizer), rel=1e-9)
    assert optimizer.angle({**group, "lr": 4 * group["lr"]}) == pytest.approx(2 * optimizer.angle(group))
    assert optimizer.angle({**group, "lr": 0.0}) == 0.0
    if group.get("nesterov"):
        plain = optimizer.angle({**group, "nesterov": False})
        assert plain / optimizer.angle(group) == pytest.approx(0.863, abs=1e-3)  # the 14 % of the heavy ball's


# --- what is promised: properties of a step rule, and rules that break them ----------------------------------------------


def path_of(rule, steps, gradients=None, **options):
    """The trajectory of a step rule by itself, with random updates."""
    options = {"angle": 0.02, "per_neuron": True, "center": True, "rms_decay": 0.9, **options}
    w, state = centered(randn(8, 50, seed=1)), {}
    path = [w]
    for step in range(steps):
        u = randn(8, 50, seed=100 + step) if gradients is None else gradients[step]
        w = rule(w, u, state, **options)
        path.append(w)
    return torch.stack(path)


def keeps_lengths(rule):
    norms = path_of(rule, 50, angle=0.5).norm(dim=2)
    return bool(((norms / norms[0] - 1).abs() < 1e-12).all())


def turns_exactly(rule):
    """Without an average every neuron turns by `atan(angle)` in every step."""
    return bool(((turned(path_of(rule, 20, rms_decay=0.0)).tan() / 0.02 - 1).abs() < 1e-6).all())


def turns_as_a_rule(rule):
    """With one, the root mean square is that, no step is larger than the average allows, and the first is exact."""
    angles = turned(path_of(rule, 600))
    usual = angles[100:].square().mean().sqrt() / 0.02
    first = angles[0] / math.atan(0.02)
    bounded = (angles <= math.atan(0.02 / math.sqrt(0.1))).all()
    return bool(abs(usual - 1) < 0.01 and bounded and (first - 1).abs().max() < 1e-6)


def stands_still_without_gradients(rule):
    u = randn(8, 50)
    u[3:5] = 0.0
    path = path_of(rule, 6, [u] * 3 + [torch.zeros_like(u)] * 3)
    return torch.equal(path[3], path[6]) and torch.equal(path[0, 3:5], path[6, 3:5]) and bool(path.isfinite().all())


def stays_centered(rule):
    return bool(path_of(rule, 50).mean(dim=2).abs().max() < 1e-14)


PROPERTIES = [keeps_lengths, turns_exactly, turns_as_a_rule, stands_still_without_gradients, stays_centered]


def written_out(w, u, state, angle, per_neuron, center, rms_decay, wrong=""):
    """The rule in short, with a mistake."""
    dims = None if wrong == "per-tensor rows" else 1
    n = state.setdefault("n", w.norm(dim=dims, keepdim=True))
    if wrong != "not centred":
        u = u - u.mean(dim=dims, keepdim=True)
    if wrong != "not projected":
        u = u - w * (u * w).sum(dim=dims, keepdim=True) / n**2
    s = state["s"] = rms_decay * state.get("s", 0.0) + (1 - rms_decay) * u.square().sum(dim=dims, keepdim=True)
    t = state["t"] = state.get("t", 0) + 1
    r = (s if wrong == "tracker not corrected" else s / (1 - rms_decay**t)).sqrt()
    w = w * (1 - angle**2 / 2) if wrong == "decay as well" else w
    step = u / r if wrong == "0/0" else u / r.clamp(min=1e-300)
    new = w - angle * n * step
    if wrong != "not renormalized":
        new = new * n / new.norm(dim=dims, keepdim=True)
    return new if wrong == "0/0" else torch.where(r > 0, torch.where(u == 0, w, new), w)


@pytest.mark.parametrize("promise", PROPERTIES, ids=lambda promise: promise.__name__)
def test_a_rotation_keeps_its_promises(promise):
    assert promise(rotate)
    assert promise(written_out)


WRONG = {
    "not renormalized": keeps_lengths,
    "per-tensor rows": keeps_lengths,
    "not projected": turns_exactly,
    "decay as well": turns_exactly,
    "tracker not corrected": turns_as_a_rule,
    "0/0": stands_still_without_gradients,
    "not centred": stays_centered,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rotations_break_a_promise(wrong):
    assert not WRONG[wrong](partial(written_out, wrong=wrong))


def test_a_jump_of_the_gradient_passes_as_far_as_the_average_lets_it():
    u = [randn(8, 50, seed=step) * (100 if step == 300 else 1) for step in range(322)]
    angles = turned(path_of(rotate, 322, u))[300:].square().mean(dim=1).sqrt() / 0.02
    assert angles[0] == pytest.approx(1 / math.sqrt(0.1), rel=0.02)
    assert 0.02 < angles[1] < 0.05  # and the next gradients are divided by what is remembered of the jump


def test_adamw_from_its_equilibrium_goes_the_same_way():
    start = centered(randn(6, 400))
    settled = AdamW([nn.Parameter(start)], lr=0.01, weight_decay=0.1).equilibrium(
        {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}, fan_in=400
    )
    start = start / start.norm(dim=1, keepdim=True) * settled.norm

    def across(g, step, w):
        g = g - g.mean(dim=1, keepdim=True)
        return g - w * (g * w).sum(dim=1, keepdim=True) / w.square().sum(dim=1, keepdim=True)

    how = {
        "steps": 200,
        "shape": (6, 400),
        "gradient": across,
        "start": start,
        "lr": 0.01,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
    }
    plain, turning = (walk(make, **how)[1] for make in (AdamW, RotationalAdamW))
    cosine = torch.cosine_similarity(plain, turning, dim=2)
    assert cosine[100].min() > 0.99  # 1/eta steps
    assert torch.cosine_similarity(plain[0], plain[-1], dim=1).max() < 0.995


# --- what does not rotate -------------------------------------------------------------------------------------------------

PLAIN = {"adamw": AdamW, "sgd": SGD, "nesterov": SGD, "lion": Lion}


@pytest.mark.parametrize("name", PLAIN)
def test_what_does_not_rotate_is_stepped_plainly_bit_for_bit(name):
    hyper = {**MAKERS[name].keywords, "lr": 0.01}
    for shape, options in (((40,), {}), ((6, 40), {"rotates": False})):
        ws = [randn(*shape, dtype=torch.float32).requires_grad_() for _ in range(2)]
        mine = MAKERS[name]([{"params": [ws[0]], **options}], lr=0.01)
        plain = PLAIN[name]([ws[1]], **hyper)
        for step in range(10):
            for w in ws:
                w.grad = randn(*shape, seed=step, dtype=torch.float32)
            mine.step()
            plain.step()
        assert torch.equal(*ws)
        assert str(mine.equilibrium(mine.param_groups[0], 1)) == str(plain.equilibrium(plain.param_groups[0], 1))


def test_blocks_rotate_and_all_else_is_left_alone():
    model = tiny_gpt()
    optimizer = RotationalAdamW(by_kind(model), weight_decay=0.1)
    lines = which_rotate(optimizer, model).splitlines()
    assert len(lines) == len(list(model.parameters()))
    for line in lines:
        assert ("turns" in line) == (line.startswith("blocks.") and "norm" not in line), line
        assert "in the group 'matrices'" in line or "plain" in line
    assert "group 0, tensor 0" in str(optimizer)
    assert "2 dimensions" in str(RotationalSGD([randn(4, 4)], weight_decay=0.1))
    assert "rotates=False" in str(RotationalSGD([{"params": [randn(4, 4)], "rotates": False}]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RotationalAdamW([randn(4, 4)], weight_decay=0.0), ["weight_decay above 0", "rotates=False"]),
        (lambda: RotationalSGD([{"params": [randn(4, 4)], "rotates": True}], weight_decay=0.0), ["weight_decay"]),
        (lambda: RotationalAdamW([nn.Parameter(torch.zeros(4, 4))]), ["4 of the 4 rows", "rotates=False"]),
        (lambda: RotationalAdamW([nn.Parameter(torch.ones(3, 4))]), ["3 of the 3 rows", "equal in all inputs"]),
        (lambda: RotationalAdamW([nn.Parameter(torch.full((3, 4), math.nan))]), ["3 of the 3 rows"]),
        (lambda: RotationalAdamW([{"params": [randn(4)], "rotates": True}]), ["3 inputs", "(4,)"]),
        (lambda: RotationalAdamW([randn(4, 2)]), ["at least 3 inputs", "centred"]),
        (lambda: RotationalAdamW([randn(4, 1)], center=False), ["at least 2 inputs"]),
        (lambda: RotationalAdamW([{"params": [randn(4, 4)], "row_dims": 0}]), ["row_dims"]),
        (lambda: RotationalAdamW([randn(4, 4)], rms_decay=1.0), ["rms_decay", "1.0"]),
        (lambda: RotationalAdamW([{"params": [randn(4, 4)], "center": 1}]), ["center", "True or False"]),
        (lambda: RotationalAdamW([{"params": [randn(4, 4)], "rotates": "yes"}]), ["rotates", "'yes'"]),
        (lambda: RotationalAdamW([{"params": [randn(4, 4)], "rotational": True}]), ["rotational", "rms_decay"]),
        (lambda: object.__new__(RotationalAdamW).choose(True, True, 0.9, False, "quick"), ["'fast'", "'quick'"]),
        (lambda: unbalance(AdamW([randn(4, 4)]), 0.5, 2.0), ["rotational"]),
        (lambda: unbalance(RotationalAdamW([randn(4, 4)]), 0.0, 2.0), ["fraction"]),
        (lambda: unbalance(RotationalAdamW([randn(4, 4)], per_neuron=False), 0.5, 2.0), ["per_neuron=False"]),
    ],
)
def test_what_cannot_work_is_refused_with_one_sentence(make, words):
    with pytest.raises(ValueError, match=r"\w") as error:
        make()
    assert_one_sentence(error.value, *words)


def test_unknown_arguments_and_sparse_gradients_are_refused():
    for make in (RotationalAdamW, RotationalSGD, RotationalLion):
        with pytest.raises(TypeError, match="scale_invariance"):
            make([randn(4, 4)], scale_invariance="channel")
    table = nn.Embedding(8, 4, sparse=True)
    optimizer = RotationalAdamW(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="dense gradients"):
        optimizer.step()


def test_a_refused_group_leaves_weights_and_optimizer_alone():
    good, zero = nn.Parameter(randn(4, 4)), nn.Parameter(torch.zeros(4, 4))
    before = good.clone()
    optimizer = RotationalAdamW([randn(3, 3)])
    with pytest.raises(ValueError, match="4 of the 4 rows"):
        optimizer.add_param_group({"params": [good, zero]})
    assert torch.equal(good, before)
    assert len(optimizer.param_groups) == 1


# --- centring, forms, and the company it keeps -------------------------------------------------------------------------


def test_weights_are_centred_once_at_their_length():
    w = (randn(6, 40) + 0.5).requires_grad_()
    before = w.detach().norm(dim=1)
    RotationalAdamW([randn(3, 3)]).add_param_group({"params": [w]})
    torch.testing.assert_close(w.detach().norm(dim=1), before, rtol=1e-12, atol=0.0)
    assert w.mean(dim=1).abs().max() < 1e-14
    again = w.detach().clone()
    RotationalAdamW([w])
    assert torch.equal(w, again)
    loaded = randn(6, 40, seed=5) + 0.5
    optimizer = RotationalAdamW([w], lr=1e-9)
    w.data.copy_(loaded)  # as from a checkpoint, after the optimizer was made
    w.grad = randn(6, 40)
    optimizer.step()
    assert w.mean(dim=1).abs().max() < 1e-14
    torch.testing.assert_close(w.detach().norm(dim=1), loaded.norm(dim=1), rtol=1e-12, atol=0.0)
    w.data.zero_()
    optimizer = RotationalAdamW([{"params": [w], "rotates": False}])
    optimizer.param_groups[0]["rotates"] = True
    with pytest.raises(ValueError, match="6 of the 6 rows"):
        optimizer.step()


def test_a_frozen_weight_is_left_alone_until_it_is_thawed():
    w = randn(4, 16) + 0.5
    before = w.clone()
    optimizer = RotationalAdamW([w, torch.zeros(4, 4)], lr=1e-9)
    assert torch.equal(w, before)
    w.requires_grad_().grad = randn(4, 16)
    optimizer.step()
    assert w.mean(dim=1).abs().max() < 1e-9


def test_shapes_alone_are_stepped_too():
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, _ = trained(steps=3)
    assert all(p.shape == q.shape for p, q in zip(model.parameters(), tiny_gpt().parameters(), strict=True))
    assert "turns" in str(RotationalAdamW(by_kind(tiny_gpt().to("meta"))))


def test_split_weights_see_a_gradient_that_is_no_number():
    w = randn(4, 16, dtype=torch.float32).requires_grad_()
    optimizer = SplitWeights(MAKERS["adamw"]([w]))
    for factor in (1.0, math.nan):
        w.grad = factor * randn(4, 16).to(w.dtype)
        with pytest.raises(FloatingPointError) if math.isnan(factor) else nullcontext():
            optimizer.step()


def trained(wrap=lambda optimizer: optimizer, steps=6, model=None, before=None, **options):
    """A small GPT in the ordinary loop; the model and its optimizer."""
    if model is None:
        torch.manual_seed(0)
        model = tiny_gpt()
    optimizer = wrap(RotationalAdamW(by_kind(model), lr=0.01, weight_decay=0.1, **options))
    for step in range(steps):
        if before:
            before(optimizer, step)
        cross_entropy(model, *tiny_text().batch(0, step, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def test_in_backward_it_is_the_same_bit_for_bit():
    assert same(weights(trained()[0]), weights(trained(StepInBackward)[0]))


def test_split_weights_rotate_bit_for_bit_as_float32_ones():
    paths = []
    for split in (False, True):
        w = randn(6, 40, dtype=torch.float32).requires_grad_()
        optimizer = MAKERS["adamw"]([w], form="readable")
        if split:
            SplitWeights(optimizer)
        for step in range(20):
            w.grad = randn(6, 40, seed=step).to(torch.bfloat16).to(w.dtype)
            optimizer.step()
        if split:
            assert w.dtype == torch.bfloat16
            join_weights(optimizer)
        paths.append(w.detach())
    assert torch.equal(*paths)


def test_clipping_leaves_the_angle_alone():
    for make in (MAKERS["adamw"], MAKERS["sgd"]):
        optimizer, path = walk(lambda w, make=make: clip_updates(make(w, rms_decay=0.0), 0.01), 5)
        eta = optimizer.angle(optimizer.param_groups[0])
        assert turned(path).tan().flatten().tolist() == pytest.approx([eta] * 30, rel=1e-6)


@pytest.mark.parametrize(
    "wrap", [lambda o: o, partial(unbalance, fraction=0.5, speed=2.0), SplitWeights, StepInBackward]
)
@pytest.mark.parametrize("form", FORMS[1:])
def test_saved_and_loaded_it_goes_on_bit_for_bit(wrap, form):
    whole = trained(wrap, form=form)
    model, optimizer = trained(wrap, steps=3, form=form)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    fresh = tiny_gpt()
    again = wrap(RotationalAdamW(by_kind(fresh), lr=0.01, weight_decay=0.1, form=form))
    fresh.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        cross_entropy(fresh, *tiny_text().batch(0, step, 4)).backward()
        again.step()
        again.zero_grad()
    assert same(weights(fresh), weights(whole[0]))
    assert same(again.state_dict(), whole[1].state_dict())


@pytest.mark.parametrize("form", FORMS[1:])
def test_copies_rotate_too(form):
    _, optimizer = trained(steps=2, form=form)
    copied = copy.deepcopy(optimizer)
    copied.add_param_group({"params": [randn(4, 4)], "name": "more"})
    assert copied.param_groups[-1]["rms_decay"] == 0.9
    p, q = optimizer.param_groups[0]["params"][0], copied.param_groups[0]["params"][0]
    p.grad = q.grad = randn(*p.shape, dtype=p.dtype)
    optimizer.step()
    copied.step()
    assert torch.equal(p, q)


def test_a_plain_loop_with_amp_a_scaler_and_a_scheduler():
    results = []
    for scale in (None, 2.0**10):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4).double(), nn.Linear(4, 4).bfloat16())
        optimizer = RotationalAdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        angles, norms = [], [w.double().norm(dim=1) for w in (m.weight.detach() for m in model if hasattr(m, "weight"))]
        for step in range(5):
            angles.append(optimizer.angle(optimizer.param_groups[0]))
            with torch.autocast("cpu", torch.bfloat16):
                x = model[1](model[0](randn(5, 8, seed=step, dtype=torch.float32)))
            loss = model[3](model[2](x.double()).bfloat16()).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad()
        assert angles == pytest.approx([angles[0] / math.sqrt(step + 1) for step in range(5)])
        for w, norm in zip((m.weight.detach() for m in model if hasattr(m, "weight")), norms, strict=True):
            rtol = 1e-2 if w.dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(w.double().norm(dim=1), norm, rtol=rtol, atol=0.0)
        results.append(weights(model))
    assert same(*results)


def test_the_schedule_may_multiply_the_angle():
    for chosen, power in ((False, 0.5), (True, 1.0)):
        optimizer = RotationalAdamW([randn(4, 4)], lr=0.01, weight_decay=0.1, schedule_rotation=chosen)
        group = optimizer.param_groups[0]
        full = optimizer.angle(group)
        group["lr"] = 0.0025
        assert optimizer.angle(group) == pytest.approx(full * 0.25**power)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10, cycle_momentum=False)
    group["lr"] = 0.01  # at its peak, 25 times what it made the initial rate
    with pytest.raises(ValueError, match=r"\w") as error:
        optimizer.angle(group)
    assert_one_sentence(error.value, "initial_lr", "0.0004", "0.01")


def test_probes_find_the_rotation_that_is_reported():
    recipe = replace(
        BASE, make_optimizer=partial(RotationalAdamW, lr=0.01, weight_decay=0.1, rms_decay=0.0), schedules={}
    )
    optimizer = RotationalAdamW([randn(4, 4)], lr=0.01, weight_decay=0.1)
    settled = optimizer.equilibrium(optimizer.param_groups[0], fan_in=4)
    assert settled is not None
    assert (settled.rotation, settled.steps) == (optimizer.angle(optimizer.param_groups[0]), 0.0)
    assert math.isnan(settled.norm)
    whole = RotationalAdamW([randn(4, 4)], per_neuron=False)
    settled = whole.equilibrium(whole.param_groups[0], fan_in=4)
    assert settled is not None
    assert (math.isnan(settled.rotation), settled.steps) == (True, 0.0)
    lines = train(recipe, probes=[Rotation(every=1), Norm(every=1)], log_every=1).metrics
    first, last = (lines[i]["norm"] for i in (1, -1))
    assert first == pytest.approx(last, rel=1e-5)
    for line in lines[1:]:
        for name, found in line["rotation"].items():
            moved = found > 0  # behind a head of zeros the first gradient is zero
            assert not moved or found == pytest.approx(line["predicted_rotation"], rel=1e-3), name
    assert any(found > 0 for found in lines[-1]["rotation"].values())
    assert "predicted_norm" not in lines[-1]


def test_a_neurons_length_is_kept_in_float32_where_the_moments_are_not():
    w = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = SplitWeights(RotationalAdamW([w]), moments=torch.bfloat16)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        w.grad[:, 0] = 2
        optimizer.step()
    state = optimizer.state[w]
    assert state["m"].dtype == torch.bfloat16
    assert state["norm"].dtype == torch.float32
    lengths = optimizer.storage.whole(w, state).norm(dim=1)
    torch.testing.assert_close(lengths, state["norm"].flatten(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_an_imbalance_is_what_was_asked_for(form):
    make = partial(RotationalAdamW, lr=0.01, weight_decay=0.1, rms_decay=0.0, form=form)
    optimizer, path = walk(lambda w: unbalance(make(w), 0.25, 3.0, seed=4), 10, shape=(40, 30))
    ratio = turned(path).tan() / optimizer.angle(optimizer.param_groups[0])
    fast = (ratio[0] - 3).abs() < 1e-6
    assert fast.sum() == 10
    torch.testing.assert_close(ratio[:, ~fast], torch.ones(10, 30, dtype=torch.float64), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(ratio[:, fast], 3 * torch.ones(10, 10, dtype=torch.float64), rtol=1e-6, atol=0.0)
    other = unbalance(make([randn(40, 30)]), 0.25, 3.0, seed=5)
    assert not torch.equal(next(iter(other.state.values()))["speed"], next(iter(optimizer.state.values()))["speed"])
    small = unbalance(RotationalAdamW([randn(4, 4)]), 0.1, 10.0)
    assert sorted(next(iter(small.state.values()))["speed"].flatten().tolist()) == [1.0, 1.0, 1.0, 10.0]
