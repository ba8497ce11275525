"""How much memory a training step will take, before it is taken: `plan` predicts, `measured` checks on a CPU.

`plan` takes two training steps with fake tensors, which have shapes and no values, so that neither memory nor data is
needed. It watches every tensor's memory from its making to its end, and reports the second step, in which the optimizer's
state exists. What it counts as what:

    weights            parameters and buffers
    extra bits         what `SplitWeights` keeps beside 16-bit weights
    gradients          what becomes the `.grad` of a weight, from its making on
    optimizer state    what else the optimizer or a hook keeps between steps
    activations        what a forward pass, or a block that is recomputed, keeps for the backward pass: inputs, what the
                       layers saw, and the 16-bit copies of the weights that autocast makes
    temporaries        all else, such as the gradients of activations

Not counted: what a kernel needs only while it runs (on CUDA cuBLAS keeps some MB, and the backward pass of attention
one float32 copy of the queries), gaps between blocks, evaluation and checkpoints, and the process itself (on CUDA some
hundred MB). A recipe whose step reads a value (`.item()`, `if x.isnan().any()`) cannot be planned.

The fake device is a CPU. For `device="cuda"` it makes that device's choices: `scaled_dot_product_attention`, float32 where
CUDA's autocast wants it, one kernel for RMSNorm, torch's own optimizers over all tensors at once, and blocks of 512 bytes.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop
from torch.utils.weak import weakref

from minitrain.recipe import Recipe
from minitrain.runtime import attention
from minitrain.schedules import set_schedules
from minitrain.train import Run, build, gradient

KINDS = ("weights", "extra bits", "gradients", "optimizer state", "activations", "temporaries")
PHASES = ("forward", "backward", "optimizer step")
GB = 2**30


@dataclass(frozen=True)
class Plan:
    """What one training step takes. Bytes; a GB is 2^30 of them."""

    parameters: int
    """A tied weight counts once."""
    flops: int
    """Of one step: multiplications and additions of matrix products, convolutions and attention (which counts what the mask
    hides), forward, backward and computed again."""
    peak: dict[str, int]
    """Bytes by kind at the moment of the highest total."""
    moments: dict[str, dict[str, int]]
    """The same at the highest total within `forward`, `backward` and `optimizer step`. Steps inside the backward pass
    belong to it."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.peak.values())

    def fits(self, gigabytes: float) -> bool:
        """Whether the peak is within so many GB (2^30 bytes)."""
        return self.total <= gigabytes * GB

    def __str__(self) -> str:
        """A table by kind, a column for the peak and one for each phase."""
        columns = {"peak": self.peak, **self.moments}
        width = max(len(kind) for kind in KINDS)
        lines = [f"{'GB':<{width}}" + "".join(f"{name:>16}" for name in columns)]
        for kind in KINDS:
            lines.append(f"{kind:<{width}}" + "".join(f"{sizes[kind] / GB:>16.3f}" for sizes in columns.values()))
        lines.append(f"{'all':<{width}}" + "".join(f"{sum(sizes.values()) / GB:>16.3f}" for sizes in columns.values()))
        return "\n".join(lines)


def plan(recipe: Recipe, device: str = "cuda") -> Plan:
    """Predicts the memory of a training step on `device`, `cuda` or `cpu`, whether or not this machine has it.

    The data is asked for the shape of one row.
    """
    kind = torch.device(device).type
    recipe = replace(recipe, data=stand_in(recipe))
    tracker = Tracker(block=512 if kind == "cuda" else 1)
    with torch.random.fork_rng(devices=[]), choices_of(kind), FakeTensorMode(allow_non_fake_inputs=True), tracker:
        run = build(recipe)
        for p in run.model.parameters():
            watch_gradient(p, tracker)
        if kind == "cuda":
            use_foreach(run.optimizer)
        for _ in range(2):
            tracker.begin_step()
            take_step(run, tracker)
            label(run, tracker)
        return Plan(sum(p.numel() for p in run.model.parameters()), tracker.flops, *tracker.report())


