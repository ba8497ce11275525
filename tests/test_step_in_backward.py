"""Bit for bit the ordinary loop, with the gradients gone; what needs them all at once is refused."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import (
    BASE,
    CONTEXT,
    STEPS,
    VOCAB,
    assert_one_sentence,
    dropout_gpt,
    same,
    stop_at,
    tiny_gpt,
    tiny_text,
    train_in,
)
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from minitrain.lab.noise import NoiseScale
from minitrain.lab.probes import Rotation
from minitrain.lab.watch import watch
from minitrain.optim import SGD, Adam, AdamW, ClipGradNorm, Lion, Optimizer, wrapped
from minitrain.recipe import by_kind, cross_entropy, describe, difference
from minitrain.runtime.checkpoint import load_checkpoint
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.recompute import recompute_blocks
from minitrain.schedules import set_schedules
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import (
    StepInBackward,
    UsedGradient,
    clip_updates,
    clipped,
)
from minitrain.train import train

FOUR = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(Adam, lr=0.1, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "lion": partial(Lion, lr=0.01, weight_decay=0.1),
    "high lr": partial(AdamW, lr=1.0),
    "no decay": partial(SGD, lr=0.1),
}
four = pytest.mark.parametrize("make", FOUR.values(), ids=FOUR)
tied_or_not = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def gpt(tied: bool = False, seed: int = 0) -> nn.Module:
    """With a head that is not zero, so that the first gradients reach every weight."""
    torch.manual_seed(seed)
    model = tiny_gpt(tied=tied)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def loss_of(model: nn.Module, step: int) -> Tensor:
    return cross_entropy(model, *tiny_text().batch(0, step, 4))


def loop(
    wrap: Callable, make: Callable, tied: bool = False, steps: int = 10, schedules: dict | None = None
) -> tuple[nn.Module, Any]:
    """The ordinary loop, around whatever `wrap` makes of the optimizer."""
    model = gpt(tied)
    optimizer = wrap(make(by_kind(model)))
    for step in range(steps):
        set_schedules(optimizer, schedules or {}, step)
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def plain(optimizer: Optimizer) -> Optimizer:
    return optimizer


class BeforeAccumulation(StepInBackward):
    """Wrong: the hook comes before the gradient is in `.grad`, so it finds the one before."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.share()
        for p in param_group["params"]:
            p.register_hook(partial(self.too_early, p))

    def too_early(self, p: Tensor, g: Tensor) -> None:
        if p.grad is not None:
            self.optimizer.update(p, self.group_of(p))
            p.grad = None

    def step(self, closure: Any = None) -> None:
        pass

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


class WithGroupsOfItsOwn(StepInBackward):
    """Wrong: the hook steps by the values that the groups had when it was registered."""

    def share(self) -> None:
        super().share()
        self.at_first = [dict(group) for group in self.param_groups]

    def group_of(self, p: Tensor) -> dict[str, Any]:
        return self.at_first[self.place[p]]


# --- equal to the ordinary loop ----------------------------------------------------------------------------------------


@four
@tied_or_not
def test_weights_and_state_are_those_of_the_ordinary_loop_bit_for_bit(make: Callable, tied: bool) -> None:
    (expected, optimizer), (found, stepping) = loop(plain, make, tied), loop(StepInBackward, make, tied)
    assert same(found.state_dict(), expected.state_dict())
    assert same(stepping.state_dict(), optimizer.state_dict())
    assert not same(found.state_dict(), gpt(tied).state_dict())


def halved(step: int) -> float:
    return 0.5**step


def test_a_schedule_acts_in_the_step_before_whose_backward_pass_it_is_set() -> None:
    schedules = {("*", "lr"): halved}
    expected, _ = loop(plain, FOUR["adamw"], schedules=schedules)
    assert same(loop(StepInBackward, FOUR["adamw"], schedules=schedules)[0].state_dict(), expected.state_dict())
    assert not same(loop(StepInBackward, FOUR["adamw"])[0].state_dict(), expected.state_dict())


