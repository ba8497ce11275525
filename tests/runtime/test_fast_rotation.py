"""The fast and the compiled rotation against the readable one, and what none of them may do to a neuron."""

import copy
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from test_rotational import FORMS, MAKERS, each, randn, turned, walk
from torch import nn

import minitrain
from minitrain.runtime import fast_rotation
from minitrain.techniques.rotational import RotationalAdamW, RotationalSGD, centered

quick_forms = pytest.mark.parametrize("form", FORMS[1:])


def in_own_process(call):
    """What a call of this module prints, without the test suite's checks of types and shapes, which take long."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, [here, here.parent, Path(minitrain.__file__).parent.parent]))
    code, environment = f"import test_fast_rotation; test_fast_rotation.{call}", {**os.environ, "PYTHONPATH": path}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


@quick_forms
@pytest.mark.parametrize("shape", [(6, 40), (17, 3, 3, 3), (3, 4097)], ids=str)
@each
def test_ten_steps_in_float32_are_those_of_the_readable_form(make, shape, form):
    optimizer, path = walk(make, 10, shape=shape, dtype=torch.float32, form=form)
    readable = walk(make, 10, shape=shape, dtype=torch.float32, form="readable")[1]
    assert optimizer.fast.compiled == (form == "compiled")  # it did not give up
    assert (path[-1] - readable[-1]).norm() < 1e-6 * readable[-1].norm()
    assert (path[-1] - path[0]).norm() > 1e-2 * path[0].norm()


def drift(form):
    """Prints by how much lengths change in 3000 steps, and how far the readable form and `form` are from float64's."""
    torch.set_num_threads(1)
    how = {"shape": (4, 64), "start": randn(4, 64).float(), "gradient": lambda g, step, w: g.float()}
    true, readable, quick = (
        walk(MAKERS["adamw"], 3000, dtype=dtype, form=form, **how)[1]
        for dtype, form in ((torch.float64, "readable"), (torch.float32, "readable"), (torch.float32, form))
    )
    norms = quick.double().norm(dim=2)
    lengths = float((norms / norms[0] - 1).abs().max())
    print(lengths, *(float((path[-1] - true[-1]).norm() / true[-1].norm()) for path in (readable, quick)))


@quick_forms
def test_lengths_are_kept_for_3000_steps_as_near_to_the_truth_as_the_readable_form(form):
    lengths, readable, quick = map(float, in_own_process(f"drift({form!r})").split())
    assert lengths < 1e-6
    assert max(readable, quick) < 2e-6
    assert quick < 1.5 * readable


def test_the_fast_form_is_used_and_gives_way(monkeypatch):
    calls = {"turn_block": 0, "kernel": 0}

    def counted(name, original):
        def call(*arguments, **options):
            calls[name] += 1
            original(*arguments, **options)

        return call

    for name in calls:
        monkeypatch.setattr(fast_rotation, name, counted(name, getattr(fast_rotation, name)))
    walk(MAKERS["adamw"], 5)
    assert calls == {"turn_block": 4, "kernel": 4}  # all but the first
    walk(MAKERS["adamw"], 5, form="readable")
    walk(MAKERS["adamw"], 5, dtype=torch.bfloat16)
    assert calls == {"turn_block": 4, "kernel": 4}
    monkeypatch.setattr(fast_rotation, "BLOCK", 100)
    a, b = (walk(MAKERS["nesterov"], 5, shape=(9, 30), form=form)[1] for form in ("fast", "readable"))
    assert calls == {"turn_block": 4 + 4 * 3, "kernel": 4}
    torch.testing.assert_close(a, b)


def test_without_a_compiler_the_fast_form_goes_on(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fast_rotation, "row_kernel", fail)
    with pytest.warns(UserWarning, match="no compiler"):
        compiled = walk(MAKERS["adamw"], 5, form="compiled")[1]
    assert torch.equal(compiled, walk(MAKERS["adamw"], 5)[1])


