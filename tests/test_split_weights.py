"""Split weights against numpy's integers and float32 masters; what is lost, what is kept, and mistakes told apart."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small
import torch
from small import (
    BASE,
    FOUR,
    assert_one_sentence,
    assert_resumes_bitwise,
    bits_of,
    every_pair,
    four,
    fused,
    readable,
    same,
    through_a_file,
    tiny_gpt,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minitrain import optim
from minitrain.optim import SGD, AdamW, Optimizer, PlainStorage, wrapped
from minitrain.recipe import by_kind, check_ownership, describe
from minitrain.techniques import split_weights
from minitrain.techniques.split_weights import SplitStorage, SplitWeights, check, join, join_weights, round_to, split
from minitrain.techniques.step_in_backward import StepInBackward

randn = partial(small.randn, dtype=torch.float32)
WAYS = {
    "nearest": {},
    "truncate": {"rounding": "truncate"},
    "eleven bits": {"bits": 11},
    "eight bits": {"bits": 8},
    "four bits": {"bits": 4},
    "no bits": {"bits": 0},
    "stochastic": {"bits": 0, "rounding": "stochastic"},
    "stochastic with bits": {"bits": 4, "rounding": "stochastic"},
    "kahan": {"rounding": "kahan"},
    "bf16 moments": {"moments": torch.bfloat16},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
KINDS = ("nearest", "eight bits", "stochastic with bits", "kahan")  # that keep different things in the state
each_kind = pytest.mark.parametrize("way", [WAYS[name] for name in KINDS], ids=KINDS)
both_splits = pytest.mark.parametrize("truncate", [False, True], ids=["nearest", "truncate"])


def as_floats(patterns):
    return torch.from_numpy(patterns.astype(np.uint32).view(np.float32).copy())


# --- the split itself --------------------------------------------------------------------------------------------------

# Zeros, subnormals, the smallest normal, ones, the largest, infinities with NaNs behind them, NaNs up to the last pattern.
SPECIAL = [0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF]
EVERY_LOW = np.arange(1 << 16, dtype=np.uint32)
PATTERNS = np.concatenate([(np.uint32(high | sign) << 16) + EVERY_LOW for high in SPECIAL for sign in (0, 0x8000)])
RANDOM = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)


def round_trips(split, join):
    """Whether every bit comes back, for all lower halves of special values and for a million random patterns."""
    return all(
        np.array_equal(bits_of(join(*split(as_floats(x)))).numpy().view(np.uint32), x) for x in (PATTERNS, RANDOM)
    )


@both_splits
def test_every_pattern_comes_back(truncate):
    assert not same({"w": (torch.zeros(1),)}, {"w": (-torch.zeros(1),)})
    assert round_trips(partial(split, truncate=truncate), partial(join, truncate=truncate))


@both_splits
def test_every_pair_of_halves_comes_back(truncate):
    high = torch.from_numpy(PATTERNS.astype(np.int16)).view(torch.bfloat16)
    low = torch.from_numpy((PATTERNS >> 16).astype(np.int16))
    again = split(join(high, low, truncate), truncate)
    assert torch.equal(bits_of(again[0]), bits_of(high))
    assert torch.equal(again[1], low)


@both_splits
@pytest.mark.parametrize("patterns", [PATTERNS, RANDOM], ids=["special", "random"])
def test_the_halves_are_those_of_unsigned_integers(patterns, truncate):
    high, low = split(as_floats(patterns), truncate)
    expected = (patterns.astype(np.uint64) + (0 if truncate else 0x8000)) >> 16
    assert np.array_equal(bits_of(high).numpy().view(np.uint16), expected.astype(np.uint16))
    assert np.array_equal(low.numpy().view(np.uint16), patterns.astype(np.uint16))


def test_the_upper_half_is_torchs_bfloat16_except_on_ties():
    x = as_floats(RANDOM)
    x = x[x.isfinite()]
    differ = bits_of(split(x)[0]) != bits_of(x.bfloat16())
    ties = (bits_of(x) & 0xFFFF) == 0x8000
    assert differ.any()
    assert not (differ & ~ties).any()


def test_how_far_the_upper_half_may_be_off():
    x = as_floats(RANDOM)
    x = x[x.isfinite() & (x.abs() > 1e-37) & (x.abs() < 1e37)].double()
    nearest, cut = (split(x.float(), truncate)[0].double() / x - 1 for truncate in (False, True))
    assert nearest.abs().max() <= 2**-8
    assert 2**-8 < cut.abs().max() < 2**-7
    assert (cut <= 0).all()
    assert abs(nearest.mean()) < 2e-5 < 2e-3 < -cut.mean()  # nearest has no bias, cutting off shrinks


@both_splits
def test_any_shape_and_layout(truncate):
    for x in (randn(()), randn(0, 3), randn(4, 6).T, randn(4, 6)[:, ::2]):
        assert same(join(*split(x, truncate), truncate), x)


# Wrong in ways that are easily written.


def nearest_even(x):
    """As `.bfloat16()` rounds. A tie goes up or down by a bit that the halves do not hold any more."""
    return x.bfloat16(), bits_of(x).to(torch.int16)


def swapped(high, low):
    return join(low.view(torch.bfloat16), high.view(torch.int16))


def unsigned_carry(high, low):
    """Takes the lower half for unsigned, and so does not undo the rounding up."""
    return join(high, low, truncate=True)


def carry_undone_unasked(x):
    """Cut off, and then joined as if it had been rounded."""
    return split(x, truncate=True)


def smeared(high, low):
    """Forgets that a negative 16-bit number is widened with ones."""
    return (((bits_of(high).int() + (low >> 15)) << 16) | low.int()).view(torch.float32)


@pytest.mark.parametrize(
    ("split", "join"),
    [
        (nearest_even, join),
        (split, swapped),
        (split, unsigned_carry),
        (carry_undone_unasked, join),
        (split, smeared),
    ],
)
def test_a_wrong_split_is_told_apart(split, join):
    assert not round_trips(split, join)


def test_a_tie_to_even_cannot_be_undone_by_any_join():
    down, up = as_floats(np.array([0x3F828000])), as_floats(np.array([0x3F818000]))  # halfway below and above 0x3F82
    assert down != up
    assert same(nearest_even(down), nearest_even(up))
    assert not same(split(down), split(up))


# --- fewer bits --------------------------------------------------------------------------------------------------------


def test_rounding_to_fewer_bits_is_numpys():
    x = RANDOM[np.isfinite(RANDOM.view(np.float32))]
    for bits in range(17):
        unit = 1 << (16 - bits)
        expected = (x.astype(np.uint64) + unit // 2) // unit * unit
        rounded = round_to(as_floats(x), bits)
        assert np.array_equal(bits_of(rounded).numpy().view(np.uint32), expected.astype(np.uint32)), bits
        low = split(rounded)[1]
        assert not (low.int() % unit).any()
        if bits <= 8:  # then a byte is enough
            assert torch.equal((low >> 8).to(torch.int8).short() << 8, low)


def test_sixteen_extra_bits_round_nothing():
    for seed in (None, 1):
        assert same(round_to(as_floats(RANDOM), 16, seed), as_floats(RANDOM))


@pytest.mark.parametrize(("bits", "sign"), [(0, 1), (4, -1), (13, 1)])
def test_stochastic_rounding_has_no_bias(bits, sign):
    unit = 2.0 ** (-7 - bits)
    x = sign * (1 + 0.375 * unit) * torch.ones(100_000)  # exact in float32
    rounded = round_to(x, bits, seed=1)
    up = (rounded * sign - 1) / unit
    assert set(up.tolist()) == {0.0, 1.0}
    assert abs(up.mean().item() - 0.375) < 5 * (0.375 * 0.625 / len(x)) ** 0.5
    assert (round_to(x, bits) == sign).all()
    assert same(round_to(x, bits, seed=1), rounded)
    assert not same(round_to(x, bits, seed=2), rounded)


# --- an optimizer with split weights is one with a float32 master -------------------------------------------------------

X, Y, W0 = randn(32, 5, seed=1).bfloat16(), randn(32, 3, seed=2), randn(5, 3)


def loss_of(w):
    """Computed from the bf16 weight, whose gradient is bf16."""
    return (torch.tanh(X @ w).float() - Y).square().mean()


def split_path(make, steps=10, before_step=lambda w, optimizer, step: optimizer, form=fused, **way):
    """The model's weights and all their bits after each step."""
    torch.manual_seed(0)  # stochastic rounding takes its seeds from here
    w = nn.Parameter(W0.clone())
    optimizer = form(SplitWeights(make([w]), **way))
    path = []
    for step in range(steps):
        optimizer = before_step(w, optimizer, step)
        optimizer.zero_grad()
        loss_of(w).backward()
        optimizer.step()
        path.append((w.detach().clone(), optimizer.storage.whole(w.detach(), optimizer.state[w])))
    return path


