"""Choosing the modules of a model that a technique is to change."""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

Which = Callable[[str, nn.Module], bool] | Collection[str]


def choose(model: nn.Module, which: Which, kinds: Collection[type]) -> dict[str, Any]:
    """The modules, by name, that `which` chooses among those of these `kinds`; each once, whatever names it has.

    `which` is a collection of names, or says yes or no to `(name, module)`. Raises `ValueError` where there is none, where
    a name is unknown, and where one is of another kind; a class derived from one of `kinds` is another one.
    """
    if callable(which):
        names = [name for name, x in model.named_modules() if isinstance(x, tuple(kinds)) and which(name, x)]
    else:
        names = [which] if isinstance(which, str) else list(which)
    modules = dict(model.named_modules(remove_duplicate=False))
    of, words = type(model).__name__, " or ".join(f"nn.{kind.__name__}" for kind in kinds)
    if not names:
        raise ValueError(f"no {words} of this {of} was chosen; name some, or give another `which`")
    chosen: dict[str, Any] = {}
    for name in names:
        if name not in modules:
            raise ValueError(f"this {of} has no module {name!r}; give names as named_modules() has them")
        module = modules[name]
        if type(module) not in kinds:
            raise ValueError(
                f"{name or 'this model'} is a {type(module).__name__}, and only {words} itself can be changed; leave it out"
            )
        if all(module is not other for other in chosen.values()):
            chosen[name] = module
    return chosen
