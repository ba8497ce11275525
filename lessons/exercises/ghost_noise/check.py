"""Checks of the exercise `ghost_noise`: shift and scale of every draw, means of many draws, and Jacobians by differences."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minitrain.lab.exercises import require, require_close

B, EPS = 8, 1e-3
SIZES = (B, 3, 4, 3)

# --- the injection ------------------------------------------------------------------------------------------------------


def check_evaluation(answer: ModuleType) -> None:
    """Outside training inject gives its input back."""
    x = batch()
    y = injected(answer, x, 4, training=False)
    hint = "noise is for training only: return x where `training` is False"
    require(
        torch.equal(y, x), f"an output up to {(y - x).abs().max().item():.3g} away from the input", "the input", hint
    )


def check_one_number_each(answer: ModuleType) -> None:
    """In a sample and channel all pixels have the same shift and the same scale."""
    x = batch()
    shift, scale = noise_of(x, injected(answer, x, 4))
    again = (x - shift[..., None, None]) / scale[..., None, None]
    off = (again - injected(answer, x, 4)).abs().max().item()
    hint = "one shift and one scale for each sample and channel, whatever the pixel"
    require(off < 1e-9, f"no shift and scale explain the output: {off:.3g} away", "y = (x - shift) / scale", hint)


def check_random(answer: ModuleType) -> None:
    """Two calls draw different noise, and neither is zero."""
    x = batch()
    first, second = (noise_of(x, injected(answer, x, 4, seed=seed)) for seed in (0, 1))
    hint = (
        "are these the moments of the sample itself, or of a fixed part of the batch? Draw a ghost batch in every call"
    )
    require(
        not torch.allclose(first[0], second[0]), "twice the same shifts", "shifts that differ from call to call", hint
    )
    require(first[0].abs().max() > 1e-6, "shifts of zero", "shifts", "without noise nothing is injected")


def check_each_its_own(answer: ModuleType) -> None:
    """Every sample has a ghost batch of its own."""
    x = batch(16)
    shift, _ = noise_of(x, injected(answer, x, 8))
    same = (shift[:, None] - shift[None]).abs().amax(2) < 1e-9
    pairs = (int(same.sum()) - 16) // 2
    hint = "this is ghost batch norm in disguise, whose samples share a ghost batch; draw one for each sample"
    require(
        pairs == 0, f"{pairs} pairs of samples with the same shift", "none, in 16 samples with ghost batches of 8", hint
    )


def check_channels_together(answer: ModuleType) -> None:
    """Two channels that are equal get equal noise."""
    x = batch()
    x[:, 1] = x[:, 0]
    shift, scale = noise_of(x, injected(answer, x, 4))
    off = max((t[:, 1] - t[:, 0]).abs().max().item() for t in (shift, scale))
    hint = "draw the samples once and use them in all channels: indices of shape (B, n), not (B, n, C)"
    require(off < 1e-9, f"noise that differs by {off:.3g} between them", "the same shift and scale in both", hint)


def check_outcomes(answer: ModuleType) -> None:
    """Four samples, three alike, and ghost batches of two: there are three outcomes, with these shifts and scales."""
    d, eps = 0.5, 0.1
    means = torch.tensor([-1.0, -1.0, -1.0, 3.0], dtype=torch.float64)  # mean 0, variance 3
    x = (means[:, None] + torch.tensor([-d, d], dtype=torch.float64)).view(4, 1, 1, 2)
    variances = {
        -1.0: d * d,
        1.0: 4 + d * d,
        3.0: d * d,
    }  # the other sample is in the ghost batch not at all, once, twice
    expected = {shift: ((v + eps) / (3 + d * d + eps)) ** 0.5 for shift, v in variances.items()}
    said = f"shift and scale one of {', '.join(f'({s:g}, {c:.4g})' for s, c in expected.items())}, with eps = {eps}"
    hint = "(x - shift) / scale, shift = m - mu; variances without correction; eps beside v and beside var"
    seen = set()
    for seed in range(40):
        shifts, scales = noise_of(x, injected(answer, x, 2, seed, eps=eps))
        for shift, scale in zip(shifts.flatten().tolist(), scales.flatten().tolist(), strict=True):
            near = min(expected, key=lambda s: abs(s - shift))
            ok = abs(shift - near) < 1e-6 and abs(scale - expected[near]) < 1e-6
            require(ok, f"shift {shift:.4g} with scale {scale:.4g}", said, hint)
            seen.add(near)
    hint = "the same sample may be in a ghost batch twice: draw with replacement"
    require(len(seen) == 3, f"only the shifts {sorted(seen)} in 160 draws", "all of -1, 1 and 3", hint)


def check_variance(answer: ModuleType) -> None:
    """The shift has mean 0 and variance V / n, where V is the variance of the samples' means; also with n = B."""
    x = batch()
    V = x.mean((2, 3)).var(0, correction=0)
    for n in (4, B, 3 * B):
        shift = torch.cat([noise_of(x, injected(answer, x, n, seed))[0] for seed in range(300)])
        ratio = (shift.square().mean(0) / (V / n)).mean().item()
        lost = (B - n) / (B - 1)
        hint = f"without replacement it would be {lost:.3g} of that: draw with replacement" if 0 <= lost < 0.9 else ""
        require_close(ratio, 1.0, 0.15, f"shift variance over V / n, n = {n}, B = {B}. {hint}")