def master_path(make, bits=16, rounding="nearest", moments=torch.float32, form=readable):
    """The same with a float32 master, which is rounded to the bits that are kept, and a bf16 copy for the model."""
    truncate, path = rounding == "truncate", []
    master = nn.Parameter(round_to(W0, bits))
    optimizer = form(make([master]))
    for _ in range(10):
        w = split(master.detach(), truncate)[0].requires_grad_()
        loss_of(w).backward()
        master.grad = w.grad.float()
        optimizer.step()
        master.data = round_to(master.data, bits)
        for name in ("m", "v", "b"):
            if name in optimizer.state[master]:
                optimizer.state[master][name] = optimizer.state[master][name].to(moments).float()
        path.append((split(master.detach(), truncate)[0], master.detach().clone()))
    return path


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay", "way"), every_pair(FOUR, [0.003, 0.1, 1.0], [0.0, 0.1], [{}, WAYS["truncate"]])
)
def test_sixteen_extra_bits_are_a_float32_master(name, lr, weight_decay, way):
    make = partial(FOUR[name], lr=lr, weight_decay=weight_decay)
    assert same(split_path(make, form=readable, **way), master_path(make, **way))


@pytest.mark.parametrize(("lr", "weight_decay", "piece"), every_pair([0.003, 0.1, 1.0], [0.0, 0.1], [4, 1 << 17]))
def test_adamws_kernel_sees_the_same_master_piece_by_piece(lr, weight_decay, piece, monkeypatch):
    """Bit for bit the kernel's own numbers; those of the readable form may be rounded otherwise here and there."""
    monkeypatch.setitem(split_weights.PIECE, "cpu", piece)
    make = partial(AdamW, lr=lr, weight_decay=weight_decay)
    kernel, plain = split_path(make), split_path(make, form=readable)
    torch.testing.assert_close(kernel[-1][1], plain[-1][1], rtol=1e-5, atol=1e-6)
    if piece % 16 == 0:  # the end of a piece that does not fill a vector register is rounded otherwise as well
        assert same(kernel, master_path(make, form=fused))