def take_step(run: Run, tracker: "Tracker") -> None:
    """One step as `minitrain.train.train` takes it."""
    set_schedules(run.optimizer, run.recipe.schedules, run.step)
    run.losses[run.step] = gradient(run, run.model)
    with tracker.stepping():
        for hook in run.before_step:
            hook(run.model, run.optimizer)
        run.optimizer.step()
        for hook in run.after_step:
            hook(run.model, run.optimizer)
    run.optimizer.zero_grad()


# --- what takes the place of data, modules and kernels -----------------------------------------------------------------


class StandIn:
    """Data of the right shapes and types, without content."""

    def __init__(self, row_size: int, size: int, shapes: tuple, dtypes: tuple[str, str]):
        self.row_size, self.size, self.digest = row_size, size, ""
        self.rows = [(tuple(shape), getattr(torch, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        inputs, targets = (torch.empty((rows, *shape), dtype=dtype) for shape, dtype in self.rows)
        return inputs, targets

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return []


def stand_in(recipe: Recipe) -> partial:
    """Makes `StandIn` from one row of the recipe's own data."""
    data = recipe.data()
    row = data.batch(recipe.seed, 0, 1)
    shapes = tuple(tuple(x.shape[1:]) for x in row)
    dtypes = tuple(str(x.dtype).removeprefix("torch.") for x in row)
    return partial(StandIn, row_size=data.row_size, size=data.size, shapes=shapes, dtypes=dtypes)


@contextmanager
def choices_of(kind: str) -> Generator[None]:
    """Within it, a fake CPU computes as a device of this kind would."""
    with mock.patch.object(nn.Module, "_apply", convert):
        if kind == "cpu":
            yield
            return
        library = torch.library.Library("aten", "IMPL")
        library.impl("_fused_rms_norm", fused_rms_norm, "AutogradCPU")
        for name in FLOAT32_UNDER_AUTOCAST:
            library.impl(name, partial(in_float32, operator(name)), "AutocastCPU")
        try:
            with mock.patch.object(attention, "LONGEST_MATERIALIZED", 0):
                yield
        finally:
            library._destroy()


def convert(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot replace fake parameters: they get new data instead, so that tied ones stay tied."""
    for tensor in (*module.parameters(recurse), *module.buffers(recurse)):
        tensor.data = change(tensor.data)
    return module


# What CUDA's autocast computes in float32 and the CPU's does not (torch/include/ATen/autocast_mode.h).
FLOAT32_UNDER_AUTOCAST = (
    "exp", "log", "log1p", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus",
    "layer_norm", "rms_norm", "group_norm", "logsumexp", "softmax.int", "log_softmax.int", "cumsum", "sum",
    "sum.dim_IntList", "prod", "linalg_vector_norm",
)  # fmt: skip


def operator(name: str) -> Any:
    """`torch.ops.aten.NAME`, with its overload."""
    name, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def in_float32(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an operator outside of autocast, with 16-bit arguments cast to float32."""
    with torch._C._DisableAutocast():
        return function(*(x.float() if is_16_bit(x) else x for x in args), **kwargs)


def is_16_bit(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)


class FusedRMSNorm(torch.autograd.Function):
    """The tensors that CUDA's RMSNorm makes and keeps, without their values: the input and a float32 for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, dims: int) -> tuple[Tensor, Tensor]:
        scale = torch.empty(x.shape[:-dims], dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        return torch.empty_like(x), scale

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor | None, None]:  # ty: ignore[invalid-method-override]
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


def fused_rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    return FusedRMSNorm.apply(x, weight, len(shape))


def use_foreach(optimizer: torch.optim.Optimizer) -> None:
    """On CUDA, torch's own optimizers go over all tensors at once unless told otherwise."""
    for group in optimizer.param_groups:
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True


# --- who holds how much, and when --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Block:
    """The memory of one storage, from `birth` to `death` on the tracker's clock."""

    size: int
    birth: int
    phase: str
    section: int
    death: float = float("inf")
    end_section: float = float("inf")
    kind: str | None = None


class Tracker(TorchDispatchMode):
    """Notes when each storage is made and freed. The clock counts what it has noted."""

    def __init__(self, block: int = 1):
        super().__init__()
        self.block = block
        self.alive: dict[int, Block] = {}
        self.references: dict[int, Any] = {}
        self.blocks: list[Block] = []
        self.changes: list[tuple[int, str]] = []  # bytes, phase
        self.in_step = False
        self.section, self.place = 0, ("forward", True)
        self.flops = self.start = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look()
        out = func(*args, **(kwargs or {}))
        count = FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for x in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(x, Tensor):
                self.see(x)
        return out

    def phase(self) -> str:
        if self.in_step:
            return "optimizer step"
        return "forward" if torch._C._current_graph_task_id() == -1 else "backward"

    def look(self) -> None:
        """A section is what is computed without a change between forward and backward, or gradient and recomputation."""
        phase = self.phase()
        place = (phase, phase == "forward" or torch.is_grad_enabled())
        if place != self.place:
            if phase != self.place[0]:
                self.changes.append((0, phase))
            self.place = place
            self.section += 1

    def see(self, x: Tensor) -> Block:
        """The block of a tensor's storage, which begins now if it is new."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            size = -(-storage.nbytes() // self.block) * self.block
            phase, recomputing = self.place
            new = Block(
                size, len(self.changes), phase if phase != "backward" or not recomputing else "forward", self.section
            )
            self.changes.append((size, phase))
            self.alive[key] = new
            self.blocks.append(new)
            self.references[key] = weakref.ref(storage, partial(self.forget, key))
        return self.alive[key]

    def forget(self, key: int, _: Any) -> None:
        block = self.alive.pop(key)
        del self.references[key]
        self.look()
        block.death, block.end_section = len(self.changes), self.section
        self.changes.append((-block.size, self.place[0]))

    @contextmanager
    def stepping(self) -> Generator[None]:
        self.in_step = True
        self.look()
        yield
        self.in_step = False
        self.look()

    def begin_step(self) -> None:
        self.flops, self.start = 0, len(self.changes)
        self.look()
        self.changes.append((0, self.place[0]))

    def name(self, kind: str, tensors: Iterable[Any]) -> None:
        for x in tensors:
            if isinstance(x, Tensor):
                self.see(x).kind = kind

    def kind(self, block: Block) -> str:
        if block.kind is not None:
            return block.kind
        if block.phase == "forward" and block.end_section > block.section:
            return "activations"
        if block.phase == "optimizer step" and block.death > len(self.changes):
            return "optimizer state"
        return "temporaries"

    def report(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Bytes by kind at the peak, and at the peak of each phase."""
        highest: dict[str, tuple[int, int]] = {}
        total = 0
        for when, (change, phase) in enumerate(self.changes):
            total += change
            if when >= self.start and total > highest.get(phase, (-1, 0))[0]:
                highest[phase] = (total, when)
        moments = {}
        for phase in PHASES:
            sizes = dict.fromkeys(KINDS, 0)
            when = highest[phase][1]
            for block in self.blocks:
                if block.birth <= when < block.death:
                    sizes[self.kind(block)] += block.size
            moments[phase] = sizes
        return max(moments.values(), key=lambda sizes: sum(sizes.values())), moments


FLOPS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop(g.shape, q.shape, k.shape, v.shape)
    ),
}


def watch_gradient(p: Tensor, tracker: Tracker) -> None:
    """Names each gradient of `p` before any other hook can use it up."""
    if p.requires_grad:
        handle = p.register_post_accumulate_grad_hook(lambda p: tracker.name("gradients", [p.grad]))
        p._post_accumulate_grad_hooks.move_to_end(handle.id, last=False)


def label(run: Run, tracker: Tracker) -> None:
    """Names what the model and the optimizer hold at the end of a step."""
    tracker.name("weights", (*run.model.parameters(), *run.model.buffers()))
    for state in run.optimizer.state.values():
        for key, value in state.items():
            tracker.name("extra bits" if key == "low" else "optimizer state", tree_leaves(value))
