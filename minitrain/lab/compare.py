"""`compare`: arms x learning rates x seeds, in parallel, cached and resumable.

    runs = compare({"A": recipe, "B": replace(recipe, ...)}, seeds=range(5))
    difference(runs, "B", "A", final("val_loss"))        one number per seed

Every run has a folder of its own, named by all that its result depends on: the recipe's text, seed, data, device, torch
version and the source it reaches. What is there already is not run again, and a run that was killed goes on from its
newest checkpoint.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minitrain.lab import source
from minitrain.lab.worker import carry_out_all, pack
from minitrain.recipe import Recipe, describe
from minitrain.runtime.checkpoint import export_weights
from minitrain.runtime.device import choose_device
from minitrain.runtime.files import only_writer, write_text
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


@dataclass(frozen=True)
class Runs:
    """The results of `compare`, and what they were made of: `arms` holds the text of each arm."""

    arms: dict[str, dict[str, str]]
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
            return statistics.mean(values) if seed is None else values[self.seeds.index(seed)]

        return min(self.learning_rates, key=height)

    def crashed(self) -> list[Result]:
        """The runs that have no result."""
        return [result for result in self.results.values() if result.crashed]


# --- measures: from the logged lines of a run to a number ----------------------------------------------------------------


def series(metrics: Metrics, key: str) -> list[tuple[int, Any]]:
    """`(step, value)` of every line that has `key`; `rotation.blocks.0.mlp.up.weight` looks inside a dictionary."""
    outer, _, inner = key.partition(".")
    lines = [(line["step"], line[outer]) for line in metrics if line.get(outer) is not None]
    found = [(step, value[inner] if inner else value) for step, value in lines if not inner or inner in value]
    if not found:
        raise ValueError(
            f"no line of this run has {key!r}; the keys are {', '.join(sorted({k for m in metrics for k in m}))}"
        )
    return found


def final(key: str) -> Measure:
    """The last value of `key`."""
    return lambda metrics: series(metrics, key)[-1][1]


def at(key: str, step: int) -> Measure:
    """The value of `key` at a step."""
    return lambda metrics: dict(series(metrics, key))[step]


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
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    device = choose_device(device).value
    if workers is None:
        workers = min(2, os.cpu_count() or 1) if torch.device(device).type == "cpu" else 1
    probes = tuple(probes)
    plans = {
        (name, lr, seed): Plan(prepared(arm, lr, seed), probes, log_every, evaluate_every, device, keep_weights)
        for name, arm in arms.items()
        for lr in rates
        for seed in seeds
    }
    folders = {key: Path(cache).resolve() / plan.key() for key, plan in plans.items()}
    missing = [key for key in plans if not is_done(folders[key], keep_weights)]
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
    return Runs(texts, seeds, rates, results, {"torch": str(torch.__version__), "device": torch.device(device).type})


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

    def key(self) -> str:
        """16 hexadecimal digits; the same for the same run, tomorrow and elsewhere."""
        text = {**describe(self.arm), **describe(self.probes, "probes")}
        names = [*text.values(), "minitrain.train.train"] if isinstance(self.arm, Recipe) else text.values()
        facts = {
            "text": text,
            "every": [self.log_every, self.evaluate_every],
            "source": source.digest(names),
            "data": data_digest(self.arm.data) if isinstance(self.arm, Recipe) else "",
            "device": torch.device(self.device).type,
            "torch": str(torch.__version__),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def data_digest(data: Callable) -> str:
    """The digest of what `data()` holds."""
    return data().digest


def carry_out(plan: Plan, folder: Path) -> None:
    """One run, in a worker: leaves `result.json`, and the weights if asked for, in `folder`."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, wait=True):  # another caller may be making the same run
        if is_done(folder, plan.keep_weights):
            return
        result: dict[str, Any] = {"metrics": [], "diverged": None}
        try:
            if isinstance(plan.arm, Recipe):
                run = train(
                    plan.arm,
                    device=plan.device,
                    folder=folder / "run",
                    resume=(folder / "run" / "metrics.jsonl").exists(),
                    probes=[make() for make in plan.probes],
                    log_every=plan.log_every,
                    evaluate_every=plan.evaluate_every,
                )
                result["metrics"] = run.metrics
                if plan.keep_weights:
                    export_weights(run.model, folder / "model.safetensors")
            else:
                result["metrics"] = plan.arm()
        except FloatingPointError as error:
            result["diverged"] = str(error)
            lines = folder / "run" / "metrics.jsonl"
            result["metrics"] = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        write_text(folder / "result.json", json.dumps(result) + "\n")
        shutil.rmtree(folder / "run", ignore_errors=True)  # checkpoints are large, and no longer needed


def is_done(folder: Path, keep_weights: bool) -> bool:
    """Whether a run's folder holds all that was asked for."""
    path = folder / "result.json"
    return path.exists() and (
        not keep_weights or (folder / "model.safetensors").exists() or bool(load(path)["diverged"])
    )


def load(path: Path) -> dict[str, Any]:
    """A run's `result.json`. Raises `ValueError` where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged; delete its folder, and the run will be made again") from None


def read_result(key: tuple[str, float | None, int], folder: Path, crashed: str | None) -> Result:
    """The result that a run left in its folder."""
    if crashed:
        return Result(*key, crashed=crashed)
    weights = folder / "model.safetensors"
    return Result(*key, **load(folder / "result.json"), weights=weights if weights.exists() else None)
