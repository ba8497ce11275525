"""17 Memory. Question: where do the bytes of a training step go, and what does it cost to save them?

A 16-bit weight and its float32 copy say the same thing twice, and a gradient that was used need not be kept. Both are
true, and both change next to nothing until something larger is out of the way. And they ask which bits a step needs.

    python lessons/17_memory.py                # --preset quick (default), cpu, record, gpu
"""

import functools
import statistics
import time
import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.gpt import GPT, nanogpt_style
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Metrics, Runs, difference, final, mean_late, over_steps, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plan import GB, Plan, plan
from minitrain.lab.plots import Theme, band, hollow, label
from minitrain.optim import AdamW, Optimizer, PlainStorage, wrapped
from minitrain.recipe import Recipe, cross_entropy
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.fused import begin, kernel
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.split_weights import SplitWeights, join, round_to, split
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.train import Run, build, gradient

# --- the steps whose bytes are counted -----------------------------------------------------------------------------------

CHUNK = 1024  # tokens whose logits exist at once


# --8<-- [start:tricks]
def gpt2(*tricks: str, depth: int = 12, width: int = 768, rows: int = 12, **other: Any) -> Recipe:
    """A step of a GPT with GPT-2's vocabulary and context, by default the small one of 124 million parameters.

    Without tricks: float32 weights, products in bf16 by autocast, AdamW as one fused kernel per tensor. `other` replaces
    further fields of the recipe.
    """
    model = partial(nanogpt_style, vocab_size=50_304, depth=depth, width=width, heads=width // 64, context=1024)
    wrappers = {"split": SplitWeights, "in backward": StepInBackward}
    by = tuple(wrapper for trick, wrapper in wrappers.items() if trick in tricks)
    recipe = Recipe(
        build_model=partial(recompute_blocks, model) if "recomputed" in tricks else model,
        data=partial(standard_library, context=1024),
        steps=1,
        batch_size=rows * 1024,
        loss=partial(chunked_cross_entropy, chunk=CHUNK) if "chunked" in tricks else cross_entropy,
        make_optimizer=partial(wrapped, make=AdamW, by=by, lr=6e-4),
        # With split weights the model itself is bf16, and autocast has nothing left to cast.
        precision="fp32" if "split" in tricks else "bf16",
    )
    return replace(recipe, **other)


GPT2 = {
    "classic": (),
    "split": ("split",),
    "split, in backward": ("split", "in backward"),
    "chunked": ("chunked",),
    "chunked, split": ("chunked", "split"),
    "chunked, recomputed": ("chunked", "recomputed"),
    "chunked, recomputed, split": ("chunked", "recomputed", "split"),
    "all": ("chunked", "recomputed", "split", "in backward"),
}


# --8<-- [end:tricks]
# --8<-- [start:tower]
def tower(floors: int = 256, width: int = 512) -> nn.Module:
    """Equal matrices on top of one another: fed with a few tokens, it is nearly nothing but weights."""
    return nn.Sequential(
        nn.Embedding(256, width),
        *(nn.Linear(width, width, bias=False) for _ in range(floors)),
        nn.Linear(width, 256, bias=False),
    )


# --8<-- [end:tower]
# --8<-- [start:master]
class MasterStorage(PlainStorage):
    """Mixed precision as it is usually done: the optimizer steps a float32 copy, and the parameter is its upper half."""

    def fused_adamw(self, p: Tensor, state: dict, group: dict[str, Any]) -> bool:
        begin(p, state, group["betas"], torch.float32)
        assert p.grad is not None
        kernel(state["master"], p.grad.float(), state["m"], state["v"], state["t"], group)
        p.copy_(split(state["master"])[0])
        return True

    def whole(self, p: Tensor, state: dict) -> Tensor:
        return state["master"]


@torch.no_grad()
def keep_master(optimizer: Optimizer) -> Optimizer:
    """Makes every parameter bf16 and gives the optimizer a float32 copy of it."""
    optimizer.storage = MasterStorage()
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p]["master"] = p.detach().clone()
            p.data = split(p)[0]
    return optimizer


# --8<-- [end:master]
# --8<-- [start:planned]
def planned(seed: int, recipe: Recipe) -> Metrics:
    """What a step of the recipe takes on a GPU, in bytes. Nothing in it is random, so that all seeds give the same."""
    found = plan(recipe)
    return [{"step": 0, "parameters": found.parameters, "total": found.total, "peak": found.peak}]


