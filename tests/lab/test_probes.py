"""Probes: the chord formula is exact where the cosine's is not, rotation is what was done to the weight, nothing moves."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minitrain.lab.probes import Rotation, angle, rows


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def turned(w: Tensor, by: Tensor | float) -> Tensor:
    """Each row turned by its angle towards a random direction, computed in float64."""
    w64, other = w.double(), torch.randn(w.shape, dtype=torch.float64)
    unit = w64 / w64.norm(dim=-1, keepdim=True)
    sideways = other - (other * unit).sum(-1, keepdim=True) * unit
    sideways = sideways / sideways.norm(dim=-1, keepdim=True)
    by = torch.as_tensor(by, dtype=torch.float64)[..., None]
    return (w64.norm(dim=-1, keepdim=True) * (unit * by.cos() + sideways * by.sin())).to(w.dtype)


# --- the angle --------------------------------------------------------------------------------------------------------

ANGLES = [1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0, math.pi / 2, 2.0, 3.0, 3.1, math.pi]


def angle_by_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The usual way: near zero the cosine has no digits left in float32."""
    return torch.acos((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))


def worst_error(measure: Any, true: float, width: int) -> float:
    """The largest relative error over 200 pairs of float32 vectors at the angle `true`."""
    a = torch.randn(200, width)
    return ((measure(a, turned(a, true)).double() - true).abs().max() / true).item()


@pytest.mark.parametrize("width", [2, 64, 1024])
@pytest.mark.parametrize("true", [x for x in ANGLES if x >= 1e-4])
def test_angle_is_accurate_from_a_ten_thousandth_of_a_radian(true: float, width: int):
    assert worst_error(angle, true, width) < 1e-3


@pytest.mark.parametrize("true", [1e-4, 3e-4, 1e-3])
def test_the_angle_by_the_cosine_is_not(true: float):
    assert not worst_error(angle_by_cosine, true, width=64) < 1e-3


@pytest.mark.parametrize("true", ANGLES)
def test_angle_to_an_axis_is_exact(true: float):
    """Along an axis even a millionth of a radian has all its digits in float32."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(true), math.sin(true)])
    assert angle(a, b).item() == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("true", [1e-6, 1e-5])
def test_below_that_the_error_is_the_rounding_of_the_vectors(true: float):
    assert worst_error(angle, true, width=64) * true < 2e-7


def test_angle_of_a_vector_to_itself_is_zero():
    a = torch.randn(50, 64)
    assert (angle(a, a) == 0).all()


def test_angle_does_not_depend_on_lengths():
    a, b = torch.randn(2, 50, 64)
    torch.testing.assert_close(angle(1e-3 * a, 1e3 * b), angle(a, b))


def test_angle_is_taken_over_the_last_dimension():
    a, b = torch.randn(2, 3, 4, 5)
    assert angle(a, b).shape == (3, 4)
    assert torch.equal(angle(a, b)[1, 2], angle(a[1, 2], b[1, 2]))


def test_angle_to_a_zero_vector_is_not_a_number():
    assert angle(torch.zeros(3), torch.ones(3)).isnan()
    assert angle(torch.ones(3), torch.zeros(3)).isnan()


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "row_dims", "expected"),
    [
        ((4, 6), 1, (4, 6)),
        ((4, 6, 3, 3), 1, (4, 54)),
        ((4, 6, 3), 2, (24, 3)),
        ((4, 6, 3, 3), 2, (24, 9)),
        ((4, 6), 2, (24, 1)),
        ((4,), 1, (4, 1)),
    ],
)
def test_rows_are_neurons(shape: tuple, row_dims: int, expected: tuple):
    w = torch.arange(math.prod(shape)).float().view(shape)
    assert rows(w, row_dims).shape == expected
    assert torch.equal(rows(w, row_dims).flatten(), w.flatten())


# --- rotation ---------------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """Two matrices, a weight of three dimensions and a gain."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 20))
        self.second = nn.Parameter(torch.randn(5, 20))
        self.heads = nn.Parameter(torch.randn(2, 3, 20))
        self.gain = nn.Parameter(torch.ones(20))