@quick_forms
@pytest.mark.parametrize("mixed", [False, True], ids=["one layout", "mixed layouts"])
@pytest.mark.parametrize("make", [MAKERS["adamw"], MAKERS["sgd"]], ids=["adamw", "sgd"])
def test_layouts_and_changing_betas_give_the_same_numbers(make, mixed, form):
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    paths = []
    for one, layout in ((form, "contiguous"), (form, "channels last"), ("readable", "channels last")):
        w = randn(4, 3, 2, 2).to(memory_format=layouts[layout]).requires_grad_()
        optimizer = make([w], form=one)
        for step in range(8):
            for key, value in (("betas", (0.8, 0.9)), ("momentum", 0.5)):
                if step == 4 and key in optimizer.param_groups[0]:
                    optimizer.param_groups[0][key] = value
            of_gradient = ("channels last" if step % 3 else "contiguous") if mixed else layout
            w.grad = randn(4, 3, 2, 2, seed=step).to(memory_format=layouts[of_gradient])
            optimizer.step()
        paths.append(w.detach())
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=1e-9, atol=1e-12)


@quick_forms
def test_steps_that_another_form_took_are_not_forgotten(form):
    paths = []
    for forms in (("readable",) * 3, (form, "readable", form), ("fast", form, "fast")):
        w, saved = randn(4, 16, seed=1).requires_grad_(), None
        for turn, form in enumerate(forms):
            optimizer = MAKERS["adamw"]([w], form=form)
            if saved:
                optimizer.load_state_dict(saved)
            for step in range(5 + 10 * turn):
                w.grad = randn(4, 16, seed=100 * turn + step)
                optimizer.step()
            saved = copy.deepcopy(optimizer.state_dict())
        paths.append(w.detach())
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=1e-9, atol=1e-12)


def change_a_list_of_betas():
    """For a process of its own, as types are checked here: prints how far fast and readable form come apart."""
    paths = []
    for form in ("readable", "fast"):
        w = randn(4, 16, seed=1).requires_grad_()
        optimizer = MAKERS["adamw"]([w], form=form)
        optimizer.param_groups[0]["betas"] = betas = [0.9, 0.95]
        for step in range(8):
            betas[1] = 0.95 if step < 4 else 0.8
            w.grad = randn(4, 16, seed=step)
            optimizer.step()
        paths.append(w.detach())
    print(float((paths[0] - paths[1]).abs().max()))


def test_betas_may_be_a_list_that_is_changed_in_place():
    assert float(in_own_process("change_a_list_of_betas()")) < 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-2)], ids=["64", "32"])
def test_what_goes_along_the_weight_does_not_move_it(form, dtype, rtol):
    def along(g, step, w):
        """Nothing, nothing, a little and the usual share across the weight."""
        rounding = torch.finfo(dtype).eps * g[1:2]
        return torch.cat((1e3 * w[:1], 0.3 + 0.3 * rounding, w[2:4] + 1e-3 * g[2:4], g[4:]))

    make = partial(RotationalSGD, lr=0.01, weight_decay=0.1, rms_decay=0.0)
    optimizer, path = walk(make, 10, gradient=along, form=form, dtype=dtype)
    assert torch.equal(path[0, :2], path[-1, :2])
    eta = optimizer.angle(optimizer.param_groups[0])
    assert turned(path[:, 2:]).tan().flatten().tolist() == pytest.approx([eta] * 40, rel=rtol)
    _, path = walk(make, 10, gradient=lambda g, step, w: w + 1e-3 * g, form=form, dtype=dtype)  # all of them a little
    assert turned(path).tan().flatten().tolist() == pytest.approx([eta] * 60, rel=rtol)