def check_constant(answer: ModuleType) -> None:
    """In the backward pass shift and scale are constants."""
    x = batch().requires_grad_()
    g = torch.randn(SIZES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = injected(answer, x, 4)
    require(
        y.requires_grad, "an output without a gradient", "the gradient of y by x", "only shift and scale are detached"
    )
    (found,) = torch.autograd.grad((y * g).sum(), x)
    _, scale = noise_of(x.detach(), y.detach())
    off = (found - g / scale[..., None, None]).abs().max().item()
    hint = "compute shift and scale under torch.no_grad()"
    require(off < 1e-9, f"a gradient {off:.3g} away from that", "the output's gradient over scale", hint)


def batch(rows: int = B) -> Tensor:
    """Samples that differ, in channels that differ."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, *SIZES[1:], dtype=torch.float64, generator=generator)
    x += torch.randn(rows, 3, 1, 1, dtype=torch.float64, generator=generator)
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)


def injected(answer: ModuleType, x: Tensor, n: int, seed: int = 0, training: bool = True, eps: float = EPS) -> Tensor:
    """What the learner makes of a batch, after the generator was seeded."""
    torch.manual_seed(seed)
    y: Any = answer.inject(x, n, training, eps)
    if y is ...:
        require(False, ..., "")
    shape = tuple(x.shape)
    require(isinstance(y, Tensor) and tuple(y.shape) == shape, y, f"a tensor of shape {shape}")
    return y


def noise_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The shift and the scale that lead from x to y, (B, C) each, by least squares over the pixels."""
    x, y = x.detach().flatten(2), y.detach().flatten(2)
    centred = x - x.mean(2, keepdim=True)
    factor = (centred * y).sum(2) / centred.square().sum(2)
    return x.mean(2) - y.mean(2) / factor, 1 / factor


# --- the Jacobians ------------------------------------------------------------------------------------------------------

NUMBERS = ([0.3, -1.2, 2.0, 0.4, -0.7], [1.0, 4.0, 2.0], [5.0, 5.5, 4.0, 7.0, 6.0, 6.5])


def check_batch_norm(answer: ModuleType) -> None:
    """batch_norm_jacobian is the derivative of batch norm."""
    require_jacobian(answer.batch_norm_jacobian, lambda x: (x - x.mean()) / x.std(correction=0))


def check_exclusive_own(answer: ModuleType) -> None:
    """The diagonal of exclusive_jacobian is 1 / sigma_i: nothing of it goes through the statistics."""
    for numbers in NUMBERS:
        x = torch.tensor(numbers, dtype=torch.float64)
        found = jacobian_of(answer.exclusive_jacobian, x)
        for i in range(len(x)):
            hint = "mu_i and sigma_i are those of the others, so the sample's own change leaves them as they are"
            require_close(found[i, i], 1 / without(x, i).std(correction=0), 1e-6, f"J[{i}, {i}] at {numbers}; {hint}")


def check_exclusive_invariant(answer: ModuleType) -> None:
    """Adding a number to all samples, or multiplying all, changes nothing in exclusive batch norm: J 1 = 0 and J x = 0."""
    for numbers in NUMBERS:
        x = torch.tensor(numbers, dtype=torch.float64)
        found = jacobian_of(answer.exclusive_jacobian, x)
        for name, change in (("ones", torch.ones_like(x)), ("x", x)):
            off = (found @ change).abs().max().item()
            hint = "is the way through the statistics of the others missing, or one of its two parts?"
            require(off < 1e-6, f"J times {name} has numbers up to {off:.3g} at {numbers}", "zeros", hint)


def check_exclusive(answer: ModuleType) -> None:
    """exclusive_jacobian is the derivative of exclusive batch norm."""

    def exclusive(x: Tensor) -> Tensor:
        rest = [without(x, i) for i in range(len(x))]
        return torch.stack([(x[i] - r.mean()) / r.std(correction=0) for i, r in enumerate(rest)])

    require_jacobian(answer.exclusive_jacobian, exclusive)


def without(x: Tensor, i: int) -> Tensor:
    """The others."""
    return torch.cat((x[:i], x[i + 1 :]))


def jacobian_of(function: Callable, x: Tensor) -> Tensor:
    """What the learner's function gives, as a matrix."""
    found: Any = function(x)
    if found is ...:
        require(False, ..., "")
    size = (len(x), len(x))
    require(isinstance(found, Tensor) and tuple(found.shape) == size, found, f"a tensor of shape {size}")
    return found.detach()


def require_jacobian(function: Callable, norm: Callable[[Tensor], Tensor], h: float = 1e-5) -> None:
    """That a function gives the Jacobian of `norm`, by differences."""
    for numbers in NUMBERS:
        x = torch.tensor(numbers, dtype=torch.float64)
        steps = h * torch.eye(len(x), dtype=torch.float64)
        expected = torch.stack([(norm(x + step) - norm(x - step)) / (2 * h) for step in steps], dim=1)
        off = (jacobian_of(function, x) - expected).abs()
        i, j = divmod(int(off.argmax()), len(x))
        measured = f"J[{i}, {j}] = {jacobian_of(function, x)[i, j].item():.6g} at {numbers}"
        hint = "row i, column j: the derivative of y_i by x_j. It is not symmetric" if off.max() > 1e-6 else ""
        require(off.max() < 1e-6, measured, f"{expected[i, j].item():.6g}", hint)
