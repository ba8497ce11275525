"""`compare`: arms x learning rates x seeds, in parallel, cached and resumable.

    runs = compare({"A": recipe, "B": replace(recipe, ...)}, seeds=range(5))
    difference(runs, "B", "A", final("val_loss"))        one number per seed

Every run has a folder of its own, named by all that its result depends on: the recipe's text, seed, data, device, torch
version and the source it reaches. What is there already is not run again, and a run that was killed goes on from its
newest checkpoint.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from minitrain.lab import source
from minitrain.lab.worker import carry_out_all, pack
from minitrain.recipe import Recipe, describe
from minitrain.runtime.checkpoint import export_weights
from minitrain.runtime.device import choose_device
from minitrain.runtime.files import check_writable, only_writer, write_text
from minitrain.runtime.folder import remove_leftovers
from minitrain.train import train

Arm = Recipe | Callable[..., list[dict[str, Any]]]
Metrics = list[dict[str, Any]]
Measure = Callable[[Metrics], float]
CACHE = Path("runs") / "cache"


@dataclass(frozen=True)
class Result:
    """What one run measured. `diverged` says why it has no end, `crashed` why it has no result."""

    arm: str
    lr: float | None
    seed: int
    metrics: Metrics = field(default_factory=list)
    diverged: str | None = None
    crashed: str | None = None
    weights: Path | None = None
    seconds: float = 0.0
    """CPU time of the call that finished it."""


@dataclass(frozen=True)
class Runs:
    """The results of `compare`, and the texts of the arms and probes they were made with."""

    arms: dict[str, dict[str, str]]
    probes: dict[str, str]
    seeds: list[int]
    learning_rates: list[float | None]
    results: dict[tuple[str, float | None, int], Result]
    environment: dict[str, str]

    def metrics(self, arm: str, seed: int | None = None, lr: float | None = None) -> Metrics:
        """The logged lines of one run; without `seed`, of the first."""
        return self.result(arm, self.seeds[0] if seed is None else seed, lr).metrics

    def weights(self, arm: str, seed: int, lr: float | None = None) -> Path:
        """The file of the weights at the run's end, where `compare` was called with `keep_weights`."""
        path = self.result(arm, seed, lr).weights
        if path is None:
            raise ValueError("the weights were not kept; call compare with keep_weights=True")
        return path

    def values(self, arm: str, measure: Measure, lr: float | None = None) -> list[float]:
        """One number per seed, in the order of the seeds; infinite where the run diverged."""
        results = [self.result(arm, seed, lr) for seed in self.seeds]
        return [math.inf if result.diverged else float(measure(result.metrics)) for result in results]

    def result(self, arm: str, seed: int, lr: float | None = None) -> Result:
        """One run. Raises `ValueError` where there is none or where it crashed."""
        if (arm, lr, seed) not in self.results:
            there = f"arms {', '.join(self.arms)}; learning rates {self.learning_rates}; seeds {self.seeds}"
            raise ValueError(f"there is no run of arm {arm!r} with lr {lr} and seed {seed}; there are {there}")
        found = self.results[arm, lr, seed]
        if found.crashed:
            raise ValueError(f"arm {arm!r} with seed {seed} has no result: {found.crashed}")
        return found

    def best_lr(self, arm: str, measure: Measure, seed: int | None = None) -> float | None:
        """The learning rate with the smallest mean over the seeds, or the smallest value of one seed."""

        def height(lr: float | None) -> float:
            values = self.values(arm, measure, lr)
            value = statistics.mean(values) if seed is None else values[self.seeds.index(seed)]
            return math.inf if math.isnan(value) else value

        return min(self.learning_rates, key=height)

    def crashed(self) -> list[Result]:
        """The runs that have no result."""
        return [result for result in self.results.values() if result.crashed]


# --- measures: from the logged lines of a run to a number ----------------------------------------------------------------


def series(metrics: Metrics, key: str) -> list[tuple[int, Any]]:
    """`(step, value)` of every line that has `key`; `rotation.blocks.0.mlp.up.weight` looks inside a dictionary."""
    outer, _, inner = key.partition(".")
    lines = [(line["step"], or_nan(line[outer])) for line in metrics if outer in line]
    found = [
        (step, value[inner] if inner else value)
        for step, value in lines
        if not inner or (isinstance(value, dict) and inner in value)
    ]
    if not found:
        raise ValueError(
            f"no line of this run has {key!r}; the keys are {', '.join(sorted({k for m in metrics for k in m}))}"
        )
    return found


def or_nan(value: Any) -> Any:
    """The same with NaN for null, which is how a log says that something was no longer a number, or infinite."""
    if isinstance(value, dict):
        return {key: or_nan(x) for key, x in value.items()}
    if isinstance(value, list):
        return [or_nan(x) for x in value]
    return math.nan if value is None else value


def final(key: str) -> Measure:
    """The last value of `key`."""
    return lambda metrics: series(metrics, key)[-1][1]


