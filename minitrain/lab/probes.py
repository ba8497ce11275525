"""Measurements taken around a step that leave the run as it was: the same bits with a probe as without."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from minitrain.train import Run


def angle(a: Float[Tensor, "... N"], b: Float[Tensor, "... N"]) -> Float[Tensor, "..."]:
    """The angle between vectors, in radians, by the chord: `2 asin(|a/|a| - b/|b|| / 2)`.

    `acos` of a cosine, the usual way, is 8 % wrong in float32 at 1e-3 radians. NaN where a vector is zero.
    """
    a, b = (x if x.dtype == torch.float64 else x.float() for x in (a, b))
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))


def rows(w: Tensor, row_dims: int = 1) -> Float[Tensor, "O I"]:
    """A weight as one row per neuron: the first `row_dims` dimensions count neurons, the others are a neuron's inputs."""
    return w.flatten(row_dims).flatten(0, row_dims - 1) if w.ndim > row_dims else w.reshape(-1, 1)


class Rotation:
    """How far each neuron turned in this step: the root mean square over a matrix's rows, in radians, under its name.

    Measures the group named `group`; `every` counts steps.
    """

    def __init__(self, group: str = "matrices", every: int = 25):
        self.group, self.every = group, every
        self.old: dict[str, Tensor] = {}

    def before(self, run: "Run") -> None:
        self.old = {name: w.detach().clone() for name, w, _ in self.weights(run)}

    def after(self, run: "Run") -> dict[str, Any]:
        turned = {
            name: angle(rows(self.old[name], row_dims), rows(w.detach(), row_dims)).square().nanmean().sqrt()
            for name, w, row_dims in self.weights(run)
        }
        of_group = "" if self.group == "matrices" else f"_of_{self.group}"
        result: dict[str, Any] = {
            f"rotation{of_group}": dict(zip(turned, torch.stack(list(turned.values())).tolist(), strict=True))
        }
        group = next(g for g in run.optimizer.param_groups if g.get("name") == self.group)
        predict = getattr(run.optimizer, "equilibrium_rotation", None)
        if predict and (predicted := predict(group)) is not None:
            result[f"predicted_rotation{of_group}"] = predicted
        return result

    def weights(self, run: "Run") -> list[tuple[str, Tensor, int]]:
        """Name, weight and `row_dims` of each measured parameter."""
        groups = {p: g for g in run.optimizer.param_groups if g.get("name") == self.group for p in g["params"]}
        if not groups:
            raise ValueError(
                f"the optimizer has no group named {self.group!r}; name one of its own to measure rotation"
            )
        return [(name, p, groups[p].get("row_dims", 1)) for name, p in run.model.named_parameters() if p in groups]