def test_the_kernel_keeps_every_bit_of_what_it_does_not_move():
    """All low halves over many high ones, subnormals among them, under a gradient of zero."""
    finite = as_floats(np.concatenate([PATTERNS, RANDOM]))
    finite = finite[finite.abs() <= torch.finfo(torch.bfloat16).max]
    w = nn.Parameter(finite.clone())
    optimizer = SplitWeights(AdamW([w], weight_decay=0.0))
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert "t" in optimizer.state[w]  # it was the kernel
    assert same(optimizer.storage.whole(w.detach(), optimizer.state[w]), finite)


@pytest.mark.parametrize("name", ["truncate", "eleven bits", "eight bits", "four bits", "no bits", "bf16 moments"])
def test_fewer_bits_are_a_rounded_master(name):
    way = WAYS[name]
    for make in FOUR.values():
        assert same(split_path(make, form=readable, **way), master_path(make, **way))
        for other in ({}, WAYS["truncate"], WAYS["no bits"]):
            if other != way and "moments" not in way:  # whose rounding Lion's sign may hide
                assert not same(split_path(make, **way), master_path(make, **other))


@pytest.mark.parametrize("rule", [optim.no_decay, optim.decay_by_lr])
def test_parts_of_ones_own_are_joined_and_split_as_well(rule):
    hyper = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    make = partial(Optimizer, hyper=hyper, direction=optim.lion, step_rule=rule)
    assert same(split_path(make), master_path(make))


class LowForgotten(SplitStorage):
    """Wrong: steps from the upper half alone."""

    def whole(self, p, state):
        return p.float()


class LowOfYesterday(SplitStorage):
    """Wrong: stores the new upper half beside the old lower one."""

    def store(self, p, w, state):
        low = state["low"]
        super().store(p, w, state)
        state["low"] = low


@pytest.mark.parametrize("storage", [LowForgotten, LowOfYesterday])
def test_a_wrong_storage_is_told_apart(storage):
    def put_in(w, optimizer, step):
        optimizer.storage = storage()
        return optimizer

    for make in FOUR.values():
        assert not same(split_path(make, before_step=put_in), master_path(make))