@functools.cache
def plan_of_depth(depth: int, tricks: tuple[str, ...]) -> Plan:
    """A step of four texts. `depth` is the one dial: heads are 64 wide, and there are as many as blocks."""
    return plan(gpt2(*tricks, depth=depth, width=64 * depth, rows=4))


def largest(seed: int, tricks: tuple[str, ...], card: int) -> Metrics:
    """For a card of so many GB the largest GPT of which a step fits: one more block would not."""
    fits, too_deep, depth = 0, 10_000, 12
    while too_deep - fits > 1:
        found = plan_of_depth(depth, tricks)
        fits, too_deep = (depth, too_deep) if found.fits(card) else (fits, depth)
        depth = int(depth * (card * GB / found.total) ** (1 / 3))  # nearly all bytes go with the cube of the depth
        depth = min(max(depth, fits + 1), too_deep - 1)
    return [{"step": 0, "depth": fits, "millions": plan_of_depth(fits, tricks).parameters / 1e6 if fits else 0.0}]


# --8<-- [end:planned]
# --8<-- [start:timed]
def timed(seed: int, recipe: Recipe, against: Recipe, whole: bool, rounds: int) -> Metrics:
    """CPU time of one recipe's step as a multiple of another's, the two in turn, so that both meet the same machine.

    `whole` is the step from the data to the weights, else that of the optimizer alone, with gradients of noise.
    """
    runs = [build(replace(x, seed=seed)) for x in (recipe, against)]
    for run in runs:
        for p in run.model.parameters():
            p.grad = None if whole else torch.randn_like(p)
    lines = []
    for step in range(-2, rounds):  # the first two make the optimizer's state and find their memory
        seconds = []
        for run in runs:
            started = time.process_time()
            if whole:
                gradient(run, run.model)
            run.optimizer.step()
            if whole:
                run.optimizer.zero_grad()
            seconds.append(time.process_time() - started)
        if step >= 0:
            lines.append({"step": step, "ms": 1000 * seconds[0], "against_ms": 1000 * seconds[1]})
    return lines


# --8<-- [end:timed]
# --8<-- [start:setup]
PREDICT = Predict(
    "GPT-2 with 124M parameters, 12 texts a step: no float32 copy any more. How many times smaller is the peak?",
    low=1.0,
    high=4.0,
    answer=lambda runs: statistics.fmean(ratio(runs, "GPT-2: classic", "GPT-2: split", final("total"))),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 240, "rounds": 5, "cards": (), "everything": False},
    "cpu": {"seeds": 3, "steps": 600, "rounds": 9, "cards": (8, 16, 24)},
    "record": {"seeds": 5, "steps": 600, "rounds": 25, "cards": (8, 16, 24, 80)},
    "gpu": {
        "seeds": 2, "steps": 2000, "rounds": 9, "cards": (8, 16, 24, 80),
        "base": gpt2("chunked", precision="fp32"), "lr": 6e-4, "small_lr": 3e-5,
    },
}  # fmt: skip
SMALL = Recipe(
    build_model=partial(GPT, depth=2, width=64, context=64),
    data=partial(standard_library, context=64),
    steps=1,
    batch_size=512,
)
LARGEST = ("classic", "split, in backward", "chunked, recomputed", "chunked, recomputed, split", "all")
LEFT_OUT = (  # in haste, all arms whose names begin so
    *("4 bits", "Kahan", "autocast", "tower: classic, ", "tower: master", "tower: per tensor", "tower: foreach"),
    *("time: per tensor", "time: foreach"),
)
WAYS = {  # how a weight's bits are kept
    "16 bits": (SplitWeights,),
    "8 bits": (partial(SplitWeights, bits=8),),
    "4 bits": (partial(SplitWeights, bits=4),),
    "broken: 0 bits": (partial(SplitWeights, bits=0),),
    "0 bits, stochastic": (partial(SplitWeights, bits=0, rounding="stochastic"),),
    "Kahan": (partial(SplitWeights, rounding="kahan"),),
}