@pytest.mark.parametrize("wrong", [BeforeAccumulation, WithGroupsOfItsOwn])
def test_a_wrong_hook_is_told_apart(wrong: Callable) -> None:
    schedules = {("*", "lr"): halved}
    expected, _ = loop(plain, FOUR["adamw"], schedules=schedules)
    assert not same(loop(wrong, FOUR["adamw"], schedules=schedules)[0].state_dict(), expected.state_dict())


def test_the_fused_kernel_runs_in_the_hook() -> None:
    _, stepping = loop(StepInBackward, FOUR["adamw"], steps=3)
    assert {state["t"].item() for state in stepping.state.values()} == {3}


def test_a_tied_weight_is_stepped_once() -> None:
    model = gpt(tied=True)
    stepping, calls = StepInBackward(SGD(by_kind(model))), []
    update = stepping.optimizer.update
    stepping.optimizer.update = lambda p, group: (calls.append(p), update(p, group))
    loss_of(model, 0).backward()
    assert len(calls) == len(set(calls)) == len(list(model.parameters()))


def test_a_frozen_parameter_is_left_alone_and_one_group_may_come_later() -> None:
    def changed(wrap: Callable) -> nn.Module:
        model = gpt()
        model.embedding.weight.requires_grad_(False)
        first, *others = model.parameters()
        optimizer = wrap(SGD([{"params": [first, *others[:2]]}], lr=0.1, momentum=0.9))
        optimizer.add_param_group({"params": others[2:], "lr": 0.3})
        for step in range(3):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    assert same(changed(StepInBackward).state_dict(), changed(plain).state_dict())
    assert torch.equal(changed(StepInBackward).embedding.weight, gpt().embedding.weight)


def test_step_takes_a_closure_and_need_not_be_called_at_all() -> None:
    expected, _ = loop(plain, FOUR["adamw"], steps=3)
    for use_closure in (True, False):
        model = gpt()
        stepping = StepInBackward(FOUR["adamw"](by_kind(model)))
        for step in range(3):

            def closure(model: Any = model, stepping: Any = stepping, step: int = step) -> Tensor:
                stepping.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            closure() if not use_closure else stepping.step(closure)
        assert same(model.state_dict(), expected.state_dict())


def test_step_steps_what_came_without_a_backward_pass() -> None:
    p = nn.Parameter(torch.ones(3))
    stepping = StepInBackward(SGD([p], lr=0.5))
    p.grad = torch.ones(3)
    stepping.step()
    assert p.tolist() == [0.5] * 3
    stepping.step()
    assert p.tolist() == [0.5] * 3


# --- the gradients are gone --------------------------------------------------------------------------------------------


def most_alive(wrap: Callable, model: nn.Module) -> int:
    """The largest number of bytes of gradients that were alive when a parameter had just got its gradient."""
    most = 0

    def count(_: Tensor) -> None:
        nonlocal most
        alive = sum(p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None)
        most = max(most, alive)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(count)  # before the optimizer's own hook: the gradient is still there
    optimizer = wrap(SGD(by_kind(model)))
    loss_of(model, 0).backward()
    optimizer.step()
    return most


def test_no_more_than_the_largest_gradient_is_alive_at_once() -> None:
    sizes = [4 * p.numel() for p in gpt().parameters()]
    assert most_alive(StepInBackward, gpt()) == max(sizes)
    assert most_alive(plain, gpt()) == sum(sizes) > 3 * max(sizes)


def test_a_used_gradient_has_no_memory_and_zero_grad_takes_it_away() -> None:
    model = gpt()
    stepping = StepInBackward(SGD(by_kind(model)))
    loss_of(model, 0).backward()
    for p in model.parameters():
        assert isinstance(p.grad, UsedGradient)
        assert p.grad.untyped_storage().nbytes() == 0
        assert "UsedGradient" in repr(p.grad)
    stepping.zero_grad(set_to_none=False)
    assert all(p.grad is None for p in model.parameters())


# --- what is refused ---------------------------------------------------------------------------------------------------


def after_one_backward() -> tuple[nn.Module, StepInBackward]:
    model = gpt()
    stepping = StepInBackward(SGD(by_kind(model)))
    loss_of(model, 0).backward()
    return model, stepping


def scale(model: nn.Module, stepping: StepInBackward) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.step(stepping)


