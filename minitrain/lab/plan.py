"""How much memory a training step will take, before it is taken: `plan` predicts, `measured` looks at a real step on a CPU.

`plan` takes two steps with fake tensors, which have shapes and no values, so that no memory is needed. It notes when each
tensor's memory is made and freed, and reports the second step, in which the optimizer's state exists. What counts as what:

    weights            parameters and buffers
    extra bits         what `SplitWeights` keeps beside 16-bit weights
    gradients          what becomes the `.grad` of a weight, from its making on
    optimizer state    what else the optimizer and the recipe's hooks keep between steps
    activations        what the forward pass, or a block that is computed again, keeps for the backward pass: inputs, what
                       the layers saw, and the 16-bit copies of the weights that autocast makes
    temporaries        all else, such as the gradients of activations and the optimizer's intermediate results

The fake device is a CPU. For `device="cuda"` it makes a GPU's choices: attention by `scaled_dot_product_attention`, float32
where CUDA's autocast asks for it, one kernel for RMSNorm, torch's own optimizers on all tensors at once, split weights
stepped in larger pieces, and memory in blocks of 512 bytes.

Not counted: what a kernel needs only while it runs (on CUDA some MB for cuBLAS, and a float32 copy of the queries in the
backward pass of attention; on a CPU, the operands of some convolutions in another layout), gaps between blocks, evaluation,
and the process itself (on CUDA some hundred MB). Predictions for a CPU are tested against real steps; those for CUDA follow
from torch's source and were not held against a GPU. A compiled model frees and recomputes as it likes, and is not predicted.
Where a step asks for a value (`if x.isnan().any()`), there is none; the rotational optimizers take their readable form then,
and really keep 8 MB more on a CPU.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop
from torch.utils.weak import weakref

from minitrain.recipe import Recipe
from minitrain.runtime import attention
from minitrain.schedules import set_schedules
from minitrain.techniques import split_weights
from minitrain.train import Run, build, gradient

try:
    import resource
except ImportError:  # Windows
    resource = None

KINDS = ("weights", "extra bits", "gradients", "optimizer state", "activations", "temporaries")
PHASES = ("forward", "backward", "optimizer step")
GB = 2**30


def size_text(size: float) -> str:
    """A number of bytes for people, in GB (2^30 bytes) or MB (2^20)."""
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / 2**20:.2f} MB"


def flops_text(flops: float) -> str:
    """A number of operations for people."""
    return f"{flops / 1e12:,.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.3f} GFLOP"


@dataclass(frozen=True)
class Plan:
    """What one training step takes. Sizes are in bytes; a GB is 2^30 of them."""

    parameters: int
    """How many; a tied one counts once."""
    flops: int
    """Multiplications and additions of one step's matrix products, convolutions and attention, which counts what its mask
    hides: of the forward pass, the backward pass, and what is computed again."""
    peak: dict[str, int]
    """By kind, at the moment of the highest total."""
    moments: dict[str, dict[str, int]]
    """By kind, at the highest total of each phase: `forward`, `backward` (to which steps inside it belong) and
    `optimizer step`, hooks included."""

    @property
    def total(self) -> int:
        """At the moment of the highest total."""
        return sum(self.peak.values())

    @property
    def phase(self) -> str:
        """The phase that holds the peak."""
        return next(phase for phase, sizes in self.moments.items() if sizes == self.peak)

    def fits(self, gigabytes: float) -> bool:
        """Whether the peak is at most so many GB (2^30 bytes). Nothing is set aside for the process itself."""
        return self.total <= gigabytes * GB

    def __str__(self) -> str:
        """Parameters, FLOPs, and a table of the sizes by kind and phase."""
        unit, unit_name = (GB, "GB") if self.total >= GB else (2**20, "MB")
        titles = [f"{phase} (peak)" if phase == self.phase else phase for phase in self.moments]
        rows = {kind: [sizes[kind] for sizes in self.moments.values()] for kind in KINDS}
        rows["all"] = [sum(sizes.values()) for sizes in self.moments.values()]
        lines = [f"{self.parameters:,} parameters, {flops_text(self.flops)} a step", ""]
        lines.append(f"{unit_name:<15}" + "".join(f"{title:>22}" for title in titles))
        lines += [f"{kind:<15}" + "".join(f"{size / unit:>22.2f}" for size in sizes) for kind, sizes in rows.items()]
        return "\n".join(lines)


def plan(recipe: Recipe, device: str = "cuda") -> Plan:
    """Predicts the memory of a training step on `device`, `cuda` or `cpu`, whether or not this machine has it.

    The data is asked for one row, to know its shape. While this runs, choices of the process are others (`choices_of`).
    Raises `ValueError` for another device, and for a recipe that cannot be planned.
    """
    kind = str(device).partition(":")[0]
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"device must be cuda or cpu, not {device!r}: what others choose is not known")
    recipe = replace(recipe, data=stand_in(recipe))
    tracker = Tracker(block=512 if kind == "cuda" else 1)
    generators = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(generators), choices_of(kind), FakeTensorMode(allow_non_fake_inputs=True), tracker:
            run = build(recipe)
            if kind == "cuda":
                use_foreach(run.optimizer)
            for p in run.model.parameters():
                watch_gradient(p, tracker)
            for _ in range(2):
                tracker.begin_step()
                take_step(run, tracker.stepping)
                name_what_stays(run, tracker)
            peak, moments = tracker.report()
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise ValueError(
            f"this recipe cannot be planned, for a step asks for values that are not there ({error.func}); run it instead"
        ) from error
    return Plan(sum(p.numel() for p in run.model.parameters()), tracker.flops, peak, moments)


def take_step(run: Run, stepping: Callable[[], Any]) -> None:
    """One step as `minitrain.train.train` takes it; `stepping()` is the context of what follows the gradient."""
    set_schedules(run.optimizer, run.recipe.schedules, run.step)
    run.losses[run.step % len(run.losses)] = gradient(run, run.model)
    with stepping():
        for hook in run.before_step:
            hook(run.model, run.optimizer)
        run.optimizer.step()
        for hook in run.after_step:
            hook(run.model, run.optimizer)
    run.step += 1
    run.optimizer.zero_grad()


# --- who holds how much, and when --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Block:
    """The memory of one storage. Times are counts of the tracker's notes."""

    size: int
    place: str
    """What was computed when it was made: `build`, a phase, or `recomputation` within the backward pass."""
    section: int
    """Grows by 1 whenever the place changes."""
    birth: int
    death: float = float("inf")
    last_section: float = float("inf")
    kind: str | None = None