def test_kahan_summation_is_its_three_lines():
    generator = torch.Generator().manual_seed(0)
    gradients = (torch.randint(-127, 128, (10, 64), generator=generator) / 64).bfloat16()
    p = nn.Parameter(randn(64).bfloat16())
    optimizer = SplitWeights(SGD([p], lr=2**-12), rounding="kahan")
    w, k = p.detach().clone(), torch.zeros(64, dtype=torch.bfloat16)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        k = k + (-(2**-12) * g)  # all in bf16
        w, old = w + k, w
        k = k + (old - w)
        assert same((p.detach(), optimizer.state[p]["low"]), (w, k))
    assert k.any()


def many_small_steps(step, start=1.0, **way):
    """The mean weight after a thousand equal steps, with all the bits there are, and as the model sees it."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.full((1000,), start))
    optimizer = SplitWeights(SGD([p], lr=abs(step)), **way)
    for _ in range(1000):
        p.grad = torch.full_like(p, -1.0 if step > 0 else 1.0)
        optimizer.step()
    return optimizer.storage.whole(p.detach(), optimizer.state[p]).mean().item(), p.float().mean().item()


LOST = {"no bits", "four bits"}
HOW_FAR_OFF = {"eleven bits": 4e-3, "eight bits": 3e-2, "stochastic": 2e-3, "stochastic with bits": 1e-3, "kahan": 5e-3}


@pytest.mark.parametrize("name", WAYS)
def test_small_steps_are_lost_with_few_bits_and_kept_by_each_remedy(name):
    for step in (1e-4, -1e-4):
        whole, seen = many_small_steps(step, **WAYS[name])
        if name in LOST:
            assert whole == seen == 1.0
        else:
            assert whole == pytest.approx(1 + 1000 * step, abs=HOW_FAR_OFF.get(name, 1e-4))
            assert seen == pytest.approx(whole, abs=2**-7)


@pytest.mark.parametrize("sign", [1, -1], ids=["up", "down"])
def test_kahan_summation_stalls_on_a_tie_where_sixteen_bits_go_on(sign):
    step, start = sign * 1e-5, 1 + 2**-6  # between 2^-17 and 2^-16
    assert many_small_steps(step, start, rounding="kahan") == (start + sign * 2**-8, start)
    assert many_small_steps(step, start)[0] == pytest.approx(start + 1000 * step, abs=1e-4)
    assert many_small_steps(2 * step, start, rounding="kahan")[0] == pytest.approx(start + 2000 * step, abs=5e-3)


def test_a_second_moment_in_bf16_cannot_fall():
    def second_moment(moments):
        p = nn.Parameter(torch.ones(5))
        optimizer = SplitWeights(AdamW([p], lr=1e-3, betas=(0.9, 0.999)), moments=moments)
        for g in (1.0, 1e-3, 1e-3):
            p.grad = torch.full_like(p, g)
            optimizer.step()
        return optimizer.state[p]["v"].float()

    assert same(second_moment(torch.bfloat16), torch.full((5,), 1e-3).bfloat16().float())
    assert (second_moment(torch.float32) < 0.9985e-3).all()


# --- there and back ----------------------------------------------------------------------------------------------------


def float32_path(make, convert=lambda optimizer, step: None):
    """Whole weights along given float32 gradients."""
    w = nn.Parameter(W0.clone())
    optimizer = readable(make([w]))
    path = []
    for step in range(10):
        convert(optimizer, step)
        w.grad = randn(5, 3, seed=step)
        optimizer.step()
        path.append(w.detach().clone())
    return path


@pytest.mark.parametrize(("name", "way"), [*zip(FOUR, 2 * ({}, WAYS["truncate"]), strict=True)])
def test_there_and_back_loses_nothing(name, way):
    make = FOUR[name]

    def there_and_back(optimizer, step):
        if step in (0, 4, 7):
            (w,) = optimizer.param_groups[0]["params"]
            before = copy.deepcopy((w.detach(), dict(optimizer.state[w])))
            SplitWeights(optimizer, **way)
            assert w.dtype == torch.bfloat16
            join_weights(optimizer)
            assert same((w.detach(), dict(optimizer.state[w])), before)

    assert same(float32_path(make, there_and_back), float32_path(make))


@each_way
def test_there_and_back_keeps_the_bits_that_it_says(way):
    w = nn.Parameter(W0.clone())
    join_weights(SplitWeights(SGD([w]), **way))
    bits = way.get("bits", 16) if way.get("rounding") != "kahan" else 8  # and a sign, of a bf16 compensation
    assert w.dtype == torch.float32
    assert ((w.detach() - W0).abs() <= 2.0 ** (-7 - bits) * W0.abs()).all()
    assert same(w.detach(), W0) == (bits == 16)
    w = nn.Parameter(W0.bfloat16())
    SplitWeights(SGD([w]), **way)
    assert same(w.detach(), W0.bfloat16())  # taken as it is


@each_kind
def test_joined_again_nothing_of_the_split_is_left(way):
    w = nn.Parameter(W0.clone())
    optimizer = AdamW([w])
    w.grad = torch.ones_like(w)
    optimizer.step()
    SplitWeights(optimizer, **way)
    assert w.grad is None  # a float32 gradient would not fit any more
    w.grad = torch.ones_like(w)
    optimizer.step()
    join_weights(optimizer)
    assert w.grad is None
    assert set(optimizer.state[w]) == {"m", "v", "m_ones", "v_ones"}
    assert {x.dtype for x in (w, optimizer.state[w]["m"], optimizer.state[w]["v"])} == {torch.float32}


def test_adamw_goes_on_after_its_fused_kernel_and_back():
    w, twin = nn.Parameter(W0.clone()), nn.Parameter(W0.clone())
    optimizer, expected = AdamW([w], lr=0.1), AdamW([twin], lr=0.1)
    for step in range(12):
        if step == 3:
            SplitWeights(optimizer)
        if step == 8:
            join_weights(optimizer)
        g = randn(5, 3, seed=step).bfloat16()
        for p in (w, twin):
            p.grad = g.to(p.dtype)
        optimizer.step()
        expected.step()
    torch.testing.assert_close(w.detach(), twin.detach(), rtol=1e-5, atol=1e-6)


# --- saved and loaded --------------------------------------------------------------------------------------------------


def start_anew(make, way):
    """Before step 5, another parameter's new optimizer takes over from a file."""

    def take_over(w, optimizer, step):
        if step != 5:
            return optimizer
        weight, state = through_a_file((w.detach(), optimizer.state_dict()))
        w.data = torch.zeros(5, 3)
        new = SplitWeights(make([w]), **way)
        w.data.copy_(weight)
        new.load_state_dict(state)
        return new

    return take_over