REFUSED = {
    "accumulation": lambda model, stepping: loss_of(model, 1).backward(),
    "clipping": lambda model, stepping: ClipGradNorm(1.0)(model, stepping),
    "clipping by value": lambda model, stepping: nn.utils.clip_grad_value_(model.parameters(), 1.0),
    "scaler": scale,
    "reading": lambda model, stepping: model.head.weight.grad.norm(),
}


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
def test_what_needs_all_gradients_is_refused_with_a_sentence(act: Callable) -> None:
    model, stepping = after_one_backward()
    before = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
    with pytest.raises(RuntimeError) as error:
        act(model, stepping)
    assert_one_sentence(error.value, "accumulation", "clipping by the global norm", "GradScaler", "clip_updates")
    assert same(before, {name: p.detach() for name, p in model.named_parameters()})


@pytest.mark.parametrize(
    "changed",
    [{"micro_batch_size": CONTEXT, "before_step": ()}, {"before_step": (partial(ClipGradNorm, 0.3),)}],
    ids=["accumulation", "clipping"],
)
def test_a_recipe_that_needs_all_gradients_is_refused_in_its_first_step(changed: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="StepInBackward used this gradient"):
        train(replace(IN_BACKWARD, **changed))


def test_several_ranks_are_refused_and_one_is_not() -> None:
    p = nn.Parameter(torch.ones(3))
    for ranks in (1, 2):
        torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        try:
            if ranks == 1:
                StepInBackward(SGD([p])).remove()
                continue
            with pytest.raises(ValueError, match="2 ranks") as error:
                StepInBackward(SGD([p]))
            assert_one_sentence(error.value, "DDP", "plain optimizer")
        finally:
            torch.distributed.destroy_process_group()


def test_what_cannot_step_inside_backward_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="AdamW") as error:
        StepInBackward(torch.optim.AdamW([p]))
    assert_one_sentence(error.value, "minitrain's own optimizers")
    inner = SGD([p])
    once = StepInBackward(inner)
    for again, words in ((once, "minitrain's own optimizers"), (inner, "another StepInBackward")):
        with pytest.raises(ValueError, match=words):
            StepInBackward(again)
    once.remove()
    StepInBackward(inner).remove()
    inner.register_step_post_hook(lambda *_: None)
    with pytest.raises(ValueError, match="register its hooks on StepInBackward"):
        StepInBackward(inner)


def test_wrappers_in_another_order_are_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    stepping = StepInBackward(SGD([p]))
    for wrap in (partial(clip_updates, max_rms=1.0), SplitWeights):
        with pytest.raises(ValueError, match="minitrain's own optimizers"):
            wrap(stepping)
    stepping.remove()
    with pytest.raises(ValueError, match="before its weights are split"):
        clip_updates(SplitWeights(SGD([p])))


def test_a_state_loaded_into_the_inner_optimizer_is_the_one_that_steps() -> None:
    p = nn.Parameter(torch.ones(3))
    inner = SGD([p], lr=0.1)
    stepping = StepInBackward(inner)
    inner.load_state_dict(SGD([nn.Parameter(torch.ones(3))], lr=0.5).state_dict())
    p.sum().backward()
    stepping.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


def test_a_copy_is_refused() -> None:
    _, stepping = after_one_backward()
    with pytest.raises(TypeError) as error:
        copy.deepcopy(stepping)
    assert_one_sentence(error.value, "copy its `optimizer`")


def test_removed_hooks_leave_an_ordinary_optimizer() -> None:
    model, stepping = after_one_backward()
    stepping.remove()
    stepping.zero_grad()
    loss_of(model, 1).backward()
    assert model.head.weight.grad.norm() > 0
    before = model.head.weight.detach().clone()
    stepping.step()
    assert not torch.equal(model.head.weight, before)
    assert model.head.weight.grad.norm() > 0  # as after any step


# --- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wraps", [(plain, StepInBackward), (StepInBackward, plain), (StepInBackward, StepInBackward)])
def test_a_state_dict_goes_on_in_either_loop_bit_for_bit(wraps: tuple[Callable, Callable]) -> None:
    first, second = wraps
    expected, _ = loop(plain, FOUR["adamw"], steps=7)
    model, optimizer = loop(first, FOUR["adamw"], steps=4)
    again = gpt(seed=1)
    other = second(AdamW(by_kind(again)))  # its hyper-parameters are among what is loaded
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(4, 7):
        loss_of(again, step).backward()
        other.step()
        other.zero_grad()
    assert same(again.state_dict(), expected.state_dict())


