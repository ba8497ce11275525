"""The optimizer's step inside the backward pass: a gradient is used as soon as it is there, and dropped.

An ordinary loop holds the gradients of all parameters until the step. Here a hook steps each parameter the moment its
gradient is complete and frees it, so that of all the gradients only those in use are alive at once; that of a tied weight
waits, half done, for the other use. The weights are bit for bit those of the ordinary loop, whose lines stay as they are:

    loss.backward()    for each p, once its gradient is complete:  update(p, group);  p.grad freed
    optimizer.step()   nothing is left to do

References: Lewandowski & Kosson, 2023, arXiv 2309.12381; Lv et al., 2023, arXiv 2306.09782 (LOMO, the same for plain SGD).
The clipping of updates is that of Shazeer & Stern, 2018, arXiv 1804.04235, section 6.

When it does not help: where activations or logits hold the peak, which comes before there is any gradient (chunk the loss
and recompute the blocks first); under `torch.compile`, which hands over all gradients of a compiled graph at once. What
needs all gradients before the first step cannot be had, and is refused: accumulation over micro batches, clipping by the
global norm (`ClipGradNorm`), a `GradScaler`, and averaging over ranks as DDP does. `clip_updates` needs one tensor only.
Blocks that are recomputed must not read a weight that was detached: by then it may have been stepped.

What it changes in a run: schedules act in the same step, for they are set before the backward pass; `before_step` hooks
come after the update; probes see the weights before and after, but no gradients. Accumulation is refused at its second
backward pass, clipping and scaling where they read the gradients: the weights have moved by then, so start anew.

Deviations: written after the paper's abstract. LOMO can clip by the global norm at the price of a second backward pass;
this cannot.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from minitrain.optim import Optimizer, PlainStorage


class StepInBackward(torch.optim.Optimizer):
    """Has `optimizer`, one of minitrain's, step every parameter inside the backward pass; stands in its place in any loop.

    Groups, state and `state_dict` are those of `optimizer`, and so is every attribute not found here. Until `zero_grad`,
    `.grad` holds a `UsedGradient`. What reached `.grad` by another way than a backward pass is stepped by `step`. Make it
    once the model is on its device and, where they are split, the weights are; what else is put around an optimizer comes
    before. Raises `ValueError` for other optimizers, for one that has step hooks or is used by another of these, and where
    several ranks train together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"StepInBackward needs one of minitrain's own optimizers, not {type(optimizer).__module__}."
                f"{type(optimizer).__name__}: it has to step one parameter by itself; put StepInBackward around last"
            )
        refuse_hooks(optimizer)
        refuse_ranks()
        self.optimizer: Any = optimizer
        self.before: dict[int, Callable] = OrderedDict()
        self.begun = False  # whether the present step has changed a parameter
        self.hooks: list[RemovableHandle] = []
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.share()

    def share(self) -> None:
        """Takes on the groups and the state that the optimizer has now."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self.place = {p: i for i, group in enumerate(self.param_groups) for p in group["params"]}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if all(param_group is not group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
        self.share()
        hooks = [p.register_post_accumulate_grad_hook(self.use) for p in param_group["params"] if p.requires_grad]
        self.hooks.extend(hooks)

    def group_of(self, p: Tensor) -> dict[str, Any]:
        """The group that owns a parameter, as it is now."""
        return self.optimizer.param_groups[self.place[p]]

    def use(self, p: Tensor) -> None:
        """Steps `p` by its gradient and frees the gradient. Autograd calls it once, after the last use of a tied weight."""
        refuse_ranks()
        self.begin()
        self.optimizer.update(p, self.group_of(p))
        p.grad = UsedGradient(p) if self.hooks else p.grad

    def begin(self) -> None:
        """Calls the hooks that come before a step, once in it."""
        if not self.begun:
            self.begun = True
            for hook in tuple(self.before.values()):
                hook(self, (), {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps what the backward pass did not, as a rule nothing. `closure` recomputes the loss, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.begin()
        for p in self.place:
            if p.grad is not None and not isinstance(p.grad, UsedGradient):
                self.use(p)
        self.optimizer.storage.finish()
        self.begun = False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets every gradient to None, whatever `set_to_none` says: a used gradient cannot be zero."""
        for p in self.place:
            p.grad = None

    def register_step_pre_hook(self, hook: Callable) -> RemovableHandle:
        """As torch's. The hook is called before the first parameter changes, which is inside the backward pass."""
        handle = RemovableHandle(self.before)
        self.before[handle.id] = hook
        return handle

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        self.share()

    def remove(self) -> None:
        """Takes the hooks off the parameters: from then on `step` steps, as in an ordinary loop."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("the hooks of StepInBackward cannot be copied; copy its `optimizer` and wrap the copy")


class UsedGradient(Tensor):
    """Stands in `.grad` for a gradient that was used: without memory, and an error for whoever reads it or adds to it."""

    @staticmethod
    def __new__(cls, p: Tensor) -> "UsedGradient":
        return Tensor._make_wrapper_subclass(cls, p.shape, dtype=p.dtype, device=p.device, storage_size=0)

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:  # ty: ignore[incompatible-method-override]
        raise RuntimeError(
            "StepInBackward used this gradient inside the backward pass: accumulation (two backward passes before"
            " zero_grad), clipping by the global norm and GradScaler need all gradients at once; use clip_updates, or the"
            " plain optimizer"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"UsedGradient(shape={tuple(self.shape)}, dtype={self.dtype})"


def refuse_hooks(optimizer: Optimizer) -> None:
    """Raises `ValueError` where something else is called around the optimizer's step, or steps in its place already."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            "the optimizer's own step is never called inside backward; register its hooks on StepInBackward"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    hooks = [hook for p in parameters for hook in (p._post_accumulate_grad_hooks or {}).values()]
    if any(isinstance(getattr(hook, "__self__", None), StepInBackward) for hook in hooks):
        raise ValueError("another StepInBackward steps these parameters already; remove() it first")