def at(key: str, step: int) -> Measure:
    """The value of `key` at a step."""

    def measure(metrics: Metrics) -> float:
        found = dict(series(metrics, key))
        if step not in found:
            raise ValueError(f"{key!r} was not logged at step {step}; it was at {sorted(found)}")
        return found[step]

    return measure


def mean_late(key: str, share: float = 0.25) -> Measure:
    """The mean over the last `share` of the logged values of `key`; where these are dictionaries, over their values too."""

    def measure(metrics: Metrics) -> float:
        values = [value for _, value in series(metrics, key)]
        late = values[-max(1, round(share * len(values))) :]
        each = [statistics.fmean(x.values()) if isinstance(x, dict) else x for x in late]
        return statistics.fmean(each)

    return measure


def difference(runs: Runs, arm: str, baseline: str, measure: Measure, lr: float | None = None) -> list[float]:
    """`arm - baseline` per seed: what both owe to the seed cancels."""
    pairs = zip(runs.values(arm, measure, lr), runs.values(baseline, measure, lr), strict=True)
    return [a - b for a, b in pairs]


def ratio(runs: Runs, arm: str, baseline: str, measure: Measure, lr: float | None = None) -> list[float]:
    """`arm / baseline` per seed."""
    pairs = zip(runs.values(arm, measure, lr), runs.values(baseline, measure, lr), strict=True)
    return [a / b for a, b in pairs]


def over_steps(runs: Runs, arm: str, key: str, lr: float | None = None) -> tuple[list[int], list[list[Any]]]:
    """The steps at which all seeds logged `key`, and the values of each seed: a resumed run lacks the window of its stop."""
    found = [dict(series(runs.metrics(arm, seed, lr), key)) for seed in runs.seeds]
    steps = [step for step in found[0] if all(step in line for line in found)]
    return steps, [[line[step] for step in steps] for line in found]


# --- running -------------------------------------------------------------------------------------------------------------


def compare(
    arms: Mapping[str, Arm],
    *,
    seeds: Iterable[int],
    learning_rates: Iterable[float] | None = None,
    probes: Iterable[Callable] = (),
    log_every: int = 25,
    evaluate_every: int = 250,
    workers: int | None = None,
    cache: Path | str = CACHE,
    device: str = "cpu",
    keep_weights: bool = False,
    progress: bool = False,
) -> Runs:
    """Runs every arm with every learning rate and seed, or takes from `cache` what was run before.

    An arm is a `Recipe`, or a module-level function (or a `functools.partial` of one) that is called with `seed`, and in a
    sweep with `lr`, and returns lines of metrics. In a sweep a recipe's optimizer is given the learning rate as `lr`.
    `probes` are makers of probes. `workers` processes of one thread each; without it, one per core up to 2, and one on
    anything but a CPU. A run that crashes is reported in its `Result` while the others finish.
    """
    seeds = list(seeds)
    rates: list[float | None] = [None] if learning_rates is None else [*learning_rates]
    if not arms or not seeds or not rates:
        raise ValueError("compare needs at least one arm, one seed and one learning rate")
    if any(len(set(values)) < len(values) for values in (seeds, rates)):
        raise ValueError("a seed or a learning rate is there twice; name each once")
    device = choose_device(device).value
    workers = number_of_workers(workers, device)
    probes = tuple(probes)
    plans = {
        (name, lr, seed): Plan(
            prepared(arm, lr, seed), probes, log_every, evaluate_every, device, keep_weights and isinstance(arm, Recipe)
        )
        for name, arm in arms.items()
        for lr in rates
        for seed in seeds
    }
    check_writable(Path(cache), "go to a folder where files can be written")
    digests: dict[Any, str] = {}
    folders = {key: Path(cache).resolve() / plan.key(digests) for key, plan in plans.items()}
    missing = [key for key, plan in plans.items() if not is_done(folders[key], plan.keep_weights)]
    tasks = [pack(carry_out, plan=plans[key], folder=folders[key]) for key in missing]
    crashed: dict[tuple[str, float | None, int], str] = {}
    bar = tqdm(total=len(plans), initial=len(plans) - len(missing), unit="run", disable=not progress, smoothing=0)
    with bar:
        for i, problem in carry_out_all(tasks, min(workers, len(tasks) or 1)):
            if problem:
                crashed[missing[i]] = problem
            bar.update()
    results = {key: read_result(key, folders[key], crashed.get(key)) for key in plans}
    texts = {name: describe(arm) for name, arm in arms.items()}
    data = ", ".join(sorted({digest[:16] for key, digest in digests.items() if isinstance(key, str)}))
    environment = {"torch": str(torch.__version__), "device": torch.device(device).type, "data": data}
    return Runs(texts, describe(probes, "probes"), seeds, rates, results, environment)


