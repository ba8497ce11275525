"""The lesson's data are seen once an epoch, its average is the library's, and its claims tell the two rules apart."""

import math

import numpy as np
import pytest
import torch

from minitrain.lab.compare import Result, Runs
from minitrain.lab.lessons import load_lesson
from minitrain.recipe import Data
from minitrain.schedules import constant, cosine

lesson = load_lesson("the_slow_clock")
CONTEXT, ROWS = 16, 4


@pytest.fixture(scope="module")
def passages():
    return {tokens: lesson.Passages(tokens, CONTEXT) for tokens in (256, 1024)}


def epoch(data, seed, number):
    """The inputs of one epoch, a row each, in order."""
    steps = data.size // CONTEXT // ROWS
    return torch.cat([data.batch(seed, number * steps + step, ROWS)[0] for step in range(steps)])


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


def test_every_passage_comes_once_an_epoch_in_an_order_of_its_own(passages):
    data = passages[1024]
    assert isinstance(data, Data)
    first, second = epoch(data, 7, 0), epoch(data, 7, 1)
    assert first.shape == (64, CONTEXT)
    assert len(as_set(first)) == 64
    assert as_set(first) == as_set(second)
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch(data, 7, 0))
    inputs, targets = data.batch(7, 3, ROWS)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_less_data_is_a_part_of_more_and_seeds_draw_others(passages):
    less, more = passages[256], passages[1024]
    assert as_set(epoch(less, 7, 0)) < as_set(epoch(more, 7, 0))
    assert not as_set(epoch(less, 7, 0)) & as_set(epoch(more, 8, 0))
    assert less.digest != more.digest
    assert torch.equal(less.validation(8)[0][0], more.validation(8)[0][0])


def test_what_does_not_fit_is_refused(passages):
    with pytest.raises(ValueError, match="multiple of 16"):
        lesson.Passages(250, CONTEXT)
    with pytest.raises(ValueError, match="multiple of 16"):
        lesson.Passages(16 * 10**7, CONTEXT)
    with pytest.raises(ValueError, match="no whole number of batches of 5"):
        passages[256].batch(0, 0, 5)


@pytest.mark.parametrize("schedule", [constant, lambda step: cosine(step, steps=40)])
def test_a_run_is_put_together_again(schedule):
    *lines, end = lesson.taken_apart(0, schedule=schedule, steps=40, runs=0.1)
    assert end["off_by"] < 1e-5
    assert end["sum_off_by"] < 1e-12
    assert 0 < end["last_tenth"] < 1
    assert sum(line["weight"] for line in lines) == pytest.approx(40)


def runs_with(best_of_more):
    """Runs of three seeds whose losses are parabolas in the logarithm of tau, lowest at 2 epochs and at `best_of_more`."""
    results, arms = {}, {}
    for data, tokens, lowest in (("less", 16_384, 2.0), ("more", 65_536, best_of_more)):
        for tau in lesson.TAUS:
            name = lesson.named(data, tau)
            arms[name] = {"data.tokens": str(tokens)}
            loss = math.log(2) * (3 + 0.1 * math.log2(tau / lowest) ** 2)
            for seed in range(3):
                results[name, None, seed] = Result(name, None, seed, [{"step": 1, "val_loss": loss}])
    return Runs(arms, {}, [0, 1, 2], [None], results, {})


@pytest.mark.parametrize(
    ("best_of_more", "power", "verdict"), [(2.0, -1.0, True), (0.5, 0.0, False), (1.3, None, True)]
)
def test_a_constant_tau_is_told_from_a_constant_decay(best_of_more, power, verdict):
    runs = runs_with(best_of_more)
    required = -1 - math.log2(best_of_more / 2) / 2 if power is None else power
    np.testing.assert_allclose(lesson.power(runs), required, atol=1e-9)
    claim = next(claim for claim in lesson.CLAIMS if claim.name == "same-tau")
    assert claim.statistic(runs) == [verdict] * 3