def refuse_ranks() -> None:
    """Raises `ValueError` where several ranks train together: each would step by its own gradient, not by their mean."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            raise ValueError(
                f"StepInBackward steps before the gradients of the {ranks} ranks are averaged (DDP), so their weights would"
                " drift apart; use the plain optimizer"
            )


# --- clipping that needs one tensor only --------------------------------------------------------------------------------


def clipped(u: Float[Tensor, "*shape"], max_rms: float) -> Float[Tensor, "*shape"]:
    """`u / max(1, rms(u) / max_rms)`: an update no larger than `max_rms` per weight, in the root mean square."""
    largest = u.abs().amax().clamp(min=max_rms) if u.numel() else max_rms  # the squares of huge numbers are infinite
    return u / ((u / largest).square().mean().sqrt() * (largest / max_rms)).clamp(min=1.0)


class ClippedDirection:
    """A direction with its update clipped; it asks for the same hyper-parameters."""

    def __init__(self, direction: Callable[..., Tensor], max_rms: float):
        self.direction, self.max_rms = direction, max_rms
        self.__signature__ = inspect.signature(direction)

    def __call__(self, g: Tensor, state: dict, **hyper: Any) -> Tensor:
        return clipped(self.direction(g, state, **hyper), self.max_rms)


def clip_updates(optimizer: torch.optim.Optimizer, max_rms: float = 1.0) -> Optimizer:
    """Has the optimizer clip each tensor's update, before learning rate and decay, and returns the same optimizer.

    Comes before `SplitWeights` and `StepInBackward`. Adam's updates stay below 1 while
    gradients are steady, so that 1 acts on sudden large ones only; and where it acts, predictions of the equilibrium,
    which know nothing of it, are too large.
    """
    if not isinstance(optimizer, Optimizer) or type(optimizer.storage) is not PlainStorage:
        raise ValueError("clip_updates takes one of minitrain's own optimizers, before its weights are split")
    if not 0 < max_rms < float("inf"):
        raise ValueError(f"max_rms must be a finite number above 0, not {max_rms}; leave clip_updates out to not clip")
    optimizer.direction = ClippedDirection(optimizer.direction, max_rms)
    return optimizer
