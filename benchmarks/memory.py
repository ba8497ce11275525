"""What a training step of GPT-2 124M takes with every combination of the ways to save memory, and what they cost in time.

    python benchmarks/memory.py [--sizes | --times] [--rounds N]     # without either: both

Sizes are predicted for a GPU (`minitrain.lab.plan`), but for those of the tower, which are measured on this CPU as well.
Times are CPU time on one thread; the two that are compared take turns, and each pair of turns gives one ratio. What a GPU
would take is an estimate from bytes and operations. The record is docs/results/memory_sizes.json.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.data.text import standard_library
from minitrain.gpt import GPT, nanogpt_style
from minitrain.lab.plan import GB, StandIn, measured, plan
from minitrain.optim import AdamW, wrapped
from minitrain.recipe import Recipe, cross_entropy
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.files import write_text
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.split_weights import SplitWeights, join, split
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.train import Run, build, gradient

RECORD = Path(__file__).parents[1] / "docs" / "results" / "memory_sizes.json"
WAYS = ("chunked", "recomputed", "split", "in backward")
gpt2 = partial(nanogpt_style, vocab_size=50_304, depth=12, width=768, heads=12, context=1024)


def adamw(ways: tuple[str, ...]) -> partial:
    """The maker of AdamW with split weights, or stepped inside the backward pass, or both."""
    by = tuple(x for name, x in (("split", SplitWeights), ("in backward", StepInBackward)) if name in ways)
    return partial(wrapped, make=AdamW, by=by, lr=6e-4)


# --- sizes -------------------------------------------------------------------------------------------------------------


def rows_of_tokens() -> StandIn:
    return StandIn(1024, 10**9, ((1024,), (1024,)), ("int64", "int64"))


def gpt2_step(rows: int, ways: tuple[str, ...]) -> Recipe:
    """A step of so many texts, its products in bf16. Chunks are of 512 tokens, or 256 of one text."""
    chunk = 512 if rows > 1 else 256
    return Recipe(
        build_model=partial(recompute_blocks, gpt2) if "recomputed" in ways else gpt2,
        data=rows_of_tokens,
        steps=1,
        batch_size=1024 * rows,
        loss=partial(chunked_cross_entropy, chunk=chunk) if "chunked" in ways else cross_entropy,
        make_optimizer=adamw(ways),
        precision="bf16",
    )


def gpt2_sizes() -> list[dict[str, Any]]:
    """A line for each number of texts and each combination; shares are of the step without any of the ways."""
    lines = []
    for rows in (12, 1):
        plain = plan(gpt2_step(rows, ()))
        for chosen in product((False, True), repeat=len(WAYS)):
            ways = tuple(way for way, is_on in zip(WAYS, chosen, strict=True) if is_on)
            found = plan(gpt2_step(rows, ways))
            lines.append(
                {
                    "rows": rows,
                    "ways": ways,
                    "peak_gb": found.total / GB,
                    "share": found.total / plain.total,
                    "peak_in": found.phase,
                    "peak_gb_of": {kind: size / GB for kind, size in found.peak.items() if size},
                    "step_gb": sum(found.moments["optimizer step"].values()) / GB,
                    "tflop": found.flops / 1e12,
                }
            )
    return lines


def tower() -> nn.Module:
    """Equal matrices one after the other: given a single row, a step of it is nearly all weights."""
    return nn.Sequential(nn.Embedding(256, 256), *(nn.Linear(256, 256, bias=False) for _ in range(128)))


def tower_sizes() -> list[dict[str, Any]]:
    """Bytes for each parameter, predicted for a GPU and for this CPU, and measured on it."""
    few = partial(standard_library, context=4)
    lines = []
    for ways in ((), ("in backward",), ("split",), ("split", "in backward")):
        recipe = Recipe(build_model=tower, data=few, steps=1, batch_size=4, make_optimizer=adamw(ways))
        on_gpu, on_cpu, real = plan(recipe), plan(recipe, "cpu"), max(measured(recipe).values())
        each = {"predicted_gpu": on_gpu.total, "predicted_cpu": on_cpu.total, "measured_cpu": real}
        lines.append({"ways": ways, **{name: size / on_cpu.parameters for name, size in each.items()}})
    return lines


# --- times -------------------------------------------------------------------------------------------------------------


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, float]:
    """CPU time of the first as a multiple of the second's, and both in milliseconds."""
    pairs = []
    for _ in range(rounds + 2):  # the first two find their memory
        seconds = []
        for work in (first, second):
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
        pairs.append(seconds)
    ratios = [a / b for a, b in pairs[2:]]
    first_ms, second_ms = (1000 * statistics.median(column) for column in zip(*pairs[2:], strict=True))
    return {
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "ms": first_ms,
        "of_ms": second_ms,
    }