class Tracker(TorchDispatchMode):
    """Notes when the memory of tensors is made and freed, rounded up to whole blocks, and counts FLOPs."""

    def __init__(self, block: int = 1):
        super().__init__()
        self.block, self.flops = block, 0
        self.notes: list[tuple[int, str]] = []  # bytes more, and in which place
        self.start = 0  # where in the notes the present step begins
        self.place, self.section = "build", 0
        self.blocks: list[Block] = []
        self.alive: dict[int, tuple[Block, weakref.ref]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked for again and again
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, list | tuple) else (out,)) if isinstance(x, Tensor)]
        self.move_to(self.place_of(made))
        if func._overloadpacket in FLOPS:
            self.flops += FLOPS[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for x in made:
            self.block_of(x)
        return out

    def place_of(self, made: list[Tensor]) -> str:
        """Where in the step an operator was called that made these tensors."""
        if self.place in ("build", "optimizer step"):
            return self.place
        if torch._C._current_graph_task_id() != -1:  # autograd is at work
            return "recomputation" if torch.is_grad_enabled() else "backward"
        adds_up_losses = self.place != "forward" and all(x.numel() == 1 for x in made)
        return "backward" if adds_up_losses else "forward"

    def move_to(self, place: str) -> None:
        if place != self.place:
            self.place = place
            self.section += 1
            self.notes.append((0, place))

    def block_of(self, x: Tensor) -> Block:
        """The block of a tensor's memory, made now if it was not known."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            size = -(-storage.nbytes() // self.block) * self.block
            block = Block(size, self.place, self.section, birth=len(self.notes))
            self.notes.append((size, self.place))
            self.blocks.append(block)
            self.alive[key] = block, weakref.ref(storage, lambda _: self.forget(key))
        return self.alive[key][0]

    def forget(self, key: int) -> None:
        block, _ = self.alive.pop(key)
        block.death, block.last_section = len(self.notes), self.section
        self.notes.append((-block.size, self.place))

    def begin_step(self) -> None:
        self.flops, self.start = 0, len(self.notes)
        self.move_to("forward")

    @contextmanager
    def stepping(self) -> Generator[None]:
        """The part of a step that comes after the gradient, to the beginning of the next step."""
        self.move_to("optimizer step")
        yield

    def name(self, kind: str, tensors: Iterable[Any]) -> None:
        """Says what the memory of tensors is."""
        for x in tensors:
            if isinstance(x, Tensor):
                self.block_of(x).kind = kind

    def kind(self, block: Block) -> str:
        """What a block is: what it was named, or else what follows from where and how long it lived."""
        if block.kind:
            return block.kind
        if block.place in ("forward", "recomputation") and block.last_section > block.section:
            return "activations"
        if block.place == "optimizer step" and block.death > len(self.notes):
            return "optimizer state"
        return "temporaries"

    def report(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Bytes by kind, at the peak of the present step and at that of each phase."""
        highest: dict[str, tuple[int, int]] = {}
        total = 0
        for i, (more, place) in enumerate(self.notes):
            total += more
            phase = "backward" if place == "recomputation" else place
            if i >= self.start and total > highest.get(phase, (-1, 0))[0]:
                highest[phase] = total, i
        moments = {phase: self.kinds_at(highest[phase][1]) for phase in PHASES}
        return max(moments.values(), key=lambda sizes: sum(sizes.values())), moments

    def kinds_at(self, i: int) -> dict[str, int]:
        """Bytes by kind after note `i`."""
        sizes = dict.fromkeys(KINDS, 0)
        for block in self.blocks:
            if block.birth <= i < block.death:
                sizes[self.kind(block)] += block.size
        return sizes


def watch_gradient(p: Tensor, tracker: Tracker) -> None:
    """Has each gradient of `p` named before another hook can use it up."""
    if p.requires_grad:
        others = dict(p._post_accumulate_grad_hooks or {})
        p.register_post_accumulate_grad_hook(lambda p: tracker.name("gradients", [p.grad]))
        for i, hook in others.items():  # they are called in the order in which they were put there
            del p._post_accumulate_grad_hooks[i]
            p._post_accumulate_grad_hooks[i] = hook


def name_what_stays(run: Run, tracker: Tracker) -> None:
    """Names what model and optimizer hold between steps."""
    tracker.name("weights", (*run.model.parameters(), *run.model.buffers()))
    for state in run.optimizer.state.values():
        for key, value in state.items():
            tracker.name("extra bits" if key == "low" else "optimizer state", tree_leaves(value))


FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop(g.shape, q.shape, k.shape, v.shape)
    ),
    **flop_registry,
}