# --- in a recipe -------------------------------------------------------------------------------------------------------

HYPER = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
PLAIN = replace(BASE, before_step=(), make_optimizer=partial(AdamW, **HYPER))
IN_BACKWARD = replace(PLAIN, make_optimizer=partial(wrapped, make=AdamW, by=(StepInBackward,), **HYPER))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_the_ordinary_run_bit_for_bit(precision: str) -> None:
    probes = [Rotation(every=3), NoiseScale(every=7)]
    found, expected = (train(replace(recipe, precision=precision), probes=probes) for recipe in (IN_BACKWARD, PLAIN))
    assert same(found.losses, expected.losses)
    assert same(found.model.state_dict(), expected.model.state_dict())
    assert same(found.optimizer.state_dict(), expected.optimizer.state_dict())
    assert found.metrics == expected.metrics  # the probes' predictions too


def test_it_goes_with_recomputed_blocks_and_a_chunked_loss() -> None:
    """Whose passes of the second time read weights that are about to be stepped."""
    build, loss = partial(recompute_blocks, partial(dropout_gpt, tied=True)), partial(chunked_cross_entropy, chunk=24)
    found, expected = (train(replace(recipe, build_model=build, loss=loss)) for recipe in (IN_BACKWARD, PLAIN))
    assert same(found.losses, expected.losses)
    assert same(found.model.state_dict(), expected.model.state_dict())


def test_a_recipe_names_the_hyper_parameters_as_the_optimizers() -> None:
    assert difference(PLAIN, IN_BACKWARD) == {
        "make_optimizer": ("minitrain.optim.AdamW", "minitrain.optim.wrapped"),
        "make_optimizer.make": (None, "minitrain.optim.AdamW"),
        "make_optimizer.by.0": (None, "minitrain.techniques.step_in_backward.StepInBackward"),
    }
    clipped = partial(wrapped, make=AdamW, by=(partial(clip_updates, max_rms=0.5), StepInBackward), lr=0.1)
    assert describe(replace(PLAIN, make_optimizer=clipped))["make_optimizer.by.0.max_rms"] == "0.5"


def test_it_goes_with_split_weights(tmp_path: Path) -> None:
    """The split weights' run bit for bit, and a sweep finds its learning rate."""
    from minitrain.lab.compare import compare

    split = partial(SplitWeights, bits=8)
    inside, ordinary = (
        replace(PLAIN, make_optimizer=partial(wrapped, make=AdamW, by=by, **HYPER))
        for by in ((split, StepInBackward), (split,))
    )
    found, expected = train(inside), train(ordinary)
    assert same(found.losses, expected.losses)
    assert same(found.optimizer.state_dict(), expected.optimizer.state_dict())
    rates = [1e-3, 1e-2]
    runs = compare({"inside": inside, "ordinary": ordinary}, seeds=[0], learning_rates=rates, cache=tmp_path)
    for lr in rates:
        assert runs.metrics("inside", lr=lr) == runs.metrics("ordinary", lr=lr)
    assert runs.metrics("inside", lr=rates[0]) != runs.metrics("inside", lr=rates[1])


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_in(whole, IN_BACKWARD)
    assert not train_in(cut, IN_BACKWARD, probes=[stop_at(9)]).finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_in(cut, IN_BACKWARD, resume=True).step == STEPS
    assert same(load_checkpoint(cut), load_checkpoint(whole))
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_watch_sees_in_anybodys_loop_what_it_sees_of_the_ordinary_step() -> None:
    def seen(wrap: Callable) -> list[dict[str, Any]]:
        model = gpt()
        optimizer = wrap(FOUR["adamw"](by_kind(model)))
        with watch(model, optimizer, [Rotation(every=2)]) as found:
            for step in range(5):
                loss_of(model, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        return found.metrics

    assert seen(StepInBackward) == seen(plain)
    assert min(seen(plain)[-1]["rotation"].values()) > 0


# --- clipping of updates -----------------------------------------------------------------------------------------------


def clipped_by_norm(u: Tensor, max_rms: float) -> Tensor:
    """Wrong: the norm, which grows with the tensor, in place of the root mean square."""
    return u / (u.norm() / max_rms).clamp(min=1.0)


def keeps_its_promise(clip: Callable, size: float) -> bool:
    """Whether an update is no larger than asked, has its direction, and is left alone bit for bit where it is small."""
    u = size * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rms = u.square().mean().sqrt().item()
    expected = u * min(1.0, 0.5 / rms)
    small = rms > 0.5 or torch.equal(clip(u, 0.5), u)
    return small and torch.allclose(clip(u, 0.5), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e-3, 0.4, 0.6, 1e3])