@each_way
def test_state_goes_through_a_file_and_the_run_goes_on_bitwise(way):
    for make in FOUR.values():
        assert same(split_path(make, before_step=start_anew(make, way), **way), split_path(make, **way))


@each_kind
def test_a_deep_copy_steps_on_by_itself(way):
    w = nn.Parameter(W0.clone())
    optimizer = SplitWeights(AdamW([w]), **way)
    copied = copy.deepcopy(optimizer)
    (p,) = copied.param_groups[0]["params"]
    before = w.detach().clone()
    for x, owner in ((p, copied), (w, optimizer)):
        x.grad = torch.ones_like(x)
        owner.step()
        assert same(w.detach(), before) == (owner is copied)
    assert same((w.detach(), dict(optimizer.state[w])), (p.detach(), dict(copied.state[p])))


def recipe(name):
    make = partial(AdamW, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    return replace(BASE, make_optimizer=partial(wrapped, make=make, by=(partial(SplitWeights, **WAYS[name]),)))


ELSEWHERE = recipe("stochastic with bits")


@pytest.mark.parametrize("name", ["nearest", "eight bits", "kahan"])
def test_a_stopped_run_goes_on_bitwise(tmp_path, name):
    run = assert_resumes_bitwise(tmp_path, recipe(name))
    assert all(p.dtype == torch.bfloat16 for p in run.model.parameters())
    assert run.losses[-1] < run.losses[0]


def test_a_stopped_run_goes_on_bitwise_in_a_fresh_process(tmp_path):
    assert_resumes_bitwise(tmp_path, ELSEWHERE, elsewhere=(__name__, "ELSEWHERE"))


def test_a_recipe_names_what_wraps_its_optimizer():
    lines = describe(recipe("eight bits"))
    assert lines["make_optimizer.make"] == "minitrain.optim.AdamW"
    assert lines["make_optimizer.by.0"] == "minitrain.techniques.split_weights.SplitWeights"
    assert lines["make_optimizer.by.0.bits"] == "8"


@pytest.mark.parametrize("saved", KINDS)
def test_a_state_loads_only_where_bits_and_rounding_are_those_it_was_saved_with(saved):
    """The moments' dtype may change: nothing of the weights depends on it."""

    def bits_and_rounding(way):
        return way.get("bits", 16), way.get("rounding", "nearest")

    def made(way):
        w = nn.Parameter(W0.clone())
        return w, SplitWeights(SGD([w], momentum=0.9), **way)

    old, optimizer = made(WAYS[saved])
    old.grad = torch.ones_like(old)
    optimizer.step()
    whole = optimizer.storage.whole(old.detach(), optimizer.state[old])
    for into in WAYS.values():
        w, new = made(into)
        w.data.copy_(old.data)
        if bits_and_rounding(WAYS[saved]) == bits_and_rounding(into):
            new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            w.grad = torch.ones_like(w)
            new.step()
            assert same(join_weights(copy.deepcopy(optimizer)).param_groups[0]["params"][0].detach(), whole)
            continue
        with pytest.raises(ValueError, match="call SplitWeights or join_weights") as error:
            new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert_one_sentence(error.value, new.storage.way, optimizer.storage.way)
        assert same(w.detach(), old.detach())


@four
@pytest.mark.parametrize("way", [{}, WAYS["no bits"]], ids=["nearest", "no bits"])
def test_a_split_state_and_a_plain_one_are_not_mixed_up(make, way):
    """Half of the weight is in the state: a plain optimizer would go on without it, and never say so."""
    splits = [SplitWeights(make([nn.Parameter(W0.clone())]), **way), make([nn.Parameter(W0.clone())])]
    for optimizer in splits:
        (w,) = optimizer.param_groups[0]["params"]
        w.grad = torch.ones_like(w)
        optimizer.step()
    if not splits[1].state_dict()["state"]:
        return  # SGD without momentum keeps nothing
    for optimizer, other in (splits, reversed(splits)):
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match="call SplitWeights or join_weights"):
            optimizer.load_state_dict(other.state_dict())
        assert str(optimizer.state_dict()) == str(before)