def text_run(ways: tuple[str, ...] = (), torchs: bool = False, depth: int = 6, width: int = 384) -> Run:
    """A GPT of 10.8 million parameters on 2048 tokens a step, in bf16, by ours or by torch's fused AdamW."""
    recipe = Recipe(
        build_model=partial(GPT, depth=depth, width=width, heads=width // 64, context=256),
        data=partial(standard_library, context=256),
        steps=1,
        batch_size=2048,
        make_optimizer=partial(torch.optim.AdamW, lr=6e-4, fused=True) if torchs else adamw(ways),
        precision="bf16",
    )
    return build(recipe)


def whole_step(run: Run) -> None:
    gradient(run, run.model)
    run.optimizer.step()
    run.optimizer.zero_grad()


def with_noise(run: Run) -> Run:
    """The same, its gradients filled, for steps of the optimizer alone."""
    for p in run.model.parameters():
        p.grad = torch.randn_like(p)
    return run


def split_adamw(
    high: Tensor,
    low: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    lr: Tensor,
    decay: Tensor,
    m_ones: Tensor,
    v_ones: Tensor,
) -> None:
    """Join, AdamW and split as one function, for torch to compile; betas 0.9 and 0.999, eps 1e-8."""
    g = g.float()
    m.lerp_(g, 0.1)
    v.lerp_(g.square(), 0.001)
    w = join(high, low) * decay - lr * (m / m_ones) / ((v / v_ones).sqrt() + 1e-8)
    new_high, new_low = split(w)
    high.copy_(new_high)
    low.copy_(new_low)


def compiled_step(run: Run) -> Callable[[], None]:
    """A step of split weights by `split_adamw`, compiled once for tensors of any size."""
    compiled = torch.compile(split_adamw, dynamic=True, fullgraph=True)
    scalars = [torch.tensor(x) for x in (6e-4, 1 - 6e-4 * 1e-2, 0.5, 0.5)]
    flat = []
    for p in run.model.parameters():
        state = run.optimizer.state[p]
        tensors: tuple[Any, ...] = (p, state["low"], p.grad, state["m"], state["v"])
        flat.append([x.detach().view(-1) for x in tensors])

    @torch.no_grad()
    def step() -> None:
        for tensors in flat:
            compiled(*tensors, *scalars)

    return step


def times(rounds: int) -> dict[str, Any]:
    """Steps of the optimizer alone beside torch's fused AdamW, and whole steps beside those of the plain loop."""
    fused, ours, halves = with_noise(text_run(torchs=True)), with_noise(text_run()), with_noise(text_run(("split",)))
    halves.optimizer.step()
    steps = {"fused": ours.optimizer.step, "split": halves.optimizer.step, "split, compiled": compiled_step(halves)}
    alone = {name: in_turn(step, fused.optimizer.step, 5 * rounds) for name, step in steps.items()}
    whole = {}
    for name, ways, plain in (
        ("in backward", ("in backward",), ()),
        ("split", ("split",), ()),
        ("split, in backward", ("split", "in backward"), ("split",)),
    ):
        whole[name] = in_turn(partial(whole_step, text_run(ways)), partial(whole_step, text_run(plain)), rounds)
    return {
        "of": {"in backward": "plain", "split": "plain", "split, in backward": "split"},
        "alone": alone,
        "whole": whole,
    }


# --- an estimate for GPUs ----------------------------------------------------------------------------------------------

GPUS = {"H100 SXM": (989e12, 3.35e12), "A100 SXM": (312e12, 2.04e12), "RTX 4090": (165e12, 1.01e12)}  # FLOP/s, bytes/s
USED = 0.4  # of the peak FLOP/s
MOVED = {  # bytes that a step reads and writes for each weight
    "fused float32": 4 * 4 + 3 * 4,  # w, g, m, v; w, m, v
    "split in one pass": 2 + 2 + 2 + 4 + 4 + 2 + 2 + 4 + 4,  # high, low, g, m, v; high, low, m, v
    "split in pieces": 76,  # every intermediate result written and read, if no cache helped
}


def gpu_shares() -> list[dict[str, Any]]:
    """How long the optimizer takes, as a share of 6 operations a weight and token, and from how many tokens it is 5 %."""
    lines = []
    for (gpu, (flops, bandwidth)), (step, moved) in product(GPUS.items(), MOVED.items()):
        share_of_one_token = (moved / bandwidth) / (6 / (USED * flops))
        shares = {f"share_{tokens}": share_of_one_token / tokens for tokens in (2048, 12_288, 65_536)}
        lines.append({"gpu": gpu, "step": step, **shares, "tokens_for_5_percent": share_of_one_token / 0.05})
    return lines


# --- the record --------------------------------------------------------------------------------------------------------


def show(record: dict[str, Any]) -> None:
    for line in record.get("gpt2", []):
        name = f"{line['rows']:>2} texts, {', '.join(line['ways']) or 'plain'}"
        print(f"{name:<52} {line['peak_gb']:6.2f} GB {line['share']:5.2f}  in {line['peak_in']}")
    for line in record.get("tower", []):
        sizes = " ".join(f"{name} {line[name]:.2f}" for name in ("predicted_gpu", "predicted_cpu", "measured_cpu"))
        print(f"bytes a parameter, {', '.join(line['ways']) or 'plain':<20} {sizes}")
    for kind in ("alone", "whole"):
        for name, found in record.get("times", {}).get(kind, {}).items():
            print(
                f"{kind} {name:<20} {found['ratio']:.3f} ({found['min']:.3f} to {found['max']:.3f}), {found['ms']:.2f} ms"
            )
    for line in record.get("gpu_estimate", []):
        shares = ", ".join(f"{line[f'share_{tokens}']:.1%} of {tokens:,}" for tokens in (2048, 12_288, 65_536))
        print(f"{line['gpu']:<9} {line['step']:<18} {shares} tokens; 5 % of {line['tokens_for_5_percent']:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", action="store_true", help="sizes only")
    parser.add_argument("--times", action="store_true", help="times only")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of turns of a whole step")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if asked.sizes or not asked.times:
        record |= {"gpt2": gpt2_sizes(), "tower": tower_sizes(), "gpu_estimate": gpu_shares()}
    if asked.times or not asked.sizes:
        cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        record["times"] = {"rounds": asked.rounds, "cpu": cpu, **times(asked.rounds)}
    record |= {"command": "python benchmarks/memory.py", "torch": str(torch.__version__)}
    show(record)
    short = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    write_text(RECORD, json.dumps(short, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
