"""How fast is a training step, beside plain PyTorch of the same architecture, and is what it trains as good?

Trainers start from the same weights and take the same steps on the same batches: plain PyTorch, in full below, and
minitrain with its CPU defaults, in bf16 (where the CPU is fast at it) and in float32. They take turns, a block of steps
each, in one process; every round of turns gives one ratio, and the table shows their median, smallest and largest. On a
busy machine the CPU clock is the steadier one. Without `--quick`, a record goes to docs/results.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitrain.data.text import Text, standard_library
from minitrain.gpt import nanogpt_style
from minitrain.lab.probes import Rotation
from minitrain.optim import AdamW, ClipGradNorm
from minitrain.recipe import Recipe
from minitrain.runtime.device import choose_precision, use_fast_cpu
from minitrain.runtime.files import write_text
from minitrain.runtime.folder import log
from minitrain.schedules import cosine, set_schedules
from minitrain.train import build, evaluate, gradient, train, training_metrics

VOCABULARY, DEPTH, HEADS, WIDTH, CONTEXT, ROWS = 256, 4, 4, 128, 64, 12  # nanoGPT's CPU configuration, over bytes
LR, BETAS, WEIGHT_DECAY, CLIP, WARMUP, LOG_EVERY = 1e-3, (0.9, 0.99), 0.1, 1.0, 20, 25
RECORD = Path(__file__).parents[1] / "docs" / "results" / "bench_step.json"


# --- plain PyTorch: the model and the loop one writes first ----------------------------------------------------------


class PlainBlock(nn.Module):
    """Causal self-attention and a GELU network, each behind a LayerNorm without bias."""

    def __init__(self):
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm_2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(WIDTH, dim=2)
        q, k, v = (y.view(B, T, HEADS, C // HEADS).transpose(1, 2) for y in (q, k, v))  # B H T D
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class PlainGPT(nn.Module):
    """Learned positions, and the embedding as head. Its parameters are those of `nanogpt_style`, in the same order."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(inputs) + self.positions(torch.arange(inputs.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))


