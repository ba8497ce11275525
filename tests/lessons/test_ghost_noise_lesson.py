"""The lesson's cloud tells wrong noise apart, its network is as it says, its arms differ in what they should."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from minitrain.lab.claims import evaluate
from minitrain.lab.compare import Result, Runs
from minitrain.lab.lessons import load_lesson
from minitrain.recipe import difference
from minitrain.resnet import ResNet
from minitrain.techniques.ghost_noise import GhostBatchNorm2d, NoisyAffine, ghost_noise

lesson = load_lesson("ghost_noise")
CLAIMS = {claim.name: claim for claim in lesson.CLAIMS}


@pytest.fixture(autouse=True)
def few_letters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lesson, "LETTERS", partial(lesson.letters, train=64, validation=64, pad=0))


def verdicts(arm: str, lines: list[list[dict[str, Any]]]) -> dict[str, str]:
    """Of all claims about one arm without training."""
    results = {(arm, None, seed): Result(arm, None, seed, x) for seed, x in enumerate(lines)}
    runs = Runs({}, {}, list(range(len(lines))), [None], results, {})
    return {name: evaluate(claim, runs)["verdict"] for name, claim in CLAIMS.items() if claim.arms == (arm,)}


def test_what_holds_exactly_holds_and_needs_its_own_ghost_batch(monkeypatch: pytest.MonkeyPatch):
    found = verdicts(lesson.EXACT, [lesson.identities(1000)])
    assert len(found) == 5
    assert set(found.values()) == {"holds"}
    monkeypatch.setattr(lesson, "ghost_noise", lambda a, q, idx, eps: ghost_noise(a, q, idx.roll(1, 0), eps))
    assert verdicts(lesson.EXACT, [lesson.identities(1000)])["separable"] == "does not hold"


def test_the_cloud_has_its_exact_moments():
    for arm, pixels in ((lesson.PIXELS, True), (lesson.NO_PIXELS, False)):
        found = verdicts(arm, [lesson.cloud(seed, pixels) for seed in range(1000, 1004)])
        assert found
        assert set(found.values()) == {"holds"}


def test_the_cloud_of_a_wrong_noise_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    def wrong(a: torch.Tensor, q: torch.Tensor, idx: torch.Tensor, eps: float) -> Any:
        """Indices of its own for each channel."""
        each = [ghost_noise(a[:, c : c + 1], q[:, c : c + 1], idx.roll(c, 0), eps) for c in range(a.shape[1])]
        return torch.cat([x for x, _ in each], 1), torch.cat([x for _, x in each], 1)

    monkeypatch.setattr(lesson, "ghost_noise", wrong)
    found = verdicts(lesson.PIXELS, [lesson.cloud(seed, True, draws=5000) for seed in range(1000, 1004)])
    assert found["channels-together"] == "does not hold"
    assert found["shift-variance"] == "holds"


def test_the_mean_of_one_over_scale_is_that_of_chi_squared():
    assert lesson.inverse_scale(16) == pytest.approx(1.0883, abs=1e-4)
    torch.manual_seed(0)
    _, scale = NoisyAffine(6).draw(torch.zeros(200_000, 1), None)
    assert (1 / scale).mean().item() == pytest.approx(lesson.inverse_scale(6), rel=0.01)


def test_a_sample_of_ghost_batch_norm_sees_itself_and_of_no_norm_does_not():
    x = torch.randn(32, 16, 4, 4, dtype=torch.float64)
    assert lesson.sees_itself(nn.Identity(), x) == 0
    assert lesson.sees_itself(GhostBatchNorm2d(16, 16).double(), x) > 1e-4


def test_the_network_looks_at_half_the_height_and_width():
    model = lesson.small_resnet(nn.BatchNorm2d)
    sizes: list[Any] = []
    model.stem.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(2, 16, 16, 16)]
    assert isinstance(model, ResNet)


def test_arms_that_train_differ_in_the_norm_and_the_rate_alone():
    arms = lesson.experiment(**lesson.PRESETS["record"])["arms"]
    pairs = [(lesson.BATCH, arm) for arm in lesson.NORMS if not arm.startswith("layer")]
    for first, second in [*pairs, (lesson.LAYER, lesson.LAYER_NOISE)]:
        (norm, rate), (other, other_rate) = lesson.NORMS[first], lesson.NORMS[second]
        expected = ({"build_model"} if norm is not other else set()) | (
            {"make_optimizer.lr"} if rate != other_rate else set()
        )
        paths = {path.partition(".norm")[0] for path in difference(arms[first], arms[second])}
        assert paths == expected