# --- who owns what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tied", "name"), [(False, "nearest"), (True, "four bits"), (False, "no bits"), (True, "kahan")]
)
def test_every_parameter_is_split_once_and_stays_in_its_group(tied, name):
    model, way = tiny_gpt(tied=tied), WAYS[name]
    parameters, groups = list(model.parameters()), by_kind(model)
    optimizer = AdamW(groups, lr=0.01)
    names = [group["name"] for group in optimizer.param_groups]
    assert SplitWeights(optimizer, **way) is optimizer
    check_ownership(model, optimizer.param_groups)
    assert [group["name"] for group in optimizer.param_groups] == names
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert set(optimizer.state) == set(parameters)
    assert optimizer.equilibrium(optimizer.param_groups[0], 32) is not None
    low = sum(x["low"].nbytes for x in optimizer.state.values() if "low" in x)
    bits = way.get("bits", 16)
    assert low == sum(p.numel() for p in parameters) * (2 if bits > 8 else 1 if bits else 0)


@four
def test_between_steps_the_state_is_as_small_as_asked(make):
    for moments in (torch.float32, torch.bfloat16):
        w = nn.Parameter(W0.clone())
        optimizer = SplitWeights(make([w]), moments=moments)
        w.grad = torch.ones_like(w)
        optimizer.step()
        state = dict(optimizer.state[w])
        assert state.pop("low").dtype == torch.int16
        tensors = [x for x in state.values() if isinstance(x, torch.Tensor)]
        assert tensors
        assert all(x.dtype == moments for x in tensors)


def test_every_weight_and_step_draws_its_own_noise():
    a, b = nn.Parameter(torch.full((2000,), 1 + 2**-9)), nn.Parameter(torch.full((2000,), 1 + 2**-9))
    generator = torch.Generator().manual_seed(3)
    SplitWeights(SGD([a, b]), bits=0, rounding="stochastic", generator=generator)
    assert not same(a.detach(), b.detach())
    optimizer = SplitWeights(
        SGD([nn.Parameter(W0.clone())], lr=1.0), bits=0, rounding="stochastic", generator=generator
    )
    (p,) = optimizer.param_groups[0]["params"]
    seen = set()
    for _ in range(5):
        seen.add(optimizer.state[p]["seed"])
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert len(seen) == 5


