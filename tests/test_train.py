"""The loop equals a plain one, gradients do not depend on how the batch is split, and looking changes nothing."""

import math
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import (
    BASE,
    CONTEXT,
    STEPS,
    VARIANTS,
    VOCAB,
    At,
    Averaging,
    Poison,
    dropout_gpt,
    in_own_process,
    same,
    seeded,
    stop_at,
    tiny_gpt,
    tiny_text,
    train_small,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minitrain.optim import AdamW, ClipGradNorm
from minitrain.recipe import Recipe, by_kind
from minitrain.train import Run, build, evaluate, evaluation_model, gradient, train

# --- accumulation -----------------------------------------------------------------------------------------------------

ROWS = 12


def gpt_in_float64() -> nn.Module:
    """With a head that is not zero, so that gradients reach every weight."""
    return seeded(tiny_gpt).double()


def cross_entropy_in_float64(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def summed(run: Run, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Wrong: the micro batches' means are added up, not averaged."""
    rows = run.recipe.micro_batch_size // CONTEXT
    inputs, targets = run.data.batch(run.recipe.seed, run.step, ROWS)
    losses = [run.recipe.loss(forward, x, y) for x, y in zip(inputs.split(rows), targets.split(rows), strict=True)]
    torch.stack(losses).sum().backward()
    return torch.stack(losses).sum().detach()


def last_only(run: Run, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Wrong: the gradient is cleared between micro batches."""
    rows = run.recipe.micro_batch_size // CONTEXT
    inputs, targets = run.data.batch(run.recipe.seed, run.step, ROWS)
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        run.optimizer.zero_grad()
        loss = run.recipe.loss(forward, x, y)
        loss.backward()
    return loss.detach()


def equals_the_whole_batch(accumulate: Callable, micro_rows: int) -> bool:
    """Whether loss and gradient of a batch taken `micro_rows` at a time are those of the whole batch."""
    sizes = {"batch_size": ROWS * CONTEXT, "micro_batch_size": micro_rows * CONTEXT}
    recipe = replace(BASE, build_model=gpt_in_float64, loss=cross_entropy_in_float64, **sizes)
    run = build(recipe)
    loss = accumulate(run, run.model)
    found = [p.grad.clone() for p in run.model.parameters()]
    run.optimizer.zero_grad()
    whole = cross_entropy_in_float64(run.model, *run.data.batch(recipe.seed, 0, ROWS))
    whole.backward()
    close = [
        torch.allclose(g, p.grad, rtol=1e-10, atol=1e-14) for g, p in zip(found, run.model.parameters(), strict=True)
    ]
    assert all(p.grad.norm() > 0 for p in run.model.parameters())
    return all(close) and math.isclose(loss.item(), whole.item(), rel_tol=1e-6)  # the loop keeps losses in float32


def test_accumulated_loss_and_gradient_are_those_of_the_whole_batch() -> None:
    for micro_rows in (1, 2, 3, 4, 6, 12):
        assert equals_the_whole_batch(gradient, micro_rows)
    for wrong in (summed, last_only):
        assert not equals_the_whole_batch(wrong, 4)


# --- the loop, written out --------------------------------------------------------------------------------------------


def multiplier(step: int, warmup: int = 4, cooldown: int = 6) -> float:
    """Warmup, plateau, and a fall along `1 - sqrt(x)`, as in `BASE`."""
    hold = STEPS - cooldown
    return min((step + 1) / warmup, 1.0) * (1 - ((step - hold) / cooldown) ** 0.5 if step >= hold else 1.0)


def plain_loop() -> tuple[nn.Module, list[float]]:
    """What `BASE` says, without a line of the loop, the hooks, the groups or the schedules of the package."""
    torch.manual_seed(BASE.seed)
    model, data = tiny_gpt(), tiny_text()
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * multiplier(step)
        inputs, targets = data.batch(BASE.seed, step, 4)
        loss = F.cross_entropy(model(inputs).view(-1, VOCAB), targets.reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def test_the_loop_is_a_plain_one_bit_for_bit() -> None:
    model, losses = plain_loop()
    run = train_small(BASE)
    assert run.finished
    assert run.losses.tolist() == losses
    assert same(run.model.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"before_step": ()}, {"schedules": {}}, {"make_optimizer": partial(AdamW, lr=1e-2)}],
    ids=["seed", "clipping", "schedule", "optimizer"],
)
def test_every_field_of_the_recipe_shows_in_the_bits(changed: dict[str, Any]) -> None:
    run = train_small(replace(BASE, **changed))
    assert not same(run.model.state_dict(), plain_loop()[0].state_dict())


def test_the_seed_sets_the_initial_weights() -> None:
    zero, again, one = (build(replace(BASE, seed=seed)).model.embedding.weight for seed in (0, 0, 1))
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)


def test_bf16_rounds_the_products_and_leaves_weights_and_moments_in_float32() -> None:
    exact, rounded = train_small(BASE), train_small(VARIANTS["bf16"])
    assert not torch.equal(rounded.losses, exact.losses)
    torch.testing.assert_close(rounded.losses, exact.losses, rtol=1e-2, atol=0)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert {state["m"].dtype for state in rounded.optimizer.state.values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_losses_are_those_of_the_eager_run_within_rounding() -> None:
    """In a process of its own: the test suite's checks of shapes cannot be compiled."""
    assert float(in_own_process("compile_and_compare()")) < 1e-4


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 1e6])
def test_clipping_is_torchs_and_reports_the_norm_before(max_norm: float) -> None:
    run, expected = build(BASE), build(BASE)
    gradient(run, run.model)
    gradient(expected, expected.model)
    norm = nn.utils.clip_grad_norm_(expected.model.parameters(), max_norm)
    hook = ClipGradNorm(max_norm)
    hook(run.model, run.optimizer)
    assert same([p.grad for p in run.model.parameters()], [p.grad for p in expected.model.parameters()])
    assert hook.metrics() == {"grad_norm": norm.item()}


def test_the_reported_norm_does_not_depend_on_the_limit() -> None:
    tight, loose = (train_small(replace(BASE, steps=1, schedules={}, before_step=(partial(ClipGradNorm, limit),)))
                    for limit in (1e-3, 1e6))  # fmt: skip
    assert tight.metrics[-1]["grad_norm"] == loose.metrics[-1]["grad_norm"] > 1e-3


def test_clipping_refuses_a_norm_that_means_nothing() -> None:
    for max_norm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="max_norm must be a finite number above 0, not"):
            ClipGradNorm(max_norm)


# --- evaluation -------------------------------------------------------------------------------------------------------


def window_losses(model: nn.Module) -> Tensor:
    """The loss of each validation window by itself."""
    batches = tiny_text().validation(1)
    with torch.no_grad():
        return torch.stack([F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches])


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_evaluation_is_the_mean_over_all_windows(rows: int) -> None:
    """Whatever the batch: 5 rows leave a last batch that is smaller and must not count for more."""
    run = build(replace(BASE, batch_size=rows * CONTEXT))
    nn.init.normal_(run.model.head.weight)
    losses = window_losses(run.model)
    assert len(losses) % 5 != 0
    assert losses.std() > 0.01
    assert evaluate(run) == pytest.approx(losses.mean().item(), rel=1e-6)


def test_evaluation_goes_by_the_micro_batch() -> None:
    """What fits into memory in training must fit in evaluation."""
    run = build(replace(BASE, micro_batch_size=2 * CONTEXT))
    seen: list[int] = []
    run.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    evaluate(run)
    assert max(seen) == 2


def test_evaluation_leaves_everything_as_it_was() -> None:
    run = build(replace(BASE, build_model=dropout_gpt))
    nn.init.normal_(run.model.head.weight)
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    random = torch.get_rng_state()
    first, second = evaluate(run), evaluate(run)
    assert first == second
    assert first == pytest.approx(window_losses(run.model.eval()).mean().item(), rel=1e-6)  # without dropout
    run.model.train()
    assert torch.equal(torch.get_rng_state(), random)
    assert same(before, run.model.state_dict())
    assert all(p.grad is None for p in run.model.parameters())


def fail_in_evaluation(run: Run) -> None:
    with evaluation_model(run) as model:
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_even_after_an_error(training: bool) -> None:
    run = build(replace(BASE, build_model=dropout_gpt))
    run.model.train(training)
    with pytest.raises(RuntimeError, match="stop"):
        fail_in_evaluation(run)
    assert all(module.training == training for module in run.model.modules())


class ZeroEvaluated(AdamW):
    """An optimizer that offers the model with a zero head, whose loss is known."""

    def evaluation_copy(self, model: nn.Module) -> nn.Module:
        copied = tiny_gpt()
        copied.load_state_dict({**model.state_dict(), "head.weight": torch.zeros(VOCAB, 32)})
        return copied


def test_evaluation_uses_the_copy_of_an_optimizer() -> None:
    run = build(replace(BASE, make_optimizer=ZeroEvaluated))
    nn.init.normal_(run.model.head.weight)
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    assert evaluate(run) == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert window_losses(run.model).mean() > math.log(VOCAB) + 0.1
    assert same(before, run.model.state_dict())


def test_evaluation_uses_the_copy_of_a_hook() -> None:
    run = train_small(VARIANTS["averaged"])
    averaged = tiny_gpt()
    averaged.load_state_dict(run.after_step[0].mean, strict=False)
    expected = window_losses(averaged).mean().item()
    assert run.metrics[-1]["val_loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(window_losses(run.model).mean().item() - expected) > 1e-4


def test_averaging_for_evaluation_does_not_change_the_training() -> None:
    averaged, plain = train_small(VARIANTS["averaged"]), train_small(BASE)
    assert same(averaged.losses, plain.losses)
    assert same(averaged.model.state_dict(), plain.model.state_dict())


# --- probes -----------------------------------------------------------------------------------------------------------


class Watcher:
    """Notes when it is called and whether there are gradients then."""

    def __init__(self, every: int):
        self.every = every
        self.calls: list[tuple[str, int, bool]] = []

    def note(self, when: str, run: Run) -> None:
        self.calls.append((when, run.step, all(p.grad is not None for p in run.model.parameters())))

    def before(self, run: Run) -> None:
        self.note("before", run)

    def after(self, run: Run) -> dict[str, Any]:
        self.note("after", run)
        return {f"watched every {self.every}": run.step}


def test_probes_are_called_around_every_nth_step_with_gradients_in_reach_after_it() -> None:
    probe = Watcher(7)
    run = train_small(BASE, probes=[probe])
    assert probe.calls == [("before", 6, False), ("after", 7, True), ("before", 13, False), ("after", 14, True)]
    assert [line["step"] for line in run.metrics if "watched every 7" in line] == [7, 14]
    assert [line["watched every 7"] for line in run.metrics if "watched every 7" in line] == [7, 14]


def test_a_probe_and_a_log_of_the_same_step_share_a_line() -> None:
    run = train_small(BASE, probes=[Watcher(4)])
    assert all("loss" in line for line in run.metrics if "watched every 4" in line)
    assert len({line["step"] for line in run.metrics}) == len(run.metrics)


def test_probes_may_come_from_a_generator() -> None:
    run = train_small(BASE, probes=(Watcher(every) for every in (5, 7)))
    assert [line["step"] for line in run.metrics if "watched every 7" in line] == [7, 14]


# --- schedules --------------------------------------------------------------------------------------------------------


class History:
    """An `after_step` hook that keeps the learning rate of each group as it was in the step."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            self.values.setdefault(group["name"], []).append(group["lr"])


def one_over(step: int) -> float:
    return 1 / (step + 1)


def doubling(step: int) -> float:
    return 2.0**step


def test_each_step_takes_its_own_value_of_the_schedule_of_its_group() -> None:
    schedules = {("*", "lr"): one_over, ("gains", "lr"): doubling}
    run = train_small(replace(BASE, steps=5, after_step=(History,), schedules=schedules))
    for name, rates in run.after_step[0].values.items():
        assert rates == [1e-2 * (doubling if name == "gains" else one_over)(step) for step in range(5)]


@pytest.mark.parametrize("address", [("nobody", "lr"), ("*", "momentum"), ("gains", "momentum")])
def test_a_schedule_of_nothing_is_refused(address: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"schedule of '{address[1]}' in '{re.escape(address[0])}' fits no parameter"):
        build(replace(BASE, schedules={address: one_over}))


# --- what cannot work is refused before the first step ----------------------------------------------------------------


def without_gains(model: nn.Module) -> list[dict[str, Any]]:
    return [group for group in by_kind(model) if group["name"] != "gains"]


def test_a_parameter_without_an_owner_is_refused() -> None:
    with pytest.raises(ValueError, match="is in no group; every parameter must be in exactly one group"):
        build(replace(BASE, param_groups=without_gains))


@pytest.mark.parametrize("sizes", [{"batch_size": 24}, {"batch_size": 64, "micro_batch_size": 8}])
def test_sizes_that_cut_a_row_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"make both multiples of the .*16"):
        build(replace(BASE, **sizes))


@pytest.mark.parametrize("name", ["log_every", "evaluate_every", "checkpoint_every"])
def test_an_interval_of_no_steps_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*at least 1 step"):
        train(BASE, **{name: 0})


# --- numbers that are none --------------------------------------------------------------------------------------------


def poisoned(step: int, value: float = math.nan) -> Recipe:
    return replace(BASE, after_step=(partial(Poison, step, value),))


@pytest.mark.parametrize(
    ("step", "value"), [(1, math.nan), (3, math.inf), (4, math.nan), (17, math.inf), (19, math.nan)]
)
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(step: int, value: float) -> None:
    with pytest.raises(FloatingPointError, match=f"the loss is nan at step {step}; lower lr"):
        train_small(poisoned(step, value))


# --- being told to stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_comes_back_unfinished_after_the_step_it_was_in(number: int) -> None:
    run = train_small(BASE, probes=[stop_at(7, number)])
    assert run.step == 7
    assert not run.finished
    assert run.losses.isfinite().tolist() == [True] * 7 + [False] * 13


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt):
        train_small(BASE, probes=[stop_at(7, signal.SIGINT), stop_at(7, signal.SIGINT)])


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of the test's own, so that it shows whether a run puts them back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    own = {number: partial(print, number) for number in numbers}
    for number in numbers:
        signal.signal(number, own[number])
    yield own
    for number in numbers:
        signal.signal(number, before[number])


def fail() -> None:
    raise RuntimeError("a probe failed")


@pytest.mark.parametrize("probe", [At(99, fail), At(7, fail), stop_at(7)], ids=["finished", "failed", "stopped"])
def test_handlers_are_put_back(handlers: dict[int, Any], probe: At) -> None:
    try:
        train_small(BASE, probes=[probe])
    except RuntimeError:
        assert probe.act is fail
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_run_outside_the_main_thread_trains_without_touching_signals(handlers: dict[int, Any]) -> None:
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(train_small(BASE)))
    thread.start()
    thread.join()
    assert runs[0].finished
    assert same(runs[0].losses, train_small(BASE).losses)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_hooks_are_made_anew_for_each_run() -> None:
    assert build(VARIANTS["averaged"]).after_step[0] is not build(VARIANTS["averaged"]).after_step[0]
    assert isinstance(build(VARIANTS["averaged"]).after_step[0], Averaging)


class CountWaits(TorchDispatchMode):
    """Counts the operations that make the CPU wait for the device: those that bring a value to Python."""

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


class WaitsSeen:
    """A probe that notes after every step how many waits there were so far."""

    every = 1

    def __init__(self, counter: CountWaits):
        self.counter, self.seen = counter, []

    def before(self, run: Run) -> None:
        pass

    def after(self, run: Run) -> None:
        self.seen.append(self.counter.waits)


def test_the_loop_waits_for_the_device_only_when_it_logs() -> None:
    with CountWaits() as counter:
        probe = WaitsSeen(counter)
        train(BASE, probes=[probe], log_every=10, evaluate_every=20, checkpoint_every=20)
        assert counter.waits > probe.seen[-1]  # the counter counts: the last log waits
    steps_since_the_last_log = [probe.seen[i] - probe.seen[i - 1] for i in range(1, len(probe.seen)) if i % 10]
    assert set(steps_since_the_last_log) == {0}