# --- what stands in for data, for moving a module, and for a GPU -------------------------------------------------------


class StandIn:
    """Data of the right shapes and types, without content."""

    digest = ""

    def __init__(self, row_size: int, size: int, shapes: tuple[tuple[int, ...], ...], types: tuple[str, ...]):
        self.row_size, self.size, self.shapes, self.types = row_size, size, shapes, types

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        pairs = zip(self.shapes, self.types, strict=True)
        inputs, targets = (torch.empty((rows, *shape), dtype=getattr(torch, type)) for shape, type in pairs)
        return inputs, targets

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return []


def stand_in(recipe: Recipe) -> partial:
    """A maker of data like the recipe's own, which is asked for one row."""
    data = recipe.data()
    row = data.batch(recipe.seed, 0, 1)
    shapes, types = tuple(tuple(x.shape[1:]) for x in row), tuple(str(x.dtype).removeprefix("torch.") for x in row)
    return partial(StandIn, row_size=data.row_size, size=data.size, shapes=shapes, types=types)


def convert(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot exchange fake parameters: here they get new data, and tied ones stay tied."""
    for x in (*module.parameters(recurse), *module.buffers(recurse)):
        x.data = change(x.data)
    return module


# What CUDA's autocast computes in float32 and a CPU's does not (torch/include/ATen/autocast_mode.h), but for interpolation
# and rare norms: operators whose arguments it casts, and operators that it asks for a result in float32.
CAST_ARGUMENTS = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh", "tan",
    "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm", "rms_norm",
    "group_norm", "cosine_similarity", "logsumexp",
)  # fmt: skip
ASK_FOR_FLOAT32 = ("softmax.int", "log_softmax.int", "cumsum", "sum", "sum.dim_IntList", "linalg_vector_norm")


@contextmanager
def choices_of(kind: str) -> Generator[None]:
    """Within it, fake tensors on a CPU are treated as a device of this kind would treat its own.

    For `cuda` that holds for the whole process: RMSNorm has no values, and autocast on a CPU acts as CUDA's does.
    """
    on_cuda = kind == "cuda"
    with (
        mock.patch.object(nn.Module, "_apply", convert),
        mock.patch.object(attention, "LONGEST_MATERIALIZED", 0 if on_cuda else attention.LONGEST_MATERIALIZED),
        mock.patch.dict(split_weights.PIECE, {"cpu": split_weights.OTHER_PIECE} if on_cuda else {}),
        torch.library._scoped_library("aten", "IMPL") as library,
    ):
        if on_cuda:
            library.impl("_fused_rms_norm", fused_rms_norm, "AutogradCPU")
            for name in CAST_ARGUMENTS:
                library.impl(name, partial(with_float32, operator(name)), "AutocastCPU")
            for name in ASK_FOR_FLOAT32:
                library.impl(name, partial(to_float32, operator(name)), "AutocastCPU")
        yield


def operator(name: str) -> Callable[..., Any]:
    """`torch.ops.aten.NAME.OVERLOAD`, of a name such as `sum.dim_IntList`."""
    name, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def with_float32(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an operator with its 16-bit arguments cast to float32."""
    with torch._C._DisableAutocast():
        return function(*(x.float() if is_16_bit(x) else x for x in args), **kwargs)


def to_float32(function: Callable[..., Any], *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """Calls an operator of 16-bit arguments for a result in float32, unless another type is asked for."""
    with torch._C._DisableAutocast():
        asked = torch.float32 if dtype is None and any(map(is_16_bit, args)) else dtype
        return function(*args, dtype=asked, **kwargs)


def is_16_bit(x: Any) -> bool:
    """Whether autocast would cast it."""
    return isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)


class FusedRMSNorm(torch.autograd.Function):
    """The tensors that CUDA's RMSNorm makes and keeps, without their values: its input, and a float32 for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, dims: int) -> tuple[Tensor, Tensor]:
        scale = torch.empty(x.shape[:-dims], dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        return torch.empty_like(x), scale

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, _scale = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


def fused_rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    """The operator of that name, whose result has no values."""
    return FusedRMSNorm.apply(x, weight, len(shape))


def use_foreach(optimizer: torch.optim.Optimizer) -> None:
    """Torch's own optimizers go over all tensors at once on CUDA, unless they were told another way."""
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


# --- a real step -------------------------------------------------------------------------------------------------------


def measured(recipe: Recipe) -> dict[str, int]:
    """The highest number of bytes in tensors within each phase of a real second step on this CPU, from torch's profiler.

    The profiler sees every allocation, those inside kernels too, but not what numpy holds, as the tokens of a batch.
    """
    with torch.random.fork_rng(()), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = build(recipe)
        for name in ("first step", "second step"):
            with record_function(name):
                take_step(run, partial(record_function, "optimizer step"))
    kineto: Any = profiler.profiler
    events = sorted(happenings(kineto.kineto_results.experimental_event_tree()), key=lambda event: event[0])
    highest, total, counts = dict.fromkeys(PHASES, 0), 0, False
    for _, phase, more in events:
        total += more
        counts = counts or phase == "second step"
        adds_up_losses = phase == "forward" and more <= 8  # which is after the backward pass
        if counts and phase in highest and not adds_up_losses:
            highest[phase] = max(highest[phase], total)
    return highest


def happenings(events: Iterable[Any], phase: str = "forward") -> Iterator[tuple[int, str, int]]:
    """`(nanoseconds, phase, bytes more)` for each event of the profiler's tree; the steps' beginnings have their name."""
    for event in events:
        allocates = event.tag == _EventType.Allocation
        if allocates:
            yield event.start_time_ns, phase, event.extra_fields.alloc_size
            continue
        inside = phase
        if event.name.startswith("autograd::engine"):
            inside = "backward"
        elif event.name == "optimizer step":
            inside = event.name
        yield event.start_time_ns, event.name if event.name == "second step" else inside, 0
        yield from happenings(event.children, inside)


class Gauge:
    """What a run really takes from here on, beside what is predicted for its step.

    On CUDA that is the highest total of the allocator. On a CPU it is by how much the process grew beyond its largest size
    before, with all in it that is no tensor: code, threads, what allocators keep for later.
    """

    def __init__(self, recipe: Recipe, device: str, compiled: bool = False):
        self.device = torch.device(device)
        can_be_planned = self.device.type in ("cuda", "cpu") and not compiled
        self.predicted = plan(recipe, self.device.type).total if can_be_planned else None
        self.before = highest_resident_set() or 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def __str__(self) -> str:
        predicted = "not predicted" if self.predicted is None else f"{size_text(self.predicted)} predicted"
        if self.device.type == "cuda":
            found = f"{size_text(torch.cuda.max_memory_allocated(self.device))} measured by the CUDA allocator"
        elif (highest := highest_resident_set()) is not None:
            found = f"the process grew by {size_text(highest - self.before)}, with all in it that is no tensor"
        else:
            found = "this system does not say what the process took"
        return f"Memory of a training step: {predicted}; {found}"


def highest_resident_set() -> int | None:
    """The most bytes of memory that this process has held so far; None on a system that does not say."""
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