def test_the_noise_follows_from_the_generator_alone():
    def weights(seed):
        p = nn.Parameter(randn(1000))
        SplitWeights(SGD([p]), bits=0, rounding="stochastic", generator=torch.Generator().manual_seed(seed))
        return p.detach()

    before = torch.get_rng_state()
    assert same(weights(1), weights(1))
    assert not same(weights(1), weights(2))
    SplitWeights(SGD([nn.Parameter(W0.clone())]))
    assert torch.equal(torch.get_rng_state(), before)


@each_kind
def test_a_step_without_memory_on_a_fake_device(way):
    with FakeTensorMode(allow_non_fake_inputs=True):
        p = nn.Parameter(torch.randn(4, 3))
        optimizer = SplitWeights(AdamW([p]), **way)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.dtype == torch.bfloat16


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "way", "value"),
    every_pair(
        ["sgd", "adam", "adamw"],  # Lion takes a sign, which is finite
        map(WAYS.get, ("nearest", "truncate", "no bits", "kahan")),
        [torch.nan, torch.inf, -torch.inf],
    ),
)
def test_a_gradient_that_is_no_number_stops_before_either_half_is_touched(name, way, value):
    w = nn.Parameter(W0.clone())
    optimizer = SplitWeights(FOUR[name]([w]), **way)
    w.grad = torch.full_like(w, value)
    before = copy.deepcopy((w.detach(), optimizer.state[w].get("low")))
    with pytest.raises(FloatingPointError) as error:
        optimizer.step()
    assert_one_sentence(error.value, "(5, 3)", "no longer a finite bf16 number", "go back to a checkpoint", "lower lr")
    assert same((w.detach(), optimizer.state[w].get("low")), before)


@pytest.mark.parametrize(
    ("way", "value", "dtype"),
    every_pair(
        map(WAYS.get, ("nearest", "truncate", "stochastic", "kahan")),
        [3.4e38, -3.4e38, torch.inf, torch.nan],
        [torch.float32, torch.bfloat16],
    ),
)
def test_a_weight_that_does_not_fit_is_refused_before_any_is_converted(way, value, dtype):
    fine, other = nn.Parameter(W0.clone()), nn.Parameter(torch.full((2,), value).to(dtype))
    optimizer = SGD([fine, other])
    with pytest.raises(ValueError, match="does not fit into bf16") as error:
        SplitWeights(optimizer, **way)
    assert_one_sentence(error.value, "(2,)", "nothing was converted")
    assert same(fine.detach(), W0)
    assert not optimizer.state
    assert type(optimizer.storage) is PlainStorage


@each_way
def test_the_largest_bf16_is_split_and_none_below_it_is_rounded_to_infinity(way):
    largest = torch.tensor(torch.finfo(torch.bfloat16).max)
    w = nn.Parameter(torch.stack([largest, largest.nextafter(torch.zeros(()))]).repeat(500))
    SplitWeights(SGD([w]), **way)
    assert w.isfinite().all()


def test_a_state_without_the_extra_bits_is_refused():
    w = nn.Parameter(W0.clone())
    optimizer = SplitWeights(SGD([w]))
    whole = optimizer.storage.whole(w, optimizer.state[w])
    with pytest.raises(ValueError, match="lacks the bits of some split weights") as error:
        optimizer.load_state_dict(SGD([nn.Parameter(W0.clone())]).state_dict())
    assert_one_sentence(error.value)
    assert torch.equal(optimizer.storage.whole(w, optimizer.state[w]), whole)  # nothing was lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", [{}, WAYS["no bits"]], ids=["nearest", "no bits"])