def prepared(arm: Arm, lr: float | None, seed: int) -> Arm:
    """An arm with its seed and learning rate."""
    if isinstance(arm, Recipe):
        maker: Callable = arm.make_optimizer
        if lr is not None:
            maker = partial(maker, lr=lr)
        return replace(arm, seed=seed, make_optimizer=maker)
    return partial(arm, seed=seed) if lr is None else partial(arm, seed=seed, lr=lr)


@dataclass(frozen=True)
class Plan:
    """All that a run's result depends on."""

    arm: Arm
    probes: tuple[Callable, ...]
    log_every: int
    evaluate_every: int
    device: str
    keep_weights: bool

    def key(self, digests: dict[Any, str]) -> str:
        """16 hexadecimal digits; the same for the same run, tomorrow and elsewhere.

        `digests` keeps those of data and source from one plan to the next.
        """
        arm, probes = describe(self.arm), describe(self.probes, "probes")
        names = [*arm.values(), *probes.values()]
        facts = {
            "arm": arm,
            "probes": probes,
            "every": [self.log_every, self.evaluate_every],
            "device": torch.device(self.device).type,
            "versions": [platform.python_version(), np.__version__, str(torch.__version__)],
        }
        if isinstance(self.arm, Recipe):
            names.append("minitrain.train.train")
            text = str(describe(self.arm.data))
            if text not in digests:
                digests[text] = self.arm.data().digest
            facts["data"] = digests[text]
        roots = source.roots(names)
        if roots not in digests:
            digests[roots] = source.digest(names)
        facts["source"] = digests[roots]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def number_of_workers(asked: int | None, device: str = "cpu") -> int:
    """As many as asked for; else one per core up to 2, and one on anything but a CPU. Raises `ValueError` below 1."""
    if asked is None:
        return min(2, os.cpu_count() or 1) if torch.device(device).type == "cpu" else 1
    if asked < 1:
        raise ValueError(f"workers must be at least 1, not {asked}")
    return asked


def carry_out(plan: Plan, folder: Path) -> None:
    """One run, in a worker: leaves `result.json`, and the weights if asked for, in `folder`.

    Raises `InterruptedError` where the run was told to stop, and `RuntimeError` where the code or the data are no longer
    those that the folder is named by.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, wait=True):  # another caller may be making the same run
        remove_leftovers(folder)
        if not has_results(folder, plan.keep_weights):
            started = time.process_time()
            result = outcome(plan, folder)
            if plan.key({}) != folder.name:
                raise RuntimeError("the code or the data changed while this ran; call again")
            write_text(folder / "seconds", f"{time.process_time() - started:.2f}\n")
            write_text(folder / "result.json", json.dumps(result) + "\n")
        shutil.rmtree(folder / "run", ignore_errors=True)  # checkpoints are large, and no longer needed


def outcome(plan: Plan, folder: Path) -> dict[str, Any]:
    """Runs a plan, or goes on with it, in `folder / "run"`, and returns what `result.json` is to hold."""
    if not isinstance(plan.arm, Recipe):
        return {"metrics": plan.arm(), "diverged": None}
    lines = folder / "run" / "metrics.jsonl"
    try:
        run = train(
            plan.arm,
            device=plan.device,
            folder=folder / "run",
            resume=lines.exists(),
            probes=[make() for make in plan.probes],
            log_every=plan.log_every,
            evaluate_every=plan.evaluate_every,
        )
    except FloatingPointError as error:
        metrics = [json.loads(line) for line in lines.read_text().splitlines()]
        return {"metrics": metrics, "diverged": str(error)}
    if not run.finished:
        raise InterruptedError(f"stopped after step {run.step}; call again, and it goes on")
    if plan.keep_weights:
        export_weights(run.model, folder / "model.safetensors")
    return {"metrics": run.metrics, "diverged": None}


def is_done(folder: Path, keep_weights: bool) -> bool:
    """Whether a run's folder holds all that was asked for, and nothing else."""
    return has_results(folder, keep_weights) and not (folder / "run").exists()


def has_results(folder: Path, keep_weights: bool) -> bool:
    """Whether a run's folder holds all that was asked for."""
    path = folder / "result.json"
    return path.exists() and (
        not keep_weights or (folder / "model.safetensors").exists() or bool(load(folder)["diverged"])
    )


def load(folder: Path) -> dict[str, Any]:
    """A run's `result.json`, and its `seconds`. Raises `ValueError` where either is damaged."""
    try:
        found = json.loads((folder / "result.json").read_text())
        whole = found.keys() == {"metrics", "diverged"} and all(line.keys() >= {"step"} for line in found["metrics"])
        found["seconds"] = float((folder / "seconds").read_text())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{folder} is damaged; delete it, and the run will be made again")
    return found


def read_result(key: tuple[str, float | None, int], folder: Path, crashed: str | None) -> Result:
    """The result that a run left in its folder."""
    if crashed:
        return Result(*key, crashed=crashed)
    weights = folder / "model.safetensors"
    return Result(*key, **load(folder), weights=weights if weights.exists() else None)