def run_like() -> Any:
    """What a probe asks of a run: a model and an optimizer."""
    model = Weights()
    groups = [
        {"name": "matrices", "params": [model.second, model.first]},
        {"name": "heads", "params": [model.heads], "row_dims": 2},
        {"name": "gains", "params": [model.gain]},
    ]
    return SimpleNamespace(model=model, optimizer=torch.optim.SGD(groups, lr=0.1))


@torch.no_grad()
def measure(probe: Rotation, run: Any, **new: Tensor) -> dict[str, float]:
    """What the probe sees when the named weights change in place."""
    probe.before(run)
    for name, w in new.items():
        getattr(run.model, name).copy_(w)
    return next(value for key, value in probe.after(run).items() if key.startswith("rotation"))


@pytest.mark.parametrize("by", [1e-3, 0.2, 3.0])
def test_rotation_is_the_angle_the_weight_was_turned_by(by: float):
    run = run_like()
    seen = measure(Rotation(), run, first=turned(run.model.first, by))
    assert seen == {"first": pytest.approx(by, rel=1e-3), "second": 0.0}
    assert type(seen["first"]) is float


def test_rotation_is_the_root_mean_square_over_neurons():
    run, by = run_like(), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    seen = measure(Rotation(), run, first=turned(run.model.first, by))
    assert seen["first"] == pytest.approx(by.square().mean().sqrt().item(), rel=1e-3)


def test_growing_is_not_turning():
    run = run_like()
    seen = measure(Rotation(), run, first=3 * run.model.first * torch.rand(6, 1))
    assert seen["first"] < 1e-6


def test_a_zero_neuron_has_no_angle_and_is_left_out():
    run = run_like()
    with torch.no_grad():
        run.model.first[0] = 0
    new = turned(run.model.first, 0.2)
    new[0] = 1.0
    assert measure(Rotation(), run, first=new)["first"] == pytest.approx(0.2, rel=1e-3)


def test_row_dims_2_measures_each_head_by_itself():
    run = run_like()
    seen = measure(Rotation("heads"), run, heads=turned(run.model.heads, torch.tensor([[0.3, 0, 0], [0, 0, 0]])))
    assert seen == {"heads": pytest.approx(0.3 / 6**0.5, rel=1e-3)}


def test_row_dims_1_measures_all_of_a_neurons_inputs_together():
    run = run_like()
    run.optimizer.param_groups[1]["row_dims"] = 1
    new = turned(run.model.heads.detach().flatten(1), torch.tensor([0.3, 0.0])).view(2, 3, 20)
    assert measure(Rotation("heads"), run, heads=new) == {"heads": pytest.approx(0.3 / 2**0.5, rel=1e-3)}


def test_each_step_is_measured_from_its_own_start():
    run, probe = run_like(), Rotation()
    measure(probe, run, first=turned(run.model.first, 1.0))
    assert measure(probe, run, first=turned(run.model.first, 0.1))["first"] == pytest.approx(0.1, rel=1e-3)


def test_a_probe_leaves_weights_gradients_state_and_random_numbers_alone():
    run, probe = run_like(), Rotation()
    for p in run.model.parameters():
        p.grad = torch.randn_like(p)
    before = [x.clone() for p in run.model.parameters() for x in (p.detach(), p.grad)]
    state = torch.get_rng_state()
    probe.before(run)
    probe.after(run)
    after = [x for p in run.model.parameters() for x in (p.detach(), p.grad)]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not run.optimizer.state


def test_an_unknown_group_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="no group named 'matrizes'") as caught:
        Rotation("matrizes").before(run_like())
    assert "\n" not in str(caught.value)


class SGDWithPrediction(torch.optim.SGD):
    """Predicts a rotation for one of its groups only."""

    def equilibrium_rotation(self, group: dict[str, Any]) -> float | None:
        return 0.25 if group["name"] == "heads" else None


def test_a_prediction_is_shown_beside_the_measurement_where_there_is_one():
    run = run_like()
    run.optimizer = SGDWithPrediction(run.optimizer.param_groups, lr=0.1)
    for group, key, names, predicted in (
        ("heads", "rotation_of_heads", {"heads"}, {"predicted_rotation_of_heads": 0.25}),
        ("matrices", "rotation", {"first", "second"}, {}),
    ):
        probe = Rotation(group)
        probe.before(run)
        seen = probe.after(run)
        assert seen.pop(key).keys() == names
        assert seen == predicted
