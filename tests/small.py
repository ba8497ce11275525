"""A run small enough to be taken many times, and toy hooks and probes for it; all module-level, so recipes can name them."""

import copy
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib import import_module
from io import BytesIO
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import minitrain
from minitrain.data.text import Text
from minitrain.gpt import GPT, MLP
from minitrain.optim import SGD, Adam, AdamW, ClipGradNorm, Lion, Optimizer
from minitrain.recipe import Recipe
from minitrain.runtime.checkpoint import load_checkpoint
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.schedules import warmup_stable_decay
from minitrain.train import Run, build, train

CONTEXT, VOCAB, STEPS = 16, 64, 20
TEXT = bytes((i * i // 7 + i // 5) % VOCAB for i in range(2000))


def assert_one_sentence(error: BaseException, *words: object) -> None:
    """An error's text is one line, and names all `words`."""
    text = str(error)
    assert text
    assert "\n" not in text
    for word in words:
        assert str(word) in text


def tiny_text() -> Text:
    return Text(TEXT, CONTEXT)


def tiny_gpt(mlp: Any = MLP, tied: bool = False, width: int = 32) -> GPT:
    return GPT(vocab_size=VOCAB, depth=1, width=width, context=CONTEXT, mlp=mlp, tied=tied)


def mlp_with_dropout(width: int) -> nn.Module:
    """Draws from the default generator in every training step."""
    return nn.Sequential(MLP(width), nn.Dropout(0.3))


dropout_gpt = partial(tiny_gpt, mlp=mlp_with_dropout)

BASE = Recipe(
    build_model=tiny_gpt,
    data=tiny_text,
    steps=STEPS,
    batch_size=4 * CONTEXT,
    make_optimizer=partial(AdamW, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1),
    schedules={("*", "lr"): partial(warmup_stable_decay, steps=STEPS, warmup=4, cooldown=6)},
    before_step=(partial(ClipGradNorm, 0.3),),  # low enough to act in every step
)


class Averaging:
    """An `after_step` hook with state: a running mean of the weights, offered for evaluation."""

    def __init__(self, beta: float = 0.8):
        self.beta = beta
        self.mean: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for name, p in model.named_parameters():
            self.mean.setdefault(name, p.detach().clone()).lerp_(p.detach(), 1 - self.beta)

    def evaluation_copy(self, model: nn.Module) -> nn.Module:
        averaged = copy.deepcopy(model)
        averaged.load_state_dict(self.mean, strict=False)
        return averaged

    def metrics(self) -> dict[str, float]:
        return {"mean_norm": sum(float(x.norm()) for x in self.mean.values())}

    def state_dict(self) -> dict[str, Tensor]:
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = {name: x.clone() for name, x in state.items()}


class Poison:
    """An `after_step` hook that makes one weight `value` after `step` steps."""

    def __init__(self, step: int, value: float = float("nan")):
        self.step, self.value, self.taken = step, value, 0

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.taken += 1
        if self.taken == self.step:
            with torch.no_grad():
                next(model.parameters()).fill_(self.value)


class At:
    """A probe that calls `act()` after `step` steps; a probe, because a recipe with another hook is another run."""

    every = 1

    def __init__(self, step: int, act: Any):
        self.step, self.act = step, act

    def before(self, run: Run) -> None:
        pass

    def after(self, run: Run) -> None:
        if run.step == self.step:
            self.act()


def stop_at(step: int, number: int = signal.SIGTERM) -> At:
    return At(step, partial(signal.raise_signal, number))


VARIANTS = {
    "fp32": BASE,
    "bf16": replace(BASE, precision="bf16"),
    "accumulated": replace(BASE, micro_batch_size=CONTEXT),
    "dropout": replace(BASE, build_model=dropout_gpt, micro_batch_size=2 * CONTEXT),
    "averaged": replace(BASE, after_step=(Averaging,)),
}

# Grids that do not divide each other, so that a stop falls on and off each of them.
train_small = partial(train, log_every=4, evaluate_every=5, checkpoint_every=6)


def train_in(folder: Path, recipe: Recipe = BASE, **options: Any) -> Run:
    return train_small(recipe, folder=folder, **options)


def bits_of(x: Tensor) -> Tensor:
    """The patterns of its numbers as integers, which tell -0.0 from 0.0."""
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same(a: Any, b: Any) -> bool:
    """Bit for bit the same, all the way down; a NaN is equal to one with the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits_of(a), bits_of(b))
    return type(a) is type(b) and a == b


def through_a_file(state: Any) -> Any:
    """As it comes back from a file that can hold no code."""
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_resumes_bitwise(folder: Path, recipe: Recipe, elsewhere: tuple[str, str] | None = None) -> Run:
    """Stopped after step 7 and resumed it ends as the uninterrupted run, which is returned.

    `elsewhere`, a module and the recipe's name in it, resumes in a process of its own.
    """
    whole, stopped = folder / "whole", folder / "stopped"
    run = train_in(whole, recipe)
    assert not train_in(stopped, recipe, probes=[stop_at(7)]).finished
    if elsewhere:
        in_own_process(f"resume{(str(stopped), *elsewhere)}")
    else:
        train_in(stopped, recipe, resume=True)
    assert same(load_checkpoint(stopped), load_checkpoint(whole))
    return run


# --- what tests of numbers share --------------------------------------------------------------------------------------


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(build: Callable[[], Any]) -> Any:
    """The same module every time; a head that it has is not zero, so that gradients reach every weight."""
    torch.manual_seed(0)
    model = build()
    if hasattr(model, "head"):
        nn.init.normal_(model.head.weight, std=0.1)
    return model


FOUR: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(Adam, lr=0.1, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.1, weight_decay=0.1),
    "lion": partial(Lion, lr=0.1, weight_decay=0.1),
}
four = pytest.mark.parametrize("make", FOUR.values(), ids=FOUR)


def readable(optimizer: Optimizer) -> Optimizer:
    """Has an optimizer take its readable form, whatever faster form it has."""
    optimizer.update = partial(Optimizer.update, optimizer)
    return optimizer


def fused(optimizer: Optimizer) -> Optimizer:
    """As it is: with the kernel that AdamW takes where it can."""
    return optimizer


def every_pair(*choices: Iterable[Any]) -> list[tuple]:
    """So few combinations, one value of each of `choices`, that any two values of different choices still meet.

    A fault that takes three values at once may be missed: a product of all choices is for where one is to be feared.
    """
    values = [list(choice) for choice in choices]
    places = list(product(*(range(len(choice)) for choice in values)))
    pairs = {at: set(combinations(enumerate(at), 2)) for at in places}
    left, found = set().union(*pairs.values()), []
    while left:
        best = max(places, key=lambda at: len(pairs[at] & left))
        left -= pairs[best]
        found.append(tuple(choice[i] for choice, i in zip(values, best, strict=True)))
    return found


# --- what needs a process of its own ----------------------------------------------------------------------------------


def in_own_process(call: str, module: str = "small", seconds: float = 500) -> str:
    """What a call of a module's function prints, in a process without the test suite's checks of types and shapes."""
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests, tests / "attack", Path(minitrain.__file__).parent.parent)))
    found = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.{call}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def compile_and_compare() -> None:
    """Prints the largest difference between a compiled and an eager run's losses."""
    torch.set_num_threads(1)
    print(float((train_small(BASE, compile=True).losses - train_small(BASE).losses).abs().max()))


def compile_and_chunk() -> None:
    """Prints how far a compiled run with the loss in chunks is from the eager plain one, and its graphs and their calls."""
    torch.set_num_threads(1)
    graphs, calls, compiler = 0, 0, torch.compile

    def counting(graph: Any, inputs: Any) -> Callable:
        nonlocal graphs
        graphs += 1

        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return graph(*args)

        return call

    torch.compile = partial(compiler, backend=counting)
    chunked = train_small(replace(BASE, loss=partial(chunked_cross_entropy, chunk=24)), compile=True)
    print(float((chunked.losses - train_small(BASE).losses).abs().max()), graphs, calls)


def resume(folder: str, module: str, recipe: str) -> None:
    """To the end, with a recipe by its name, which a command can hold."""
    torch.set_num_threads(1)
    train_in(Path(folder), getattr(import_module(module), recipe), resume=True)


# --- being killed: forks of that process, which need not import torch again ------------------------------------------


def long(recipe: Recipe, steps: int) -> Recipe:
    """The same with more steps, so that a kill has time to strike anywhere."""
    schedule = partial(warmup_stable_decay, steps=steps, warmup=4, cooldown=6)
    return replace(recipe, steps=steps, schedules={("*", "lr"): schedule})


def start_or_resume(folder: Path, recipe: Recipe) -> None:
    """As a person would who finds the folder after a crash."""
    train_in(folder, recipe, resume=(folder / "metrics.jsonl").exists())


def fork(act: Callable[[], object]) -> int:
    """Runs `act()` in a fork of this process, where a warning is an error; the fork's id."""
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("error")
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def import_everything() -> None:
    """What a run imports only when it starts, torch's optimizers above all; without a backward pass, so without threads."""
    torch.set_num_threads(1)
    build(BASE)


def killed(child: int) -> bool:
    """Waits for a fork; whether SIGKILL ended it. Any other failure is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run failed with status {status}")
    return status != 0


def die_at_file_operation(number: int, folder: Path) -> None:
    """Has this process kill itself before the `number`-th opening, flushing, renaming or removing of a file in `folder`."""
    left, fsync = number, os.fsync

    def count(half_written: int | None = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if half_written is not None:
                os.truncate(half_written, os.fstat(half_written).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(str(folder)):
            count()

    def flush(file: int) -> None:
        count(half_written=file)
        fsync(file)

    sys.addaudithook(audit)
    os.fsync = flush


def run_until_killed(folder: Path, recipe: Recipe, operation: int) -> None:
    die_at_file_operation(operation, folder)
    start_or_resume(folder, recipe)


def kill_again_and_again(folder: str, variant: str, first: int = 1, stride: int = 1) -> None:
    """One history: killed at its `first` file operation, resumed, killed `stride` later than that, and so on to its end."""
    import_everything()
    operation = first
    while killed(fork(partial(run_until_killed, Path(folder), VARIANTS[variant], operation))):
        operation += stride
    print(operation)


def kill_once_at_each_operation(folder: str, variant: str) -> None:
    """One history for each file operation: killed there, then resumed to the end. Prints how many there were."""
    import_everything()
    operation = 1
    while killed(fork(partial(run_until_killed, Path(folder, str(operation)), VARIANTS[variant], operation))):
        killed(fork(partial(start_or_resume, Path(folder, str(operation)), VARIANTS[variant])))
        operation += 1
    print(operation - 1)