def test_a_group_that_was_added_later_is_refused(way, dtype):
    first = nn.Parameter(W0.clone())
    optimizer = SplitWeights(SGD([first]), **way)
    late = nn.Parameter(W0.to(dtype))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones_like(late)
    for use in (optimizer.step, partial(join_weights, optimizer)):
        with pytest.raises(ValueError, match="split the weights once all groups are there"):
            use()
    assert first.dtype == torch.bfloat16  # it was not joined before the other was refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 17}, "bits must be a whole number from 0 to 16, not 17"),
        ({"bits": -1}, "bits must be .*, not -1"),
        ({"bits": True}, "bits must be .*, not True"),
        ({"rounding": "stochastic"}, "nothing is left to round"),
        ({"rounding": "truncate", "bits": 15}, "any step toward zero would cost a whole unit"),
        ({"rounding": "kahan", "bits": 8}, "Kahan summation keeps 16 extra bits, not 8"),
        ({"moments": torch.float16}, "moments must be .*, not torch.float16"),
        ({"generator": torch.Generator()}, "generator is for rounding='stochastic'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    w = nn.Parameter(W0.clone())
    with pytest.raises(ValueError, match=words) as error:
        SplitWeights(SGD([w]), **arguments)
    assert_one_sentence(error.value)
    assert same(w.detach(), W0)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match="rounding must be one of nearest, truncate, stochastic, kahan, not 'up'"):
        check(SGD([nn.Parameter(W0.clone())]), 16, "up", torch.float32, None)


def test_a_second_splitting_or_joining_is_refused():
    optimizer = SplitWeights(SGD([nn.Parameter(W0.clone())]))
    with pytest.raises(ValueError, match="already split; call join_weights"):
        SplitWeights(optimizer)
    assert type(join_weights(optimizer).storage) is PlainStorage
    with pytest.raises(ValueError, match="not split; call SplitWeights"):
        join_weights(optimizer)


class OtherPlain(PlainStorage):
    """Keeps weights in the parameter, under another type."""


def test_the_storage_from_before_is_put_back():
    w = nn.Parameter(W0.clone())
    optimizer = AdamW([w])
    before = optimizer.storage = OtherPlain()
    assert isinstance(SplitWeights(optimizer).storage, SplitStorage)
    assert type(copy.deepcopy(optimizer).storage.before) is OtherPlain
    assert join_weights(optimizer).storage is before


def test_a_storage_that_is_not_a_plain_one_is_refused():
    optimizer = SGD([nn.Parameter(W0.clone())])
    optimizer.storage = object()
    with pytest.raises(ValueError, match="not those of object") as error:
        SplitWeights(optimizer)
    assert_one_sentence(error.value)


@pytest.mark.parametrize("convert", [SplitWeights, join_weights])
def test_an_optimizer_that_is_not_minitrains_is_refused(convert):
    w = nn.Parameter(W0.clone())
    inside = SGD([w])
    for optimizer in (StepInBackward(inside), torch.optim.AdamW([w])):
        with pytest.raises(ValueError, match="only minitrain's own optimizers") as error:
            convert(optimizer)
        assert_one_sentence(error.value, type(optimizer).__name__, "put StepInBackward around afterwards")
    assert same(w.detach(), W0)
    assert type(inside.storage) is PlainStorage


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_dtype_are_refused(dtype):
    fine, other = nn.Parameter(W0.clone()), nn.Parameter(W0.to(dtype))
    with pytest.raises(ValueError, match="only float32 and bfloat16 weights can be split"):
        SplitWeights(SGD([fine, other]))
    assert fine.dtype == torch.float32


def test_the_error_names_the_weight_that_went_wrong_and_is_told_once():
    storage = SplitStorage()
    storage.finite = [(torch.tensor(True), torch.Size([2])), (torch.tensor(False), torch.Size([3]))]
    with pytest.raises(FloatingPointError, match=r"\(3,\)"):
        storage.finish()
    storage.finish()


def test_a_step_in_backward_finishes_the_storage_too():
    finished = []
    w = nn.Parameter(W0.clone())
    inside = SplitWeights(SGD([w], lr=0.1))
    inside.storage.finish = lambda: finished.append(True)
    inside.storage.note = lambda w, shape: None
    optimizer = StepInBackward(inside)
    w.float().square().sum().backward()
    optimizer.step()
    assert finished == [True]


def test_a_weight_laid_out_otherwise_than_its_bits_goes_on_by_the_readable_form():
    def steps(change: bool) -> torch.Tensor:
        torch.manual_seed(0)
        p = nn.Parameter(
            torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last if change else torch.preserve_format)
        )
        optimizer = SplitWeights(AdamW([p], lr=0.01))
        p.data = p.data.contiguous()
        for _ in range(3):
            p.grad = torch.randn(8, 4, 3, 3).to(p.dtype)
            optimizer.step()
        return optimizer.storage.whole(p, optimizer.state[p])

    torch.testing.assert_close(steps(change=True), steps(change=False))
