"""Lesson 17: the master copy is real mixed precision, the search finds the largest, the probe sees a single bit."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from minitrain.lab.claims import evaluate
from minitrain.lab.compare import Result, Runs
from minitrain.lab.lessons import load_lesson
from minitrain.lab.plan import GB
from minitrain.optim import AdamW, wrapped
from minitrain.recipe import difference
from minitrain.techniques.split_weights import split
from minitrain.train import build, train

lesson = load_lesson("memory")
ARMS = lesson.experiment(seeds=2, steps=20, rounds=1, cards=(8,))["arms"]


def test_the_master_copy_is_torchs_adamw_on_float32_weights_with_bf16_gradients():
    torch.manual_seed(0)
    model = nn.Linear(64, 8, bias=False)
    masters = [torch.nn.Parameter(model.weight.detach().clone())]
    classic = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.1, fused=True)
    ours: Any = wrapped(model.parameters(), make=AdamW, by=(lesson.keep_master,), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        x = torch.randn(16, 64, dtype=torch.bfloat16)
        ours.zero_grad()
        model(x).float().square().mean().backward()
        gradient = model.weight.grad
        assert gradient is not None
        assert gradient.dtype == torch.bfloat16
        masters[0].grad = gradient.float()
        classic.step()
        ours.step()
        assert torch.equal(ours.storage.whole(model.weight, ours.state[model.weight]), masters[0])
        assert torch.equal(model.weight, split(masters[0].detach())[0])


@pytest.mark.parametrize("arm", ["float32 master", "16 bits, in backward"])
def test_weights_and_losses_are_those_of_16_bits(arm: str):
    metrics = {
        name: train(ARMS[name], probes=[lesson.AllBits(every=1)], log_every=1).metrics
        for name in ("16 bits", arm, "8 bits")
    }
    results = {(name, None, 0): Result(name, None, 0, lines) for name, lines in metrics.items()}
    runs = Runs({}, {}, [0], [None], results, {})
    assert lesson.different_bits(runs, arm) == [0.0]
    assert lesson.different_bits(runs, "8 bits")[0] > 0


def test_the_probe_sees_one_bit_and_leaves_the_run_as_it_is():
    run, probe = build(ARMS["16 bits"]), lesson.AllBits(every=1)
    before = copy.deepcopy(run.optimizer.state_dict())
    probe.before(run)
    nothing = probe.after(run)
    assert nothing["moved"] == 0
    assert str(run.optimizer.state_dict()) == str(before)
    matrices = next(group for group in run.optimizer.param_groups if group["name"] == "matrices")
    run.optimizer.state[matrices["params"][0]]["low"].view(-1)[0] ^= 1
    one = probe.after(run)
    assert one["fingerprint"] != nothing["fingerprint"]
    assert one["moved"] == pytest.approx(1 / sum(p.numel() for p in matrices["params"]))


@pytest.mark.parametrize(
    "size", [lambda depth: 0.3 * depth**2, lambda depth: 0.001 * depth**3 + 1, lambda depth: depth]
)
def test_one_block_more_would_not_fit(size, monkeypatch: pytest.MonkeyPatch):
    planned = []

    def plan_of_depth(depth: int, tricks: tuple) -> SimpleNamespace:
        planned.append(depth)
        total = size(depth) * GB
        return SimpleNamespace(total=total, parameters=1000 * depth, fits=lambda card: total <= card * GB)

    monkeypatch.setattr(lesson, "plan_of_depth", plan_of_depth)
    for card in (2, 8, 24, 80):
        (line,) = lesson.largest(0, (), card)
        assert size(line["depth"]) <= card < size(line["depth"] + 1)
        assert line["millions"] == line["depth"] / 1000
    assert len(planned) < 60
    monkeypatch.setattr(lesson, "plan_of_depth", lambda *_: SimpleNamespace(total=9 * GB, fits=lambda card: False))
    assert lesson.largest(0, (), 8) == [{"step": 0, "depth": 0, "millions": 0.0}]


@pytest.mark.parametrize(
    ("trick", "fields"),
    [
        ("chunked", {"loss"}),
        ("recomputed", {"build_model"}),
        ("split", {"make_optimizer", "precision"}),
        ("in backward", {"make_optimizer"}),
    ],
)
def test_each_trick_is_a_choice_of_its_own(trick: str, fields: set[str]):
    assert {path.partition(".")[0] for path in difference(lesson.gpt2(), lesson.gpt2(trick))} == fields


def test_times_are_ratios_of_the_median_round():
    lines = [{"step": i, "ms": ms, "against_ms": 2.0} for i, ms in enumerate((6.0, 90.0, 4.0))]
    assert lesson.time_ratio(lines) == 3.0
    recipe = lesson.SMALL
    found = lesson.timed(0, recipe=recipe, against=recipe, whole=True, rounds=3)
    assert [line["step"] for line in found] == [0, 1, 2]
    assert all(line["ms"] > 0 for line in found)


def test_claims_of_the_plans_are_about_their_own_arms():
    """A claim about 14 bytes must not hold for 16."""
    claims = {claim.name: claim for claim in lesson.CLAIMS}
    for taken, verdict in ((13.9, "holds"), (16.0, "does not hold")):
        metrics = [{"step": 0, "parameters": 1000, "total": 1000 * taken}]
        runs = Runs(
            {},
            {},
            [0, 1],
            [None],
            {("tower: split", None, s): Result("tower: split", None, s, metrics) for s in (0, 1)},
            {},
        )
        assert evaluate(claims["14-bytes"], runs)["verdict"] == verdict