def experiment(
    seeds: int,
    steps: int,
    rounds: int,
    cards: tuple[int, ...],
    everything: bool = True,
    base: Recipe = SMALL,
    lr: float = 3e-3,
    small_lr: float = 3e-4,
) -> dict[str, Any]:
    """Runs with fewer and fewer bits at two learning rates; plans of GPT-2, of a tower, and of the largest GPTs; times."""
    arms: dict[str, Any] = {**training_arms(replace(base, steps=steps), lr, small_lr)}
    arms |= {f"GPT-2: {name}": partial(planned, recipe=gpt2(*tricks)) for name, tricks in GPT2.items()}
    arms |= {f"tower: {name}": partial(planned, recipe=recipe) for name, recipe in tower_steps().items()}
    arms |= {f"{card} GB: {name}": partial(largest, tricks=GPT2[name], card=card) for card in cards for name in LARGEST}
    arms |= {f"time: {name}": partial(pair, rounds=rounds) for name, pair in time_pairs().items()}
    if not everything:
        arms = {name: arm for name, arm in arms.items() if not name.startswith(LEFT_OUT)}
    return {
        "arms": arms,
        "seeds": range(seeds),
        "probes": (partial(AllBits, every=steps // 20),),
        "log_every": steps // 20,
        "evaluate_every": steps,
    }


def training_arms(base: Recipe, lr: float, small_lr: float) -> dict[str, Recipe]:
    """Every way to keep bits at both rates; at the larger one also those that must be equal to 16 bits, bit for bit."""

    def recipe(*by: Any, lr: float) -> Recipe:
        return replace(base, make_optimizer=partial(wrapped, make=AdamW, by=by, lr=lr, weight_decay=0.0))

    arms = {name: recipe(*by, lr=lr) for name, by in WAYS.items()}
    arms |= {f"{name}, small steps": recipe(*by, lr=small_lr) for name, by in WAYS.items()}
    arms["float32 master"] = recipe(keep_master, lr=lr)
    arms["16 bits, in backward"] = recipe(SplitWeights, StepInBackward, lr=lr)
    arms["autocast"] = replace(recipe(lr=lr), precision="bf16")
    arms["autocast, small steps"] = replace(recipe(lr=small_lr), precision="bf16")
    return arms


# --8<-- [end:setup]
FEW = replace(SMALL, build_model=tower, data=partial(standard_library, context=4), batch_size=4)


def tower_steps() -> dict[str, Recipe]:
    """Classic steps, torch's three among them, and ours."""
    classic = replace(FEW, precision="bf16")

    def ours(*by: Any) -> Recipe:
        return replace(FEW, make_optimizer=partial(wrapped, make=AdamW, by=by))

    return {
        "foreach": replace(classic, make_optimizer=partial(torch.optim.AdamW, foreach=True)),
        "per tensor": replace(classic, make_optimizer=partial(torch.optim.AdamW, foreach=False)),
        "classic": replace(classic, make_optimizer=partial(torch.optim.AdamW, fused=True)),
        "classic, in backward": replace(ours(StepInBackward), precision="bf16"),
        "master": ours(keep_master),
        "split": ours(SplitWeights),
        "split, in backward": ours(SplitWeights, StepInBackward),
    }


MEDIUM = replace(
    SMALL, build_model=partial(GPT, depth=4, width=256, context=128), data=partial(standard_library, context=128)
)


def time_pairs() -> dict[str, partial]:
    """Of the optimizer alone against the leanest classic step; of whole steps against autocast with that one."""
    fused = replace(MEDIUM, make_optimizer=partial(torch.optim.AdamW, fused=True))
    foreach = replace(MEDIUM, make_optimizer=partial(torch.optim.AdamW, foreach=True))
    per_tensor = replace(MEDIUM, make_optimizer=partial(torch.optim.AdamW, foreach=False))
    halves = replace(MEDIUM, make_optimizer=partial(wrapped, make=AdamW, by=(SplitWeights,)))
    in_backward = replace(MEDIUM, make_optimizer=partial(wrapped, make=AdamW, by=(SplitWeights, StepInBackward)))
    autocast = replace(fused, precision="bf16")
    return {
        "foreach": partial(timed, recipe=foreach, against=fused, whole=False),
        "per tensor": partial(timed, recipe=per_tensor, against=fused, whole=False),
        "split": partial(timed, recipe=halves, against=fused, whole=False),
        "whole step, split": partial(timed, recipe=halves, against=autocast, whole=True),
        "whole step, in backward": partial(timed, recipe=in_backward, against=halves, whole=True),
    }


# --8<-- [start:probe]
class AllBits:
    """A probe: the share of the blocks' weights that a step changes in any bit, and a fingerprint of all weights.

    Equal fingerprints mean equal bits, but for one chance in four billion.
    """

    def __init__(self, every: int):
        self.every = every

    def before(self, run: Run) -> None:
        self.old = all_bits(run)

    def after(self, run: Run) -> dict[str, Any]:
        new = all_bits(run)
        names = [group["name"] for group in run.optimizer.param_groups for _ in group["params"]]
        changed = [(a != b).flatten() for a, b, name in zip(self.old, new, names, strict=True) if name == "matrices"]
        fingerprint = functools.reduce(lambda sum, w: zlib.crc32(w.cpu().numpy().tobytes(), sum), new, 0)
        return {"moved": torch.cat(changed).float().mean().item(), "fingerprint": fingerprint}


def all_bits(run: Run) -> list[Tensor]:
    """A float32 copy of every parameter: joined, where it is split."""
    optimizer: Any = run.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [optimizer.storage.whole(p, optimizer.state[p]).detach().clone() for p in parameters]


# --8<-- [end:probe]
# --8<-- [start:halves]
def halves() -> None:
    """A weight in two halves: one for the model, one for the optimizer; together they are the weight again."""
    for value in (0.1, -0.02, 0.123456789):
        w = torch.tensor(value)
        high, low = split(w)
        w_bits, high_bits = (int(x.view(kind)) for x, kind in ((w, torch.int32), (high, torch.int16)))
        print(f"{w.item():+.9f}  {w_bits & 0xFFFFFFFF:08x} = {high_bits & 0xFFFF:04x}0000 {low.item():+6}", end="")
        print(f"   the model sees {high.item():+.9f}   joined {join(high, low).item():+.9f}")


# --8<-- [end:halves]
# --8<-- [start:steps]
def small_steps() -> None:
    """A thousand weights of 1 take 1000 steps of 0.0001; they should arrive at 1.1."""
    for name, bits in {"16 bits": 16, "8 bits": 8, "4 bits": 4, "0 bits": 0, "0 bits, stochastic": 0}.items():
        w = torch.ones(1000)
        for step in range(1000):
            w = round_to(w + 1e-4, bits, seed=step if "stochastic" in name else None)
        print(f"{name:<20} {w.mean().item():.4f}   (the next number after 1 is {1 + 2 ** -(7 + bits):.7f})")


# --8<-- [end:steps]
# --8<-- [start:bytes]
def bytes_of_a_parameter() -> None:
    """What stands in memory for a parameter when the optimizer steps, with Adam's two moments in float32."""
    moments = 4 + 4
    for name, kept in {
        "autocast: weight 4, gradient 4": 4 + 4,
        "master: weight 2, its copy 4, gradient 2": 2 + 4 + 2,
        "split: weight 2, missing bits 2, gradient 2": 2 + 2 + 2,
        "split, in backward: weight 2, missing bits 2": 2 + 2,
    }.items():
        total = kept + moments
        print(f"{name:<46} {kept} + {moments} = {total:>2} bytes, {total * 0.124:.1f} billion for GPT-2")


# --8<-- [end:bytes]


def by_hand() -> None:
    """The whole idea on a handful of numbers."""
    for part in (halves, small_steps, bytes_of_a_parameter):
        print(f"\n{part.__doc__}")
        part()


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
def per_parameter(metrics: Metrics) -> float:
    """Bytes of the peak for each parameter."""
    return final("total")(metrics) / final("parameters")(metrics)


def time_ratio(metrics: Metrics) -> float:
    """The median over the rounds."""
    pairs = zip(series(metrics, "ms"), series(metrics, "against_ms"), strict=True)
    return statistics.median(mine / other for (_, mine), (_, other) in pairs)


MEASURES = {
    "peak, GB": lambda metrics: final("total")(metrics) / GB,
    "bytes per parameter": per_parameter,
    "millions of parameters": final("millions"),
    "validation loss, nats": final("val_loss"),
    "weights that move": mean_late("moved"),
    "CPU time, ratio": time_ratio,
}


def different_bits(runs: Runs, arm: str) -> list[float]:
    """At how many of the logged steps an arm has other weights than "16 bits", or another loss."""
    found = []
    for seed in runs.seeds:
        a, b = (runs.metrics(name, seed) for name in (arm, "16 bits"))
        pairs = (pair for key in ("fingerprint", "loss") for pair in zip(series(a, key), series(b, key), strict=True))
        found.append(sum(float(mine != other) for mine, other in pairs))
    return found


def loses(runs: Runs, way: str, small: bool) -> list[float]:
    """Validation loss in the end, less that with 16 bits."""
    rate = ", small steps" if small else ""
    return difference(runs, f"{way}{rate}", f"16 bits{rate}", final("val_loss"))


def takes(claim: str, bytes_each: int, name: str, words: str) -> Claim:
    """That a step of the tower takes so many bytes for each parameter, within 2 %."""
    return Claim(
        name=claim,
        sentence=f"A step that is nearly all weights, {words}, takes {bytes_each} bytes a parameter within 2 %",
        statistic=lambda runs: runs.values(f"tower: {name}", per_parameter),
        within=(0.98 * bytes_each, 1.02 * bytes_each),
        kind="algebra",
        unit="bytes",
        arms=(f"tower: {name}",),
    )


def peaks(name: str, sentence: str, arm: str, against: str, paper: str = "", **threshold: Any) -> Claim:
    """About one plan's peak over another's."""
    return Claim(
        name=name,
        sentence=f"{sentence} (ratio of peaks)",
        statistic=lambda runs: ratio(runs, arm, against, final("total")),
        kind="algebra",
        arms=(arm, against),
        paper=paper,
        **threshold,
    )


def allows(name: str, sentence: str, card: int, arm: str, against: str, **threshold: Any) -> Claim:
    """About the largest GPTs for a card of so many GB."""
    return Claim(
        name=name,
        sentence=f"{sentence} (ratio of parameters)",
        statistic=lambda runs: ratio(runs, f"{card} GB: {arm}", f"{card} GB: {against}", final("millions")),
        kind="algebra",
        arms=(f"{card} GB: {arm}", f"{card} GB: {against}"),
        **threshold,
    )


def costs(name: str, sentence: str, way: str, small: bool, **threshold: Any) -> Claim:
    """About what a way to keep bits loses against 16 bits."""
    rate = ", small steps" if small else ""
    return Claim(
        name=name,
        sentence=sentence,
        statistic=lambda runs: loses(runs, way, small),
        unit="nats",
        arms=(f"{way}{rate}", f"16 bits{rate}"),
        **threshold,
    )


def times(name: str, sentence: str, arm: str, below: float, paper: str = "") -> Claim:
    """About a ratio of CPU times."""
    return Claim(
        name=name,
        sentence=f"{sentence} (ratio of CPU times)",
        statistic=lambda runs: runs.values(f"time: {arm}", time_ratio),
        below=below,
        arms=(f"time: {arm}",),
        paper=paper,
    )


CLAIMS = [
    takes("16-bytes", 16, "classic", "float32 weights under autocast, fused AdamW"),
    takes("16-bytes-with-a-master", 16, "master", "bf16 weights with a float32 master copy"),
    takes("14-bytes", 14, "split", "split weights"),
    takes("12-bytes", 12, "split, in backward", "split weights stepped in backward"),
    peaks(
        "up-to-a-quarter",
        "Nearly all weights: split and stepped in backward, the peak is a fifth below the leanest classic one, or more",
        "tower: split, in backward",
        "tower: classic",
        below=0.8,
        paper="memory use reduced by up to 25 % (abstract of arXiv 2309.12381)",
    ),
    peaks(
        "nothing-before-the-loss",
        "GPT-2, batch 12: split weights stepped in backward save less than a tenth while the loss is whole",
        "GPT-2: split, in backward",
        "GPT-2: classic",
        above=0.9,
    ),
    peaks(
        "the-loss-first",
        "GPT-2, batch 12: the loss in chunks alone brings the peak to 0.55 of what it was, or less",
        "GPT-2: chunked",
        "GPT-2: classic",
        below=0.55,
    ),
    peaks(
        "all-together",
        "GPT-2, batch 12: with everything the peak is at most a quarter of the classic one",
        "GPT-2: all",
        "GPT-2: classic",
        below=0.25,
    ),
    peaks(
        "then-the-weights",
        "GPT-2, batch 12, chunked and recomputed: split weights lower the peak by at least a tenth",
        "GPT-2: chunked, recomputed, split",
        "GPT-2: chunked, recomputed",
        below=0.9,
    ),
    allows(
        "larger-on-24",
        "On 24 GB everything together allows a GPT at least one and a half times as large as the classic step",
        24,
        "all",
        "classic",
        above=1.5,
    ),
    allows(
        "small-card",
        "On 8 GB split weights stepped in backward allow at most 0.8 of what chunks and computing again allow",
        8,
        "split, in backward",
        "chunked, recomputed",
        below=0.8,
    ),
    allows(
        "large-card",
        "On 80 GB split weights stepped in backward allow about as much as chunks and computing again",
        80,
        "split, in backward",
        "chunked, recomputed",
        within=(0.9, 1.1),
    ),
    Claim(
        "as-with-a-master",
        "16 bits: all weights and losses are bit for bit those of a float32 master copy (logged steps that differ)",
        lambda runs: different_bits(runs, "float32 master"),
        within=(0, 0),
        kind="algebra",
        arms=("16 bits", "float32 master"),
    ),
    Claim(
        "as-in-backward",
        "16 bits: all weights and losses are bit for bit those of the step inside backward (logged steps that differ)",
        lambda runs: different_bits(runs, "16 bits, in backward"),
        within=(0, 0),
        kind="algebra",
        arms=("16 bits", "16 bits, in backward"),
    ),
    costs("eight-bits", "8 bits end within 0.02 nats of 16", "8 bits", small=False, within=(-0.02, 0.02)),
    costs(
        "eight-bits-small-steps", "Small steps: 8 bits end within 0.02 nats of 16", "8 bits", True, within=(-0.02, 0.02)
    ),
    costs(
        "four-bits-small-steps", "Small steps: 4 bits end within 0.02 nats of 16", "4 bits", True, within=(-0.02, 0.02)
    ),
    Claim(
        "zero-bits-freeze",
        "Small steps: with 0 bits a step changes less than half as many weights as with 16 (ratio of shares)",
        lambda runs: ratio(runs, "broken: 0 bits, small steps", "16 bits, small steps", mean_late("moved")),
        below=0.5,
        arms=("broken: 0 bits, small steps", "16 bits, small steps"),
    ),
    costs(
        "zero-bits-stall", "Small steps: 0 bits end at least 0.1 nats above 16", "broken: 0 bits", small=True, above=0.1
    ),
    Claim(
        "smaller-is-worse",
        "0 bits lose at least 0.1 nats more with small steps than with usual ones",
        lambda runs: [
            small - usual
            for small, usual in zip(
                loses(runs, "broken: 0 bits", True), loses(runs, "broken: 0 bits", False), strict=True
            )
        ],
        above=0.1,
        unit="nats",
        arms=("16 bits", "broken: 0 bits", "16 bits, small steps", "broken: 0 bits, small steps"),
    ),
    costs(
        "chance-does-not-stall",
        "Small steps: 0 bits, rounded stochastically, end within 0.02 nats of 16",
        "0 bits, stochastic",
        small=True,
        within=(-0.02, 0.02),
    ),
    costs(
        "kahan-does-not-stall", "Small steps: Kahan ends within 0.02 nats of 16", "Kahan", True, within=(-0.02, 0.02)
    ),
    costs("as-autocast", "Autocast ends within 0.03 nats of 16 bits", "autocast", small=False, within=(-0.03, 0.03)),
    times("optimizer-no-slower", "The split step takes no more time than the leanest classic one, fused", "split", 1.0),
    times(
        "step-no-slower",
        "A whole step with split weights takes no more time than one of autocast with the fused step",
        "whole step, split",
        1.0,
        paper="15 % faster training (abstract of arXiv 2309.12381)",
    ),
    times(
        "in-backward-no-slower",
        "A whole step with the update inside backward takes at most 1.05 times that of the plain loop",
        "whole step, in backward",
        1.05,
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 8.6  # inches
NAMES = {  # of the plans that are drawn, in words that fit
    "classic": "classic",
    "split": "split",
    "split, in backward": "split, in backward",
    "chunked": "chunked",
    "chunked, split": "chunked, split",
    "chunked, recomputed": "chunked, recomputed",
    "chunked, recomputed, split": "both, split",
    "all": "both, split, in backward",
}
TOWER = ("foreach", "classic", "split", "split, in backward")


def colors_of(theme: Theme) -> dict[str, Any]:
    """A colour for each kind of bytes; first the kinds that stay from step to step."""
    return {
        "weights": theme.blue,
        "extra bits": theme.pink,
        "optimizer state": theme.green,
        "gradients": (theme.sky, 0.45),  # fainter, for it is much like the blue
        "activations": theme.orange,
        "temporaries": theme.grey,
    }


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: where the bytes are, as one trick after another is used. Below: training with fewer and fewer bits."""
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(3.6, 1.9, 2.9))
    top.suptitle("GPT-2, 124M parameters, batch 12: the peak", x=0.01, ha="left", fontsize=12)
    draw_gpt2(top.subplots(), runs, theme, prediction)
    middle.suptitle("Nearly all weights: bytes per parameter", x=0.01, ha="left", fontsize=12)
    draw_tower(middle.subplots(), runs, theme)
    draw_training(bottom.subplots(1, 2, sharey=True), runs, theme)


def draw_bars(axes: Any, bars: dict[str, dict[str, float]], theme: Theme, unit: str) -> None:
    """Stacked bars, one below the other, each with its name and its sum."""
    for y, sizes in enumerate(bars.values()):
        left = 0.0
        for kind, color in colors_of(theme).items():
            axes.barh(y, sizes[kind], left=left, color=color, height=0.72, label=kind if y == 0 else None)
            left += sizes[kind]
        label(axes, left, y, f"{left:.3g}{unit}", theme.ink, fontsize=10, xytext=(8, 0))
    axes.set_yticks(range(len(bars)), list(bars))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)


def draw_gpt2(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """The peak of a step of GPT-2."""
    peaks = {words: series(runs.metrics(f"GPT-2: {name}"), "peak")[-1][1] for name, words in NAMES.items()}
    draw_bars(axes, {words: {k: x / GB for k, x in sizes.items()} for words, sizes in peaks.items()}, theme, " GB")
    axes.set(xlim=(0, 16), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.legend(loc="lower right", fontsize=10, handlelength=1, borderpad=0)
    if prediction is not None:
        where = final("total")(runs.metrics("GPT-2: classic")) / GB / prediction
        axes.plot(where, 1, marker="o", markersize=13, color=theme.page, zorder=4)
        beside: Any = {"xytext": (-10, 0), "ha": "right"} if where > 7 else {}
        beside["bbox"] = {"facecolor": theme.page, "edgecolor": "none", "pad": 1.5}
        hollow(axes, where, 1, theme, "your prediction", fontsize=10, **beside)


def draw_tower(axes: Any, runs: Runs, theme: Theme) -> None:
    """The peak of a step that is nearly all weights, for each parameter."""
    bars = {}
    for name in TOWER:
        if f"tower: {name}" in runs.arms:
            line = runs.metrics(f"tower: {name}")[-1]
            bars[name] = {kind: size / line["parameters"] for kind, size in line["peak"].items()}
    draw_bars(axes, bars, theme, "")
    axes.set(xlim=(0, 24), xticks=[])
    axes.spines["bottom"].set_visible(False)


def draw_training(both: Any, runs: Runs, theme: Theme) -> None:
    """Training loss at two learning rates, the mean over seeds with a band from the smallest to the largest."""
    lines = {
        "16 bits": (theme.blue, "-", 1.8),
        "0 bits, stochastic": (theme.green, "-", 1.8),
        "8 bits": (theme.ink, (0, (1, 2)), 1.8),
        "broken: 0 bits": (theme.red, "-", 1.8),
    }
    for axes, rate, title in zip(both, ("", ", small steps"), ("Usual steps", "Steps a tenth as large"), strict=True):
        for name, (color, style, width) in lines.items():
            steps, losses = over_steps(runs, f"{name}{rate}", "loss")
            band(axes, steps, losses, color, linestyle=style, linewidth=width)
        axes.set(title=title, xlabel="Steps", xlim=(0, steps[-1] * 1.03), ylim=(None, 4.2))
    both[0].set_ylabel("Training loss, nats")
    words = {"broken: 0 bits": ("0 bits", 12), "16 bits": ("16 bits, 8 (dotted),\n0 stochastic (green)", -26)}
    for name, (text, above) in words.items():
        steps, losses = over_steps(runs, f"{name}, small steps", "loss")
        place = 3 * len(steps) // 4
        height = statistics.fmean(line[place] for line in losses)
        label(both[1], steps[place], height, text, lines[name][0], xytext=(0, above), ha="center", fontsize=10)


if __name__ == "__main__":
    lesson_main(__file__)