def test_an_update_is_clipped_by_its_root_mean_square(size: float) -> None:
    assert keeps_its_promise(clipped, size)
    assert torch.equal(clipped(torch.zeros(3), 0.5), torch.zeros(3))


def test_clipping_by_the_norm_is_told_apart() -> None:
    assert not keeps_its_promise(clipped_by_norm, 0.1)


@four
@pytest.mark.parametrize("max_rms", [1e-3, 1e6])
def test_clipped_updates_inside_the_backward_pass_are_those_of_the_ordinary_loop(
    make: Callable, max_rms: float
) -> None:
    clip = partial(clip_updates, max_rms=max_rms)
    expected, _ = loop(clip, make)
    found, _ = loop(lambda optimizer: StepInBackward(clip(optimizer)), make)
    assert same(found.state_dict(), expected.state_dict())


def readable(optimizer: Optimizer) -> Optimizer:
    """Takes its readable form, whatever faster form it has."""
    optimizer.update = partial(Optimizer.update, optimizer)
    return optimizer


@four
def test_a_limit_never_reached_changes_no_bit_and_a_low_one_acts(make: Callable) -> None:
    expected, _ = loop(readable, make)
    assert same(loop(partial(clip_updates, max_rms=1e6), make)[0].state_dict(), expected.state_dict())
    assert not same(loop(partial(clip_updates, max_rms=1e-3), make)[0].state_dict(), expected.state_dict())


def test_a_clipped_step_moves_a_weight_by_lr_times_the_limit() -> None:
    p = nn.Parameter(torch.zeros(VOCAB))
    optimizer = wrapped([p], make=AdamW, by=(partial(clip_updates, max_rms=0.25), StepInBackward), lr=0.1)
    (1e4 * p).sum().backward()
    torch.testing.assert_close(p.detach(), torch.full((VOCAB,), -0.1 * 0.25))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_update_whose_square_is_infinite_is_clipped_too():
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.tensor([1e30, -1e30, 1e30, 1e30])
    clip_updates(SGD([p], lr=0.1)).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, -0.1, -0.1]))


@pytest.mark.parametrize("max_rms", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_means_nothing_is_refused(max_rms: float) -> None:
    with pytest.raises(ValueError, match="max_rms must be a finite number above 0"):
        clip_updates(SGD([nn.Parameter(torch.ones(3))]), max_rms)


def test_a_step_without_a_gradient_calls_its_hooks_once():
    model = nn.Linear(4, 4)
    optimizer = StepInBackward(AdamW(model.parameters()))
    with watch(model, optimizer, [Rotation(group=None, every=1)]) as seen:
        optimizer.step()
    assert len(seen.metrics) == 1


@pytest.mark.parametrize("order", ["backward step zero", "zero backward step", "backward zero step", "step"])
def test_hooks_before_a_step_are_called_once_and_before_the_first_weight_moves(order: str):
    p, seen = nn.Parameter(torch.ones(3)), []
    optimizer = StepInBackward(AdamW([p]))
    optimizer.register_step_pre_hook(lambda *_: seen.append(p.detach().clone()))
    for _ in range(2):
        start = p.detach().clone()
        for what in order.split():
            {"backward": lambda: p.sum().backward(), "step": optimizer.step, "zero": optimizer.zero_grad}[what]()
        assert torch.equal(seen[-1], start)
    assert len(seen) == 2