@quick_forms
def test_a_weight_of_another_length_turns_by_its_direction(form):
    """Where someone doubles a weight in mid-run."""
    paths = []
    for one in ("readable", form):
        w = randn(4, 16, seed=1).requires_grad_()
        optimizer = MAKERS["sgd"]([w], form=one)
        for step in range(4):
            w.data.mul_(2.0 if step == 3 else 1.0)
            w.grad = randn(4, 16, seed=step) + 3 * w.detach()
            optimizer.step()
        paths.append(w.detach())
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_weight_is_stepped_too(form):
    walk(MAKERS["adamw"], 3, shape=(0, 4), form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("center", [True, False])
def test_one_number_that_is_none_spoils_its_neuron_alone(form, center):
    """And is not hidden by a neuron that stands still from then on."""

    def spoiled(g, step, w):
        g[1, 0] = math.nan if step == 3 else 1.0
        g[2, 0] = math.inf if step == 3 else 1.0
        return g

    path = walk(MAKERS["sgd"], 5, gradient=spoiled, form=form, center=center)[1]
    assert path[-1].isnan().all(dim=1).tolist() == [False, True, True, False, False, False]
    assert path[-1, 3:].isfinite().all()


@quick_forms
def test_a_gradient_that_is_no_number_spoils_only_its_own_weight(form):
    ws = [randn(4, 8, seed=i).requires_grad_() for i in range(2)]
    optimizer = RotationalAdamW(ws, form=form)
    for step in range(4):
        for i, w in enumerate(ws):
            w.grad = randn(4, 8, seed=step) * (math.nan if step == 2 and i == 0 else 1)
        optimizer.step()
    assert ws[0].isnan().all()
    assert ws[1].isfinite().all()


def dying(scale):
    """Gradients of which the second neuron's are `scale` times as large from the fourth step on."""

    def gradient(g, step, w):
        g[1] *= scale if step >= 3 else 1.0
        return g

    return gradient


def lengths_of_a_dying_neuron(form):
    """Prints by how much lengths change in a long run in float32 of which a neuron's gradient stops, or is out of range."""
    torch.set_num_threads(1)
    for make, scale, steps in (
        (partial(RotationalAdamW, lr=0.01, weight_decay=0.1, betas=(0.95, 0.999)), 0.0, 1100),
        (partial(RotationalAdamW, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), rms_decay=0.0), 0.0, 700),
        (partial(RotationalSGD, lr=0.01, weight_decay=0.1), 1e-22, 200),
        (partial(RotationalSGD, lr=0.01, weight_decay=0.1), 1e20, 50),
    ):
        optimizer, path = walk(
            make,
            steps,
            shape=(4, 16),
            start=centered(randn(4, 16)),
            dtype=torch.float32,
            gradient=dying(scale),
            form=form,
        )
        norms = path.double().norm(dim=2)
        assert form != "compiled" or optimizer.fast.compiled
        still = torch.equal(path[-1, 1], path[-2, 1])
        print(float((norms / norms[0] - 1).abs().nan_to_num(math.inf).max()), int(still))


@pytest.mark.parametrize("form", FORMS)
def test_a_neuron_whose_gradient_stops_or_cannot_be_squared_stands_still_at_its_length(form):
    found = in_own_process(f"lengths_of_a_dying_neuron({form!r})").splitlines()
    assert len(found) == 4
    for line in found:
        change, still = map(float, line.split())
        assert (change < 1e-5, still) == (True, 1), line


@pytest.mark.parametrize("form", ["fast", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("of", ["the weight", "size", "norm"])
def test_a_state_of_another_shape_is_never_read(form: str, of: str):
    """Kernels do not look at shapes, and would read and write past the end."""
    p = nn.Parameter(torch.randn(4, 6))
    optimizer = RotationalAdamW([p], lr=0.1, weight_decay=0.1, form=form)
    for _ in range(2):
        p.grad = torch.randn(4, 6)
        optimizer.step()
    if of == "the weight":
        p.grad, p.data = None, torch.randn(400, 6)
        p.grad = torch.ones(400, 6)
    else:
        optimizer.state[p][of] = optimizer.state[p][of][:2]
    with pytest.raises(RuntimeError, match=r"must match|broadcast"):
        optimizer.step()