class Plain:
    """Eager float32 with torch's defaults for a CPU, and the loss read at every step."""

    fast = False

    def __init__(self, data: Text, weights: nn.Module, seed: int, steps: int):
        self.data, self.seed, self.steps, self.losses = data, seed, steps, list[float]()
        self.model = PlainGPT()
        with torch.no_grad():
            for p, w in zip(self.model.parameters(), weights.parameters(), strict=True):
                p.copy_(w)
        matrices = [p for block in self.model.blocks for p in block.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if not any(p is w for w in matrices)]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, foreach=False, fused=False)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        tokens = self.data.train_tokens
        starts = np.random.default_rng((self.seed, step)).integers(len(tokens) - CONTEXT, size=ROWS)
        x = torch.stack([torch.from_numpy(tokens[i : i + CONTEXT].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])
        return x, y

    def step(self) -> None:
        step = len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = LR * cosine(step, steps=self.steps, warmup=WARMUP)
        loss = self.model(*self.batch(step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.item())

    @torch.no_grad()
    def validation_loss(self) -> float:
        batches = self.data.validation(ROWS)
        return sum(self.model(x, y).item() * len(x) for x, y in batches) / sum(len(x) for x, _ in batches)


# --- minitrain -------------------------------------------------------------------------------------------------------


class Ours:
    """minitrain's own parts, in the order of `minitrain.train.train`, one step at a time so that trainers can take turns."""

    fast = True

    def __init__(self, seed: int, steps: int, precision: Literal["fp32", "bf16"]):
        sizes = {"vocab_size": VOCABULARY, "depth": DEPTH, "heads": HEADS, "width": WIDTH, "context": CONTEXT}
        self.run = build(
            Recipe(
                build_model=partial(nanogpt_style, **sizes),
                data=partial(standard_library, CONTEXT),
                steps=steps,
                batch_size=ROWS * CONTEXT,
                make_optimizer=partial(AdamW, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY),
                schedules={("*", "lr"): partial(cosine, steps=steps, warmup=WARMUP)},
                before_step=(partial(ClipGradNorm, CLIP),),
                precision=precision,
                seed=seed,
            )
        )

    def step(self) -> None:
        run = self.run
        set_schedules(run.optimizer, run.recipe.schedules, run.step)
        run.losses[run.step] = gradient(run, run.model)
        for hook in run.before_step:
            hook(run.model, run.optimizer)
        run.optimizer.step()
        run.step += 1
        run.optimizer.zero_grad()
        if run.step % LOG_EVERY == 0 or run.finished:
            log(run, training_metrics(run, LOG_EVERY))

    def validation_loss(self) -> float:
        return evaluate(self.run)


def trainers(seed: int, steps: int) -> dict[str, Plain | Ours]:
    """All that are compared, with equal weights and the same batches to come."""
    ours = {"ours fp32": Ours(seed, steps, "fp32")}
    if choose_precision("cpu").value == "bf16":
        ours = {"ours bf16": Ours(seed, steps, "bf16"), **ours}
    run = ours["ours fp32"].run
    data = run.data
    assert isinstance(data, Text)
    plain = Plain(data, run.model, seed, steps)
    if not all(torch.equal(a, b) for a, b in zip(plain.batch(1), data.batch(seed, 1, ROWS), strict=True)):
        raise RuntimeError("the plain loop no longer draws the batches of Text.batch; make both draw the same")
    return {"plain fp32": plain, **ours}


# --- measuring -------------------------------------------------------------------------------------------------------


@contextmanager
def settings(threads: int, fast: bool) -> Generator[None]:
    """Threads and float32 kernels belong to the process: set for one trainer's turn, put back after it."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    if fast:
        use_fast_cpu(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def milliseconds(work: Callable[[], object], times: int) -> dict[str, float]:
    """CPU and wall time of one call: the mean of `times` calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": 1e3 * cpu / times, "wall": 1e3 * wall / times}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def take_turns(seeds: int, rounds: int, steps: int, threads: int) -> tuple[dict, dict, Ours]:
    """`(times, losses, ours)`: `times[clock][name]` per round, `losses[name]` per seed, and the last trainer of ours."""
    times: dict[str, dict[str, list[float]]] = {"cpu": {}, "wall": {}}
    losses: dict[str, list[float]] = {}
    warm_up(threads)
    present: dict[str, Plain | Ours] = {}
    for seed in range(seeds):
        present = trainers(seed, steps)
        for _, (name, trainer) in product(range(rounds), present.items()):
            with settings(threads, trainer.fast):
                block = milliseconds(trainer.step, steps // rounds)
            for clock, values in times.items():
                values.setdefault(name, []).append(block[clock])
        for name, trainer in present.items():
            with settings(threads, trainer.fast):
                losses.setdefault(name, []).append(trainer.validation_loss())
    return times, losses, next(x for x in present.values() if isinstance(x, Ours))


def warm_up(threads: int) -> None:
    """Lets kernels and the allocator settle, and checks that what is timed here is the loop of `minitrain.train`."""
    for trainer in trainers(0, LOG_EVERY).values():
        with settings(threads, trainer.fast):
            for _ in range(LOG_EVERY):
                trainer.step()
            if isinstance(trainer, Ours) and not torch.equal(train(trainer.run.recipe).losses, trainer.run.losses):
                raise RuntimeError("Ours.step no longer does what minitrain.train.train does; copy its loop again")


def parts(ours: Ours, repeats: int, threads: int) -> dict[str, float]:
    """CPU milliseconds per step of what is not the model: batches, logging, and measuring the rotation if one asks."""
    run, probe = ours.run, Rotation()
    works: dict[str, tuple[Callable[[], object], int]] = {
        "batches": (lambda: run.data.batch(0, 0, ROWS), 1),
        "logging": (lambda: log(run, training_metrics(run, LOG_EVERY)), LOG_EVERY),
        "rotation probe": (lambda: (probe.before(run), probe.after(run)), probe.every),
    }
    with settings(threads, fast=True):
        turns = [{name: milliseconds(work, 20)["cpu"] for name, (work, _) in works.items()} for _ in range(repeats)]
    return {name: statistics.median(turn[name] for turn in turns) / every for name, (_, every) in works.items()}


def products(repeats: int, threads: int) -> dict[str, float]:
    """GFLOP/s of the step's commonest matrix product by itself: how much faster this CPU could make a step at all."""
    x, w = torch.randn(ROWS * CONTEXT, WIDTH), torch.randn(WIDTH, 4 * WIDTH)
    x16, w16 = x.bfloat16(), w.bfloat16()
    works = {
        "plain fp32": (False, lambda: x @ w),
        "ours bf16": (True, lambda: x16 @ w16),
        "ours fp32": (True, lambda: x @ w),
    }
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _, (name, (fast, work)) in product(range(repeats), works.items()):
        with settings(threads, fast):
            work()
            speeds[name].append(2e-6 * x.numel() * w.shape[1] / milliseconds(work, 200)["cpu"])
    return {name: statistics.median(values) for name, values in speeds.items()}


def start_up(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a fresh Python: what our imports add to those they cannot avoid, and the command's help."""
    code = {
        "python": "",
        "import minitrain": "import minitrain",
        "import torch": "import torch",
        "import minitrain.train": "import minitrain.train",
        "minitrain --help": "sys.argv = ['minitrain', '--help']; from minitrain.cli import main; main()",
    }
    at_exit = "import atexit, sys, time; atexit.register(lambda: print(time.process_time(), file=sys.stderr));"

    def fresh(name: str) -> dict[str, float]:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", at_exit + code[name]], check=True, capture_output=True, text=True)
        return {"cpu": 1e3 * float(done.stderr.split()[-1]), "wall": 1e3 * (time.perf_counter() - start)}

    turns = [{name: fresh(name) for name in code} for _ in range(repeats)]

    def median(name: str, beyond: str) -> dict[str, float]:
        return {k: statistics.median(t[name][k] - t[beyond][k] for t in turns) for k in ("cpu", "wall")}

    beyond = {"import minitrain": "python", "import torch": "python", "import minitrain.train": "import torch"}
    starts = {f"{name} beyond {b.removeprefix('import ')}": median(name, b) for name, b in beyond.items()}
    return {**starts, "minitrain --help": {k: statistics.median(t["minitrain --help"][k] for t in turns)
                                           for k in ("cpu", "wall")}}  # fmt: skip


def measure(seeds: int, rounds: int, steps: int, threads: int, repeats: int) -> dict[str, Any]:
    """The record: plain numbers, without dates, hosts or paths."""
    times, losses, ours = take_turns(seeds, rounds, steps, threads)
    plain, *names = losses
    return {
        "command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
        "threads": threads,
        "seeds": seeds,
        "rounds_per_seed": rounds,
        "steps_per_seed": steps,
        "milliseconds_per_step": {c: {name: statistics.median(t) for name, t in times[c].items()} for c in times},
        "speed_up": {
            name: {c: spread([a / b for a, b in zip(t[plain], t[name], strict=True)]) for c, t in times.items()}
            for name in names
        },
        "validation_loss": losses,
        "loss_minus_plain": {
            name: {"each": less, "mean": statistics.mean(less), "largest": max(less, key=abs)}
            for name in names
            for less in [[b - a for a, b in zip(losses[plain], losses[name], strict=True)]]
        },
        "cpu_milliseconds_per_step_of": parts(ours, repeats, threads),
        "product_gflops": products(repeats, threads),
        "start_up_milliseconds": start_up(repeats),
    }


def show(record: dict[str, Any]) -> None:
    """The record as tables."""
    times, losses = record["milliseconds_per_step"], record["validation_loss"]
    tokens, steps = ROWS * CONTEXT, record["steps_per_seed"]
    print(f"{record['cpu']}, threads: {record['threads']}, torch {record['torch']}, {tokens} tokens a step")
    print(f"{record['seeds']} seeds of {record['rounds_per_seed']} rounds and {steps} steps: medians, (min to max)\n")
    print(f"{'':<11} {'CPU ms':>7} {'wall ms':>8} {'tokens/s':>9}  {'speed-up, CPU':<22}speed-up, wall")
    for name, cpu in times["cpu"].items():
        gains = record["speed_up"].get(name, {}).values()
        text = "".join(f"{g['median']:.2f} ({g['min']:.2f} to {g['max']:.2f})".ljust(22) for g in gains)
        print(f"{name:<11} {cpu:>7.1f} {times['wall'][name]:>8.1f} {tokens / cpu * 1e3:>9,.0f}  {text}")
    print(f"\nvalidation loss after {steps} steps, one per seed; minus that of plain fp32: mean, largest")
    for name, values in losses.items():
        less = record["loss_minus_plain"].get(name)
        text = f"{less['mean']:+.4f} {less['largest']:+.4f}" if less else ""
        print(f"{name:<11} {' '.join(f'{x:.4f}' for x in values)}  {text}")
    base = next(name for name in times["cpu"] if name in record["speed_up"])
    shares = record["cpu_milliseconds_per_step_of"].items()
    print(f"\nof a step of {base}: " + ", ".join(f"{name} {x / times['cpu'][base]:.2%}" for name, x in shares))
    speeds = record["product_gflops"].items()
    print("matrix products alone, GFLOP/s: " + ", ".join(f"{name} {x:.0f}" for name, x in speeds))
    starts = record["start_up_milliseconds"].items()
    print("start-up, CPU (wall) ms: " + ", ".join(f"{name} {x['cpu']:.0f} ({x['wall']:.0f})" for name, x in starts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of turns per seed")
    parser.add_argument("--steps", type=int, default=300, help="steps per seed, shared out over the rounds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2 rounds and 30 steps per seed, and no record")
    asked = parser.parse_args()
    rounds, steps = (2, 30) if asked.quick else (asked.rounds, asked.steps)
    if min(rounds, asked.seeds, asked.threads) < 1 or steps <= WARMUP or steps % rounds:
        parser.error(f"give at least one round, seed and thread, and a multiple of the rounds above {WARMUP} as steps")
    record = measure(asked.seeds, rounds, steps, asked.threads, repeats=2 if asked.quick else 5)
    show(record)
    if not asked.quick:
        short = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.5g}"))
        write_text(RECORD, json.dumps(short, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
